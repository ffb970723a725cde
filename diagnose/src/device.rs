//! The device that computes rows: this CPU, a GPU, or the simulator of one. It is one enum, not a trait.

use critbeta::cpu::{self, Measure, RowReport, SoftmaxRow};
use critbeta::cuda::{Arch, Engine, SimtOptions};
use critbeta::{Element, Rescaling, Result, Scores};
use std::fmt;
use std::str::FromStr;

/// The device that a user names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceSpec {
    /// The fastest for rows of files, as far as records show: this CPU. A GPU would copy every row there and
    /// back, and may first compile its kernels for seconds.
    #[default]
    Auto,
    /// This CPU.
    Cpu,
    /// The GPU with this number, or an error.
    Cuda(usize),
    /// The simulator of the CUDA kernels as an sm_90. It is slow and for tests.
    Simt,
}

/// Prints `auto`, `cpu`, `cuda:N` or `simt`.
impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            DeviceSpec::Simt => f.write_str("simt"),
        }
    }
}

/// Reads `auto`, `cpu`, `cuda` (the first), `cuda:N` or `simt`.
impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(0)),
            "simt" => Ok(DeviceSpec::Simt),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(DeviceSpec::Cuda(ordinal)),
                _ => Err(format!("unknown device {text:?}: expected auto, cpu, cuda:N or simt")),
            },
        }
    }
}

/// The device that computes rows.
pub enum Device {
    /// This CPU ([`cpu`]). Reports are sums in f64. Weights are f32.
    Cpu,
    /// A GPU or its simulator ([`cuda`](critbeta::cuda)). Critical betas are the CPU's to the bit. Weights
    /// are f32.
    Cuda(Engine),
}

impl Device {
    /// Opens the device.
    ///
    /// Errors: those of [`Engine::cuda`] and [`Engine::simulated`].
    pub fn open(spec: DeviceSpec) -> Result<Device> {
        match spec {
            DeviceSpec::Auto | DeviceSpec::Cpu => Ok(Device::Cpu),
            DeviceSpec::Cuda(ordinal) => Engine::cuda(ordinal).map(Device::Cuda),
            DeviceSpec::Simt => Engine::simulated(SimtOptions::of(Arch::named("sm_90")?)).map(Device::Cuda),
        }
    }

    /// The device in words.
    pub fn description(&self) -> String {
        match self {
            Device::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
            Device::Cuda(engine) => engine.description(),
        }
    }

    /// Whether it is the simulator, whose times mean nothing.
    pub fn is_simulated(&self) -> bool {
        matches!(self, Device::Cuda(engine) if engine.is_simulated())
    }

    /// [`cpu::row_reports`] or [`Engine::row_reports`].
    ///
    /// Errors: those of the engine.
    pub fn row_reports<T: Element>(
        &self,
        scores: &Scores<T>,
        beta: f64,
        measure: Measure,
    ) -> Result<Vec<RowReport>> {
        match self {
            Device::Cpu => Ok(cpu::row_reports(scores, beta, measure)),
            Device::Cuda(engine) => engine.row_reports(scores, beta, measure),
        }
    }

    /// [`cpu::softmax`] or [`Engine::softmax`].
    ///
    /// Errors: those of either.
    pub fn softmax<T: Element>(
        &self,
        scores: &Scores<T>,
        rescaling: &Rescaling,
        positions: Option<&[u32]>,
        out: &mut [f32],
    ) -> Result<Vec<SoftmaxRow>> {
        match self {
            Device::Cpu => cpu::softmax(scores, rescaling, positions, out),
            Device::Cuda(engine) => engine.softmax(scores, rescaling, positions, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use critbeta::Error;

    #[test]
    fn devices_are_named_and_what_is_not_there_says_so() {
        for text in ["auto", "cpu", "cuda:3", "simt"] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceSpec>().unwrap_err().contains("auto, cpu, cuda:N or simt"), "{text}");
        }
        // No machine has this many GPUs. The error names the number, with a driver or without.
        let error = Device::open(DeviceSpec::Cuda(4096)).err().unwrap();
        let message = error.to_string();
        match error {
            Error::NoDriver { .. } => {
                assert!(message.contains("libcuda.so.1") && message.contains("--device cpu"), "{message}")
            }
            Error::NoGpu { .. } => assert!(message.contains("--device cpu"), "{message}"),
            Error::NotBuilt { .. } => assert!(message.contains("--features cuda"), "{message}"),
            _ => panic!("{message}"),
        }
        let device = Device::open(DeviceSpec::Auto).unwrap();
        assert!(matches!(device, Device::Cpu));
        let data = [0.0f32, 1.0];
        let view = Scores::dense(&data, 1, 2).unwrap();
        assert_eq!(device.row_reports(&view, 1.0, Measure::default()).unwrap()[0].critical.contact_rank, 2);
    }
}
