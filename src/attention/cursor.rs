//! Walks over the vectors of one sequence and some heads, page by page.

use super::views::Pages;
use crate::Element;
use crate::cpu::Lanes;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Requests the cache lines of some elements.
#[inline(always)]
pub(super) fn request<L: Lanes, T>(lanes: L, elements: &[T]) {
    for line in elements.iter().step_by(LINE / size_of::<T>()) {
        lanes.prefetch(line);
    }
}

/// A place in a sequence. Where it moves on by one page, it does not divide. Heads count from its own.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a, T: Element> {
    pages: Pages<'a, T>,
    ids: &'a [i32],
    head: usize,
    block: usize,
    /// The position of the block's first slot.
    first: usize,
    start: usize,
}

impl<'a, T: Element> Cursor<'a, T> {
    /// A cursor for positions from `at` on. The page of `at` is in use.
    pub(super) fn new(pages: &Pages<'a, T>, ids: &'a [i32], head: usize, at: usize) -> Self {
        let block = at / pages.page();
        let start = pages.start(ids[block] as usize, head);
        Cursor { pages: *pages, ids, head, block, first: block * pages.page(), start }
    }

    /// The slot of position `at` in its page, after which the fields are those of that page.
    #[inline(always)]
    fn slot(&mut self, at: usize) -> usize {
        let page = self.pages.page();
        // It is far beyond the page if `at` lies before it.
        let past = at.wrapping_sub(self.first);
        if past >= page {
            self.block = if past < 2 * page { self.block + 1 } else { at / page };
            self.first = self.block * page;
            self.start = self.pages.start(self.ids[self.block] as usize, self.head);
        }
        at - self.first
    }

    /// The page of position `at`.
    pub(super) fn page(&mut self, at: usize) -> usize {
        self.slot(at);
        self.ids[self.block] as usize
    }

    /// The vector at position `at` of head `head`, whose elements are neighbours.
    #[inline(always)]
    pub(super) fn vector(&mut self, at: usize, head: usize) -> &'a [T] {
        let slot = self.slot(at);
        self.pages.vector(self.pages.of_head(self.start, head), slot)
    }

    /// Finds the vectors of a head at the positions from `at` on.
    #[inline(always)]
    pub(super) fn vectors(&mut self, mut at: usize, head: usize, mut to: &mut [&'a [T]]) {
        while !to.is_empty() {
            let slot = self.slot(at);
            let (here, rest) = to.split_at_mut(to.len().min(self.pages.page() - slot));
            self.pages.vectors(self.pages.of_head(self.start, head), slot, here);
            at += here.len();
            to = rest;
        }
    }

    /// See [`Pages::columns`].
    #[inline(always)]
    pub(super) fn columns(&mut self, at: usize, head: usize) -> Option<(&'a [T], usize)> {
        let slot = self.slot(at);
        self.pages.columns(self.pages.of_head(self.start, head), slot)
    }

    /// Copies the vector at position `at` of a head.
    pub(super) fn copy(&mut self, at: usize, head: usize, to: &mut [T]) {
        let slot = self.slot(at);
        self.pages.copy(self.pages.of_head(self.start, head), slot, to);
    }

    /// Elements of a vector.
    pub(super) fn dim(&self) -> usize {
        self.pages.dim()
    }

    /// Whether the elements of a vector are neighbours.
    pub(super) fn is_contiguous(&self) -> bool {
        self.pages.is_contiguous()
    }
}
