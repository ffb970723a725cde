// One CTA's part of the output of a key head whose betas are known: keys and values are read together, chunk
// by chunk, and the CTA that is done last sums up the chunks.
//
// Z is at least the sum of the weights of the seeds. So a key's weight over that is at least its probability,
// and values stay unread whose mass is at most ALLOWANCE eps / n. Their sum is an integer, which the last CTA
// compares with eps. If it is too much, the next launch does the whole head again and reads all values.
#pragma once
#include "pass_audit.cuh"

// Where the sums of a chunk are: value_dim of each row, then its largest score and the sum of its weights.
struct Partials {
    const AttentionParams& p;
    u32 of;
    Global<float> floats;
    DEVICE Partials(const AttentionParams& p, u32 of) : p(p), of(of), floats(p.partials) {}
    DEVICE u64 at(u32 row, u32 chunk, u32 element) const {
        const u64 rows = static_cast<u64>(of) * p.query_len * p.group + row;
        return (rows * p.chunks + chunk) * (p.value_dim + 2) + element;
    }
    DEVICE float load(u32 row, u32 chunk, u32 element) const { return floats.load(at(row, chunk, element)); }
};

template <class T>
struct OnePass {
    const AttentionParams& p;
    u32 units;  // where states and units are in the arena
    PassRows<T>& rows;
    PassUnit<T>& unit;
    Partials partials;

    // Sums what the warps have of the rows that were taken.
    DEVICE void put_chunk(u32 number) {
        unit.end_chunk();
        simt::block_sync();
        const u32 warp = simt::thread() / VALUE_ROWS, row = simt::thread() % VALUE_ROWS;
        float highest = -INFINITE, factor = 0;
        if (warp < VALUE_WARPS && row < rows.count) {
            for (u32 w = 0; w < VALUE_WARPS; ++w) {
                const float other = RowStates(units, w).tops.load(row);
                highest = other > highest ? other : highest;
            }
            const float own = RowStates(units, warp).tops.load(row);
            if (own > -INFINITE) factor = pass_weight<T>(own, highest, rows.exponent(row));
            RowStates(units, warp).units.store(row, factor);
        }
        simt::block_sync();
        if (warp == 0 && row < rows.count) {
            float sum = 0;
            for (u32 w = 0; w < VALUE_WARPS; ++w) {
                const RowStates of(units, w);
                sum = simt::fused(of.factors.load(row), of.units.load(row), sum);
            }
            partials.floats.store(partials.at(rows.first + row, number, p.value_dim), highest);
            partials.floats.store(partials.at(rows.first + row, number, p.value_dim + 1), sum);
        }
        for_elements(rows.count, p.value_dim, [&](u32 of, u32 element) {
            const u32 at = of * Unit::sums_apart(p.value_dim) + element;
            float sum = 0;
#pragma unroll 2
            for (u32 w = 0; w < VALUE_WARPS; ++w) {
                const float part = Unit::sums_of(p, units + VALUE_WARPS * RowStates::BYTES, w).load(at);
                sum = simt::fused(part, RowStates(units, w).units.load(of), sum);
            }
            partials.floats.store(partials.at(rows.first + of, number, element), sum);
        });
        simt::block_sync();
    }
    DEVICE void chunk(const Chunks& chunks, u32 number, bool again) {
        const u32 begin = (chunks.first + number) * chunks.keys, end = begin + chunks.keys;
        for (u32 first = 0; first < rows.all(); first += p.value_rows) {
            if (again) rows.take(first);
            const Keys together = rows.common();
            unit.begin_chunk();
            for (u32 key = begin + simt::warp() * UNIT; key < end; key += VALUE_WARPS * UNIT) {
                if (key < unit.all.end && key + UNIT > unit.all.begin) unit.add(key, together);
            }
            put_chunk(number);
        }
    }
    // The output of every row, and its beta. A poisoned row gives NaN.
    DEVICE void finish(const Chunks& chunks) {
        const Shared<double> sums = simt::arena<double>(units + RowStates::BYTES, VALUE_ROWS);
        const Shared<float> factors =
            simt::arena<float>(units + VALUE_WARPS * RowStates::BYTES, p.value_rows * Unit::APART);
        static_assert(CHUNKS + 2 <= Unit::APART && 8 * VALUE_ROWS <= RowStates::BYTES, "they have room");
        for (u32 first = 0; first < rows.all(); first += p.value_rows) {
            rows.take(first);
            // A warp for each row, and a lane for each chunk.
#pragma unroll 1
            for (u32 mine = simt::warp(); mine < rows.count; mine += VALUE_WARPS) {
                const auto top = [&](u32 c) { return partials.load(first + mine, c, p.value_dim); };
                float highest = -INFINITE;
#pragma unroll 1
                for (u32 c = simt::lane(); c < chunks.count; c += 32) {
                    highest = top(c) > highest ? top(c) : highest;
                }
                highest = warp_largest(highest, HERE);
                double sum = 0;
#pragma unroll 1
                for (u32 c = simt::lane(); c < chunks.count; c += 32) {
                    const bool seen = top(c) > -INFINITE;
                    const float factor = seen ? pass_weight<T>(top(c), highest, rows.exponent(mine)) : 0.0f;
                    const float of = partials.load(first + mine, c, p.value_dim + 1);
                    factors.store(mine * Unit::APART + c, factor);
                    sum = simt::fused(static_cast<double>(of), static_cast<double>(factor), sum);
                }
                sum = warp_fold(sum, [](double a, double b) { return simt::add_rn(a, b); });
                if (simt::lane() != 0) continue;
                // A beta that is NaN has weights of any kind.
                const double beta = sum == sum ? rows.betas.load(mine) : sum;
                // A row without keys has no weights: its elements are 0 / 1.
                sums.store(mine, beta != beta ? beta : sum == 0.0 ? 1.0 : sum);
                if (p.betas_out) {
                    Global<float>(p.betas_out).store(rows.row(mine), static_cast<float>(beta));
                }
            }
            simt::block_sync();
            spread_elements(rows.count, p.value_dim, 0, 1, [&](u32 row, u32 element) {
                double sum = 0;
                for_chunks(
                    chunks.count, [&](u32 c) { return partials.load(first + row, c, element); },
                    [&](u32 c, float part) {
                        const double factor = static_cast<double>(factors.load(row * Unit::APART + c));
                        sum = simt::fused(static_cast<double>(part), factor, sum);
                    });
                const double value = simt::div_rn(sum, sums.load(row));
                put_value<T>(p, rows.seq.first + rows.token(row), rows.query_head(row), element, value);
            });
            simt::block_sync();
        }
    }
};

