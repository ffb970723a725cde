// The steps of every kernel: row_max -> (count_gaps -> critical_beta) -> beta -> partition -> write_probs.
// All threads of the scope call each of them, and its result is valid in all of them.
#pragma once
#include "probs.cuh"
#include "report.cuh"
#include "rule.cuh"
#include "search.cuh"
#include "top.cuh"
#include "scope/split.cuh"
#include "scope/warp.cuh"
#if SIMT_CLUSTERS
#include "scope/cluster.cuh"
#endif

// All results of one row; with OUT its probabilities too.
template <bool OUT, class T, class Scope>
DEVICE void measure_row(const RowParams& p, Scope& scope) {
    const RowTile<T, Scope::STREAMS> row(p, scope);
    row.load(scope);
    const bool critical = !OUT || p.rule == RULE_CRITICAL;
    // The early sum needs a beta that is known before the row (unless some of its scores are masked), and
    // scores that are still there after the probabilities are written.
    const bool sums_early =
        OUT && Scope::STREAMS && !critical && !p.report && !needs_entropy(p) && p.out != p.scores;
    EarlySum early(sums_early ? beta_for(p, scope.row, row.len, 0, 0) : 0, sums_early);
    RowMax own, top;
    const bool knows = OUT && !p.report && (p.rule == RULE_FIXED || p.rule == RULE_ARRAY);
    const Exponent given(knows ? beta_for(p, scope.row, row.len, 0, 0) : 0);
    if (!knows || given.special || !max_alone(scope, row, given, early, top)) {
        early.on = early.on && !knows;
        top = row_max(scope, row, own, early);
    }
    const bool poisoned = top.poisoned();
    const ReportWords report(p, scope.row);
    const bool reports = p.report && scope.leads();
    double lambda = 0;
    if (p.report || critical) {
        // There is one maximum, and no report needs its column.
        Maxima found{top.len > 0, 0};
        if (p.report || top.second == top.max) found = maxima(scope, row, top, own);
        if (reports) report_top(report, top, found);
        if (critical && !poisoned) {
            const float tops[2] = {own.max, own.second};
            // If both are wanted, Lambda comes first. For r = 0 they are the same.
            bool plain = !OUT && p.both && p.resolve != 0;
#pragma unroll 1
            for (;;) {
                float kth_gap;
                const Peak peak = critical_beta(p, scope, row, top, found.ties, plain, kth_gap, tops);
                const Contact contact{simt::float_of(peak.key), peak.rank};
                if (reports && (plain || p.resolve == 0)) report.put(FIELD(critical), contact);
                if (reports && !plain) report.put(FIELD(resolved), contact);
                if (reports) report.put(FIELD(kth_gap), kth_gap);
                lambda = peak.ratio;
                if (OUT || !plain) break;
                plain = false;
            }
        }
    }
    double entropy = 0;
    if (needs_entropy(p) && !poisoned) {
        entropy = partition<false>(scope, row, top.max, 1.0, true).entropy(1.0);  // path: none
    }
    const double beta = beta_for(p, scope.row, top.len, lambda, entropy);
    const Exponent b(beta);
    // Poisoned and empty rows too: their weights are 0, and NaN or 0 multiplies them.
    constexpr bool KEEP = OUT && sizeof(typename T::Bits) == 4;
    const Partition z = partition<KEEP>(scope, row, top.max, beta, b, p.report != 0, early);
    if (reports) {
        report.put(FIELD(beta), beta);
        report.put(FIELD(sum), z.sum);
        report.put(FIELD(gap_sum), z.gap_sum);
    }
    if (OUT) {
        bool summed = Scope::STREAMS && early.counts(beta, top.max);
        double sum = z.sum;
        // Once, and once more where the early sum was not right. A loop, because a second copy of the writing
        // passes doubled the time that a split kernel takes to compile.
#pragma unroll 1
        for (;;) {
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
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_block(const RowParams& p) {
    BlockScope<THREADS> scope(p);
    measure_row<OUT, T>(p, scope);
}
#if SIMT_CLUSTERS
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_cluster(const RowParams& p) {
    ClusterScope<THREADS> scope(p);
    measure_row<OUT, T>(p, scope);
}
#endif
template <bool OUT, class T, u32 THREADS>
DEVICE void measure_split(const RowParams& p) {
    SplitScope<THREADS> scope(p);
    for (scope.row = scope.group; scope.row < p.rows; scope.row += p.groups) {
        measure_row<OUT, T>(p, scope);
        scope.sync();  // the next row is loaded over this one
    }
}

// One kernel of a family, from its row of variants.def. CTAs that share an SM hide each other's loads behind
// arithmetic: threads_per_sm is the number of threads for which the registers suffice without a spill. It was
// found for sm_90 (ptxas 13.0, 2026-11-25); other architectures need up to 16 registers more. A CTA of 512
// threads has the SM for itself.
constexpr int resident_ctas(int threads, int threads_per_sm) {
    if (threads > 256) return 1;
    return (SIMT_TUNED || threads_per_sm == 512 ? threads_per_sm : threads_per_sm - 256) / threads;
}
#define STAMP(FAMILY, OUT, T, SCOPE, THREADS, CTAS) STAMP_##SCOPE(FAMILY, OUT, T, THREADS, CTAS)
#define STAMP_warp(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(FAMILY##_##T##_warp##THREADS##x##CTAS, THREADS, resident_ctas(THREADS, 768)) { \
        measure_warp<OUT, T, THREADS>(params); \
    }
#define STAMP_block(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(FAMILY##_##T##_block##THREADS##x##CTAS, THREADS, resident_ctas(THREADS, OUT ? 1024 : 768)) { \
        measure_block<OUT, T, THREADS>(params); \
    }
#define STAMP_split(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(FAMILY##_##T##_split##THREADS##x##CTAS, THREADS, 1) { \
        measure_split<OUT, T, THREADS>(params); \
    }
#if SIMT_CLUSTERS
#define STAMP_cluster(FAMILY, OUT, T, THREADS, CTAS) \
    KERNEL(FAMILY##_##T##_cluster##THREADS##x##CTAS, THREADS, resident_ctas(THREADS, OUT ? 768 : 512)) { \
        measure_cluster<OUT, T, THREADS>(params); \
    }
#else
#define STAMP_cluster(FAMILY, OUT, T, THREADS, CTAS)
#endif
