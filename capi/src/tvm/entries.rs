//! What TVM-FFI calls. Arguments come by position, and those at the end may be left out.
#![allow(unsafe_code)]

use super::runtime;
use super::value::{Any, Arguments, RuleArgument, error_of};
use crate::args::{free, handle, optional};
use crate::attention::{self, CRITBETA_HND, CRITBETA_NHD, PagedArgs};
use crate::engine::{Device, Rows};
use crate::reports;
use crate::rows::{self, ReportsArgs, SoftmaxArgs};
use crate::rules::{self, Rule, Rules};
use crate::status::{Result, guarded, invalid};
use crate::tensor::{CUDA, DLDevice, DLTensor, Numbers, Tensors};
use std::ffi::c_void;
use std::ptr::null;
use std::sync::{Mutex, PoisonError};

/// Runs the body of an entry with its arguments, and raises what it fails with.
///
/// # Safety
///
/// The convention of TVM-FFI: `count` arguments are alive through the call, and `result` is writable.
unsafe fn run(
    name: &'static str,
    args: *const Any,
    count: i32,
    result: *mut Any,
    body: impl FnOnce(&mut Arguments) -> Result<Any>,
) -> i32 {
    // SAFETY: the caller's promise.
    let done = guarded(|| body(&mut unsafe { Arguments::new(name, args, count) }?));
    match done {
        Ok(value) if !result.is_null() => {
            // SAFETY: the caller's promise.
            unsafe { result.write(value) };
            0
        }
        Ok(_) => 0,
        Err(failure) => {
            runtime::raise(error_of(failure.status), &failure.text);
            -1
        }
    }
}

/// Defines the symbol of an entry.
macro_rules! entries {
    ($($symbol:ident => $name:literal, $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(
            _: *mut c_void,
            args: *const Any,
            count: i32,
            result: *mut Any,
        ) -> i32 {
            // SAFETY: the caller follows the convention of TVM-FFI.
            unsafe { run($name, args, count, result, |args| $body(args)) }
        }
    )* };
}

entries! {
    __tvm_ffi_critbeta_version => "critbeta_version", version;
    __tvm_ffi_critbeta_open => "critbeta_open", open;
    __tvm_ffi_critbeta_rule_parse => "critbeta_rule_parse", rule_parse;
    __tvm_ffi_critbeta_rule_free => "critbeta_rule_free", rule_free;
    __tvm_ffi_critbeta_rule_betas => "critbeta_rule_betas", rule_betas;
    __tvm_ffi_critbeta_softmax => "critbeta_softmax", softmax;
    __tvm_ffi_critbeta_row_reports => "critbeta_row_reports", row_reports;
    __tvm_ffi_critbeta_decode_reports => "critbeta_decode_reports", decode_reports;
    __tvm_ffi_critbeta_measure_paged => "critbeta_measure_paged", measure_paged;
    __tvm_ffi_critbeta_decode_paged => "critbeta_decode_paged", decode_paged;
    __tvm_ffi_critbeta_plan => "critbeta_plan", plan;
    __tvm_ffi_critbeta_workspace_bytes => "critbeta_workspace_bytes", workspace_bytes;
}

/// The tensors of a call. TVM-FFI keeps them alive.
fn tensors<'a>() -> Tensors<'a> {
    // SAFETY: pointers come from `Arguments::tensor`: None, or a tensor that the caller keeps alive. That
    // nobody else touches what is written is the caller's promise, as in every library of kernels.
    unsafe { Tensors::new() }
}

/// The opened GPUs. They stay open as long as the process.
static GPUS: Mutex<Vec<(i32, &'static Device)>> = Mutex::new(Vec::new());

fn gpu(ordinal: i32) -> Result<&'static Device> {
    let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = gpus.iter().find(|(of, _)| *of == ordinal) {
        return Ok(device);
    }
    let device: &'static Device = Box::leak(Box::new(Device::open(&format!("cuda:{ordinal}"))?));
    gpus.push((ordinal, device));
    Ok(device)
}

fn named(name: Option<&str>) -> Result<&'static Device> {
    match name {
        None | Some("cpu") => Ok(&Device::Cpu),
        Some("cuda") => gpu(0),
        Some(name) => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => gpu(ordinal),
            _ => invalid(format!("device {name:?}: expected cpu or cuda:N")),
        },
    }
}

/// The device of a call, and the stream of the caller's framework there.
fn place(tensor: *const DLTensor) -> Result<(&'static Device, *mut c_void)> {
    if tensor.is_null() || !tensor.is_aligned() {
        return Ok((&Device::Cpu, std::ptr::null_mut()));
    }
    // SAFETY: as for `tensors`.
    match unsafe { (*tensor).device } {
        device @ DLDevice { device_type: CUDA, device_id } => Ok((gpu(device_id)?, runtime::stream(device)?)),
        // Any other memory is refused by name when it is read.
        _ => Ok((&Device::Cpu, std::ptr::null_mut())),
    }
}

