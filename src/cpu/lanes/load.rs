//! Scores as lanes.

use super::{LANES, Lanes};
use crate::{DType, Element};

/// Sixteen scores from `at` on, widened.
#[inline(always)]
pub(super) unsafe fn load<L: Lanes, T: Element>(at: *const T) -> L::F {
    unsafe {
        match T::DTYPE {
            DType::F16 => L::load_half(at.cast()),
            DType::Bf16 => L::load_bfloat(at.cast()),
            _ => L::load(at.cast()),
        }
    }
}

/// The last scores of a row, fewer than sixteen, with -inf behind them.
#[inline(always)]
pub(super) unsafe fn load_tail<L: Lanes, T: Element>(tail: &[T]) -> L::F {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes.iter_mut().zip(tail).for_each(|(lane, s)| *lane = s.to_f32());
    unsafe { L::load(lanes.as_ptr()) }
}

/// The i-th sixteen scores of a row, -inf behind its end.
#[inline(always)]
pub(super) unsafe fn vector<L: Lanes, T: Element>(row: &[T], i: usize) -> L::F {
    let at = i * LANES;
    if at + LANES <= row.len() {
        unsafe { load::<L, T>(row.as_ptr().add(at)) }
    } else {
        unsafe { load_tail::<L, T>(&row[at.min(row.len())..]) }
    }
}

#[inline(always)]
pub(super) unsafe fn lanes_of<L: Lanes>(v: L::F) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    unsafe { L::store(lanes.as_mut_ptr(), v) };
    lanes
}
