//! Walks over the vectors of one sequence and head, page by page.

use super::views::Pages;
use crate::Element;

/// A place in a sequence that moves forward. It divides once; then it counts pages.
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

    /// The slot of position `at` in its page, after which the fields are those of that page. Positions must
    /// not fall.
    #[inline(always)]
    fn slot(&mut self, at: usize) -> usize {
        if at - self.first >= self.pages.page() {
            let on = (at - self.first) / self.pages.page();
            self.block += on;
            self.first += on * self.pages.page();
            self.start = self.pages.start(self.ids[self.block] as usize, self.head);
        }
        at - self.first
    }

    /// The page of position `at`.
    pub(super) fn page(&mut self, at: usize) -> usize {
        self.slot(at);
        self.ids[self.block] as usize
    }

    /// The vector at position `at`, whose elements are neighbours.
    #[inline(always)]
    pub(super) fn vector(&mut self, at: usize) -> &'a [T] {
        let slot = self.slot(at);
        self.pages.vector(self.start, slot)
    }

    /// Finds the vectors at the positions from `at` on.
    #[inline(always)]
    pub(super) fn vectors(&mut self, mut at: usize, mut to: &mut [&'a [T]]) {
        while !to.is_empty() {
            let slot = self.slot(at);
            let (here, rest) = to.split_at_mut(to.len().min(self.pages.page() - slot));
            self.pages.vectors(self.start, slot, here);
            at += here.len();
            to = rest;
        }
    }

    /// See [`Pages::columns`].
    #[inline(always)]
    pub(super) fn columns(&mut self, at: usize) -> Option<(&'a [T], usize)> {
        let slot = self.slot(at);
        self.pages.columns(self.start, slot)
    }

    /// Copies the vector at position `at`.
    pub(super) fn copy(&mut self, at: usize, to: &mut [T]) {
        let slot = self.slot(at);
        self.pages.copy(self.start, slot, to);
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
