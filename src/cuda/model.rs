//! A model of the machine on paper: the time that a launch should take, and what bounds it. It is made of
//! pure functions and stated constants, and no GPU has confirmed it yet (2026-11-30): the first run on one
//! confirms or refutes its numbers (`scripts/gpu-check.sh`).
//!
//! A CTA moves its bytes at an SM's share of the memory, issues its instructions, and waits for barriers.
//! CTAs that share an SM overlap. How well they do lies between two bounds: phases of equal length fit into
//! each other without a gap (the asymptotic bound), and phases of random length queue (mean value analysis of
//! a closed network). The expected time is the geometric mean of the two.

use super::arch::Arch;
use super::costs::{Cost, Costs};
use super::ladder::{THREADS, WARPS};
use super::plan::{Launch, Plan};
use super::variants::{Family, Scope};
use crate::DType;
use std::fmt;

/// What a GPU does in a second, beside the limits in [`Arch`].
struct Machine {
    /// Bytes per second of a large copy, read and written.
    bandwidth: f64,
    /// Cycles per second of an SM under load.
    clock: f64,
    /// Processing clusters (GPCs) and the SMs of each. A cluster of CTAs lies in one of them.
    gpcs: &'static [(u32, u32)],
}

/// An H200. The copy was measured (4.8e12 is the datasheet's), the clock is the boost clock under load. The
/// SMs of a GPC differ from part to part; this is the usual sum of 132.
const H200: Machine = Machine { bandwidth: 4.3e12, clock: 1.755e9, gpcs: &[(6, 16), (2, 18)] };

/// Lanes that an SM issues for in a cycle: four schedulers of 32.
const LANES: f64 = 128.0;
/// The share of its issue slots that a busy SM uses. Assumed; 0.8 to 0.9 is usual for unrolled loops.
const EFFICIENCY: f64 = 0.85;
/// The share of a scheduler's slots that one warp alone uses: dependent arithmetic takes 4 cycles, and a load
/// of 16 bytes of shared memory about 25, for some 30 instructions. Assumed.
const ONE_WARP: f64 = 0.22;
/// An SM can draw this many times its share of the memory while others draw nothing. 64 KB in flight and a
/// latency of 1 us allow about twice.
const DRAW: f64 = 2.0;
/// Seconds between two events round an empty launch. Assumed.
pub(super) const LAUNCH: f64 = 2.0e-6;
/// Seconds until a CTA has its first bytes, and until its last ones are on their way: its start, a latency of
/// device memory, the drain. Assumed.
const ENDS: f64 = 1.5e-6;
/// Seconds of a collective of a warp with the serial work round it, by shuffles and in one step, and of a
/// barrier of a CTA, a cluster, and a group of CTAs of the grid. The first three are counted in cycles (five
/// shuffles of some words, about 250; 50; 80), the others are usual for sm_90. None is measured here.
const WAIT: [f64; 5] = [0.15e-6, 0.03e-6, 0.05e-6, CLUSTER_BARRIER, 1.3e-6];
pub(super) const CLUSTER_BARRIER: f64 = 0.3e-6;

/// What bounds a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// Device memory.
    Memory,
    /// The instructions that an SM can issue.
    Issue,
    /// Phases of too few CTAs that follow one another, with their barriers and latencies.
    Latency,
}

/// What a launch should take on one kind of rows, by the model. It prints itself.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// The kind of rows: plain, near the top, sink, student t; or critical beta (betas alone), statistics,
    /// and either of a sink.
    pub path: &'static str,
    /// Expected seconds on the device, and the two bounds that it lies between.
    pub seconds: f64,
    /// Seconds if phases fit into each other without a gap.
    pub fastest: f64,
    /// Seconds if phases have random lengths.
    pub slowest: f64,
    /// Seconds of the bytes alone at the speed of a copy.
    pub copy: f64,
    /// What bounds it.
    pub bound: Bound,
}

impl Prediction {
    /// The share of the speed of a copy.
    pub fn share(&self) -> f64 {
        self.copy / self.seconds
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Prediction { path, seconds, fastest, slowest, copy, bound } = *self;
        let share = |seconds: f64| copy / seconds;
        let by = match bound {
            Bound::Memory => "memory",
            Bound::Issue => "issue",
            Bound::Latency => "latency",
        };
        write!(
            f,
            "{path:24} {:8.1} us, {:.2} of a copy ({:.2} to {:.2}), bound by {by}",
            seconds * 1e6,
            share(seconds),
            share(slowest),
            share(fastest)
        )
    }
}

impl Plan {
    /// What the launch should take, by a model of the machine that no GPU has confirmed yet: one prediction
    /// for each kind of rows. There are none for other GPUs than an H200, nor for rows beyond the chip.
    pub fn predictions(&self) -> Vec<Prediction> {
        self.predictions_by(&Costs::committed())
    }

    /// The predictions by other costs, for the table of the documentation.
    #[doc(hidden)]
    pub fn predictions_by(&self, costs: &Costs) -> Vec<Prediction> {
        predictions(self, costs)
    }
}

