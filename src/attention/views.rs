//! Checked, borrowed views of what a server holds: pages of keys and values, block tables, and queries.

use crate::cpu::WIDTH;
use crate::{Element, Error, Result};

/// Smallest and largest number of elements of a head. It is also a multiple of [`DIM_STEP`].
pub(crate) const DIMS: std::ops::RangeInclusive<usize> = 64..=256;
pub(crate) const DIM_STEP: usize = 8;
/// The largest number of query tokens of one sequence.
pub(crate) const MAX_QUERY_LEN: usize = 8;
/// Key heads of a page. No model has nearly as many, and a stride of 0 would allow any number.
pub(crate) const MAX_KV_HEADS: usize = 1 << 16;
/// The largest number of query heads that share a key head.
pub(crate) const MAX_GROUP: usize = 128;

/// Distances in a pool of pages, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// From a page to the next page.
    pub page: usize,
    /// From a slot to the next slot of its page.
    pub slot: usize,
    /// From a head to the next head.
    pub head: usize,
    /// From an element of a head to the next element.
    pub element: usize,
}

/// A pool of keys or of values in pages. Each page has the same number of slots, and a slot holds one vector
/// for each head.
///
/// Keys and values may lie in one allocation: both views borrow it whole, with their own first element.
/// A slot that no sequence uses is never read.
#[derive(Debug, Clone, Copy)]
pub struct Pages<'a, T: Element> {
    data: &'a [T],
    pages: usize,
    page: usize,
    heads: usize,
    dim: usize,
    strides: Strides,
}

impl<'a, T: Element> Pages<'a, T> {
    /// Dense pages of the shape `[pages, page, heads, dim]`. Ragged dense keys are one page per sequence.
    ///
    /// Errors: [`Error::Attention`] unless `data` holds exactly these elements, each size is at least 1, and
    /// `dim` is a multiple of 8 in 64..=256.
    pub fn nhd(data: &'a [T], [pages, page, heads, dim]: [usize; 4]) -> Result<Self> {
        let strides = |page_elements, row| Strides { page: page_elements, slot: row, head: dim, element: 1 };
        Pages::dense(data, [pages, page, heads, dim], strides(elements([page, heads, dim]), heads * dim))
    }

    /// Dense pages of the shape `[pages, heads, page, dim]`.
    ///
    /// Errors: as for [`Pages::nhd`].
    pub fn hnd(data: &'a [T], [pages, heads, page, dim]: [usize; 4]) -> Result<Self> {
        let strides = Strides {
            page: elements([page, heads, dim]),
            slot: dim,
            head: elements([page, dim, 1]),
            element: 1,
        };
        Pages::dense(data, [pages, page, heads, dim], strides)
    }

    fn dense(data: &'a [T], sizes: [usize; 4], strides: Strides) -> Result<Self> {
        let view = Pages::strided(data, sizes, strides)?;
        if strides.page.checked_mul(sizes[0]) != Some(data.len()) {
            let detail = format!("the buffer holds {} elements, expected their product", data.len());
            return Err(Error::attention(shape(sizes), detail));
        }
        Ok(view)
    }

