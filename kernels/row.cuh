// One row as the threads of a scope hold it: 16-byte vectors in shared memory, loaded once and padded with
// -inf.
#pragma once
#include "dtype.cuh"
#include "params.cuh"
#include "stats.cuh"

// Vector v holds the elements v * PER_VECTOR - phase + j, so that every vector is aligned in device memory,
// wherever the row begins. The vectors that hold scores are dealt out to the parts of the row: this one has
// first .. first + count. The leading `resident` of them stay on chip; every pass reads the others from
// device memory. There are others only if the scope STREAMS.
template <class T, bool STREAMS>
struct RowTile {
    static constexpr u32 V = T::PER_VECTOR;
    static constexpr u32 SIZE = sizeof(typename T::Bits);
    Shared<Vec16> tile;
    u64 address;  // of the first element
    u32 phase, len;
    u32 first, count, resident;

    template <class Scope>
    DEVICE RowTile(const RowParams& p, const Scope& scope) : tile(scope.tile) {
        address = p.scores + static_cast<u64>(scope.row) * p.score_stride * SIZE;
        phase = static_cast<u32>(address % 16) / SIZE;
        if constexpr (Scope::ON_CHIP) {
            len = scope.len;
        } else {
            len = p.lens ? Global<u32>(p.lens).load(scope.row) : p.cols;
        }
        if (len > p.cols) len = p.cols;
        const u32 total = this->total(), per = (total + scope.parts() - 1) / scope.parts();
        first = per * scope.part() < total ? per * scope.part() : total;
        count = per < total - first ? per : total - first;
        resident = STREAMS && p.resident < count ? p.resident : count;
    }

    // The vectors that hold scores.
    DEVICE u32 total() const { return len > 0 ? (phase + len + V - 1) / V : 0; }
    // The column of element j of vector v. Before the row it wraps around, so compare it with < len.
    DEVICE u32 column(u32 v, u32 j) const { return v * V + j - phase; }
    DEVICE bool is_full(u32 v, u32 end) const { return v * V >= phase && v * V - phase + V <= end; }

    // begin .. end: the full vectors among the first `among` of this part; they lie together.
    DEVICE void full(u32 among, u32& begin, u32& end) const {
        begin = phase > 0 && first == 0;
        end = (phase + len) / V - first;  // of a part without scores it may wrap around
        if (end > among) end = among;
        if (end < begin) end = begin;
    }

    DEVICE Vec16 read(u32 v) const {
        const u64 base = address - phase * SIZE;
        if (is_full(v, len)) return Global<Vec16>(base).reload(v);
        const Global<typename T::Bits> elements(address);
        return pack<T>([&](u32 j) {
            const u32 c = column(v, j);
            return c < len ? T::value(elements.load(c)) : -INFINITE;
        });
    }

    // Loads a vector at an end of the row into its place on chip, element by element.
    DEVICE void fetch(u32 i) const {
        const Shared<typename T::Bits> places = tile.template cast<typename T::Bits>(i * V, V);
        const Global<typename T::Bits> elements(address);
#pragma unroll 1
        for (u32 j = 0; j < V; ++j) {
            const u32 c = column(first + i, j);
            places.store(j, c < len ? elements.load(c) : T::bits(-INFINITE));
        }
    }

    // Score j of vector first + i, or the value that `replace` put in its place.
    DEVICE float score(u32 i, u32 j) const {
        if (is_resident(first + i)) return T::value(tile.template cast<typename T::Bits>(i * V, V).load(j));
        return unless_masked(T::value(Global<typename T::Bits>(address).load(column(first + i, j))), T::LOW);
    }

