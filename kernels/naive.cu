// The naive path, for comparison: the same result by separate launches, each of them one pass over device memory or more. Nothing
// stays on chip between them but the report of each row, through which they speak.
#include "verbs.cuh"

// One row per CTA, nothing of it resident (the host sets RowParams::resident to 0). step(scope, row, report) returns what the
// first thread puts into the report, once every thread has read it.
template <class T, u32 THREADS, class F>
DEVICE void naive_step(const RowParams& p, F step) {
    BlockScope<THREADS, true> scope(p);
    const RowTile<T, true> row(p, scope);
    const ReportWords report(p, scope.row);
    const auto put = step(scope, row, report);
    scope.sync();
    if (scope.leads()) put();
}

template <class T, u32 THREADS>
DEVICE void naive_max(const RowParams& p) {
    naive_step<T, THREADS>(p, [&](auto& scope, const auto& row, const ReportWords& report) {
        RowMax own;
        EarlySum none(0, false);
        const RowMax top = row_max(scope, row, own, none);
        const Maxima found = maxima(scope, row, top, own);
        return [=] { report_top(report, top, found); };
    });
}

template <class T, u32 THREADS>
DEVICE void naive_gaps(const RowParams& p) {
    naive_step<T, THREADS>(p, [&](auto& scope, const auto& row, const ReportWords& report) {
        const RowMax top{report.get<float>(FIELD(max)), report.get<float>(FIELD(second)), report.get<u32>(FIELD(len))};
        float kth_gap = -1;
        Peak peak{0, 0, 0};
        if (!top.poisoned()) {
            // One thread's: every score that is given counts once.
            const float tops[1] = {simt::thread() == 0 ? top.second : -INFINITE};
            peak = critical_beta(p, scope, row, top, report.get<u32>(FIELD(ties)), false, kth_gap, tops);
        }
        return [=] {
            report.put(FIELD(resolved), Contact{simt::float_of(peak.key), peak.rank});
            if (p.resolve == 0) report.put(FIELD(critical), Contact{simt::float_of(peak.key), peak.rank});
            report.put(FIELD(kth_gap), kth_gap);
        };
    });
}

template <class T, u32 THREADS>
DEVICE void naive_beta(const RowParams& p) {
    naive_step<T, THREADS>(p, [&](auto& scope, const auto& row, const ReportWords& report) {
        const float max = report.get<float>(FIELD(max));
        const Contact contact = report.get<Contact>(FIELD(resolved));
        double entropy = 0;
        if (needs_entropy(p) && max < INFINITE) entropy = partition<false>(scope, row, max, 1.0, true).entropy(1.0);
        const double beta =
            beta_for(p, scope.row, report.get<u32>(FIELD(len)), Excess(p).ratio(contact.gap, contact.rank), entropy);
        return [=] { report.put(FIELD(beta), beta); };
    });
}

template <class T, u32 THREADS>
DEVICE void naive_sum(const RowParams& p) {
    naive_step<T, THREADS>(p, [&](auto& scope, const auto& row, const ReportWords& report) {
        const float max = report.get<float>(FIELD(max));
        Partition z = Partition::empty();
        if (max < INFINITE && max > -INFINITE) z = partition<false>(scope, row, max, report.get<double>(FIELD(beta)), true);
        return [=] {
            report.put(FIELD(sum), z.sum);
            report.put(FIELD(gap_sum), z.gap_sum);
        };
    });
}

template <class T, u32 THREADS>
DEVICE void naive_write(const RowParams& p) {
    naive_step<T, THREADS>(p, [&](auto& scope, const auto& row, const ReportWords& report) {
        const float max = report.get<float>(FIELD(max));
        const double beta = report.get<double>(FIELD(beta));
        Sum none{0, 0};
        write_probs<false>(p, scope, row, max, Exponent(beta), report.get<double>(FIELD(sum)), !(max < INFINITE) || beta != beta,
                           false, none);
        return [] {};
    });
}

#define NAIVE(STEP, T, THREADS) \
    KERNEL(STEP##_##T##_block##THREADS##x1, THREADS, resident_ctas(THREADS, 768)) { STEP<T, THREADS>(params); }
#define NAIVE_MAX(T, SCOPE, THREADS, CTAS) NAIVE(naive_max, T, THREADS)
#define NAIVE_GAPS(T, SCOPE, THREADS, CTAS) NAIVE(naive_gaps, T, THREADS)
#define NAIVE_BETA(T, SCOPE, THREADS, CTAS) NAIVE(naive_beta, T, THREADS)
#define NAIVE_SUM(T, SCOPE, THREADS, CTAS) NAIVE(naive_sum, T, THREADS)
#define NAIVE_WRITE(T, SCOPE, THREADS, CTAS) NAIVE(naive_write, T, THREADS)
#include "variants.def"