    /// Pages with any strides. Element `e` of head `h` in slot `s` of page `p` is at `p * strides.page + s *
    /// strides.slot + h * strides.head + e * strides.element`. The sizes are `[pages, page, heads, dim]`.
    ///
    /// Errors: [`Error::Attention`] if an element lies beyond `data`, neighbouring elements of two slots
    /// overlap, a size is 0, there are more than 65,536 heads, or `dim` is no multiple of 8 in 64..=256.
    pub fn strided(data: &'a [T], sizes: [usize; 4], strides: Strides) -> Result<Self> {
        let fail = |detail| Err(Error::attention(shape(sizes), detail));
        let [pages, page, heads, dim] = sizes;
        if sizes.contains(&0) {
            return fail("each size must be at least 1".to_owned());
        }
        if heads > MAX_KV_HEADS {
            return fail(format!("{heads} heads, expected at most {MAX_KV_HEADS}"));
        }
        if !DIMS.contains(&dim) || !dim.is_multiple_of(DIM_STEP) {
            return fail(format!("a head has {dim} elements, expected a multiple of 8 in 64..=256"));
        }
        let Strides { page: a, slot: b, head: c, element: d } = strides;
        if d == 0 || (page > 1 && (b == 0 || (d == 1 && b < dim))) {
            return fail(format!("slots {b} and elements {d} apart would overlap"));
        }
        if !reaches_within([(pages, a), (page, b), (heads, c), (dim, d)], data.len()) {
            return fail(format!(
                "with the strides {a}, {b}, {c}, {d} of page, slot, head and element they reach beyond the \
                 buffer of {} elements",
                data.len()
            ));
        }
        Ok(Pages { data, pages, page, heads, dim, strides })
    }

    /// Number of pages in the pool.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Slots of a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Elements of a head.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the elements of a head are neighbours.
    pub(super) fn is_contiguous(&self) -> bool {
        self.strides.element == 1
    }

    /// Where the first slot of a head in page `id` begins.
    pub(super) fn start(&self, id: usize, head: usize) -> usize {
        id * self.strides.page + head * self.strides.head
    }

    /// Where a slot begins for the head that is `head` after that of `start`.
    #[inline(always)]
    pub(super) fn of_head(&self, start: usize, head: usize) -> usize {
        start + head * self.strides.head
    }

    /// The vector at slot `slot` after `start`. Its elements are neighbours.
    #[inline(always)]
    pub(super) fn vector(&self, start: usize, slot: usize) -> &'a [T] {
        &self.data[start + slot * self.strides.slot..][..self.dim]
    }

    /// The vectors at the slots from `slot` on. Their elements are neighbours.
    #[inline(always)]
    pub(super) fn vectors(&self, start: usize, slot: usize, to: &mut [&'a [T]]) {
        // One page of one slot may have any stride.
        let stride = if self.page == 1 { self.data.len() } else { self.strides.slot };
        let vectors = self.data[start + slot * self.strides.slot..].chunks(stride);
        for (to, vector) in to.iter_mut().zip(vectors) {
            *to = &vector[..self.dim];
        }
    }

    /// The elements of the vectors from slot `slot` on, where vectors of 16 slots lie side by side: those of
    /// element `e` begin at `e` times the returned distance.
    #[inline(always)]
    pub(super) fn columns(&self, start: usize, slot: usize) -> Option<(&'a [T], usize)> {
        let beside = self.strides.slot == 1 && slot + WIDTH <= self.page;
        beside.then(|| (&self.data[start + slot..], self.strides.element))
    }

    /// Copies the vector at slot `slot` after `start`, whatever the distance of its elements is.
    pub(super) fn copy(&self, start: usize, slot: usize, to: &mut [T]) {
        let from = &self.data[start + slot * self.strides.slot..];
        for (to, from) in to[..self.dim].iter_mut().zip(from.iter().step_by(self.strides.element)) {
            *to = *from;
        }
    }
}

fn elements(sizes: [usize; 3]) -> usize {
    sizes.into_iter().fold(1, usize::saturating_mul)
}

fn shape([pages, page, heads, dim]: [usize; 4]) -> String {
    format!("{pages} pages x {page} slots x {heads} heads x {dim} elements")
}

/// Whether the last element of a view lies within `len`. Each axis has a size of at least 1 and a stride.
fn reaches_within<const N: usize>(axes: [(usize, usize); N], len: usize) -> bool {
    let last = axes.into_iter().try_fold(0usize, |sum, (size, stride)| {
        (size - 1).checked_mul(stride).and_then(|reach| sum.checked_add(reach))
    });
    last.is_some_and(|last| last < len)
}

/// The keys and the values of one layer. They have the same pages and heads, and may differ in `dim`.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv<'a, T: Element> {
    pub(super) k: Pages<'a, T>,
    pub(super) v: Pages<'a, T>,
}

