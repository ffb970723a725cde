//! Paged caches that tests and benches share: pools in several layouts, with NaN wherever nobody may read.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use critbeta::Element;
use critbeta::attention::{
    BlockTable, DecodeCall, DecodeRow, PagedKv, Pages, Queries, Sequences, Strides, decode,
};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;

/// A call with some of its options set.
#[macro_export]
macro_rules! call {
    ($rules:expr) => {
        critbeta::attention::DecodeCall::new($rules)
    };
    ($rules:expr $(, $field:ident = $value:expr)+) => {{
        let mut call = critbeta::attention::DecodeCall::new($rules);
        $(call.$field = $value;)+
        call
    }};
}

/// How a pool lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Layout {
    /// `[pages, page, heads, dim]`.
    Nhd,
    /// `[pages, heads, page, dim]`.
    Hnd,
    /// Each vector of values follows its vector of keys.
    Interleaved,
    /// `[pages, heads, dim, page]` for keys, `[pages, heads, page, dim]` for values.
    Transposed,
    /// `[pages, heads, page, dim]` with gaps on every axis, for keys and values.
    Gaps,
}

pub const LAYOUTS: [Layout; 5] =
    [Layout::Nhd, Layout::Hnd, Layout::Interleaved, Layout::Transposed, Layout::Gaps];

/// The shape of a cache and of the queries on it.
#[derive(Debug, Clone)]
pub struct Shape {
    pub lens: Vec<usize>,
    pub query_lens: Vec<usize>,
    pub page: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub dim: usize,
    pub v_dim: usize,
    pub layout: Layout,
    pub seed: u64,
}

impl Shape {
    /// One query token per sequence over pages of 16.
    pub fn new(lens: &[usize], [kv_heads, group, dim]: [usize; 3]) -> Shape {
        let (lens, query_lens) = (lens.to_vec(), vec![1; lens.len()]);
        Shape { lens, query_lens, page: 16, kv_heads, group, dim, v_dim: dim, layout: Layout::Nhd, seed: 1 }
    }

    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }
}

/// A cache in memory. What a sequence at its length does not use is NaN, and its table is -1 there.
#[derive(Clone)]
pub struct Cache<T> {
    pub shape: Shape,
    pub k: Vec<T>,
    pub v: Vec<T>,
    pub sizes: [[usize; 4]; 2],
    pub strides: [Strides; 2],
    /// Where the first value lies in `k`, if both share it.
    pub offset: usize,
    pub table: Vec<i32>,
    pub blocks: usize,
    pub lens: Vec<i32>,
    pub query_lens: Vec<i32>,
    pub queries: Vec<f32>,
}

