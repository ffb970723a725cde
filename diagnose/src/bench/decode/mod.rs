//! Times of decode attention, and of a read of the bytes that it must read, each checked before it is timed.
//!
//! A server's cache is larger than a CPU's. So each run takes the next of several copies of the cache, which
//! are 256 MiB together, and finds none of its bytes in a cache of the CPU. A GPU has one copy, and its L2
//! cache is overwritten before each run.

mod case;
mod device;
mod runs;

pub use case::{DecodeCase, DecodeRows, DecodeShape};

use super::median;
use crate::Device;
use critbeta::{DType, Element, Error, Result};
use half::{bf16, f16};

/// The rule of the rows that are weighted at their critical beta.
pub const CRITICAL: &str = "critical:resolve=0.69";

/// What one run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeMethod {
    /// The driver's copy of all keys and values. It is the limit of a GPU, and half of its bytes are read.
    Copy,
    /// A read of all keys and values on all threads. It is the limit of a CPU.
    Stream,
    /// The same of the keys alone.
    StreamKeys,
    /// The scores of all keys, and nothing of them: the first phase.
    Keys,
    /// Attention at beta = 1 in one pass over keys and values: our own peer.
    Dense,
    /// Attention at beta = 1 in two phases that read every value.
    Full,
    /// The same, with values left unread up to eps.
    Decode,
    /// Attention at the row's own critical beta that reads every value.
    FullCritical,
    /// The same, with values left unread up to eps.
    DecodeCritical,
    /// Every row's report on a CPU, and its critical beta on a GPU, without values.
    Measure,
}

impl DecodeMethod {
    /// All methods of `device`, in the order of the columns.
    pub fn of(device: &Device) -> &'static [DecodeMethod] {
        use DecodeMethod::*;
        match device {
            Device::Cpu => {
                &[Stream, StreamKeys, Keys, Dense, Full, Decode, FullCritical, DecodeCritical, Measure]
            }
            Device::Cuda(_) => Self::of_gpus(),
        }
    }

    fn of_gpus() -> &'static [DecodeMethod] {
        use DecodeMethod::*;
        &[Copy, Full, Decode, FullCritical, DecodeCritical, Measure]
    }

    /// Its name in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            DecodeMethod::Copy => "copy",
            DecodeMethod::Stream => "stream",
            DecodeMethod::StreamKeys => "stream_keys",
            DecodeMethod::Keys => "keys",
            DecodeMethod::Dense => "dense",
            DecodeMethod::Full => "decode_full",
            DecodeMethod::Decode => "decode",
            DecodeMethod::FullCritical => "decode_critical_full",
            DecodeMethod::DecodeCritical => "decode_critical",
            DecodeMethod::Measure => "measure",
        }
    }

    fn is_critical(self) -> bool {
        matches!(self, DecodeMethod::FullCritical | DecodeMethod::DecodeCritical)
    }

    fn skips(self) -> bool {
        matches!(self, DecodeMethod::Decode | DecodeMethod::DecodeCritical)
    }

    /// The error where a device lacks this method.
    fn not_of(self, whose: &str) -> Error {
        Error::Settings { detail: format!("{} is a method of {whose}", self.name()) }
    }
}

/// The times of one case.
#[derive(Debug, Clone)]
pub struct DecodeMeasured {
    /// The case.
    pub case: DecodeCase,
    /// Seconds of each method that passed its check, one per round.
    pub seconds: Vec<(DecodeMethod, Vec<f64>)>,
    /// Methods whose result was wrong, and the error.
    pub failed: Vec<(DecodeMethod, String)>,
    /// The share of values that [`DecodeMethod::Decode`] and [`DecodeMethod::DecodeCritical`] read.
    pub keep: [f64; 2],
    /// On the simulator, the bytes that the kernels of each method read.
    pub loaded: Vec<(DecodeMethod, u64)>,
}

impl DecodeMeasured {
    fn rounds(&self, method: DecodeMethod) -> Option<&[f64]> {
        self.seconds.iter().find(|(other, _)| *other == method).map(|(_, rounds)| &rounds[..])
    }

    /// The median seconds of `method`, if it passed its check.
    pub fn of(&self, method: DecodeMethod) -> Option<f64> {
        self.rounds(method).map(|rounds| median(rounds.to_vec()))
    }

    /// As [`super::Measured::ratio`].
    pub fn ratio(&self, a: DecodeMethod, b: DecodeMethod) -> Option<f64> {
        let (a, b) = (self.rounds(a)?, self.rounds(b)?);
        Some(median(a.iter().zip(b).map(|(a, b)| a / b).collect()))
    }