/// A rule for one call: a text, a beta, or a handle.
enum Given<'a> {
    None,
    Own(Rules),
    Kept(&'a Rules),
}

impl Given<'_> {
    fn rules(&self) -> Option<&Rules> {
        match self {
            Given::None => None,
            Given::Own(rules) => Some(rules),
            Given::Kept(rules) => Some(rules),
        }
    }
}

fn rule<'a>(args: &mut Arguments) -> Result<Given<'a>> {
    Ok(match args.rule("rule")? {
        RuleArgument::None => Given::None,
        RuleArgument::Text(text) => Given::Own(Rules::parse(text, None, 0, 0)?),
        RuleArgument::Beta(beta) => Given::Own(Rules::of_beta(beta)?),
        // SAFETY: the caller got it from critbeta_rule_parse, and has not freed it.
        RuleArgument::Handle(rule) => unsafe { optional(rule.cast()) }?.map_or(Given::None, Given::Kept),
    })
}

/// The address and bytes of a workspace, a uint8 tensor on the device.
fn workspace(device: &Device, tensor: *const DLTensor) -> Result<(*mut c_void, u64)> {
    let Some(tensor) = tensors().optional("workspace", tensor)? else { return Ok((std::ptr::null_mut(), 0)) };
    device.holds(&tensor)?;
    let [bytes] = tensor.sizes("[bytes]")?;
    tensor.expect(&[bytes], "[bytes]")?;
    match tensor.numbers {
        Numbers::U8 => Ok((tensor.address() as *mut c_void, bytes as u64)),
        _ => tensor.refused("expected uint8"),
    }
}

/// ()
fn version(args: &mut Arguments) -> Result<Any> {
    args.finish()?;
    runtime::string(env!("CARGO_PKG_VERSION"))
}

/// (device): opens a GPU before its first call. Returns its description.
fn open(args: &mut Arguments) -> Result<Any> {
    let device = args.text("device")?;
    args.finish()?;
    runtime::string(&named(device)?.description())
}

/// (text, layer, first_head, heads). Returns a handle, which the other entries take as rule.
fn rule_parse(args: &mut Arguments) -> Result<Any> {
    let (text, layer) = (args.text("text")?, args.text("layer")?);
    let (first, heads) = (args.count("first_head")?, args.count("heads")?);
    args.finish()?;
    let Some(text) = text else { return invalid("text: None") };
    Ok(Any::pointer(handle(Rules::parse(text, layer, first, heads)?).cast()))
}

/// (rule)
fn rule_free(args: &mut Arguments) -> Result<Any> {
    let given = args.rule("rule")?;
    args.finish()?;
    match given {
        RuleArgument::None => {}
        // SAFETY: the caller got it from critbeta_rule_parse, and uses it no more.
        RuleArgument::Handle(rule) => unsafe { free::<Rules>(rule.cast_mut().cast()) }?,
        _ => return invalid("rule: expected what critbeta_rule_parse returned"),
    }
    Ok(Any::NONE)
}

/// (rule, positions, out)
fn rule_betas(args: &mut Arguments) -> Result<Any> {
    let (rule, positions, out) = (rule(args)?, args.tensor("positions")?, args.tensor("out")?);
    args.finish()?;
    let Some(rules) = rule.rules() else { return invalid("rule: None") };
    rules::betas(tensors(), rules, positions, out)?;
    Ok(Any::NONE)
}

/// (scores, out, rule, lens, positions, reports, betas, workspace)
fn softmax(args: &mut Arguments) -> Result<Any> {
    let (scores, out, rule) = (args.tensor("scores")?, args.tensor("out")?, rule(args)?);
    let (lens, positions) = (args.tensor("lens")?, args.tensor("positions")?);
    let (reports, betas, room) = (args.tensor("reports")?, args.tensor("betas")?, args.tensor("workspace")?);
    args.finish()?;
    let (device, stream) = place(scores)?;
    let (workspace, workspace_bytes) = workspace(device, room)?;
    let size = size_of::<SoftmaxArgs>();
    let given = SoftmaxArgs {
        size,
        scores,
        out,
        rule: null::<Rule>(),
        betas,
        lens,
        positions,
        reports,
        stream,
        workspace,
        workspace_bytes,
    };
    rows::softmax(device, tensors(), &given, rule.rules())?;
    Ok(Any::NONE)
}

