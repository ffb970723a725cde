//! Device times of the kernels beside a copy of the same bytes, each result checked before it is timed.
//!
//! [`measure`] runs one [`Case`] in all its [`Way`]s: in one process, on the same rows, in alternating order, the L2 cache
//! overwritten before each, medians of several rounds. `critbeta bench` prints [`cases::ladder`]; the peers in
//! `benches/peers` read its JSON and measure the same cases.

pub mod cases;
mod check;

pub use cases::Case;

use crate::cpu::Measure;
use crate::cuda::{Beta, Call, DeviceMemory, DeviceOutput, DeviceRows, Engine, Workspace, params};
use crate::rescaling::Critical;
use crate::{Rescaling, Result};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

/// Larger than the L2 cache of any GPU there is.
const FLUSH_BYTES: usize = 256 << 20;
/// Scores that are drawn; more rows repeat them.
const DRAWN_SCORES: u64 = 1 << 22;
/// Scores that are checked in f64 for each way, at least one row: some 50 ms a case.
const CHECKED_SCORES: u64 = 1 << 18;
/// Of the top-k mode: the most that fits the peers' and the papers' kernels.
const TOP_K: usize = 2048;

/// One way to spend a pass over the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The driver's copy of the scores: the limit.
    Copy,
    /// Softmax at beta = 1.
    Softmax,
    /// Softmax at the row's exact critical beta.
    CriticalSoftmax,
    /// Statistics only: every row's report.
    Stats,
    /// Softmax at the critical beta of the 2,048 largest scores.
    TopK,
    /// The critical softmax by separate launches.
    Naive,
}

impl Way {
    /// All, in the order of the columns.
    pub const ALL: [Way; 6] =
        [Way::Copy, Way::Softmax, Way::CriticalSoftmax, Way::Stats, Way::TopK, Way::Naive];

    /// Its name in the JSON and on the terminal.
    pub fn name(self) -> &'static str {
        match self {
            Way::Copy => "copy",
            Way::Softmax => "softmax",
            Way::CriticalSoftmax => "critical_softmax",
            Way::Stats => "stats",
            Way::TopK => "topk",
            Way::Naive => "naive",
        }
    }

    fn measure(self) -> Measure {
        Measure { top_k: (self == Way::TopK).then_some(TOP_K), ..Measure::default() }
    }
}

/// What one case took.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The case.
    pub case: Case,
    /// Median device seconds of each way that passed its check.
    pub seconds: Vec<(Way, f64)>,
    /// Ways whose result was wrong, and how.
    pub failed: Vec<(Way, String)>,
}

impl Measured {
    /// The seconds of `way`, if it passed its check.
    pub fn of(&self, way: Way) -> Option<f64> {
        self.seconds.iter().find(|(other, _)| *other == way).map(|(_, seconds)| *seconds)
    }
}

/// Checks and times `case` on `engine` in every way, `rounds` times each; rows are seeded by `seed`.
///
/// On the simulator seconds are the host's and mean nothing. Errors: those of [`Engine::zeroed`] and
/// [`Engine::launch`]. A wrong result is no error: it is told in [`Measured::failed`], and not timed.
pub fn measure(engine: &Engine, case: Case, rounds: usize, seed: u64) -> Result<Measured> {
    let mut setup = Setup::new(engine, case, seed)?;
    let (mut sound, mut failed) = (Vec::new(), Vec::new());
    for way in Way::ALL {
        // Scores where the probabilities go: a way that writes nothing does not pass by what another one wrote.
        setup.seconds(Way::Copy)?;
        setup.seconds(way)?;
        match setup.check(way)? {
            None => sound.push((way, Vec::with_capacity(rounds))),
            Some(wrong) => failed.push((way, wrong)),
        }
    }
    for round in 0..rounds.max(1) {
        let turn = |i: usize| if round % 2 == 0 { i } else { sound.len() - 1 - i };
        for at in (0..sound.len()).map(turn).collect::<Vec<_>>() {
            let (way, seconds) = &mut sound[at];
            seconds.push(setup.seconds(*way)?);
        }
    }
    let seconds = sound.into_iter().map(|(way, taken)| (way, median(taken))).collect();
    Ok(Measured { case, seconds, failed })
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// One case in device memory, ready to be run in any way and any number of times.
pub struct Setup<'e> {
    engine: &'e Engine,
    case: Case,
    /// The drawn rows, as the device has them; the device repeats them.
    rows: Vec<Vec<f32>>,
    scores: DeviceMemory,
    out: DeviceMemory,
    report: DeviceMemory,
    workspace: DeviceMemory,
    flush: DeviceMemory,
}

