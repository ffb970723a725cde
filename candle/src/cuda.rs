//! The rescaled softmax on candle's own stream of an NVIDIA GPU.
#![expect(unsafe_code, reason = "a launch takes device addresses, and device memory begins uninitialised")]

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::{CudaDevice, CudaStorage, DeviceLocation, Error, Layout, Result, Shape, bail};
use critbeta::cuda::{Call, DeviceOutput, DeviceRows, Engine, Workspace};
use critbeta::{DType, Element, Rescaling};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One engine for each GPU, opened when it is first used.
static ENGINES: Mutex<BTreeMap<usize, Arc<Engine>>> = Mutex::new(BTreeMap::new());

fn engine(device: &CudaDevice) -> Result<Arc<Engine>> {
    let DeviceLocation::Cuda { gpu_id } = device.location() else {
        bail!("critbeta softmax on {:?}: expected a CUDA device", device.location());
    };
    let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = engines.get(&gpu_id) {
        return Ok(engine.clone());
    }
    let engine = Arc::new(Engine::cuda(gpu_id).map_err(Error::wrap)?);
    engines.insert(gpu_id, engine.clone());
    Ok(engine)
}

/// What the rows of a softmax are, beside their scores.
pub(crate) struct Rows<'a> {
    pub rescaling: &'a Rescaling,
    /// One for each row.
    pub positions: Option<&'a [u32]>,
    pub rows: usize,
    pub cols: usize,
}

/// Enqueues the softmax on the stream of the storage's device, and waits for nothing.
pub(crate) fn softmax(rows: &Rows, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let device = storage.device.clone();
    let slice = match &storage.slice {
        CudaStorageSlice::F32(scores) => CudaStorageSlice::F32(run(rows, scores, &device, layout)?),
        CudaStorageSlice::F16(scores) => CudaStorageSlice::F16(run(rows, scores, &device, layout)?),
        CudaStorageSlice::BF16(scores) => CudaStorageSlice::BF16(run(rows, scores, &device, layout)?),
        _ => bail!(
            "critbeta softmax of {:?} in {:?}: expected f32, f16 or bf16",
            layout.shape(),
            storage.dtype()
        ),
    };
    Ok((CudaStorage { slice, device }, layout.shape().clone()))
}

fn run<T: Element + DeviceRepr>(
    rows: &Rows,
    scores: &CudaSlice<T>,
    device: &CudaDevice,
    layout: &Layout,
) -> Result<CudaSlice<T>> {
    let Some((from, to)) = layout.contiguous_offsets() else {
        bail!("critbeta softmax of {:?}: the rows do not follow each other", layout.shape());
    };
    // SAFETY: the launch below writes every element, unless there is none.
    let mut out = unsafe { device.alloc::<T>(to - from)? };
    if from == to {
        return Ok(out);
    }
    let (engine, stream) = (engine(device)?, device.cuda_stream());
    let positions = rows.positions.map(|given| device.clone_htod(given)).transpose()?;
    let scores = scores.slice(from..to);
    {
        // The guards record that the stream uses the memory, once they are dropped behind the launch.
        let (address, _scores) = scores.device_ptr(&stream);
        let (out_address, _out) = out.device_ptr_mut(&stream);
        let at = positions.as_ref().map(|positions| positions.device_ptr(&stream));
        let dtype: DType = T::DTYPE;
        let cols = rows.cols as u64;
        let scores = DeviceRows::dense(address, dtype, rows.rows as u64, cols);
        let mut call = Call::softmax(scores, DeviceOutput::new(out_address, dtype, cols), rows.rescaling);
        call.positions = at.as_ref().map(|(address, _)| *address);
        let bytes = call.workspace_bytes(engine.arch()).map_err(Error::wrap)?;
        let scratch = match bytes {
            0 => None,
            bytes => Some(device.alloc_zeros::<u8>(bytes as usize)?),
        };
        let used = scratch.as_ref().map(|scratch| scratch.device_ptr(&stream));
        let workspace = used.as_ref().map(|(address, _)| Workspace { address: *address, bytes });
        // SAFETY: all addresses are memory of this device. It is freed on this stream, behind the launch, and
        // nobody else knows what the launch writes.
        unsafe { engine.launch(&call, workspace, stream.cu_stream() as u64) }.map_err(Error::wrap)?;
    }
    Ok(out)
}