impl Machine {
    /// The machine of `arch`, or `None`: no prediction is better than one for another part. An H100 has
    /// another memory, and slots are counted for sm_90 only.
    fn of(arch: &Arch) -> Option<&'static Machine> {
        let is_h200 = arch.name == "sm_90" || arch.name.contains("H200");
        (is_h200 && (arch.sm, arch.sm_count) == (90, 132)).then_some(&H200)
    }

    /// CTAs that run at once where `per_sm` of them share an SM and `ctas` of them make a cluster.
    fn at_once(&self, per_sm: u32, ctas: u32) -> u32 {
        self.gpcs.iter().map(|&(gpcs, sms)| gpcs * (per_sm * sms / ctas) * ctas).sum()
    }
}

/// Seconds of a kernel of `ctas` CTAs that moves `bytes` of device memory and issues so many lane slots, one
/// beside the other and without its launch. `None` for a GPU without a machine.
pub(super) fn kernel_seconds(arch: &Arch, ctas: u32, bytes: f64, slots: f64) -> Option<f64> {
    let machine = Machine::of(arch)?;
    let sms = f64::from(ctas.min(arch.sm_count));
    let memory = bytes / (machine.bandwidth * (DRAW * sms / f64::from(arch.sm_count)).min(1.0));
    Some(ENDS + memory.max(slots / (LANES * machine.clock * sms * EFFICIENCY)))
}

/// Seconds that a CTA of the block scope, alone on its SM, works on a row of f32 scores on chip whose contact
/// is near the top. `None` for a GPU without a machine.
pub(super) fn row_seconds(arch: &Arch, cols: u64) -> Option<f64> {
    let machine = Machine::of(arch)?;
    let Cost { slots, waits } = Costs::committed().of("near the top", Scope::Block, DType::F32)?;
    let alone = (f64::from(THREADS) / LANES * ONE_WARP).min(EFFICIENCY);
    let waits: f64 = waits.iter().zip(WAIT).map(|(count, each)| count * each).sum();
    Some(cols as f64 * slots / (LANES * machine.clock * alone) + waits)
}

/// The predictions for `plan`, one for each path that its family has. There are none for a GPU without a
/// machine, nor for rows beyond the chip.
fn predictions(plan: &Plan, costs: &Costs) -> Vec<Prediction> {
    let Some(machine) = Machine::of(&plan.arch) else { return Vec::new() };
    if !plan.fits_on_chip() {
        return Vec::new();
    }
    costs.paths(plan.problem.family).filter_map(|path| predict(plan, machine, path, costs)).collect()
}

fn predict(plan: &Plan, machine: &Machine, path: &'static str, costs: &Costs) -> Option<Prediction> {
    let Launch { variant, grid, ctas, groups, ctas_per_sm, .. } = plan.launch;
    let (problem, scope) = (plan.problem, variant.scope());
    let Cost { slots, waits } = costs.of(path, scope, problem.dtype)?;
    let rows_of_cta = if scope == Scope::Warp { f64::from(WARPS) } else { 1.0 / f64::from(ctas) };
    let scores = problem.cols as f64 * rows_of_cta;
    let moves = if problem.family == Family::CriticalSoftmax { 2.0 } else { 1.0 };
    let bytes = scores * moves * problem.dtype.size_bytes() as f64;
    let issue = scores * slots / (LANES * machine.clock);
    let alone = (f64::from(variant.threads()) / LANES * ONE_WARP).min(EFFICIENCY);
    let phases = Phases {
        bytes,
        issue: issue / EFFICIENCY,
        issue_alone: issue / alone,
        waits: waits.iter().zip(WAIT).map(|(count, each)| count * each).sum(),
        together: scope == Scope::Split && groups == 1,
    };
    let at_once = match scope {
        Scope::Cluster => machine.at_once(ctas_per_sm, ctas),
        _ => plan.arch.sm_count * ctas_per_sm,
    };
    // A group of the split scope works on one row after the other.
    let turns = if scope == Scope::Split { problem.rows.div_ceil(groups.into()) as f64 } else { 1.0 };
    let (full, rest) = (grid / at_once.max(1), grid % at_once.max(1));
    let wave = |running: u32| phases.wave(machine, plan.arch.sm_count, running);
    let all = if plan.launch.loads_ahead(problem.rows) {
        phases.in_turns(machine, plan.arch.sm_count, grid, problem.rows as f64 / f64::from(groups))
    } else {
        let (of_full, of_rest) = (wave(at_once.min(grid)), wave(rest));
        let total = |full_wave: f64, rest_wave: f64| turns * (f64::from(full) * full_wave + rest_wave);
        Wave {
            fast: total(of_full.fast, of_rest.fast),
            slow: total(of_full.slow, of_rest.slow),
            bound: if full > 0 { of_full.bound } else { of_rest.bound },
        }
    };
    let (fastest, slowest, bound) = (LAUNCH + all.fast, LAUNCH + all.slow, all.bound);
    let copy = problem.rows as f64 * problem.cols as f64 * moves * problem.dtype.size_bytes() as f64
        / machine.bandwidth;
    Some(Prediction { path, seconds: (fastest * slowest).sqrt(), fastest, slowest, copy, bound })
}