    DEVICE Global<Vec16> vectors() const {
        return Global<Vec16>(address - phase * SIZE + 16 * static_cast<u64>(first));
    }
    // Begins to load the full vectors that stay on chip.
    DEVICE void begin_load(u32 turn) const {
        u32 begin, end;
        full(resident, begin, end);
        const u32 body = end - begin;
        simt::load_async(tile.template cast<Vec16>(body ? begin : 0, body), vectors(), begin, body, turn);
    }
    // Loads the vectors that stay on chip, and begins to load the next row of the scope, if there is one. It
    // ends with a barrier of the part.
    template <class Scope>
    DEVICE void load(const RowParams& p, Scope& scope) const {
        if constexpr (Scope::ON_CHIP) {  // it is there, but for what lies behind it
            const u32 place = len + scope.thread();
            if (place < count * V) tile.template cast<float>(0, count * V).store(place, -INFINITE);
            scope.sync();
            return;
        }
        // The copy engine or vector loads take the full vectors. The ends of the row are put together by
        // elements.
        u32 begin, end;
        full(resident, begin, end);
        const u32 body = end - begin;
        if constexpr (Scope::ASYNC) {
            if (scope.load_turn() == 0) begin_load(0);
            if (scope.has_next(p)) {
                Scope next = scope;
                next.advance(p);
                RowTile(p, next).begin_load(next.load_turn());
            }
        } else {
            const Global<Vec16> vectors = this->vectors();
            // Four loads in flight per thread: 32 KB in a CTA of 512 threads, which has its SM for itself.
            constexpr u32 T4 = 4 * Scope::THREADS;
            u32 i = begin + scope.thread();
#pragma unroll 1
            for (; i + T4 - Scope::THREADS < end; i += T4) {
                Vec16 raw[4];
#pragma unroll
                for (u32 k = 0; k < 4; ++k) raw[k] = vectors.load(i + k * Scope::THREADS);
#pragma unroll
                for (u32 k = 0; k < 4; ++k) tile.store(i + k * Scope::THREADS, raw[k]);
            }
#pragma unroll 1
            for (; i < end; i += Scope::THREADS) tile.store(i, vectors.load(i));
        }
#pragma unroll 1
        for (u32 i = scope.thread(); i < resident - body; i += Scope::THREADS) {
            fetch(i < begin ? i : i + body);
        }
        if constexpr (Scope::ASYNC) {
            simt::wait_async(scope.load_turn(), scope.has_next(p));
        } else {
            scope.sync();
        }
    }

    // The first vector of this thread from `begin` on. In every pass vector i belongs to thread i % THREADS.
    template <class Scope>
    static DEVICE u32 own(const Scope& scope, u32 begin) {
        return begin + ((scope.thread() - begin) & (Scope::THREADS - 1));
    }
    // The most vectors that a thread of any part has.
    template <class Scope>
    DEVICE u32 turns(const Scope& scope) const {
        const u32 per = (total() + scope.parts() - 1) / scope.parts();
        return (per + Scope::THREADS - 1) / Scope::THREADS;
    }
    // Calls f(16 bytes, v, on chip?) for this thread's vectors in first + begin .. first + end, which hold V
    // scores each, -inf beyond the row.
    template <class Scope, class F>
    DEVICE void for_raw(const Scope& scope, Pass pass, u32 begin, u32 end, F f) const {
        const auto turns = [](u32 i, u32 end) {
            return i < end ? (end - i + Scope::THREADS - 1) / Scope::THREADS : 0;
        };
        u32 i = own(scope, begin);
        simt::looks(pass, turns(i, end));
        const u32 on_chip = !STREAMS || end < resident ? end : resident;
        // Counted turns: without a count the compiler tests after each of the four. 3 slots a score of f32
        // less than one at a time (2026-11-30). Where rows stream, sm_100 spills at two.
        [[maybe_unused]] constexpr u32 AT_ONCE = STREAMS && !SIMT_TUNED ? 1 : 4;
#pragma unroll AT_ONCE
        for (u32 left = turns(i, on_chip); left > 0; --left, i += Scope::THREADS) {
            f(tile.load(i), first + i, true);
        }
        if (STREAMS) {
            // The next load is in flight while f works on this one.
            Vec16 raw = i < end ? read(first + i) : Vec16{{0, 0, 0, 0}};
#pragma unroll 1
            for (; i < end; i += Scope::THREADS) {
                const u32 next = i + Scope::THREADS;  // path: loop none
                const Vec16 ahead = next < end ? read(first + next) : raw;
                f(raw, first + i, false);
                raw = ahead;
            }
        }
    }
    // Calls f(scores, v, on chip?) with the scores as f32. Off the chip, a masked one is -inf.
    template <class Scope, class F>
    DEVICE void for_vectors(const Scope& scope, Pass pass, u32 begin, u32 end, F f) const {
        for_raw(scope, pass, begin, end, [&](const Vec16& raw, u32 v, bool on_chip) {
            float s[V];
#pragma unroll
            for (u32 j = 0; j < V; ++j) {
                s[j] = T::get(raw, j);
                if (!on_chip) s[j] = unless_masked(s[j], T::LOW);
            }
            f(s, v, on_chip);
        });
    }
    template <class Scope, class F>
    DEVICE void for_each_vector(const Scope& scope, Pass pass, F f) const {
        for_vectors(scope, pass, 0, count, f);
    }

    DEVICE bool is_resident(u32 v) const { return !STREAMS || v - first < resident; }
    // Replaces the scores of a vector on chip by other f32 values. Only its thread reads them again.
    DEVICE void replace(u32 v, const float (&values)[V]) const {
        tile.store(v - first, pack<T>([&](u32 j) { return values[j]; }));
    }
};
