// Few long rows: each is spread over a group of CTAs, which exchange their results in the caller's workspace.
#pragma once
#include "block.cuh"

template <u32 T>
struct SplitScope : BlockScope<T, true, SPLIT_BINS, SPLIT_CANDIDATES, SPLIT_CONTROL_BYTES> {
    using Base = BlockScope<T, true, SPLIT_BINS, SPLIT_CANDIDATES, SPLIT_CONTROL_BYTES>;
    using Base::counts, Base::list;
    static_assert(Base::USED + 8 * RECORD_WORDS <= SPLIT_CONTROL_BYTES, "arena of a CTA");
    Shared<u32> records;
    // Its row fills the memory of its SMs: none is loaded ahead. The estimate would be one more barrier of
    // all CTAs, beside about 7 (not yet measured).
    static constexpr bool ASYNC = false, ESTIMATES = false;
    static constexpr u32 RING = 3;
    static constexpr u32 NONE = RING;
    u32 ctas, me, ring_turn;  // me: my part
    u32 stale;  // the slice of the ring that no CTA reads behind the next barrier of the group
    u64 base, slots_at;  // the group's memory, and its slots

    // The workspace of a group: counter (128 bytes), ring of counts, list. Of a CTA: a record for two turns.
    static constexpr u32 LIST_AT = 32 + RING * Base::BINS;
    static_assert(4 * (LIST_AT + Base::CANDIDATES) <= GROUP_BYTES, "workspace of a group");
    static_assert(8 * RECORD_WORDS <= SLOT_BYTES, "workspace of a CTA");

    DEVICE explicit SplitScope(const RowParams& p)
        : Base(p), ctas(p.ctas), ring_turn(0), stale(NONE) {
        const u32 group = simt::cta() / ctas;
        me = simt::cta() - group * ctas;
        this->row = group;
        records = simt::arena<u32>(Base::USED, 2 * RECORD_WORDS);
        base = p.workspace + SPLIT_CTAS * SLOT_BYTES + static_cast<u64>(group) * GROUP_BYTES;
        slots_at = p.workspace + static_cast<u64>(group) * ctas * SLOT_BYTES;
    }
    DEVICE Global<u32> counter() const { return Global<u32>(base); }
    DEVICE Global<u32> ring() const { return Global<u32>(base + 128); }
    DEVICE Global<u32> long_list() const { return Global<u32>(base + 4 * LIST_AT); }
    DEVICE Global<u32> slots() const { return Global<u32>(slots_at); }
    DEVICE u32 part() const { return me; }
    DEVICE u32 parts() const { return ctas; }
    DEVICE bool leads() const { return part() == 0 && simt::thread() == 0; }
    // Behind it the first CTA clears the stale slice: a store a thread.
    DEVICE void sync_group(simt::Where at) {
        simt::group_sync(counter(), ctas, at);
        if (stale != NONE && me == 0) {
            for (u32 b = this->thread(); b < Base::BINS; b += T) ring().store(stale * Base::BINS + b, 0);
        }
        stale = NONE;
    }

    DEVICE u32 slot(u32 part) const { return (part * 2 + this->record_turn()) * RECORD_WORDS; }
    // The fold over f(value of a part, part): the first warp makes it, and all threads get it.
    template <class R, class F, class Merge>
    DEVICE R across(R value, R none, F f, Merge merge, simt::Where at = HERE) {
        this->turns ^= 2;
        constexpr u32 WORDS = sizeof(R) / 4;
        if (this->thread() == 0) {
            const u32* words = reinterpret_cast<const u32*>(&value);
            for (u32 w = 0; w < WORDS; ++w) slots().store(slot(part()) + w, words[w]);
        }
        sync_group(at);
        R all = none;
        if (simt::warp() == 0) {
            for (u32 p = simt::lane(); p < ctas; p += 32) {
                R theirs;
                u32* words = reinterpret_cast<u32*>(&theirs);
                for (u32 w = 0; w < WORDS; ++w) words[w] = slots().load(slot(p) + w);
                all = merge(all, f(theirs, p));
            }
        }
        all = warp_fold(all, merge, at);
        if (this->thread() == 0) store_record(records, this->record_turn(), all);
        this->sync(at);
        return load_record<R>(records, this->record_turn());
    }
    template <class R, class Merge>
    DEVICE R reduce(R value, R none, Merge merge, simt::Where at = HERE) {
        value = this->fold(value, none, merge, at);
        return across(value, none, [](const R& theirs, u32) { return theirs; }, merge, at);
    }
    // Each CTA counts in shared memory, and the counts are added up in a ring of three slices, all zeros at
    // first. Slice k is read behind the barrier of turn k, cleared behind the next barrier, at the latest
    // that of turn k + 1, and used again at turn k + 3: so there is a barrier between.
    DEVICE void merge_counts(simt::Where at = HERE) {
        this->sync(at);
        const u32 turn = ring_turn, slice = turn * Base::BINS;
        ring_turn = (turn + 1) % RING;
        for (u32 b = this->thread(); b < Base::BINS; b += T) {
            const u32 n = counts.load(b);
            if (n > 0) ring().add(slice + b, n);
        }
        sync_group(at);
        for (u32 b = this->thread(); b < Base::BINS; b += T) counts.store(b, ring().load(slice + b));
        stale = turn;
        this->sync(at);
    }
    // Each CTA appends to its own list; the lists lie behind one another in the workspace.
    struct Lists {
        u32 lower, all;
    };
    DEVICE u32 list_end(simt::Where at = HERE) {
        this->sync(at);
        const u32 n = list.load(Base::CANDIDATES);
        const auto both = [this](const Lists& of, u32 p) { return Lists{p < me ? of.all : 0, of.all}; };
        const auto add = [](const Lists& a, const Lists& b) {
            return Lists{a.lower + b.lower, a.all + b.all};
        };
        const Lists lists = across(Lists{0, n}, Lists{0, 0}, both, add, at);
        if (lists.all > Base::CANDIDATES) return lists.all;
        for (u32 i = this->thread(); i < n; i += T) long_list().store(lists.lower + i, list.load(i));
        sync_group(at);
        for (u32 i = this->thread(); i < lists.all; i += T) list.store(i, long_list().load(i));
        this->sync(at);
        return lists.all;
    }
    DEVICE void advance(const RowParams& p) { this->row += p.groups; }
    // The next launch finds the ring and the counter as this one did.
    DEVICE void finish(simt::Where at = HERE) {
        if (stale != NONE) sync_group(at);
    }
};
