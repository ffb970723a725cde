// Some query rows of a key head in shared memory, and what makes scores of their products with keys.
#pragma once
#include "../dtype.cuh"
#include "../math.cuh"
#include "rows.cuh"

constexpr u32 BLOCK = 32;  // elements that scores.rs takes together
constexpr u32 SCORE_THREADS = 128;

struct Finish {
    double scale, softcap;

    // Of a key that does not exist it is NaN.
    DEVICE float score(float product, bool exists = true) const {
        using namespace simt;
        double score = mul_rn(static_cast<double>(product), scale);
        if (softcap > 0.0) score = mul_rn(softcap, tanh(div_rn(score, softcap)));
        const float rounded = static_cast<float>(score);
        // No score counts as masked.
        return exists && rounded >= f32::LOW ? rounded : float_of(0x7fc00000);
    }
    static DEVICE double tanh(double x) {
        using namespace simt;
        const double far = x < 0 ? -x : x, e = exponential(mul_rn(-2.0, far));
        // Near 0, 1 - e loses digits.
        const double cube = mul_rn(mul_rn(far, far), far);
        const double t = far < 1e-3 ? sub_rn(far, div_rn(cube, 3.0)) : div_rn(sub_rn(1.0, e), add_rn(1.0, e));
        return x < 0 ? -t : t;
    }
};

// Some query rows of a key head, in shared memory, and where their scores go.
template <class T, u32 MOST>
struct QueryRows : GroupRows {
    static constexpr u32 SIZE = sizeof(typename T::Bits), V = T::PER_VECTOR;
    u32 vectors;  // 16 bytes each, from one row to the next
    Shared<Vec16> tile;
    // Of each row: where its scores are, as if they began at position 0, and the keys that it sees. To divide
    // for each score took 7 slots an element of a key (128 elements, 8 rows, 2026-11-30).
    Shared<u64> places;
    Shared<u32> begins, ends;

    DEVICE QueryRows(const AttentionParams& p, const Sequence& seq, u32 head) : GroupRows(p, seq, head) {
        // Whole blocks, and an odd number of 64 bytes, so that rows lie in different banks.
        const u32 blocks = (p.dim + BLOCK - 1) / BLOCK;
        vectors = SIZE == 2 ? 4 * (blocks | 1) : 8 * blocks;
        tile = simt::arena<Vec16>(0, MOST * vectors);
        places = simt::arena<u64>(16 * MOST * vectors, MOST);
        begins = simt::arena<u32>(16 * MOST * vectors + 8 * MOST, MOST);
        ends = simt::arena<u32>(16 * MOST * vectors + 12 * MOST, MOST);
    }
    // Bytes of the arena that are its own.
    DEVICE u32 bytes() const { return 16 * MOST * (vectors + 1); }
    // Loads rows from `from` on, `most` of them at most. All threads call it; behind the last row are zeros.
    DEVICE void load(u32 from, u32 most) {
        choose(from, most);
        if (simt::thread() < MOST) {
            const u32 i = simt::thread();
            const Keys keys = i < count ? seen(i) : Keys{0, 0};
            places.store(i, i < count ? scores_at_0(i) : 0);
            begins.store(i, keys.begin);
            ends.store(i, keys.end);
        }
        for (u32 i = simt::thread(); i < MOST * vectors; i += simt::threads()) {
            const u32 row = i / vectors, v = i % vectors;
            Vec16 query{{0, 0, 0, 0}};
            if (row < count && v * V < p.dim) {
                const u64 at = (seq.first + token(row)) * p.query_token + query_head(row) * p.query_head;
                query = Global<Vec16>(p.queries + SIZE * at).load(v);
            }
            tile.store(i, query);
        }
    }
    DEVICE bool sees(u32 i, u32 key) const { return Keys{begins.load(i), ends.load(i)}.holds(key); }
    DEVICE void store(const Finish& finish, u32 i, u32 key, bool exists, float product) const {
        if (!sees(i, key)) return;
        Global<float>(places.load(i)).store(key, finish.score(product, exists));
    }
};
