//! The supremum of (log N(t) - r) / t over the gaps of a row, without sorting the row.
//!
//! A ratio that some gap attains bounds where the contact can be: no gap beyond log N / ratio reaches it, N being the scores that far.
//! What is left is gathered and the bound drawn closer until few gaps remain; where it does not, gaps are counted in bins, each bounded
//! from both sides, and the search goes on in those that can win. Bounds only leave out: what decides is the ratio itself, so the result
//! is that of sorting, bit for bit.

use super::lanes::{Bins, FEW, Isa};
use crate::critical::{CriticalBeta, ratio};
use crate::stats::{RowMax, TopK};
use std::sync::OnceLock;

/// Gaps that are sorted rather than counted in bins.
const SORTED: usize = 256;
const MOST_BINS: usize = 2048;
/// Gaps among which the nearest few may decide; of more the contact lies in the bulk, which cuts do not narrow.
const LADDER_MOST: usize = 16_384;
/// Block maxima whose own search is worth the gaps that it saves.
const MANY: usize = 512;
/// Steps of the cuts that are counted at once.
const LADDER: f32 = 1.5;
/// Ratios err to the safe side by this, far above the rounding of f32.
const UP: f64 = 1.0 + 1e-6;
/// Logarithms err to the safe side by this, far above the error of [`log_bound`].
const LOG_ERROR: f64 = 1e-5;
/// The most bits of a gap that one pass of a sort takes.
const DIGIT_BITS: u32 = 11;

/// Scratch of one thread, reused from row to row: at most 8 bytes per score.
#[derive(Default)]
pub(super) struct Search {
    gaps: Vec<f32>,
    others: Vec<f32>,
    counts: Vec<[u32; 4]>,
    /// Gaps through each bin.
    through: Vec<u64>,
    /// What bounds the logarithm of their ranks, less the resolve.
    excess: Vec<f64>,
}

/// What is known on the way.
struct State {
    best: CriticalBeta,
    resolve: f64,
    /// A ratio that some gap attains, or less.
    attained: f64,
}

/// ln of the first counts: most contacts lie near the top.
fn logs() -> &'static [f64; 4096] {
    static LOGS: OnceLock<Box<[f64; 4096]>> = OnceLock::new();
    LOGS.get_or_init(|| Box::new(std::array::from_fn(|count| (count as f64).ln())))
}

fn log(count: u64) -> f64 {
    logs().get(count as usize).copied().unwrap_or_else(|| (count as f64).ln())
}

/// ln of a count within 2e-6.
fn log_bound(count: u64) -> f64 {
    let bits = (count as f32).to_bits();
    let exponent = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let t = f32::from_bits(bits.wrapping_sub((exponent as u32) << 23)) - 1.0;
    let mut q = 0.118_274_17_f32;
    for c in [-0.189_019_65, 0.206_046_85, -0.248_813_4, 0.333_032_97, -0.500_019_67, 1.000_003_2] {
        q = q * t + c;
    }
    f64::from(exponent) * std::f64::consts::LN_2 + f64::from(q * t)
}

impl State {
    fn new(top: &RowMax, resolve: f64) -> Self {
        State { best: CriticalBeta::at_top(top.ties, resolve), resolve, attained: 0.0 }
    }

    /// Offers a gap with its rank. Returns the best ratio so far.
    fn offer(&mut self, gap: f32, rank: u64) -> f64 {
        // As `ratio` rounds it.
        let beta = match logs().get(rank as usize) {
            Some(log) => (log - self.resolve) / f64::from(gap),
            None => ratio(gap.into(), rank, self.resolve),
        };
        let contact_gap = f64::from(gap);
        let CriticalBeta { beta: best, contact_gap: further, .. } = self.best;
        // Of equal ratios the larger gap.
        if beta > 0.0 && (beta > best || beta == best && contact_gap > further) {
            self.best = CriticalBeta { beta, upper: beta, contact_gap, contact_rank: rank };
            self.attained = self.attained.max(beta);
        }
        self.attained
    }

