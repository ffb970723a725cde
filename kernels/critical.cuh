// The critical beta of a row: Lambda(r) = sup over t > 0 with log N(t) > r of (log N(t) - r) / t.
// Twin of src/critical.rs.
//
// A gap is one rounded f32 subtraction. Its bits, the key, have the order of gaps.
#pragma once
#include "params.cuh"
#include "stats.cuh"

constexpr u32 LARGEST_KEY = 0x7f7fffff;  // masked scores, and gaps that overflow f32, lie above it

// The next larger gap.
DEVICE float above(float gap) { return gap < INFINITE ? simt::float_of(simt::bits_of(gap) + 1) : gap; }
DEVICE u32 gap_key(float max, float score) { return simt::bits_of(simt::sub_rn(max, score)); }

// The best ratio so far, with its contact; of equal ratios the one with the larger gap. If the gaps are equal
// too, the rank decides: no contact has rank 0, the top itself has its ties.
struct Peak {
    double ratio;
    u32 key, rank;
    static DEVICE Peak merge(const Peak& a, const Peak& b) {
        if (b.ratio != a.ratio) return b.ratio > a.ratio ? b : a;
        if (b.key != a.key) return b.key > a.key ? b : a;
        return b.rank > a.rank ? b : a;
    }
};
// Word by word: the lanes whose words so far are the largest bring the next one. Ratios are not negative.
DEVICE Peak warp_fold(const Peak& of, MergeOf<Peak>, simt::Where at) {
    const u64 bits = simt::bits_of(of.ratio);
    const u32 words[4] = {static_cast<u32>(bits >> 32), static_cast<u32>(bits), of.key, of.rank};
    u32 best[4];
    bool in = true;
#pragma unroll
    for (u32 w = 0; w < 4; ++w) {
        best[w] = simt::warp_max(in ? words[w] : 0, at);
        in = in && words[w] == best[w];
    }
    return Peak{simt::double_of(static_cast<u64>(best[0]) << 32 | best[1]), best[2], best[3]};
}

// (log rank - r) / gap if that is positive, else 0; infinite for a tie at the maximum whose log N exceeds r.
// Whether log N exceeds r is decided by the host: `exceeding` is the smallest such count, and its excess is
// known from the host's logarithm. For larger counts a last bit decides nothing.
struct Excess {
    double resolve, least;
    u32 exceeding;
    DEVICE explicit Excess(const RowParams& p)
        : resolve(p.resolve), least(p.excess), exceeding(p.exceeding) {}
    DEVICE double ratio(float gap, u32 rank) const {
        if (rank < exceeding) return 0;
        if (gap == 0) return simt::double_of(0x7ff0000000000000ull);
        return simt::div_rn(rank == exceeding ? least : simt::sub_rn(ln(rank), resolve),
                            static_cast<double>(gap));
    }
};

// Bounds in f32, with errors to the safe side only, that rule gaps out. The others are compared exactly
// later.
struct Bounds {
    // Ratios are limited to STEEPEST: beyond it f32 bounds would be infinite.
    static constexpr float STEEPEST = 1e37f, UP = 1 + 0x1p-20f, DOWN = 1 - 0x1p-20f;

    const RowParams& p;
    u32 n;           // unmasked scores
    bool plain;      // Lambda instead of Lambda(resolve)
    float attained;  // a ratio that a gap attains, rounded down
    float last;      // the search looks at no gap from this one on

    DEVICE Bounds(const RowParams& p, u32 n, bool plain)
        : p(p), n(n), plain(plain), attained(0), last(INFINITE) {}
    DEVICE bool partial() const { return p.top_k > 0 && p.top_k < n; }
    DEVICE double resolve() const { return plain ? 0.0 : p.resolve; }
    DEVICE double ratio(float gap, u32 rank) const {
        Excess excess(p);
        if (plain) {
            excess.resolve = 0;
            excess.least = 0x1.62e42fefa39efp-1;  // ln 2
            excess.exceeding = 2;
        }
        return excess.ratio(gap, rank);
    }
    // With top_k no rank is larger than it.
    DEVICE u32 capped(u32 rank) const { return partial() && rank > p.top_k ? p.top_k : rank; }
    DEVICE float excess(u32 rank, float error) const {
        return simt::add_rn(simt::sub_rn(ln_bound(capped(rank)), static_cast<float>(resolve())), error);
    }
    // Whether a gap of this size or a larger one, and with at most `rank` scores within it, can attain the
    // best ratio.
    DEVICE bool can_win(float gap, u32 rank) const {
        const float upper = simt::mul_rn(excess(rank, LN_ERROR), UP);
        return upper > 0 && upper >= simt::mul_rn(attained, gap);
    }
    // The ratio that a gap of this size or a smaller one, and at least `rank` scores within it, surely
    // attains; or `lower` if that is larger.
    DEVICE float attains(float gap, u32 rank, float lower) const {
        const float sure = simt::mul_rn(excess(rank, -LN_ERROR), DOWN);
        if (!(sure > simt::mul_rn(lower, gap))) return lower;
        return simt::min_num(simt::mul_rn(simt::div_rn(sure, gap), DOWN), STEEPEST);
    }
    // No gap from this one on can attain the best ratio.
    DEVICE float reach() const {
        return attained > 0 ? simt::min_num(above(widest()), last) : last;
    }
    DEVICE float widest() const {
        return simt::mul_rn(simt::div_rn(simt::max_num(excess(n, LN_ERROR), 0), attained), UP);
    }
    DEVICE void raise(double ratio) {
        const float rounded = simt::mul_rn(static_cast<float>(ratio), DOWN);
        attained = simt::max_num(attained, simt::min_num(rounded, STEEPEST));
    }
};
