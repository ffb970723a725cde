//! Times of the softmax, of a copy of its bytes, and of what people run today, each checked before it is
//! timed.
//!
//! [`measure`] runs one [`Case`] with all [`Method`]s of a device: in one process, on the same rows, in
//! alternating order. It takes medians over several rounds. A GPU's L2 cache is overwritten before each run;
//! a CPU's caches are left alone. `critbeta bench` prints [`cases::of`]. `benches/peers` measures the same
//! cases.

pub mod cases;
mod check;
mod cpu;
mod cuda;
pub mod decode;
mod peers;

pub use cases::Case;

use crate::Device;
use crate::input::elements;
use critbeta::cpu::Measure;
use critbeta::rescaling::Critical;
use critbeta::{CriticalBeta, Rescaling, Result};

/// This many scores, but at least one row, are checked in f64 for each method. That takes some 50 ms a case.
const CHECKED_SCORES: u64 = 1 << 18;
/// The K of the top-k mode: the most that the kernels of the peers and the papers take.
const TOP_K: usize = 2048;
/// A method stops after these seconds and [`LEAST_ROUNDS`]: a sort takes a hundred times as long as a
/// softmax.
const ENOUGH_SECONDS: f64 = 1.5;
const LEAST_ROUNDS: usize = 5;

/// What one pass over the rows does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The driver's copy of the scores, or the C library's on all threads. It is the limit.
    Copy,
    /// A copy by streaming stores on all threads, where the CPU has them. It is the CPU's limit.
    CopyNt,
    /// Softmax at beta = 1.
    Softmax,
    /// Softmax at the row's exact critical beta.
    CriticalSoftmax,
    /// Every row's report, without probabilities.
    Stats,
    /// Softmax at the critical beta of the 2,048 largest scores.
    TopK,
    /// The critical softmax of a CPU by a sort of each row.
    NaiveSort,
}

impl Method {
    /// All methods of `device`, in the order of the columns.
    pub fn of(device: &Device) -> &'static [Method] {
        use Method::*;
        match device {
            Device::Cpu if critbeta::cpu::streaming_copy().is_some() => {
                &[Copy, CopyNt, Softmax, CriticalSoftmax, Stats, NaiveSort, TopK]
            }
            Device::Cpu => &[Copy, Softmax, CriticalSoftmax, Stats, NaiveSort, TopK],
            Device::Cuda(_) => &[Copy, Softmax, CriticalSoftmax, Stats, TopK],
        }
    }

    /// Its name in the JSON and on the terminal.
    pub fn name(self) -> &'static str {
        match self {
            Method::Copy => "copy",
            Method::CopyNt => "copy_nt",
            Method::Softmax => "softmax",
            Method::CriticalSoftmax => "critical_softmax",
            Method::Stats => "stats",
            Method::TopK => "topk",
            Method::NaiveSort => "naive_sort",
        }
    }

    fn measure(self) -> Measure {
        Measure::new(0.0, (self == Method::TopK).then_some(TOP_K))
    }

    fn is_copy(self) -> bool {
        matches!(self, Method::Copy | Method::CopyNt)
    }

    /// Whether rows are weighted at their critical beta, not at 1.
    fn is_critical(self) -> bool {
        matches!(self, Method::CriticalSoftmax | Method::TopK | Method::NaiveSort)
    }
}

/// The times of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The case.
    pub case: Case,
    /// Seconds of each method that passed its check, one per round. Slow methods skip the last rounds.
    pub seconds: Vec<(Method, Vec<f64>)>,
    /// Methods whose result was wrong, and the error.
    pub failed: Vec<(Method, String)>,
}

impl Measured {
    fn rounds(&self, method: Method) -> Option<&[f64]> {
        self.seconds.iter().find(|(other, _)| *other == method).map(|(_, rounds)| &rounds[..])
    }

    /// The median seconds of `method`, if it passed its check.
    pub fn of(&self, method: Method) -> Option<f64> {
        self.rounds(method).map(|rounds| median(rounds.to_vec()))
    }

    /// The time of `a` over that of `b`, as the median of the ratios of each round. Other work on a machine
    /// comes and goes in seconds; it disturbs this less than it disturbs a ratio of medians.
    pub fn ratio(&self, a: Method, b: Method) -> Option<f64> {
        let (a, b) = (self.rounds(a)?, self.rounds(b)?);
        Some(median(a.iter().zip(b).map(|(a, b)| a / b).collect()))
    }
}

/// Checks and times `case` with every method, `rounds` times each (slow ones at least 5). `seed` draws the
/// rows.
///
/// On the simulator the seconds are the host's and mean nothing. Errors: those of [`Setup::new`] and
/// [`Setup::seconds`]. A wrong result is no error: it goes to [`Measured::failed`] and is not timed.
pub fn measure(device: &Device, case: Case, rounds: usize, seed: u64) -> Result<Measured> {
    let mut setup = Setup::new(device, case, seed)?;
    let (mut sound, mut failed) = (Vec::new(), Vec::new());
    for &method in Method::of(device) {
        match setup.checked(method)? {
            None => sound.push((method, Vec::with_capacity(rounds))),
            Some(wrong) => failed.push((method, wrong)),
        }
    }
    for round in 0..rounds.max(1) {
        let turn = |i: usize| if round % 2 == 0 { i } else { sound.len() - 1 - i };
        for at in (0..sound.len()).map(turn).collect::<Vec<_>>() {
            let (method, seconds) = &mut sound[at];
            if seconds.len() < LEAST_ROUNDS || seconds.iter().sum::<f64>() < ENOUGH_SECONDS {
                seconds.push(setup.seconds(*method)?);
            }
        }
    }
    Ok(Measured { case, seconds: sound, failed })
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// One case in memory, ready to be run with any method and any number of times.
pub struct Setup<'d> {
    case: Case,
    /// The drawn rows. The rows in memory repeat them.
    rows: Vec<Vec<f32>>,
    place: Place<'d>,
}

