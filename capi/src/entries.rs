//! What C calls. Every function of the header is here, and none of them does anything itself.
#![allow(unsafe_code, private_interfaces)]

use crate::args::{Versioned, free, handle, optional, print, put, text, versioned};
use crate::attention::{self, PagedArgs};
use crate::engine::{Device, Engine, Rows};
use crate::reports;
use crate::rows::{self, ReportsArgs, SoftmaxArgs};
use crate::rules::{self, Rule, Rules};
use crate::status::{Result, invalid, last, status};
use crate::tensor::{DLDataType, DLTensor, Tensors};
use std::ffi::c_char;

/// What a plan and a workspace depend on.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Problem {
    /// sizeof(critbeta_problem).
    pub size: usize,
    /// Rows, at least 1.
    pub rows: u64,
    /// Columns, at least 1.
    pub cols: u64,
    /// The type of the scores: float32, float16 or bfloat16.
    pub dtype: DLDataType,
    /// 0 for critbeta_softmax, 1 for critbeta_row_reports.
    pub reports_only: u32,
}

// SAFETY: repr(C), the first field is a usize, and every field is a number.
unsafe impl Versioned for Problem {
    const NAME: &'static str = "critbeta_problem";
}

/// SAFETY of the entries below: each pointer is as the header says, which is what the functions of `args` and
/// `Tensors::new` ask for. Handles are alive through the call, and so is the memory of tensors.
unsafe fn device<'a>(engine: *const Engine) -> Result<&'a Device> {
    // SAFETY: see above.
    match unsafe { optional::<Device>(engine.cast()) }? {
        Some(device) => Ok(device),
        None => invalid("engine: NULL"),
    }
}

unsafe fn rules_of<'a>(rule: *const Rule) -> Result<Option<&'a Rules>> {
    // SAFETY: see `device`.
    unsafe { optional::<Rules>(rule.cast()) }
}

/// The version of the library, such as "0.1.0". It stays valid for ever.
#[unsafe(no_mangle)]
pub extern "C" fn critbeta_version() -> *const c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0") }.as_ptr().cast()
}

/// What the last failed call on this thread said: which argument, what was found, what was expected. The text
/// is valid until the next failing call on this thread. It is never NULL, and a success leaves it as it was.
#[unsafe(no_mangle)]
pub extern "C" fn critbeta_last_error() -> *const c_char {
    last()
}

/// Opens a device: "cpu", "cuda:N" (each kernel is loaded, and may be compiled, at its first launch), or in a
/// build with the feature simt "simt", a simulator of a GPU for tests whose device memory is that of the CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_open(device: *const c_char, engine: *mut *mut Engine) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let Some(name) = text("device", device)? else { return invalid("device: NULL") };
        put("engine", engine, || Ok(handle(Device::open(name)?).cast()))
    })
}

/// Closes a device that no other call uses. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_close(engine: *mut Engine) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe { free::<Device>(engine.cast()) })
}

/// Reads a rule: "identity", "fixed:1.3", "qwen-logn:train=8192", "critical:cap=8" and so on, or
/// "calibrated:FILE", which gives the rules of `heads` heads of `layer` from `first_head` on. Other rules
/// are one for all layers and heads.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_rule_parse(
    rule_text: *const c_char,
    layer: *const c_char,
    first_head: u64,
    heads: u64,
    rule: *mut *mut Rule,
) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let Some(rule_text) = text("rule_text", rule_text)? else { return invalid("rule_text: NULL") };
        let layer = text("layer", layer)?;
        put("rule", rule, || Ok(handle(Rules::parse(rule_text, layer, first_head, heads)?).cast()))
    })
}

/// Frees a rule that no other call uses. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_rule_free(rule: *mut Rule) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe { free::<Rules>(rule.cast()) })
}

/// Writes the beta of every query token and head to `out`, [tokens, heads] float32, for rules that measure
/// nothing. `positions` is [tokens] int32 or int64, from 0 on. A server multiplies its queries by them: any
/// attention kernel then runs at the rule. Both tensors are on the CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_rule_betas(
    rule: *const Rule,
    positions: *const DLTensor,
    out: *const DLTensor,
) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let Some(rules) = rules_of(rule)? else { return invalid("rule: NULL") };
        rules::betas(Tensors::new(), rules, positions, out)
    })
}

/// Writes the softmax of every row at its own beta. On a GPU it enqueues one launch on the stream and
/// returns: it allocates no device memory and waits for nothing, so a CUDA graph can capture it. All tensors
/// are on the device of the engine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_softmax(engine: *const Engine, args: *const SoftmaxArgs) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let (device, args) = (device(engine)?, versioned(args)?);
        rows::softmax(device, Tensors::new(), &args, rules_of(args.rule)?)
    })
}

/// Reports on every row: the critical beta and its contact, entropy, weights. On a GPU as critbeta_softmax.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_row_reports(engine: *const Engine, args: *const ReportsArgs) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let (device, args) = (device(engine)?, versioned(args)?);
        rows::row_reports(device, Tensors::new(), &args)
    })
}

/// Turns reports that a GPU wrote, copied to the CPU as [rows, CRITBETA_DEVICE_REPORT_BYTES] uint8, into
/// [rows, columns] float64. `resolve` is that of the call, or of its critical rule.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_decode_reports(
    raw: *const DLTensor,
    resolve: f64,
    reports: *const DLTensor,
) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe { reports::decode(Tensors::new(), raw, resolve, reports) })
}

/// Reports on the row of every query token and head over pages of keys: the critical beta, and the rest at
/// the beta of the rule. On the CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_measure_paged(engine: *const Engine, args: *const PagedArgs) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let (device, args) = (device(engine)?, versioned(args)?);
        attention::measure_paged(device, Tensors::new(), &args, rules_of(args.rule)?)
    })
}

/// Writes the attention output of every query token and head over pages of keys and values, each row at its
/// own beta. On the CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_decode_paged(engine: *const Engine, args: *const PagedArgs) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let (device, args) = (device(engine)?, versioned(args)?);
        attention::decode_paged(device, Tensors::new(), &args, rules_of(args.rule)?)
    })
}

/// Says in words how a device runs a call: the kernel and the reasons, or how threads share rows. As
/// snprintf, it cuts what `capacity` bytes do not hold, and ends in a zero byte; `length` (or NULL) gets the
/// whole length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_plan(
    engine: *const Engine,
    problem: *const Problem,
    plan: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe {
        let found = of(versioned(problem)?)?.plan(device(engine)?)?;
        if !length.is_null() {
            put("length", length, || Ok(found.len()))?;
        }
        print(&found, plan, capacity)
    })
}

/// Bytes of workspace that a launch needs; 0 on a CPU and for most launches on a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn critbeta_workspace_bytes(
    engine: *const Engine,
    problem: *const Problem,
    bytes: *mut u64,
) -> i32 {
    // SAFETY: see `device`.
    status(|| unsafe { put("bytes", bytes, || of(versioned(problem)?)?.workspace_bytes(device(engine)?)) })
}

fn of(problem: Problem) -> Result<Rows> {
    let Problem { rows, cols, dtype, reports_only, .. } = problem;
    Rows::new(rows, cols, dtype, reports_only != 0)
}
