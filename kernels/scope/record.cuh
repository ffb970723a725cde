// Small values as words of shared memory.
#pragma once
#include "../folds.cuh"
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

// Words behind the counts, the first for gaps beyond their window, and behind the list, the first for the
// number of its keys.
constexpr u32 SPARE = 4;

// The list of one part.
template <u32 CANDIDATES>
struct ListOf {
    template <class Scope>
    static DEVICE void begin(Scope& scope, simt::Where at) {
        scope.sync(at);  // of the readers of the list before
        if (scope.thread() == 0) scope.list.store(CANDIDATES, 0);
        scope.sync(at);
    }
    // The first of n places, or CANDIDATES if there is no room for them.
    static DEVICE u32 claim(const Shared<u32>& list, u32 n) {
        const u32 place = list.claim(CANDIDATES, n);
        return place + n <= CANDIDATES ? place : CANDIDATES;
    }
    template <class Scope>
    static DEVICE u32 end(Scope& scope, simt::Where at) {
        scope.sync(at);
        return scope.list.load(CANDIDATES);
    }
};
