// The rows of one pass: queries, the exponent of each row, and what its first and last keys say about it.
#pragma once
#include "../rule.cuh"
#include "products.cuh"
#include "unit.cuh"

// exp(-beta gap) of two scores, or of a score and the largest one.
template <class T>
DEVICE float pass_weight(float score, float max, const Exponent& b) {
    float gap;
    if (b.special) return simt::mul_rn(weigh<SPECIAL>(score, max, b, gap), 1 / WEIGHT_ONE);
    if (T::PER_VECTOR == 4) return simt::mul_rn(weigh<FINE>(score, max, b, gap), 1 / WEIGHT_ONE);
    return weigh<ROUGH>(score, max, b, gap);
}

// What a warp knows of each row: its largest score so far, which all weights refer to; what this made of the
// weights before; and 2^32 over the known part of Z.
struct RowStates {
    static constexpr u32 WORDS = 3 * VALUE_ROWS, BYTES = 4 * WORDS;
    Shared<float> tops, factors, units;
    DEVICE RowStates(u32 begin, u32 warp) {
        const Shared<float> own = simt::arena<float>(begin + warp * BYTES, WORDS);
        tops = own.cast<float>(0, VALUE_ROWS);
        factors = own.cast<float>(VALUE_ROWS, VALUE_ROWS);
        units = own.cast<float>(2 * VALUE_ROWS, VALUE_ROWS);
    }
};

template <class T>
struct PassRows : QueryRows<T, T::PER_VECTOR == 4 ? WIDE_QUERY_ROWS : VALUE_ROWS> {
    static constexpr u32 MOST = T::PER_VECTOR == 4 ? WIDE_QUERY_ROWS : VALUE_ROWS;
    typedef QueryRows<T, MOST> Base;
    static constexpr u32 SEEDS = 128;  // keys of which every CTA knows the scores, before it begins
    Shared<float> exponents;  // high, low, scale and limit of each row
    Shared<double> betas;
    // Of all rows of the key head: the largest score of its seeds, and the sum of their weights.
    Shared<float> tops, sums;
    u32 units;  // where the arena is free
    static_assert(24 * VALUE_ROWS + 15 + VALUE_WARPS * RowStates::BYTES <= ONE_PASS_BYTES, "twin of the host");

    DEVICE PassRows(const AttentionParams& p, const Sequence& seq, u32 head) : Base(p, seq, head) {
        u32 at = this->bytes();
        const auto next = [&](u32 bytes) { return (at += bytes) - bytes; };
        betas = simt::arena<double>(next(8 * MOST), MOST);
        exponents = simt::arena<float>(next(16 * MOST), 4 * MOST);
        const u32 most = p.query_len * p.group;
        tops = simt::arena<float>(next(4 * most), most);
        sums = simt::arena<float>(next(4 * most), most);
        units = (at + 15) / 16 * 16;
    }
    DEVICE void take(u32 from) {
        this->load(from, this->p.value_rows);
        if (simt::thread() < this->count) {
            const u32 i = simt::thread();
            const Keys keys = this->seen(i);
            const u32 n = keys.end - keys.begin, at = keys.end > 0 ? keys.end - 1 : 0;
            const double beta = bounded(beta_by(this->p, n, at, 0, 0), this->p.rule, n);
            const Exponent b(beta);
            betas.store(i, beta);
            exponents.store(4 * i, b.high);
            exponents.store(4 * i + 1, b.low);
            exponents.store(4 * i + 2, b.scale);
            exponents.store(4 * i + 3, b.limit);
        }
        simt::block_sync();
    }
    DEVICE Exponent exponent(u32 i) const {
        const Vec16 found = exponents.template cast<Vec16>(0, MOST).load(i);
        return Exponent(simt::float_of(found.word[0]), simt::float_of(found.word[1]),
                        simt::float_of(found.word[2]), simt::float_of(found.word[3]));
    }
    // Of the seeds of the rows that were taken: the largest score of each row, and the sum of their weights,
    // which is no more than that of all keys. Every CTA finds the same. Poisoned scores do not count.
    DEVICE void seed(const PagedVectors<T, false>& keys, const Keys& all, const Finish& finish) {
        const u32 half = all.end - all.begin < SEEDS ? all.begin + UNIT : all.end - UNIT;
        const u32 first = (simt::warp() < 4 ? all.begin : half) + 16 * (simt::warp() % 4);
        const Shared<float> scores = simt::arena<float>(units, MOST * SEEDS);
        multiply(
            *this, [&](u32 k) { return keys.address(first + k); },
            [&](u32 i, u32 k, bool exists, float product) {
                const bool counts = exists && i < this->count && this->sees(i, first + k);
                scores.store(i * SEEDS + 16 * simt::warp() + k, counts ? finish.score(product) : -INFINITE);
            });
        simt::block_sync();
        for (u32 i = simt::warp(); i < this->count; i += VALUE_WARPS) {
            float own[SEEDS / 32], top = -INFINITE, sum = 0;
            const Exponent b = exponent(i);
#pragma unroll
            for (u32 k = 0; k < SEEDS / 32; ++k) {
                own[k] = scores.load(i * SEEDS + 32 * k + simt::lane());
                if (own[k] > top && own[k] < INFINITE) top = own[k];
            }
            top = simt::warp_fold(top, [](float one, float other) { return one > other ? one : other; });
#pragma unroll
            for (u32 k = 0; k < SEEDS / 32; ++k) {
                if (!(own[k] > -INFINITE && own[k] <= top)) continue;
                sum = simt::add_rn(sum, pass_weight<T>(own[k], top, b));
            }
            sum = simt::warp_fold(sum, [](float one, float other) { return simt::add_rn(one, other); });
            if (simt::lane() == 0) {
                tops.store(this->first + i, top);
                sums.store(this->first + i, sum);
            }
        }
        simt::block_sync();
    }
};