impl<'a, T: Element> PagedKv<'a, T> {
    /// Joins keys and values.
    ///
    /// Errors: [`Error::Attention`] unless both have the same number of pages, slots and heads.
    pub fn new(k: Pages<'a, T>, v: Pages<'a, T>) -> Result<Self> {
        if (k.pages, k.page, k.heads) != (v.pages, v.page, v.heads) {
            let what = format!("keys of {}", shape([k.pages, k.page, k.heads, k.dim]));
            let detail = format!("the values have {}", shape([v.pages, v.page, v.heads, v.dim]));
            return Err(Error::attention(what, detail));
        }
        Ok(PagedKv { k, v })
    }
}

/// Which pages each sequence uses, in order.
#[derive(Debug, Clone, Copy)]
pub struct BlockTable<'a>(Blocks<'a>);

#[derive(Debug, Clone, Copy)]
enum Blocks<'a> {
    Rows { ids: &'a [i32], seqs: usize, blocks: usize, stride: usize },
    Ragged { indptr: &'a [i32], ids: &'a [i32] },
}

impl<'a> BlockTable<'a> {
    /// A table of the shape `[seqs, blocks]`, whose rows begin `stride` entries apart. Entries behind the
    /// length of a sequence may hold anything.
    ///
    /// Errors: [`Error::Attention`] if `stride < blocks` or a row reaches beyond `ids`.
    pub fn rows(ids: &'a [i32], [seqs, blocks]: [usize; 2], stride: usize) -> Result<Self> {
        let fits = seqs == 0 || blocks == 0 || reaches_within([(seqs, stride), (blocks, 1)], ids.len());
        if stride < blocks || !fits {
            let detail = format!("with stride {stride} its rows do not fit the {} entries given", ids.len());
            return Err(Error::attention(format!("block table of {seqs} x {blocks}"), detail));
        }
        Ok(BlockTable(Blocks::Rows { ids, seqs, blocks, stride }))
    }

    /// The entries `ids[indptr[s]..indptr[s + 1]]` for sequence `s`.
    ///
    /// Errors: [`Error::Attention`] unless `indptr` rises from at least 0 to at most the length of `ids`.
    pub fn ragged(indptr: &'a [i32], ids: &'a [i32]) -> Result<Self> {
        let fail = |detail| Err(Error::attention(format!("block indptr of {}", indptr.len()), detail));
        let [first, .., last] = indptr else {
            return fail("it must hold one entry more than there are sequences, two at least".to_owned());
        };
        if let Some(at) = indptr.windows(2).position(|pair| pair[1] < pair[0]) {
            return fail(format!("entry {} is {}, below {} before it", at + 1, indptr[at + 1], indptr[at]));
        }
        if *first < 0 || *last as usize > ids.len() {
            return fail(format!("it spans {first}..{last}, but there are {} indices", ids.len()));
        }
        Ok(BlockTable(Blocks::Ragged { indptr, ids }))
    }

    /// Number of sequences.
    pub fn seqs(&self) -> usize {
        match self.0 {
            Blocks::Rows { seqs, .. } => seqs,
            Blocks::Ragged { indptr, .. } => indptr.len() - 1,
        }
    }

    pub(super) fn of(&self, seq: usize) -> &'a [i32] {
        match self.0 {
            Blocks::Rows { blocks: 0, .. } => &[],
            Blocks::Rows { ids, blocks, stride, .. } => &ids[seq * stride..][..blocks],
            Blocks::Ragged { indptr, ids } => &ids[indptr[seq] as usize..indptr[seq + 1] as usize],
        }
    }
}

/// Integers that a server keeps per sequence.
#[derive(Debug, Clone, Copy)]
pub enum Lens<'a> {
    /// As block tables are.
    I32(&'a [i32]),
    /// As Rust counts.
    Usize(&'a [usize]),
}

impl<'a> From<&'a [i32]> for Lens<'a> {
    fn from(lens: &'a [i32]) -> Self {
        Lens::I32(lens)
    }
}

