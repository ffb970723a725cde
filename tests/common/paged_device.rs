//! Paged caches in device memory.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use crate::device::{encode, engine_of};
use crate::paged::{Cache, Layout, Shape};
use critbeta::Element;
use critbeta::cuda::{Arch, DeviceMemory, DevicePages, DeviceQueries, DeviceSequences, Engine, SimtOptions};

/// An engine of few SMs, so that a launch has several sequences and chunks for each.
pub fn engine(test: &str, seed: u64, shadow: bool) -> Option<Engine> {
    let mut options = SimtOptions::of(Arch::named("sm_90").unwrap());
    (options.seed, options.shadow, options.arch.sm_count) = (seed, shadow, 3);
    engine_of(test, options)
}

/// Shapes with every edge that lengths, pages, groups and heads have.
pub fn shapes() -> Vec<Shape> {
    let base = Shape::new(&[1, 0, 15, 16, 17, 63, 64, 65, 1700], [2, 3, 64]);
    let with = |edit: fn(&mut Shape)| {
        let mut shape = base.clone();
        edit(&mut shape);
        shape
    };
    vec![
        base.clone(),
        with(|s| (s.page, s.layout, s.v_dim) = (1, Layout::Hnd, 72)),
        with(|s| (s.page, s.layout) = (3, Layout::Interleaved)),
        with(|s| (s.page, s.dim, s.v_dim) = (64, 72, 72)),
        with(|s| (s.page, s.dim, s.v_dim, s.kv_heads, s.group) = (256, 128, 64, 1, 8)),
        with(|s| (s.page, s.v_dim, s.kv_heads, s.group) = (256, 128, 1, 8)),
        with(|s| (s.dim, s.kv_heads, s.group, s.v_dim) = (256, 1, 1, 256)),
        with(|s| (s.dim, s.kv_heads, s.group, s.lens, s.query_lens) = (96, 1, 71, vec![70, 3], vec![1; 2])),
        with(|s| (s.group, s.query_lens) = (5, vec![8; 9])),
        with(|s| s.query_lens = vec![1, 0, 2, 3, 4, 5, 6, 7, 8]),
    ]
}

/// A cache whose queries have the type of its keys.
pub fn cache_of<T: Element>(shape: &Shape, peak: f32) -> Cache<T> {
    let mut cache = Cache::draw(shape, peak);
    cache.queries.iter_mut().for_each(|q| *q = T::from_f32(*q).to_f32());
    cache
}

pub fn ragged(shape: &Shape) -> bool {
    shape.query_lens.iter().any(|&len| len != shape.query_lens[0])
}

/// A cache in device memory.
pub struct Uploaded {
    pub memory: Vec<DeviceMemory>,
    pub queries: DeviceQueries,
    pub keys: DevicePages,
    pub values: DevicePages,
    pub sequences: DeviceSequences,
}

pub fn upload<T: Element>(engine: &Engine, cache: &Cache<T>, ragged: bool) -> Uploaded {
    let shape = &cache.shape;
    let up = |bytes: &[u8]| engine.uploaded(bytes).unwrap();
    let tokens: usize = shape.query_lens.iter().sum();
    let mut starts = vec![0i32];
    starts.extend(cache.query_lens.iter().scan(0, |sum, len| {
        *sum += len;
        Some(*sum)
    }));
    let mut memory = vec![
        up(&encode(T::DTYPE, &cache.queries)),
        up(bytemuck::cast_slice(&cache.k)),
        up(bytemuck::cast_slice(&cache.table)),
        up(bytemuck::cast_slice(&cache.lens)),
        up(bytemuck::cast_slice(&starts)),
    ];
    let [queries, keys, table, lens, starts] = [0, 1, 2, 3, 4].map(|i| memory[i].address());
    let values = if cache.offset > 0 {
        keys + (cache.offset * size_of::<T>()) as u64
    } else {
        memory.push(up(bytemuck::cast_slice(&cache.v)));
        memory[5].address()
    };
    let pages = |which: usize, address| {
        let [pages, page, heads, dim] = cache.sizes[which].map(|size| size as u64);
        DevicePages::nhd(address, T::DTYPE, [pages, page, heads, dim]).with_strides(cache.strides[which])
    };
    let (keys, values) = (pages(0, keys), pages(1, values));
    let mut queries = DeviceQueries::dense(queries, [tokens as u64, shape.heads() as u64, keys.dim]);
    queries.query_len = shape.query_lens.iter().copied().max().unwrap() as u64;
    queries.starts = ragged.then_some(starts);
    let (seqs, blocks) = (shape.lens.len() as u64, cache.blocks as u64);
    let max_len = shape.lens.iter().copied().max().unwrap().max(1) as u64;
    let sequences = DeviceSequences::dense(table, [seqs, blocks], lens, max_len);
    Uploaded { memory, queries, keys, values, sequences }
}