    /// Bytes that the kernels of `method` read, in units of [`DecodeMeasured::bytes`]; `None` where nobody
    /// counts them.
    pub fn loads(&self, method: DecodeMethod) -> Option<f64> {
        let loaded = self.loaded.iter().find(|(other, _)| *other == method)?.1;
        Some(loaded as f64 / self.bytes() as f64)
    }

    /// Bytes of the keys and values of the case.
    pub fn bytes(&self) -> usize {
        let DecodeCase { kv_heads, head_dim, dtype, .. } = self.case;
        self.case.lens().iter().sum::<usize>() * 2 * kv_heads * head_dim * dtype.size_bytes()
    }
}

/// One case in memory, ready to be run with any method and any number of times.
pub struct DecodeSetup<'d> {
    runs: Box<dyn runs::Runs + 'd>,
}

impl<'d> DecodeSetup<'d> {
    /// Draws the case and lays out its cache, where `device` reads it.
    ///
    /// Errors: [`Error::Settings`] or [`Error::Cuda`] where there is not enough memory; [`Error::Attention`]
    /// or [`Error::Launch`] for sizes that no decode takes.
    pub fn new(device: &'d Device, case: &DecodeCase, seed: u64) -> Result<Self> {
        let runs = match case.dtype {
            DType::F32 => runs_of::<f32>(device, case, seed)?,
            DType::F16 => runs_of::<f16>(device, case, seed)?,
            DType::Bf16 => runs_of::<bf16>(device, case, seed)?,
            DType::F64 => {
                return Err(Error::Settings {
                    detail: "a decode bench of f64: expected f32, f16 or bf16".into(),
                });
            }
        };
        Ok(DecodeSetup { runs })
    }

    /// Seconds of one run: wall time on the next copy of the cache, or device time behind an overwritten L2
    /// cache.
    ///
    /// Errors: those of [`critbeta::attention::decode`], and of
    /// [`Engine::launch_decode`](critbeta::cuda::Engine::launch_decode); [`Error::Settings`] for a method that
    /// is not in [`DecodeMethod::of`].
    pub fn seconds(&mut self, method: DecodeMethod) -> Result<f64> {
        self.runs.seconds(method)
    }

    /// Runs `method` once and says what is wrong with its results, or `None`.
    ///
    /// Errors: as [`DecodeSetup::seconds`].
    pub fn checked(&mut self, method: DecodeMethod) -> Result<Option<String>> {
        self.runs.checked(method)
    }

    /// Queries [seqs, heads, head_dim], keys and values [seqs, kv_heads, len, head_dim] as safetensors, with
    /// zeros behind the end of a sequence.
    pub fn safetensors(&self) -> Vec<u8> {
        self.runs.safetensors()
    }
}

fn runs_of<'d, T: Element>(
    device: &'d Device,
    case: &DecodeCase,
    seed: u64,
) -> Result<Box<dyn runs::Runs + 'd>> {
    Ok(match device {
        Device::Cpu => Box::new(runs::Cache::<T>::new(case, seed, Some(runs::COLD_BYTES))?),
        Device::Cuda(engine) => Box::new(device::EngineCache::<T>::new(engine, case, seed)?),
    })
}

/// Checks and times `case` with every method of `device`, `rounds` times each. `seed` draws it.
///
/// On the simulator the seconds are the host's and mean nothing. Errors: those of [`DecodeSetup`]. A wrong
/// result is no error: it goes to [`DecodeMeasured::failed`].
pub fn measure_decode(device: &Device, case: DecodeCase, rounds: usize, seed: u64) -> Result<DecodeMeasured> {
    let mut setup = DecodeSetup::new(device, &case, seed)?;
    let (mut sound, mut failed, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    let mut keep = [f64::NAN; 2];
    for &method in DecodeMethod::of(device) {
        match setup.checked(method)? {
            None => sound.push((method, Vec::with_capacity(rounds))),
            Some(wrong) => failed.push((method, wrong)),
        }
        if method.skips() {
            keep[usize::from(method.is_critical())] = setup.runs.keep();
        }
        loaded.extend(setup.runs.loaded().map(|bytes| (method, bytes)));
    }
    for round in 0..rounds.max(1) {
        let turn = |i: usize| if round % 2 == 0 { i } else { sound.len() - 1 - i };
        for at in (0..sound.len()).map(turn).collect::<Vec<_>>() {
            let (method, seconds) = &mut sound[at];
            seconds.push(setup.seconds(*method)?);
        }
    }
    Ok(DecodeMeasured { case, seconds: sound, failed, keep, loaded })
}