enum Place<'d> {
    Cpu(cpu::HostRows),
    Cuda(Box<cuda::EngineRows<'d>>),
}

/// What a method found in a row.
struct RowResult {
    /// The critical beta with its contact, where the method reports it.
    critical: Option<CriticalBeta>,
    /// The inverse temperature that the row was run at.
    beta: f64,
    /// How far beta may be from the definition's, relative.
    slack: f64,
}

impl<'d> Setup<'d> {
    /// Draws the rows and stores them where `device` reads them.
    ///
    /// Errors: [`Error::Settings`](critbeta::Error::Settings) or [`Error::Cuda`](critbeta::Error::Cuda) where there
    /// is not enough memory, and those of [`Plan::choose`](critbeta::cuda::Plan::choose).
    pub fn new(device: &'d Device, case: Case, seed: u64) -> Result<Self> {
        let rows = case.draw(seed);
        let mut bytes = Vec::new();
        for row in &rows {
            elements::write(case.dtype, row, &mut bytes);
        }
        let place = match device {
            Device::Cpu => Place::Cpu(cpu::HostRows::new(case, &bytes)?),
            Device::Cuda(engine) => Place::Cuda(Box::new(cuda::EngineRows::new(engine, case, &bytes)?)),
        };
        Ok(Setup { case, rows, place })
    }

    /// Seconds of one run: device time on a GPU, after its L2 cache was overwritten, and wall time on a CPU.
    ///
    /// Errors: those of [`Engine::launch`](critbeta::cuda::Engine::launch);
    /// [`Error::Settings`](critbeta::Error::Settings) for a method that is not in [`Method::of`].
    pub fn seconds(&mut self, method: Method) -> Result<f64> {
        match &mut self.place {
            Place::Cpu(rows) => rows.seconds(method),
            Place::Cuda(rows) => rows.seconds(method),
        }
    }

    /// Runs `method` once and says what is wrong with its results, or `None`.
    ///
    /// Errors: as [`Setup::seconds`].
    pub fn checked(&mut self, method: Method) -> Result<Option<String>> {
        // The copy overwrites the output, so that a method that writes nothing cannot pass.
        self.seconds(Method::Copy)?;
        self.seconds(method)?;
        let Case { rows, n, dtype, .. } = self.case;
        let mut sample = [rows - 1, 0, rows / 2].to_vec();
        sample.truncate((CHECKED_SCORES / n).clamp(1, rows) as usize);
        for row in sample {
            let scores = &self.rows[(row % self.rows.len() as u64) as usize];
            let (result, out) = match &self.place {
                Place::Cpu(rows) => (rows.result(method, row), rows.out(row)),
                Place::Cuda(rows) => (rows.result(method, row)?, rows.out(row)?),
            };
            let wrong = match method {
                _ if method.is_copy() => check::equal(scores, &out),
                Method::Softmax => check::probabilities(scores, 1.0, &out, dtype),
                Method::Stats => check::betas(scores, &result, method),
                _ => check::betas(scores, &result, method)
                    .or_else(|| check::probabilities(scores, result.beta, &out, dtype)),
            };
            if let Some(wrong) = wrong {
                return Ok(Some(format!("row {row}: {wrong}")));
            }
        }
        Ok(None)
    }

    /// The scores in little endian, one row after another, or `None` on a GPU.
    pub fn score_bytes(&self) -> Option<&[u8]> {
        match &self.place {
            Place::Cpu(rows) => Some(rows.scores()),
            Place::Cuda(_) => None,
        }
    }
}

/// The two rules: beta = 1, and the row's own critical beta.
static RULES: (Rescaling, Rescaling) = (Rescaling::Fixed(1.0), Rescaling::Critical(Critical::new()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_a_round() {
        let case = Case::new(1, 9, critbeta::DType::F32, "gaussian").unwrap();
        // The machine was slow in the second round, for both. The sort ran in two rounds only.
        let seconds = vec![
            (Method::Copy, vec![1.0, 7.0, 1.0]),
            (Method::Softmax, vec![2.0, 14.0, 3.0]),
            (Method::NaiveSort, vec![9.0, 70.0]),
        ];
        let measured = Measured { case, seconds, failed: vec![(Method::Stats, "wrong".into())] };
        assert_eq!(measured.of(Method::Softmax), Some(3.0));
        assert_eq!(measured.ratio(Method::Softmax, Method::Copy), Some(2.0));
        assert_eq!(measured.ratio(Method::NaiveSort, Method::Copy), Some(10.0));
        assert_eq!((measured.of(Method::Stats), measured.ratio(Method::Stats, Method::Copy)), (None, None));
    }

    #[test]
    fn a_case_is_measured_with_every_method_of_its_device() {
        let case = Case::new(3, 700, critbeta::DType::F16, "masked").unwrap();
        let measured = measure(&Device::Cpu, case, 2, 1).unwrap();
        let methods: Vec<Method> = measured.seconds.iter().map(|(method, _)| *method).collect();
        assert_eq!((&methods[..], measured.failed), (Method::of(&Device::Cpu), vec![]));
        assert!(measured.seconds.iter().all(|(_, rounds)| rounds.len() == 2));
    }
}
