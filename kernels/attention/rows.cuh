// The rows of one key head of a sequence: the query tokens that see its keys, and which keys each sees.
#pragma once
#include "params.cuh"

// A range of key positions.
struct Keys {
    u32 begin, end;
    DEVICE bool holds(u32 at) const { return begin <= at && at < end; }
};

// The query tokens of sequence `seq` that belong to this launch. What the device memory says is limited to
// what there is: a sequence has at most query_len tokens, and none outside of the launch.
struct Sequence {
    u32 seq;
    i64 first;       // its first token among all
    u32 count;       // its tokens
    u32 begin, end;  // those of this launch, counted from `first`
    i32 len;         // its keys, as the device says

    DEVICE Sequence(const AttentionParams& p, u32 seq) : seq(seq) {
        first = static_cast<i64>(seq) * p.query_len;
        count = p.query_len;
        if (p.starts) {
            const Global<i32> starts(p.starts);
            first = starts.load(seq);
            const i64 found = starts.load(seq + 1) - first;
            count = first < 0 || found < 0 ? 0 : found < count ? static_cast<u32>(found) : count;
        }
        const auto within = [&](i64 token) {
            return token < first ? 0 : token - first < count ? static_cast<u32>(token - first) : count;
        };
        begin = within(p.token_first);
        end = within(static_cast<i64>(p.token_first) + p.token_count);
        len = Global<i32>(p.lens).load(seq);
    }

    // The keys that token t sees. A length below 0 or above max_len leaves at least one that does not exist:
    // its score is NaN, so the row's report says that something is wrong.
    DEVICE Keys seen(const AttentionParams& p, u32 t) const {
        if (len < 0) return Keys{p.max_len, p.max_len + 1};
        const u32 keys = static_cast<u32>(len) + t + 1;
        const u32 end = keys > count ? keys - count : 0;
        return Keys{end > p.cols ? end - p.cols : 0, end};
    }
    // The keys that any of its tokens in this launch sees.
    DEVICE Keys seen_by_any(const AttentionParams& p) const {
        if (begin == end) return Keys{0, 0};
        return Keys{seen(p, begin).begin, seen(p, end - 1).end};
    }
    // The row of token t and query head h.
    DEVICE u64 row(const AttentionParams& p, u32 t, u32 h) const {
        return static_cast<u64>(first + t - p.token_first) * (p.kv_heads * p.group) + h;
    }
};

// The first row of the tokens behind those of the last sequence, and the end of all rows.
DEVICE u64 padding_begin(const AttentionParams& p) {
    const i64 used = static_cast<i64>(Global<i32>(p.starts).load(p.seq_first + p.seqs)) - p.token_first;
    return (used > 0 ? static_cast<u64>(used) : 0) * (p.kv_heads * p.group);
}
DEVICE u64 rows_end(const AttentionParams& p) {
    return static_cast<u64>(p.token_count) * (p.kv_heads * p.group);
}
// Calls f(row) for these rows, by a warp for each.
template <class F>
DEVICE void for_padding(const AttentionParams& p, F f) {
    const u64 end = rows_end(p);
    for (u64 row = padding_begin(p) + simt::warp(); row < end; row += simt::threads() / 32) f(row);
}

// Some query rows of a key head: first .. first + count of them, token by token.
struct GroupRows {
    const AttentionParams& p;
    const Sequence& seq;
    u32 head, first, count;

    DEVICE GroupRows(const AttentionParams& p, const Sequence& seq, u32 head)
        : p(p), seq(seq), head(head), first(0), count(0) {}

    DEVICE u32 all() const { return (seq.end - seq.begin) * p.group; }
    DEVICE u32 token(u32 i) const { return seq.begin + (first + i) / p.group; }
    DEVICE u32 query_head(u32 i) const { return head * p.group + (first + i) % p.group; }
    DEVICE u64 row(u32 i) const { return seq.row(p, token(i), query_head(i)); }
    DEVICE Keys seen(u32 i) const { return seq.seen(p, token(i)); }
    // Where the scores of a row are, as if they began at position 0.
    DEVICE u64 scores_at_0(u32 i) const {
        const u64 begin = seen(i).begin;
        return p.scores + 4 * (row(i) * p.score_stride - begin);
    }
    DEVICE void choose(u32 from, u32 most) {
        first = from;
        count = all() - from < most ? all() - from : most;
    }
    // The keys that each of the rows sees.
    DEVICE Keys common() const { return Keys{seen(count - 1).begin, seen(0).end}; }
    // Behind the last row from `i` on that has the same token.
    DEVICE u32 end_of_token(u32 i) const {
        const u32 end = (token(i) + 1 - seq.begin) * p.group - first;
        return end < count ? end : count;
    }
};

// The keys of one head in the pages of a sequence, or its VALUES. Distances stay in the arguments, where they
// take no registers.
template <class T, bool VALUES>
struct PagedVectors {
    static constexpr u32 SIZE = sizeof(typename T::Bits);
    const AttentionParams& p;
    u32 seq, head;

    // The device address of the vector at this position; 0 if the table or the pool does not have it.
    DEVICE u64 address(u32 at) const {
        if (at >= p.max_len) return 0;
        const u32 above = static_cast<u32>(static_cast<u64>(at) * p.page_factor >> 32);
        const u32 block = (above + at) >> p.page_shift;
        const i32 number = Global<i32>(p.table).load(seq * p.table_stride + block);
        if (number < 0 || static_cast<u32>(number) >= p.pages) return 0;
        const u32 slot = at - block * p.page;
        const u64 pages = static_cast<u32>(number) * (VALUES ? p.value_page : p.key_page);
        const u64 slots = slot * (VALUES ? p.value_slot : p.key_slot);
        const u64 heads = head * (VALUES ? p.value_head : p.key_head);
        return (VALUES ? p.values : p.keys) + SIZE * (pages + slots + heads);
    }
};