    /// Some gap of at most `gap` > 0 has at least this rank.
    fn attains(&mut self, gap: f32, rank: u64) {
        self.attained = self.attained.max((log(rank) - self.resolve) / f64::from(gap) / UP);
    }

    /// No gap beyond this wins, if `through` scores lie within the furthest that could.
    fn cut(&self, through: u64) -> f32 {
        if self.attained <= 0.0 {
            return f32::MAX;
        }
        let excess = (log(through) - self.resolve).max(0.0);
        (UP * excess / self.attained).min(f32::MAX.into()) as f32
    }

    /// Offers all of `sorted`, above `before` smaller ones.
    fn sweep(&mut self, isa: Isa, sorted: &[f32], before: u64) {
        let (resolve, attained) = (self.resolve, self.attained);
        isa.winners(sorted, before, resolve, attained, &mut |i| {
            let gap = sorted[i];
            // Equal gaps have the rank of the last.
            if sorted.get(i + 1) == Some(&gap) {
                self.attained
            } else {
                self.offer(gap, before + i as u64 + 1)
            }
        });
    }
}

/// Cuts from `first` on, each `step` times the one before.
fn ladder(first: f32, step: f32) -> [f32; 8] {
    std::array::from_fn(|i| (first * step.powi(i as i32)).min(f32::MAX))
}

impl Search {
    /// Lambda(resolve) of a row with this top. `maxima` are some scores of the row, its largest among them; `gather(least, scores)`
    /// makes `scores` all of the row's from `least` on.
    pub(super) fn critical_beta(
        &mut self,
        isa: Isa,
        top: &RowMax,
        resolve: f64,
        maxima: &[f32],
        gather: impl FnOnce(f32, &mut Vec<f32>),
    ) -> CriticalBeta {
        let mut state = State::new(top, resolve);
        if state.best.beta == f64::INFINITY || top.ties == top.len {
            return state.best;
        }
        // The ranks of some scores among themselves are at most their own: what they attain, the row does.
        let nearest = top.max - top.second;
        if nearest > 0.0 && nearest < f32::MAX {
            state.attains(nearest, 2);
            self.gaps.clear();
            self.gaps.extend_from_slice(maxima);
            isa.to_gaps(&mut self.gaps, top.max, state.cut(maxima.len() as u64));
            let cuts = ladder(nearest * LADDER, LADDER);
            for (cut, count) in cuts.into_iter().zip(isa.count_within(&self.gaps, &cuts)) {
                state.attains(cut, 1 + u64::from(count));
            }
            if maxima.len() >= MANY {
                self.narrow(isa, &mut state, 1);
                state = State {
                    best: CriticalBeta::at_top(top.ties, resolve),
                    attained: state.attained / UP,
                    ..state
                };
            }
        }
        let cut = state.cut(top.len);
        // Below every score whose gap is rounded to the cut or less.
        let least = ((f64::from(top.max) - UP * f64::from(cut)) as f32).next_down().max(f32::MIN);
        gather(least, &mut self.gaps);
        isa.to_gaps(&mut self.gaps, top.max, cut);
        self.narrow(isa, &mut state, top.ties);
        state.best
    }

    /// Takes all of `gaps`, above `before` scores, into account.
    fn narrow(&mut self, isa: Isa, state: &mut State, mut before: u64) {
        while self.gaps.len() > FEW {
            let n = self.gaps.len();
            let (low, high) = isa.extent(&self.gaps);
            if !self.draw_closer(isa, state, high, before) {
                match self.count(isa, state, [low, high], before) {
                    Some(below) => before = below,
                    None => return,
                }
            }
            debug_assert!(self.gaps.len() < n);
        }
        let mut ranks = [0; FEW];
        isa.rank(&self.gaps, &mut ranks);
        for (&gap, &rank) in self.gaps.iter().zip(&ranks) {
            let rank = before + u64::from(rank);
            if log(rank) - state.resolve >= state.attained * f64::from(gap) / UP {
                state.offer(gap, rank);
            }
        }
    }