template <class T>
DEVICE void one_pass_part(const AttentionParams& p) {
    const u32 part = simt::cta() % p.splits, of = simt::cta() / p.splits, head = of % p.kv_heads;
    const SharedAudit audit(p, of);
    if (p.padding && simt::cta() == 0) {
        put_padding<T>(p);
        // Such a row sees no key.
        const float beta = static_cast<float>(bounded(beta_by(p, 0, 0, 0, 0), p.rule, 0));
        for_padding(p, [&](u64 row) {
            if (p.betas_out && simt::lane() == 0) Global<float>(p.betas_out).store(row, beta);
        });
    }
    if (p.repairs && audit.failed.load(0) == 0) return;
    const Sequence seq(p, p.seq_first + of / p.kv_heads);
    const Keys all = seq.seen_by_any(p);
    const Chunks chunks(all);
    const u32 most = chunks.count > 1 ? chunks.count : 1, ctas = most < p.splits ? most : p.splits;
    if (part >= ctas) return;
    const PagedVectors<T, false> keys{p, seq.seq, head};
    const PagedVectors<T, true> values{p, seq.seq, head};
    const Finish finish{p.scale, p.softcap};
    PassRows<T> rows(p, seq, head);
    for (u32 first = 0; first < rows.all(); first += p.value_rows) {
        rows.take(first);
        rows.seed(keys, all, finish);
    }
    const u32 n = all.end - all.begin;
    // Rows that take turns would leave other values unread, each its own: then all are read.
    const u64 share = n > 0 && rows.all() <= p.value_rows ? ALLOWANCE * static_cast<u64>(p.budget) / n : 0;
    PassUnit<T> unit{rows, keys, values, all, finish, RowStates(rows.units, simt::warp()),
                     Unit(p, rows.units + VALUE_WARPS * RowStates::BYTES),
                     share < 0xffffffff ? static_cast<u32>(share) : 0xfffffffe};
    OnePass<T> own{p, rows.units, rows, unit, Partials(p, of)};
    for (u32 number = part; number < chunks.count; number += p.splits) {
        own.chunk(chunks, number, rows.all() > p.value_rows);
    }
    if (p.budget > 0) audit.add(unit);
    if (!simt::last_of(audit.counter, ctas)) return;
    if (audit.close(p, seq, head, n)) own.finish(chunks);
}
