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

// The keys, or the values, of one head in the pages of a sequence.
template <class T>
struct PagedVectors {
    static constexpr u32 SIZE = sizeof(typename T::Bits);
    const AttentionParams& p;
    u32 seq;
    u64 base, page, slot;  // where those of the head begin; distances in elements

    static DEVICE PagedVectors keys(const AttentionParams& p, u32 seq, u32 head) {
        return PagedVectors{p, seq, p.keys + SIZE * (head * p.key_head), p.key_page, p.key_slot};
    }
    static DEVICE PagedVectors values(const AttentionParams& p, u32 seq, u32 head) {
        return PagedVectors{p, seq, p.values + SIZE * (head * p.value_head), p.value_page, p.value_slot};
    }
    // The device address of the vector at this position; 0 if the table or the pool does not have it.
    DEVICE u64 address(u32 at) const {
        if (at >= p.max_len) return 0;
        const i32 number = Global<i32>(p.table).load(seq * p.table_stride + at / p.page);
        if (number < 0 || static_cast<u32>(number) >= p.pages) return 0;
        return base + SIZE * (number * page + at % p.page * slot);
    }
};
