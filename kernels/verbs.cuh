// The steps of every kernel: row_max -> (maxima -> critical_beta) -> beta -> partition -> write_probs.
// All threads of the scope call each of them, and its result is valid in all of them.
#pragma once
#include "probs.cuh"
#include "rule.cuh"
#include "search.cuh"
#include "scope/split.cuh"
#include "scope/warp.cuh"
#if SIMT_CLUSTERS
#include "scope/cluster.cuh"
#endif

// Whether a masked score might have a weight at b, if it is not replaced by -inf.
template <class T>
DEVICE bool masks_matter(const Exponent& b, float max) {
    return b.special || !(simt::mul_rn(b.high, simt::sub_rn(max, T::LOW)) > 151);
}

// All results of one row; with OUT its probabilities too.
template <bool OUT, class T, class Scope>
DEVICE void measure_row(const RowParams& p, Scope& scope) {
    constexpr bool NARROW = sizeof(typename T::Bits) == 2, KEEP = OUT && !NARROW;
    const RowTile<T, Scope::STREAMS> row(p, scope);
    row.load(p, scope);
    const bool critical = p.rule == RULE_CRITICAL || (!OUT && p.report);
    // The early sum needs a beta that is known before the row (unless some of its scores are masked), and
    // scores that are still there after the probabilities are written.
    const bool sums_early =
        OUT && Scope::STREAMS && !critical && !p.report && !needs_entropy(p) && p.out != p.scores;
    EarlySum early(sums_early ? beta_for(p, scope, row.len, 0, 0) : 0, sums_early);
    // A beta that is known tells whether a masked score could have a weight. All others need the number of
    // scores that are not masked.
    const bool knows = OUT && !p.report && (p.rule == RULE_FIXED || p.rule == RULE_ARRAY);
    Groups<T> groups;
    float least;
    RowMax top = row_max(scope, row, groups, early, !knows, least);
    const bool masks = knows ? masks_matter<T>(Exponent(beta_for(p, scope, row.len, 0, 0)), top.max)
                             : least < T::LOW;
    if (masks) {
        top.len = mask(scope, row, groups);
        top.max = unless_masked(top.max, T::LOW);
    }
    const bool poisoned = top.poisoned();
    const bool reports = p.report && scope.leads();
    double lambda = 0, entropy = 0;
    if (p.report || (critical && !poisoned)) {
        const Maxima found = maxima(scope, row, top, groups);
        top.second = found.second;
        if (reports) report_top(ReportWords(p, scope.row), top, found);
        // If both are wanted, Lambda comes first. For r = 0 they are the same.
        bool plain = !OUT && p.both && p.resolve != 0;
#pragma unroll 1
        while (critical && !poisoned) {
            const Peak peak = critical_beta(p, scope, row, top, found.ties, plain, groups);
            if (reports) {
                const ReportWords report(p, scope.row);
                const Contact contact{simt::float_of(peak.key), peak.rank};
                if (plain || p.resolve == 0) report.put(FIELD(critical), contact);
                if (!plain) report.put(FIELD(resolved), contact);
            }
            lambda = peak.ratio;
            if (OUT || !plain) break;
            plain = false;
        }
    }
    if (needs_entropy(p) && !poisoned) {
        const EarlySum none(0, false);
        const Exponent one(1.0);
        entropy = partition<false, true, false>(scope, row, top.max, 1.0, one, true, none)  // path: loop none
                      .entropy(1.0);
    }
    const double beta = beta_for(p, scope, top.len, lambda, entropy);
    const Exponent b(beta, !OUT || (NARROW && !p.out_f32 && !early.on));
    if (p.betas_out && scope.leads()) {
        const float given = poisoned ? simt::float_of(0x7fc00000) : static_cast<float>(beta);
        Global<float>(p.betas_out).store(scope.row, given);
    }
    if (reports) ReportWords(p, scope.row).put(FIELD(beta), beta);
    // Poisoned and empty rows too: their weights are 0, and NaN or 0 multiplies them.
    if (OUT || p.sums) {
        const bool gaps = !OUT || p.sums;
        const Partition z = partition<KEEP, OUT, !OUT || NARROW>(scope, row, top.max, beta, b, gaps, early);
        if (reports) {
            ReportWords(p, scope.row).put(FIELD(sum), z.sum);
            ReportWords(p, scope.row).put(FIELD(gap_sum), z.gap_sum);
        }
        bool summed = Scope::STREAMS && early.counts(beta, top.max);
        double sum = z.sum;
        // Once, and once more where the early sum was not right. A loop, because a second copy of the writing
        // passes doubled the time that a split kernel takes to compile.
#pragma unroll 1
        while (OUT) {
            Sum rest{0, 0};
            write_probs<KEEP>(p, scope, row, top.max, b, sum, poisoned || beta != beta, summed, rest);
            if (!summed) break;
            const double written = simt::mul_rn(rest.total(), 1.0 / WEIGHT_ONE);
            const double own_error = simt::sub_rn(written, early.total(top.max));
            const auto add = [](double a, double c) { return simt::add_rn(a, c); };
            const double error = scope.reduce(own_error, 0.0, add);
            if (!((error < 0 ? -error : error) > simt::mul_rn(z.sum, EarlySum::APART))) break;
            sum = simt::add_rn(z.sum, error);
            summed = false;
        }
    }
    scope.finish();
}

