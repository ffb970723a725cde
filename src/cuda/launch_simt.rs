//! The C interface of the simulator (kernels/simt/host.cpp).
#![allow(unsafe_code)]

use super::call::Checked;
#[cfg(critbeta_simulator)]
use super::simulator::{PASSES, WAITS};
use super::simulator::{SimtOptions, Traffic};
#[cfg(critbeta_simulator)]
use crate::Error;
use crate::Result;

#[cfg(critbeta_simulator)]
mod interface {
    use super::super::simulator::{PASSES, WAITS};

    #[repr(C)]
    pub struct Buffer {
        pub address: u64,
        pub bytes: u64,
        pub writable: u32,
        pub reserved: u32,
    }

    #[repr(C)]
    pub struct Launch {
        pub variant: u32,
        pub grid: u32,
        pub cluster_ctas: u32,
        pub shared_bytes: u32,
        pub seed: u64,
        pub buffers: *const Buffer,
        pub buffer_count: u64,
        pub params: *const std::ffi::c_void,
        pub shadow: u32,
        pub reserved: u32,
    }

    #[repr(C)]
    pub struct Outcome {
        pub load_bytes: u64,
        pub store_bytes: u64,
        pub switches: u64,
        pub looks: [u64; PASSES],
        pub waits: [u64; WAITS],
        pub faults: u32,
        pub reserved: u32,
        pub message: [u8; 1000],
    }

    unsafe extern "C" {
        pub fn critbeta_simt_launch(launch: *const Launch, outcome: *mut Outcome) -> i32;
    }
}

/// # Safety
///
/// Every span of `checked` must be memory of this process. Nobody else may touch it until this returns.
#[cfg(critbeta_simulator)]
pub(super) unsafe fn launch(options: &SimtOptions, checked: &Checked) -> Result<Traffic> {
    use interface::{Buffer, Launch, Outcome, critbeta_simt_launch};
    let Checked { launch, params, spans, .. } = checked;
    let mut buffers: Vec<Buffer> = Vec::with_capacity(spans.len());
    for span in spans {
        // Probabilities in place of the scores are the same memory, which is then writable.
        let same = buffers.iter_mut().find(|b| (b.address, b.bytes) == (span.address, span.bytes));
        match same {
            Some(buffer) => buffer.writable |= u32::from(span.writable),
            None => buffers.push(Buffer {
                address: span.address,
                bytes: span.bytes,
                writable: span.writable.into(),
                reserved: 0,
            }),
        }
    }
    let request = Launch {
        variant: launch.variant as u32,
        grid: launch.grid,
        cluster_ctas: launch.cluster_ctas(),
        shared_bytes: launch.shared_bytes,
        seed: options.seed,
        buffers: buffers.as_ptr(),
        buffer_count: buffers.len() as u64,
        params: params.address(),
        shadow: options.shadow.into(),
        reserved: 0,
    };
    let mut outcome = Outcome {
        load_bytes: 0,
        store_bytes: 0,
        switches: 0,
        looks: [0; PASSES],
        waits: [0; WAITS],
        faults: 0,
        reserved: 0,
        message: [0; 1000],
    };
    // SAFETY: both structs live through the call and have the layout of simt/host.cpp. Kernels touch only the
    // buffers.
    let status = unsafe { critbeta_simt_launch(&request, &mut outcome) };
    if status == 0 {
        let Outcome { load_bytes, store_bytes, looks, waits, .. } = outcome;
        return Ok(Traffic { load_bytes, store_bytes, looks, waits });
    }
    let text = outcome.message.split(|&byte| byte == 0).next().unwrap_or_default();
    let fault = String::from_utf8_lossy(text).into_owned();
    Err(Error::Simulated { kernel: launch.variant.symbol(), fault })
}

/// # Safety
///
/// None: this build has no simulator.
#[cfg(not(critbeta_simulator))]
pub(super) unsafe fn launch(_: &SimtOptions, _: &Checked) -> Result<Traffic> {
    Err(super::simulator::not_built())
}
