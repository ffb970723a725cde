// Folds over a warp. simt::warp_fold makes any of them, as a tree of shuffles; those of counts, and of what
// has the order of integers, take one step of the hardware for each word.
#pragma once
#include "simt.cuh"

using simt::warp_fold;

// For folds over threads.
template <class R>
struct MergeOf {
    DEVICE R operator()(const R& a, const R& b) const { return R::merge(a, b); }
};

struct AddCounts {
    DEVICE u32 operator()(u32 a, u32 b) const { return a + b; }
};
DEVICE u32 warp_fold(u32 value, AddCounts, simt::Where at) { return simt::warp_add(value, at); }

// Floats are not negative, and none is NaN: their bits have their order.
struct Larger {
    DEVICE float operator()(float a, float b) const { return simt::max_num(a, b); }
    DEVICE u32 operator()(u32 a, u32 b) const { return a > b ? a : b; }
};
DEVICE u32 warp_fold(u32 value, Larger, simt::Where at) { return simt::warp_max(value, at); }
DEVICE float warp_fold(float value, Larger, simt::Where at) {
    return simt::float_of(simt::warp_max(simt::bits_of(value), at));
}
struct Smaller {
    DEVICE u32 operator()(u32 a, u32 b) const { return a < b ? a : b; }
};
DEVICE u32 warp_fold(u32 value, Smaller, simt::Where at) { return simt::warp_min(value, at); }

// The largest and the smallest of any floats, by integers in their order: -0 lies below 0, and a NaN without
// a sign above all.
DEVICE u32 ordered(float f) {
    const u32 bits = simt::bits_of(f);
    return bits ^ (bits >> 31 ? ~0u : 1u << 31);
}
DEVICE float of_ordered(u32 key) { return simt::float_of(key ^ (key >> 31 ? 1u << 31 : ~0u)); }
DEVICE float warp_largest(float value, simt::Where at) {
    return of_ordered(simt::warp_max(ordered(value), at));
}
DEVICE float warp_smallest(float value, simt::Where at) {
    return of_ordered(simt::warp_min(ordered(value), at));
}