    /// Drops the furthest gaps, of which none lies beyond `high`, as long as that drops a quarter of them; says whether it did.
    fn draw_closer(&mut self, isa: Isa, state: &mut State, high: f32, before: u64) -> bool {
        let n = self.gaps.len();
        let within = |search: &mut Self, cut: f32| {
            if cut >= high {
                return false;
            }
            isa.keep_within(&mut search.gaps, cut);
            4 * search.gaps.len() <= 3 * n
        };
        if within(self, state.cut(before + n as u64)) {
            return true;
        }
        if n > LADDER_MOST {
            return false;
        }
        // What each cut attains draws the last one closer.
        let cuts = ladder(high, 1.0 / LADDER);
        let counts = isa.count_within(&self.gaps, &cuts);
        for (&cut, &count) in cuts.iter().zip(&counts).filter(|(_, count)| **count > 0) {
            state.attains(cut, before + u64::from(count));
        }
        let lost = |&(cuts, &count): &(&[f32], &u32)| {
            log(before + u64::from(count)) - state.resolve < state.attained * f64::from(cuts[1]) / UP
        };
        let lost = cuts.windows(2).zip(&counts).take_while(lost).last();
        let cut = lost.map_or(high, |(cuts, _)| cuts[1]).min(state.cut(before + self.gaps.len() as u64));
        within(self, cut)
    }

    /// Counts the gaps, which lie from `low` to `high`, in bins and keeps those from the first to the last that can win; returns how many
    /// scores lie below. Or settles all of them, where that leaves out too little.
    fn count(&mut self, isa: Isa, state: &mut State, [low, high]: [f32; 2], before: u64) -> Option<u64> {
        let n = self.gaps.len();
        let count = (n / 64).next_power_of_two().clamp(64, MOST_BINS);
        let bins = Bins { low, per_unit: count as f32 / (high - low), count };
        if n <= SORTED || !bins.per_unit.is_normal() {
            self.sort();
            state.sweep(isa, &self.gaps, before);
            return None;
        }
        self.counts.clear();
        self.counts.resize(count, [0; 4]);
        isa.count_bins(&self.gaps, &bins, &mut self.counts);
        self.through.clear();
        let sums = self.counts.iter().scan(0, |sum, counts| {
            *sum += counts.iter().map(|&c| u64::from(c)).sum::<u64>();
            Some(*sum)
        });
        self.through.extend(sums);
        self.excess.clear();
        self.excess.extend(self.through.iter().map(|&rank| log_bound(before + rank) - state.resolve));
        let (through, excess) = (&self.through, &self.excess);
        let occupied = || (0..count).filter(|&b| through[b] > if b > 0 { through[b - 1] } else { 0 });
        let width = 1.0 / f64::from(bins.per_unit);
        let edge = |bin: usize, slack: f64| f64::from(low) + bin as f64 * width * slack;
        for b in occupied() {
            let sure = excess[b] - LOG_ERROR;
            let far = edge(b + 1, UP).min(high.into()).max(f64::from(low));
            let far = if b + 1 == count { high.into() } else { far };
            if sure > state.attained * far * UP {
                state.attained = sure / far / UP;
            }
        }
        let can_win = |&b: &usize| {
            let most = excess[b] + LOG_ERROR;
            most > 0.0 && most >= state.attained * edge(b, 1.0 / UP)
        };
        let mut first_last = None;
        let mut alive = 0;
        for b in occupied().filter(can_win) {
            let (first, _) = *first_last.get_or_insert((b, b));
            first_last = Some((first, b));
            alive += through[b] - if b > 0 { through[b - 1] } else { 0 };
        }
        let Some((first, last)) = first_last else {
            self.gaps.clear();
            return Some(before);
        };
        let below = if first > 0 { through[first - 1] } else { 0 };
        if 2 * (through[last] - below) <= n as u64 {
            isa.keep_bins(&mut self.gaps, &bins, first, last);
            return Some(before + below);
        }
        if 2 * alive <= n as u64 {
            // Bins here and there: each has the scores below it.
            let wins: Vec<bool> = (0..count).map(|b| can_win(&b)).collect();
            self.gaps.retain(|&gap| wins[bins.of(gap)]);
            self.sort();
            let mut rest = &self.gaps[..];
            while let Some(&gap) = rest.first() {
                let bin = bins.of(gap);
                let (run, behind) = rest.split_at(rest.partition_point(|&gap| bins.of(gap) <= bin));
                let below = if bin > 0 { self.through[bin - 1] } else { 0 };
                state.sweep(isa, run, before + below);
                rest = behind;
            }
        } else {
            self.sort();
            state.sweep(isa, &self.gaps, before);
        }
        None
    }

