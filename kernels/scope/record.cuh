// Small values as words of shared memory.
#pragma once
#include "../params.cuh"

// At most so many words has a value that threads fold.
constexpr u32 RECORD_WORDS = 8;

template <class R>
DEVICE void store_record(const Shared<u32>& to, u32 slot, const R& value) {
    static_assert(sizeof(R) % 4 == 0 && sizeof(R) <= 4 * RECORD_WORDS, "at most 8 words");
    const u32* words = reinterpret_cast<const u32*>(&value);
    for (u32 w = 0; w < sizeof(R) / 4; ++w) to.store(slot * RECORD_WORDS + w, words[w]);
}
template <class R>
DEVICE R load_record(const Shared<u32>& from, u32 slot) {
    R value;
    u32* words = reinterpret_cast<u32*>(&value);
    for (u32 w = 0; w < sizeof(R) / 4; ++w) words[w] = from.load(slot * RECORD_WORDS + w);
    return value;
}

struct AddCounts {
    DEVICE u32 operator()(u32 a, u32 b) const { return a + b; }
};