/// What one CTA does with a row, or its part of one.
struct Phases {
    bytes: f64,
    /// Seconds of issue on a busy SM, and for this CTA alone.
    issue: f64,
    issue_alone: f64,
    /// Seconds of its barriers and collectives.
    waits: f64,
    /// All CTAs of the grid do the same at the same time.
    together: bool,
}

/// Seconds from the start of CTAs that run at once to the end of the last one.
struct Wave {
    fast: f64,
    slow: f64,
    bound: Bound,
}

impl Phases {
    fn wave(&self, machine: &Machine, sms: u32, running: u32) -> Wave {
        if running == 0 {
            return Wave { fast: 0.0, slow: 0.0, bound: Bound::Latency };
        }
        let per_sm = running.div_ceil(sms);
        let (memory, drawn) = self.memory(machine, sms, running);
        let first = if self.together { memory } else { drawn };
        let serial = ENDS + first + self.issue_alone + self.waits;
        let (fast, bound) = self.bounds(per_sm, memory, serial);
        let think = ENDS + self.waits + self.issue_alone - self.issue;
        Wave { fast, slow: cycle(per_sm, [memory, self.issue], think).max(fast), bound }
    }

    /// CTAs that take rows in so many turns. A row is loaded beside the work on the one before it: for the
    /// memory there are twice as many rows.
    fn in_turns(&self, machine: &Machine, sms: u32, running: u32, turns: f64) -> Wave {
        let per_sm = running.div_ceil(sms);
        let (memory, drawn) = self.memory(machine, sms, running);
        let (fast, bound) = self.bounds(per_sm, memory, self.issue_alone + self.waits);
        let think = self.waits + self.issue_alone - self.issue;
        let loading = cycle(2 * per_sm, [memory, self.issue], think) / 2.0;
        let slow = cycle(per_sm, [0.0, self.issue], think).max(loading).max(fast);
        Wave { fast: ENDS + drawn + turns * fast, slow: ENDS + drawn + turns.ceil() * slow, bound }
    }

    /// Seconds for the bytes of a CTA: as one of the SMs that share the memory, and as fast as one SM can
    /// draw.
    fn memory(&self, machine: &Machine, sms: u32, running: u32) -> (f64, f64) {
        let sharing = f64::from(running) / f64::from(running.div_ceil(sms));
        let drawn = self.bytes * f64::from(sms) / machine.bandwidth / DRAW;
        ((self.bytes * sharing / machine.bandwidth).max(drawn), drawn)
    }

    /// What bounds the CTAs of an SM if their phases fit into each other.
    fn bounds(&self, per_sm: u32, memory: f64, serial: f64) -> (f64, Bound) {
        let count = f64::from(per_sm);
        let bounds =
            [(count * memory, Bound::Memory), (count * self.issue, Bound::Issue), (serial, Bound::Latency)];
        bounds.into_iter().fold((0.0, Bound::Latency), |most, of| if of.0 > most.0 { of } else { most })
    }
}

/// Mean value analysis: the seconds of one turn of `customers` that each need `demand` seconds of every
/// station and `think` seconds of none.
fn cycle(customers: u32, demand: [f64; 2], think: f64) -> f64 {
    let (mut queues, mut turn) = ([0.0; 2], 0.0);
    for n in 1..=customers {
        let stays: Vec<f64> = demand.iter().zip(queues).map(|(d, queue)| d * (1.0 + queue)).collect();
        turn = stays.iter().sum::<f64>() + think;
        for (queue, stay) in queues.iter_mut().zip(stays) {
            *queue = f64::from(n) * stay / turn;
        }
    }
    turn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_one_wait_for_nobody_and_of_many_for_the_busiest() {
        assert!((cycle(1, [2.0, 1.0], 4.0) - 7.0).abs() < 1e-12);
        // By hand: one customer holds 2/3 and 1/3 of a place, so the second stays 2 (5/3) + 1 (4/3).
        assert!((cycle(2, [2.0, 1.0], 0.0) - 14.0 / 3.0).abs() < 1e-12);
        // Of many, each turn brings every one of them to the busiest station once.
        assert!((cycle(500, [2.0, 1.0], 4.0) / 500.0 - 2.0).abs() < 1e-3);
    }

    #[test]
    fn clusters_lie_in_one_processing_cluster() {
        assert_eq!(H200.at_once(1, 1), 132);
        assert_eq!(H200.at_once(1, 16), 8 * 16);
        assert_eq!(H200.at_once(3, 16), 24 * 16);
        assert_eq!(H200.gpcs.iter().map(|(gpcs, sms)| gpcs * sms).sum::<u32>(), 132);
    }
}
