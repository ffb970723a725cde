// How beta is chosen. Twin of src/rescaling.rs and of the registry in src/laws.rs, whose order the cases
// have.
#pragma once
#include "params.cuh"
#include "stats.cuh"

constexpr u32 LAW_VELICKOVIC = 9;

DEVICE double larger(double a, double b) { return b > a ? b : a; }
DEVICE double whole(double a) { return static_cast<double>(static_cast<u64>(a)); }

// A published length law. n: visible keys. i: 0-based position of the query. entropy: in nats, at beta = 1.
COLD double law_factor(u32 law, double p0, double p1, double p2, double n, double i, double entropy) {
    using namespace simt;
    const double ln_n = ln(larger(n, 1.0));
    switch (law) {
        case 0: return mul_rn(p0, ln_n);                                                       // chen
        case 1: return mul_rn(p0, sqrt_rn(ln_n));                                              // rem
        case 2: return fused(p0, ln_n, p1);                                                  // ssmax
        case 3: return div_rn(ln_n, ln(p0));                                                   // su
        case 4: return larger(div_rn(ln(add_rn(i, 1.0)), ln(p0)), 1.0);                        // qwen-logn
        case 5: return i > p0 ? div_rn(ln(i), ln(p0)) : 1.0;                                 // grok2
        case 6: {                                                                                // yarn
            const double root = p0 > 1.0 ? fused(0.1, ln(p0), 1.0) : 1.0;
            return mul_rn(root, root);
        }
        case 7: return fused(p0, ln(add_rn(1.0, whole(div_rn(add_rn(i, 1.0), p1)))), 1.0);   // llama4
        case 8: return fused(p1, ln(add_rn(1.0, whole(div_rn(i, p0)))), 1.0);                // mistral3
        case LAW_VELICKOVIC: {
            const double h = entropy;
            const double poly = fused(fused(fused(fused(-0.037, h, 0.481), h, -2.3), h, 4.917), h, -1.791);
            return h > 0.5 ? larger(poly, 1.0) : 1.0;
        }
        default: return fused(p1, power(ln_n, p2), p0);                                    // asentmax
    }
}

DEVICE bool needs_entropy(const RowParams& p) { return p.rule == RULE_LAW && p.law == LAW_VELICKOVIC; }

// beta by the rule of p, of a row with n keys whose query is at i, as its formula gives it. critical:
// Lambda(resolve); only RULE_CRITICAL reads it. entropy: only LAW_VELICKOVIC reads it.
template <class Params>
DEVICE double beta_by(const Params& p, u32 n, u32 i, double critical, double entropy) {
    using namespace simt;
    if (p.rule == RULE_FIXED) return p.p[0];
    if (p.rule == RULE_LAW) {
        return law_factor(p.law, p.p[0], p.p[1], p.p[2], static_cast<double>(n), static_cast<double>(i),
                          entropy);
    }
    if (p.rule == RULE_CRITICAL) {
        // A ratio of 0 gives beta 0, also for a tied row, where 0 * infinity would be NaN.
        const double beta = larger(p.p[0] == 0.0 ? 0.0 : mul_rn(p.p[0], critical), p.p[1]);
        return beta > p.p[2] ? p.p[2] : beta;
    }
    const double ln_n = ln(larger(static_cast<double>(n), 1.0));
    return p.p[2] > 0.0 ? power(div_rn(ln_n, p.p[2]), p.p[1]) : mul_rn(p.p[0], power(ln_n, p.p[1]));
}

// The same as an inverse temperature: >= 0, or NaN.
DEVICE double bounded(double beta, u32 rule, u32 n) {
    // One key has ln n = 0, which a falling law takes to a power below 0.
    const bool of_length = rule == RULE_LAW || rule == RULE_CALIBRATED;
    if (n <= 1 && (beta != beta || (of_length && beta > 0x1p1023))) return 0.0;
    if (beta != beta) return beta;
    return beta > 0.0 ? beta : 0.0;
}

// beta of the row of a scope, >= 0. It is NaN if an array or a law gives NaN, and then all of the row is NaN.
template <class Scope>
DEVICE double beta_for(const RowParams& p, const Scope& scope, u32 n, double critical, double entropy) {
    if (p.rule == RULE_ARRAY) {
        return bounded(static_cast<double>(Global<float>(p.betas).load(scope.row)), p.rule, n);
    }
    // Without positions the query of a row is at n - 1. Files without positions are read the same way: this
    // is the last visible key, unless keys before it are masked. To find it then, every pass would need an
    // index.
    u32 i = n > 0 ? n - 1 : 0;
    if constexpr (Scope::ON_CHIP) {
        i = scope.position;
    } else if (p.rule == RULE_LAW && p.positions) {
        i = Global<u32>(p.positions).load(scope.row);
    }
    return bounded(beta_by(p, n, i, critical, entropy), p.rule, n);
}