impl<'a> From<&'a [usize]> for Lens<'a> {
    fn from(lens: &'a [usize]) -> Self {
        Lens::Usize(lens)
    }
}

impl Lens<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Lens::I32(lens) => lens.len(),
            Lens::Usize(lens) => lens.len(),
        }
    }

    /// The length of sequence `seq`, or the number that is none.
    pub(super) fn get(&self, seq: usize) -> Result<usize, i32> {
        match self {
            Lens::I32(lens) => usize::try_from(lens[seq]).map_err(|_| lens[seq]),
            Lens::Usize(lens) => Ok(lens[seq]),
        }
    }
}

/// Sequences in a paged cache: their pages, and how many keys each has. The keys of the query tokens are
/// among them.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    pub(super) table: BlockTable<'a>,
    pub(super) lens: Lens<'a>,
}

impl<'a> Sequences<'a> {
    /// Joins a table and the lengths. [`super::decode`] checks the lengths and the page numbers that it uses.
    ///
    /// Errors: [`Error::Attention`] unless there is one length per row of the table.
    pub fn new(table: BlockTable<'a>, lens: impl Into<Lens<'a>>) -> Result<Self> {
        let lens = lens.into();
        if lens.len() != table.seqs() {
            let detail = format!("expected one for each of {} sequences", table.seqs());
            return Err(Error::attention(format!("{} lengths", lens.len()), detail));
        }
        Ok(Sequences { table, lens })
    }
}

/// Query vectors of the shape `[tokens, heads, dim]`. The tokens of a sequence follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Queries<'a, Q: Element> {
    data: &'a [Q],
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
    strides: [usize; 3],
    pub(super) lens: Option<Lens<'a>>,
}

impl<'a, Q: Element> Queries<'a, Q> {
    /// Dense queries, one token for each sequence.
    ///
    /// Errors: [`Error::Attention`] unless `data` holds exactly `tokens * heads * dim` elements.
    pub fn dense(data: &'a [Q], [tokens, heads, dim]: [usize; 3]) -> Result<Self> {
        if elements([tokens, heads, dim]) != data.len() {
            let what = format!("queries of {tokens} tokens x {heads} heads x {dim}");
            let detail = format!("the buffer holds {} elements, expected their product", data.len());
            return Err(Error::attention(what, detail));
        }
        Queries::strided(data, [tokens, heads, dim], [heads.saturating_mul(dim), dim, 1])
    }

    /// Queries with the strides of token, head and element.
    ///
    /// Errors: [`Error::Attention`] if an element lies beyond `data`.
    pub fn strided(data: &'a [Q], sizes: [usize; 3], strides: [usize; 3]) -> Result<Self> {
        let [tokens, heads, dim] = sizes;
        let axes = [(tokens, strides[0]), (heads, strides[1]), (dim, strides[2])];
        if !sizes.contains(&0) && !reaches_within(axes, data.len()) {
            let what = format!("queries of {tokens} tokens x {heads} heads x {dim}");
            let detail =
                format!("with strides {strides:?} they reach beyond the buffer of {} elements", data.len());
            return Err(Error::attention(what, detail));
        }
        Ok(Queries { data, tokens, heads, dim, strides, lens: None })
    }

    /// The same queries, with 0 to 8 tokens for each sequence.
    pub fn with_lens(self, lens: impl Into<Lens<'a>>) -> Self {
        Queries { lens: Some(lens.into()), ..self }
    }

    /// The vector of a token and head in f32.
    pub(super) fn widen(&self, token: usize, head: usize, to: &mut [f32]) {
        let [token_stride, head_stride, element] = self.strides;
        let start = token * token_stride + head * head_stride;
        to[..self.dim]
            .iter_mut()
            .enumerate()
            .for_each(|(e, to)| *to = self.data[start + e * element].to_f32());
    }
}