impl<'e> Setup<'e> {
    /// Draws the rows and uploads them. Errors: [`crate::Error::Cuda`] where there is not enough memory, and
    /// those of [`crate::cuda::Plan::choose`].
    pub fn new(engine: &'e Engine, case: Case, seed: u64) -> Result<Self> {
        let Case { rows, n, dtype, law } = case;
        let size = dtype.size_bytes();
        let drawn = (DRAWN_SCORES / n).clamp(1, rows);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (mut bytes, mut kept) = (Vec::new(), Vec::new());
        for _ in 0..drawn {
            let mut row = Vec::new();
            law.draw(n as usize, &mut rng, &mut row);
            let at = bytes.len();
            dtype.write(&row.iter().map(|&score| score.into()).collect::<Vec<f64>>(), &mut bytes);
            kept.push((0..row.len()).map(|i| dtype.read(&bytes, at + i * size) as f32).collect());
        }
        let total = (rows * n) as usize * size;
        let mut scores = engine.zeroed(total)?;
        for at in (0..total).step_by(bytes.len()) {
            engine.upload(&mut scores, at, &bytes[..bytes.len().min(total - at)])?;
        }
        let mut setup = Setup {
            engine,
            case,
            rows: kept,
            scores,
            out: engine.zeroed(total)?,
            report: engine.zeroed(rows as usize * size_of::<params::RowReport>())?,
            workspace: engine.zeroed(1)?,
            flush: engine.zeroed(if engine.is_simulated() { 1 } else { FLUSH_BYTES })?,
        };
        let needs = |way| setup.call(way, &RULES).workspace_bytes(engine.arch());
        let needed = [Way::Softmax, Way::Stats].map(needs).into_iter().collect::<Result<Vec<u64>>>()?;
        setup.workspace = engine.zeroed(needed.into_iter().max().unwrap_or(0).max(1) as usize)?;
        Ok(setup)
    }

    /// Device seconds of one run, the L2 cache overwritten before it. Errors: those of [`Engine::launch`].
    pub fn seconds(&mut self, way: Way) -> Result<f64> {
        let call = self.call(way, &RULES);
        let workspace = Workspace { address: self.workspace.address(), bytes: self.workspace.bytes() as u64 };
        let Setup { engine, scores, out, report, workspace: memory, flush, .. } = self;
        match way {
            Way::Copy => engine.time_copy(scores, out, flush),
            _ => {
                let memory = &mut [scores, out, report, memory];
                engine.time_within(&call, Some(workspace), memory, way == Way::Naive, flush)
            }
        }
    }

    fn call<'r>(&self, way: Way, (fixed, critical): &'r (Rescaling, Rescaling)) -> Call<'r> {
        let Case { rows, n, dtype, .. } = self.case;
        let plain = matches!(way, Way::Softmax | Way::Stats);
        let out = DeviceOutput { address: self.out.address(), dtype, stride: n };
        Call {
            scores: DeviceRows {
                address: self.scores.address(),
                dtype,
                rows,
                cols: n,
                stride: n,
                lens: None,
            },
            out: (way != Way::Stats).then_some(out),
            beta: Beta::Rescaling(if plain { fixed } else { critical }),
            positions: None,
            measure: way.measure(),
            both: false,
            // A plain softmax is one that tells nothing.
            report: (way != Way::Softmax).then_some(self.report.address()),
        }
    }

    /// What is wrong with the results of the last run; `None` for nothing. Errors: [`crate::Error::Cuda`].
    pub fn check(&self, way: Way) -> Result<Option<String>> {
        let Case { rows, n, dtype, .. } = self.case;
        let mut sample = [rows - 1, 0, rows / 2].to_vec();
        sample.truncate((CHECKED_SCORES / n).clamp(1, rows) as usize);
        for row in sample {
            let scores = &self.rows[(row % self.rows.len() as u64) as usize];
            let mut report: params::RowReport = bytemuck::Zeroable::zeroed();
            if !matches!(way, Way::Copy | Way::Softmax) {
                let at = row as usize * size_of_val(&report);
                self.engine.download(&self.report, at, bytemuck::bytes_of_mut(&mut report))?;
                if let Some(wrong) = check::report(scores, &report, way.measure(), way != Way::Stats) {
                    return Ok(Some(format!("row {row}: {wrong}")));
                }
            }
            if way == Way::Stats {
                continue;
            }
            let mut bytes = vec![0; n as usize * dtype.size_bytes()];
            self.engine.download(&self.out, row as usize * bytes.len(), &mut bytes)?;
            let out: Vec<f64> =
                (0..scores.len()).map(|i| dtype.read(&bytes, i * dtype.size_bytes())).collect();
            let beta = if way == Way::Softmax { 1.0 } else { report.beta };
            let wrong = match way {
                Way::Copy => check::equal(scores, &out),
                _ => check::probabilities(scores, beta, &out, dtype),
            };
            if let Some(wrong) = wrong {
                return Ok(Some(format!("row {row}, {wrong}")));
            }
        }
        Ok(None)
    }
}

/// beta = 1, and the row's own critical beta.
static RULES: (Rescaling, Rescaling) = (
    Rescaling::Fixed(1.0),
    Rescaling::Critical(Critical { ratio: 1.0, resolve: 0.0, floor: 0.0, cap: f64::INFINITY }),
);