    /// Sorts the gaps, by the digits of their bits where they are many and in no order yet.
    fn sort(&mut self) {
        let n = self.gaps.len();
        if self.gaps.is_sorted() {
            return;
        }
        if self.gaps.is_sorted_by(|a, b| a >= b) {
            return self.gaps.reverse();
        }
        if n <= SORTED {
            return self.gaps.sort_unstable_by_key(|gap| gap.to_bits());
        }
        let (least, most) = self
            .gaps
            .iter()
            .fold((u32::MAX, 0), |(least, most), gap| (least.min(gap.to_bits()), most.max(gap.to_bits())));
        let bits = 32 - (most - least).leading_zeros();
        let passes = bits.div_ceil(DIGIT_BITS);
        let digit_bits = bits.div_ceil(passes.max(1));
        let digit = |gap: f32, pass: u32| {
            ((gap.to_bits() - least) >> (pass * digit_bits)) as usize & ((1 << digit_bits) - 1)
        };
        self.others.clear();
        self.others.resize(n, 0.0);
        let mut counts = vec![0u32; (passes << digit_bits) as usize];
        let tables = |pass: u32| (pass << digit_bits) as usize;
        for &gap in &self.gaps {
            for pass in 0..passes {
                counts[tables(pass) + digit(gap, pass)] += 1;
            }
        }
        for pass in 0..passes {
            let places = &mut counts[tables(pass)..][..1 << digit_bits];
            let mut start = 0;
            for place in places.iter_mut() {
                (*place, start) = (start, start + *place);
            }
            for &gap in &self.gaps {
                let place = &mut places[digit(gap, pass)];
                self.others[*place as usize] = gap;
                *place += 1;
            }
            std::mem::swap(&mut self.gaps, &mut self.others);
        }
    }

    /// Lambda(resolve) as far as the `k` largest scores tell, with what bounds it from above.
    pub(super) fn critical_beta_of_top(
        isa: Isa,
        scores: &[f32],
        top: &RowMax,
        k: usize,
        resolve: f64,
    ) -> CriticalBeta {
        let mut state = State::new(top, resolve);
        let mut largest = TopK::new(k);
        largest.extend(scores);
        let mut gaps: Vec<f32> = largest.into_sorted().iter().map(|&s| top.max - s).collect();
        let furthest = gaps.last().map_or(0.0, |&gap| f64::from(gap));
        let complete = gaps.len() as u64 == top.len;
        gaps.retain(|gap| gap.is_finite());
        let tied = gaps.partition_point(|&gap| gap == 0.0);
        state.sweep(isa, &gaps[tied..], tied as u64);
        let mut best = state.best;
        if !complete && best.beta < f64::INFINITY {
            // The certificate: whatever lies beyond the k-th gap has a ratio below (log n - r) / D_(k).
            best.upper = best.beta.max(ratio(furthest, top.len, resolve));
        }
        best
    }
}