// The kernel bodies, one per scope.
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_warp(const RowParams& p) {
    WarpScope<THREADS / 32> scope(p);
    if (scope.row < p.rows) measure_row<OUT, T>(p, scope);
}
// One row after the other, each loaded where the one before it was, or the one before that.
template <bool OUT, class T, class Scope>
DEVICE void measure_rows(const RowParams& p, Scope scope) {
    for (;;) {
        measure_row<OUT, T>(p, scope);
        if (!scope.has_next(p)) break;
        if (Scope::ASYNC) simt::release_async();
        scope.sync();
        scope.advance(p);
    }
}
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_block(const RowParams& p) {
    measure_rows<OUT, T>(p, BlockScope<THREADS>(p));
}
#if SIMT_CLUSTERS
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_cluster(const RowParams& p) {
    measure_rows<OUT, T>(p, ClusterScope<THREADS>(p));
}
#endif
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_split(const RowParams& p) {
    measure_rows<OUT, T>(p, SplitScope<THREADS>(p));
}

// One kernel of a family, from its row of variants.def. CTAs that share an SM hide each other's loads behind
// arithmetic: threads_per_sm is the number of threads for which the registers suffice without a spill. It was
// found for sm_90 (ptxas 13.0, 2026-11-30); sm_100 takes up to 48 registers more, where it may. A CTA of 512
// threads has the SM for itself.
constexpr int resident_ctas(int threads, int threads_per_sm) {
    if (threads > 256) return 1;
    return (SIMT_TUNED || threads_per_sm == 512 ? threads_per_sm : threads_per_sm - 256) / threads;
}
#define STAMP(FAMILY, OUT, T, SCOPE, THREADS, CTAS) STAMP_##SCOPE(FAMILY, OUT, T, THREADS, CTAS)
#define STAMP_warp(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(RowParams, FAMILY##_##T##_warp##THREADS##x##CTAS, THREADS, resident_ctas(THREADS, 640)) { \
        measure_warp<OUT, T, THREADS>(params); \
    }
#define STAMP_block(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(RowParams, FAMILY##_##T##_block##THREADS##x##CTAS, THREADS, \
           resident_ctas(THREADS, OUT ? 768 : 512)) { \
        measure_block<OUT, T, THREADS>(params); \
    }
#define STAMP_split(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(RowParams, FAMILY##_##T##_split##THREADS##x##CTAS, THREADS, 1) { \
        measure_split<OUT, T, THREADS>(params); \
    }
#if SIMT_CLUSTERS
#define STAMP_cluster(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(RowParams, FAMILY##_##T##_cluster##THREADS##x##CTAS, THREADS, \
           resident_ctas(THREADS, OUT ? 768 : 512)) { \
        measure_cluster<OUT, T, THREADS>(params); \
    }
#else
#define STAMP_cluster(FAMILY, OUT, T, THREADS, CTAS)
#endif