/// (scores, reports, beta, resolve, top_k, lens, workspace)
fn row_reports(args: &mut Arguments) -> Result<Any> {
    let (scores, reports) = (args.tensor("scores")?, args.tensor("reports")?);
    let (beta, resolve) = (args.float("beta", 1.0)?, args.float("resolve", 0.0)?);
    let (top_k, lens, room) = (args.count("top_k")?, args.tensor("lens")?, args.tensor("workspace")?);
    args.finish()?;
    let (device, stream) = place(scores)?;
    let (workspace, workspace_bytes) = workspace(device, room)?;
    let size = size_of::<ReportsArgs>();
    let given =
        ReportsArgs { size, scores, lens, reports, beta, resolve, top_k, stream, workspace, workspace_bytes };
    rows::row_reports(device, tensors(), &given)?;
    Ok(Any::NONE)
}

/// (raw, reports, resolve)
fn decode_reports(args: &mut Arguments) -> Result<Any> {
    let (raw, reports, resolve) = (args.tensor("raw")?, args.tensor("reports")?, args.float("resolve", 0.0)?);
    args.finish()?;
    reports::decode(tensors(), raw, resolve, reports)?;
    Ok(Any::NONE)
}

/// (queries, keys, table, lens, reports, rule, scale, softcap, window, query_lens, indptr, layout, resolve,
/// top_k)
fn measure_paged(args: &mut Arguments) -> Result<Any> {
    let (queries, keys) = (args.tensor("queries")?, args.tensor("keys")?);
    let (table, lens, reports) = (args.tensor("table")?, args.tensor("lens")?, args.tensor("reports")?);
    let rule = rule(args)?;
    let common = common(args)?;
    args.finish()?;
    let given = PagedArgs { queries, keys, table, lens, reports, ..common };
    attention::measure_paged(place(queries)?.0, tensors(), &given, rule.rules())?;
    Ok(Any::NONE)
}

/// (queries, keys, values, table, lens, out, rule, reports, eps, scale, softcap, window, query_lens, indptr,
/// layout, resolve, top_k, measured, v_radius, centre)
fn decode_paged(args: &mut Arguments) -> Result<Any> {
    let (queries, keys, values) = (args.tensor("queries")?, args.tensor("keys")?, args.tensor("values")?);
    let (table, lens, out) = (args.tensor("table")?, args.tensor("lens")?, args.tensor("out")?);
    let (rule, reports, eps) = (rule(args)?, args.tensor("reports")?, args.float("eps", 0.0)?);
    let common = common(args)?;
    let measured = args.count("measured")?.min(1) as u32;
    let (v_radius, centre) = (args.tensor("v_radius")?, args.tensor("centre")?);
    args.finish()?;
    let given = PagedArgs {
        queries,
        keys,
        values,
        table,
        lens,
        out,
        reports,
        eps,
        measured,
        v_radius,
        centre,
        ..common
    };
    attention::decode_paged(place(queries)?.0, tensors(), &given, rule.rules())?;
    Ok(Any::NONE)
}

/// What both calls on pages have: scale, softcap, window, query_lens, indptr, layout, resolve, top_k.
fn common(args: &mut Arguments) -> Result<PagedArgs> {
    let (scale, softcap) = (args.float("scale", 0.0)?, args.float("softcap", 0.0)?);
    let (window, query_lens, indptr) =
        (args.count("window")?, args.tensor("query_lens")?, args.tensor("indptr")?);
    let layout = match args.text("layout")? {
        None | Some("NHD") => CRITBETA_NHD,
        Some("HND") => CRITBETA_HND,
        Some(other) => return invalid(format!("layout {other:?}: expected NHD or HND")),
    };
    let (resolve, top_k) = (args.float("resolve", 0.0)?, args.count("top_k")?);
    let none = null();
    Ok(PagedArgs {
        size: size_of::<PagedArgs>(),
        queries: none,
        keys: none,
        values: none,
        table: none,
        indptr,
        lens: none,
        query_lens,
        rule: null(),
        out: none,
        reports: none,
        v_radius: none,
        centre: none,
        scale,
        softcap,
        eps: 0.0,
        resolve,
        top_k,
        window,
        layout,
        measured: 0,
    })
}

/// (rows, cols, dtype, device, reports_only)
fn problem(args: &mut Arguments) -> Result<(Rows, &'static Device)> {
    let (rows, cols, dtype) = (args.count("rows")?, args.count("cols")?, args.dtype("dtype")?);
    let (device, reports_only) = (args.text("device")?, args.count("reports_only")? != 0);
    args.finish()?;
    Ok((Rows::new(rows, cols, dtype, reports_only)?, named(device)?))
}

/// As [`problem`]. Returns a string.
fn plan(args: &mut Arguments) -> Result<Any> {
    let (rows, device) = problem(args)?;
    runtime::string(&rows.plan(device)?)
}

/// As [`problem`]. Returns an int.
fn workspace_bytes(args: &mut Arguments) -> Result<Any> {
    let (rows, device) = problem(args)?;
    Ok(Any::int(i64::try_from(rows.workspace_bytes(device)?).unwrap_or(i64::MAX)))
}
