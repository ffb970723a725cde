//! Devices: the CPU, a GPU, or the simulator; their plans and workspaces.

use crate::args::Kind;
use crate::status::{Result, invalid, unsupported};
use crate::tensor::{CPU, CUDA, DLDataType, DLDevice, Numbers, Tensor};
use critbeta::cuda::{Arch, Engine as Gpu, Plan, Problem as GpuProblem, SimtOptions};
use critbeta::{DType, cpu};

/// An opened device. Threads may share it.
pub struct Engine([u8; 0]);

/// What is behind an [`Engine`].
pub enum Device {
    Cpu,
    Gpu { engine: Box<Gpu>, memory: DLDevice },
}

impl Kind for Device {
    const NAME: &'static str = "engine";
    const MARK: u64 = u64::from_le_bytes(*b"critbe-E");
}

impl Device {
    /// Opens `cpu`, `cuda`, `cuda:N`, `simt` or `simt:ARCH`.
    pub fn open(text: &str) -> Result<Device> {
        if text == "cpu" {
            return Ok(Device::Cpu);
        }
        let (kind, which) = text.split_once(':').map_or((text, None), |(kind, which)| (kind, Some(which)));
        match (kind, which) {
            ("cuda", which) => {
                let Ok(ordinal) = which.unwrap_or("0").parse::<u16>() else {
                    return invalid(format!("device {text:?}: expected cuda:N with a number from 0 on"));
                };
                let memory = DLDevice { device_type: CUDA, device_id: ordinal.into() };
                Ok(Device::Gpu { engine: Gpu::cuda(ordinal.into())?.into(), memory })
            }
            ("simt", arch) => {
                let options = SimtOptions::of(Arch::named(arch.unwrap_or("sm_90"))?);
                Ok(Device::Gpu { engine: Gpu::simulated(options)?.into(), memory: CPU })
            }
            _ => invalid(format!("device {text:?}: expected cpu, cuda:N or simt")),
        }
    }

    /// A line of text that names the device.
    pub fn description(&self) -> String {
        match self {
            Device::Cpu => "cpu".to_owned(),
            Device::Gpu { engine, .. } => engine.description(),
        }
    }

    /// Refuses a tensor in memory of another device.
    pub fn holds(&self, tensor: &Tensor) -> Result<()> {
        let own = match self {
            Device::Cpu => CPU,
            Device::Gpu { memory, .. } => *memory,
        };
        match (tensor.device.device_type, tensor.device.device_id) {
            (kind, _) if kind == own.device_type && kind == CPU.device_type => Ok(()),
            (kind, id) if (kind, id) == (own.device_type, own.device_id) => Ok(()),
            _ => tensor.refused(format!("expected memory of {own}, the device of the engine")),
        }
    }

    /// Refuses a device that does not do `what` yet.
    pub fn only_cpu(&self, what: &str) -> Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu { .. } => unsupported(format!(
                "{what} on {}: it runs on the device cpu only; rows of scores run on every device",
                self.description()
            )),
        }
    }
}

/// The part of a call on rows that its plan and its workspace depend on.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub rows: u64,
    pub cols: u64,
    pub dtype: DType,
    pub reports_only: bool,
}

impl Rows {
    pub fn new(rows: u64, cols: u64, dtype: DLDataType, reports_only: bool) -> Result<Rows> {
        let dtype = Numbers::of("dtype", dtype)?.scores("dtype")?;
        if rows == 0 || cols == 0 {
            return invalid(format!(
                "a problem of {rows} rows x {cols} columns: expected at least one of each"
            ));
        }
        Ok(Rows { rows, cols, dtype, reports_only })
    }

    /// How `device` runs it, in one line or more.
    pub fn plan(&self, device: &Device) -> Result<String> {
        let Rows { rows, cols, dtype, .. } = *self;
        match device {
            Device::Cpu => {
                let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                let threads = rayon::current_num_threads();
                Ok(cpu::Plan::choose(size(rows), size(cols), dtype, threads).to_string())
            }
            Device::Gpu { engine, .. } => Ok(self.on_gpu(engine)?.to_string()),
        }
    }

    /// Bytes of workspace of a call on `device`; 0 on a CPU.
    pub fn workspace_bytes(&self, device: &Device) -> Result<u64> {
        match device {
            Device::Cpu => Ok(0),
            Device::Gpu { engine, .. } => Ok(self.on_gpu(engine)?.workspace_bytes()),
        }
    }

    fn on_gpu(&self, engine: &Gpu) -> Result<Plan> {
        let Rows { rows, cols, dtype, reports_only } = *self;
        let problem = match reports_only {
            false => GpuProblem::softmax(rows, cols, dtype),
            true => GpuProblem::statistics(rows, cols, dtype),
        };
        Ok(Plan::choose(&problem, engine.arch())?)
    }
}