impl<T: Element> Cache<T> {
    /// Draws keys, values and queries. They depend on the seed and on the place in their sequence, and not on
    /// the layout, the page, or other sequences. `peak` is the deviation of scores.
    pub fn draw(shape: &Shape, peak: f32) -> Cache<T> {
        let Shape { page, kv_heads, dim, v_dim, .. } = *shape;
        let blocks = shape.lens.iter().map(|len| len.div_ceil(page)).max().unwrap_or(0) + 1;
        let used: usize = shape.lens.iter().map(|len| len.div_ceil(page)).sum();
        let pages = used + 3;
        let (sizes, strides, elements, offset) = place(shape, pages);
        let nan = T::from_f32(f32::NAN);
        let mut cache = Cache {
            shape: shape.clone(),
            k: vec![nan; elements[0]],
            v: vec![nan; elements[1]],
            sizes,
            strides,
            offset,
            table: vec![-1; blocks * shape.lens.len()],
            blocks,
            lens: shape.lens.iter().map(|&len| len as i32).collect(),
            query_lens: shape.query_lens.iter().map(|&len| len as i32).collect(),
            queries: Vec::new(),
        };
        let mut ids: Vec<i32> = (0..pages as i32).collect();
        ids.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(shape.seed ^ 77));
        let mut free = ids.into_iter();
        for (seq, &len) in shape.lens.iter().enumerate() {
            // A sequence has its own numbers, whatever else is in the batch.
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(shape.seed * 1000 + len as u64);
            for (at, head) in (0..len).flat_map(|at| (0..kv_heads).map(move |head| (at, head))) {
                if at % page == 0 && head == 0 {
                    cache.table[seq * blocks + at / page] = free.next().unwrap();
                }
                let key: Vec<f32> = (0..dim).map(|_| rng.sample(StandardNormal)).collect();
                let value: Vec<f32> = (0..v_dim).map(|_| rng.sample(StandardNormal)).collect();
                cache.set_key(seq, head, at, &key);
                cache.set_value(seq, head, at, &value);
            }
            for _ in 0..shape.query_lens[seq] * shape.heads() * dim {
                let q: f32 = rng.sample(StandardNormal);
                cache.queries.push(q * peak);
            }
        }
        cache
    }

    fn start(&self, which: usize, seq: usize, head: usize, at: usize) -> usize {
        let page = self.table[seq * self.blocks + at / self.shape.page];
        let s = self.strides[which];
        page as usize * s.page + at % self.shape.page * s.slot + head * s.head
    }

    pub fn set_key(&mut self, seq: usize, head: usize, at: usize, key: &[f32]) {
        let (start, step) = (self.start(0, seq, head, at), self.strides[0].element);
        key.iter().enumerate().for_each(|(e, k)| self.k[start + e * step] = T::from_f32(*k));
    }

    pub fn set_value(&mut self, seq: usize, head: usize, at: usize, value: &[f32]) {
        let (start, step) = (self.start(1, seq, head, at) + self.offset, self.strides[1].element);
        let pool = if self.offset > 0 { &mut self.k } else { &mut self.v };
        value.iter().enumerate().for_each(|(e, v)| pool[start + e * step] = T::from_f32(*v));
    }

    pub fn value(&self, seq: usize, head: usize, at: usize) -> Vec<f64> {
        let (start, step) = (self.start(1, seq, head, at) + self.offset, self.strides[1].element);
        let pool = if self.offset > 0 { &self.k } else { &self.v };
        (0..self.shape.v_dim).map(|e| f64::from(pool[start + e * step].to_f32())).collect()
    }

    pub fn kv(&self) -> PagedKv<'_, T> {
        let k = Pages::strided(&self.k, self.sizes[0], self.strides[0]).unwrap();
        let v = if self.offset > 0 { &self.k[self.offset..] } else { &self.v };
        PagedKv::new(k, Pages::strided(v, self.sizes[1], self.strides[1]).unwrap()).unwrap()
    }

    pub fn keys(&self) -> Pages<'_, T> {
        Pages::strided(&self.k, self.sizes[0], self.strides[0]).unwrap()
    }

    pub fn sequences(&self) -> Sequences<'_> {
        let table = BlockTable::rows(&self.table, [self.lens.len(), self.blocks], self.blocks).unwrap();
        Sequences::new(table, &self.lens[..]).unwrap()
    }

    pub fn queries(&self) -> Queries<'_, f32> {
        let tokens = self.shape.query_lens.iter().sum();
        let sizes = [tokens, self.shape.heads(), self.shape.dim];
        Queries::dense(&self.queries, sizes).unwrap().with_lens(&self.query_lens[..])
    }

    /// The largest norm of the values in use, for each page and kv head, rounded up.
    pub fn radii(&self) -> Vec<f32> {
        let (pages, heads) = (self.sizes[1][0], self.shape.kv_heads);
        let mut radii = vec![0.0f32; pages * heads];
        for (seq, &len) in self.shape.lens.iter().enumerate() {
            for (at, head) in (0..len).flat_map(|at| (0..heads).map(move |head| (at, head))) {
                let page = self.table[seq * self.blocks + at / self.shape.page] as usize;
                let norm = self.value(seq, head, at).iter().map(|v| v * v).sum::<f64>().sqrt();
                let radius = &mut radii[page * heads + head];
                *radius = radius.max((norm as f32).next_up());
            }
        }
        radii
    }

    /// The output in f32, and the rows.
    pub fn decode(&self, call: &DecodeCall) -> (Vec<f32>, Vec<DecodeRow>) {
        let tokens: usize = self.shape.query_lens.iter().sum();
        let mut out = vec![7.0f32; tokens * self.shape.heads() * self.shape.v_dim];
        let rows = decode(&self.queries(), &self.kv(), &self.sequences(), call, &mut out).unwrap();
        (out, rows)
    }
}

type Placed = ([[usize; 4]; 2], [Strides; 2], [usize; 2], usize);

/// Sizes, strides, elements to allocate, and the first value if both lie in one allocation.
fn place(shape: &Shape, pages: usize) -> Placed {
    let Shape { page, kv_heads: heads, dim, v_dim, layout, .. } = *shape;
    let sizes = [[pages, page, heads, dim], [pages, page, heads, v_dim]];
    let nhd = |dim| Strides { page: page * heads * dim, slot: heads * dim, head: dim, element: 1 };
    let hnd = |dim| Strides { page: page * heads * dim, slot: dim, head: page * dim, element: 1 };
    let dense = [pages * page * heads * dim, pages * page * heads * v_dim];
    match layout {
        Layout::Nhd => (sizes, [nhd(dim), nhd(v_dim)], dense, 0),
        Layout::Hnd => (sizes, [hnd(dim), hnd(v_dim)], dense, 0),
        Layout::Interleaved => (sizes, [nhd(dim + v_dim); 2], [dense[0] + dense[1], 0], dim),
        Layout::Transposed => {
            let k = Strides { page: page * heads * dim, slot: 1, head: page * dim, element: page };
            (sizes, [k, hnd(v_dim)], dense, 0)
        }
        Layout::Gaps => {
            let gaps = |dim: usize| {
                let slot = 3 * dim + 5;
                let head = page * slot + 7;
                Strides { page: heads * head + 11, slot, head, element: 3 }
            };
            let elements = [gaps(dim).page * pages, gaps(v_dim).page * pages];
            (sizes, [gaps(dim), gaps(v_dim)], elements, 0)
        }
    }
}

/// Bits that can be compared: every NaN is one.
pub fn bits(out: &[f32]) -> Vec<u32> {
    out.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}
