//! Launches on an engine with everything that a caller may choose: offsets, strides, lengths, and the output.

// Every test binary compiles this module, and none needs all of it.
#![allow(dead_code)]

use critbeta::cpu::Measure;
use critbeta::cuda::internals::{self, Scope};
use critbeta::cuda::{
    Arch, Beta, Call, DeviceMemory, DeviceOutput, DeviceRows, Engine, RowReport, SimtOptions, Workspace,
};
use critbeta::{DType, Element};
use half::{bf16, f16};
use std::sync::OnceLock;

pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// An engine that plans as for `arch`: the first GPU if CRITBETA_REQUIRE_GPU=1 is set, else the simulator. If
/// this build has no simulator, it prints the name of the skipped test and returns `None`.
pub fn engine_of(test: &str, options: SimtOptions) -> Option<Engine> {
    static GPU: OnceLock<Engine> = OnceLock::new();
    if std::env::var("CRITBETA_REQUIRE_GPU").is_ok_and(|value| value == "1") {
        let gpu = GPU.get_or_init(|| Engine::cuda(0).unwrap_or_else(|error| panic!("{error}")));
        return Some(gpu.limited_to(&options.arch));
    }
    let engine = Engine::simulated(options);
    if let Err(error) = &engine {
        eprintln!("skipped {test}: {error}");
    }
    engine.ok()
}

pub fn engine(test: &str, arch: &Arch) -> Option<Engine> {
    engine_of(test, SimtOptions::of(arch.clone()))
}

/// A GPU whose CTAs have room for `vectors` 16-byte vectors of a row in `scope`, and whose SMs hold one CTA.
pub fn small(scope: Scope, vectors: u32, sm_count: u32, max_cluster: u32) -> Arch {
    let control = match scope {
        Scope::Warp => 4 * internals::WARP_CONTROL_BYTES,
        Scope::Block => internals::BLOCK_CONTROL_BYTES,
        Scope::Cluster => internals::WIDE_CLUSTER_CONTROL_BYTES,
        Scope::Split => internals::SPLIT_CONTROL_BYTES,
    };
    // Beside the control structures, the hardware reserves 1024 bytes, and static shared memory has 128.
    let shared = control + 16 * vectors + 128;
    let mut arch = Arch::named("sm_90").unwrap();
    arch.name = format!("a part with room for {vectors} vectors, {sm_count} SMs, clusters of {max_cluster}");
    (arch.sm_count, arch.max_cluster, arch.clusters) = (sm_count, max_cluster, max_cluster > 1);
    (arch.shared_per_block_bytes, arch.shared_per_sm_bytes) = (shared, shared + 1024);
    arch
}

pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F64 => unreachable!("no kernel reads f64"),
    }
}

pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let two = |chunk: &[u8]| [chunk[0], chunk[1]];
    match dtype {
        DType::F32 => bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).score()).collect(),
        DType::F16 => bytes.chunks(2).map(|c| f16::from_le_bytes(two(c)).score()).collect(),
        DType::Bf16 => bytes.chunks(2).map(|c| bf16::from_le_bytes(two(c)).score()).collect(),
        DType::F64 => unreachable!("no kernel reads f64"),
    }
}

/// Rows with their own lengths, and their layout in memory.
#[derive(Debug, Clone)]
pub struct Rows {
    pub dtype: DType,
    /// The scores as they are in memory, rounded to `dtype`.
    pub rows: Vec<Vec<f32>>,
    pub cols: usize,
    /// Elements before the first row, and between the end of a row and the next.
    pub offset: usize,
    pub gap: usize,
    /// Whether the launch gets the lengths of the rows. Otherwise every row must have `cols` scores.
    pub lens: bool,
}

impl Rows {
    /// Dense rows of one length.
    pub fn dense(dtype: DType, rows: &[Vec<f32>]) -> Rows {
        let rows: Vec<Vec<f32>> = rows.iter().map(|row| decode(dtype, &encode(dtype, row))).collect();
        let cols = rows[0].len();
        assert!(rows.iter().all(|row| row.len() == cols));
        Rows { dtype, rows, cols, offset: 0, gap: 0, lens: false }
    }

    /// Rows of any lengths.
    pub fn ragged(dtype: DType, rows: &[Vec<f32>], cols: usize) -> Rows {
        let rows = rows.iter().map(|row| decode(dtype, &encode(dtype, row))).collect();
        Rows { dtype, rows, cols, offset: 0, gap: 0, lens: true }
    }
}

/// Where the probabilities go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Out {
    None,
    InPlace,
    /// The dtype, the elements before the first row, and the elements between rows.
    Apart(DType, usize, usize),
}

/// The choices of a launch beside its rows.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub out: Out,
    pub beta: Beta<'a>,
    /// One beta per row. If there are any, they replace `beta`.
    pub betas: Vec<f32>,
    pub positions: Vec<u32>,
    pub measure: Measure,
    pub both: bool,
    pub report: bool,
    /// Whether the report has Z and the entropy.
    pub sums: bool,
    /// Whether the launch writes the beta of every row.
    pub betas_out: bool,
}

pub const PLAIN: Measure = Measure::new(0.0, None);

impl<'a> Request<'a> {
    pub fn new(out: Out, beta: Beta<'a>) -> Self {
        let (betas, positions) = (Vec::new(), Vec::new());
        let (report, sums, betas_out) = (true, true, false);
        Request { out, beta, betas, positions, measure: PLAIN, both: false, report, sums, betas_out }
    }
}

pub struct Done {
    pub reports: Vec<RowReport>,
    /// The probabilities of every row, `cols` long.
    pub probs: Vec<Vec<f32>>,
    /// The beta of every row, where the request asks for it.
    pub betas: Vec<f32>,
    pub load_bytes: u64,
    pub store_bytes: u64,
}

/// The resolve that a launch is given. There is none beside a rule that has its own.
fn resolve_of(request: &Request) -> Option<f64> {
    let of_rule =
        matches!(request.beta, Beta::Rescaling(rule) if request.betas.is_empty() && rule.resolve().is_some());
    (request.measure.resolve != 0.0 && !of_rule).then_some(request.measure.resolve)
}

/// The bytes around rows. No launch may read or write them.
const CANARY: u8 = 0xC5;

/// A block of rows between canaries.
fn block(size: usize, offset: usize, stride: usize, rows: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![CANARY; (offset + rows.len() * stride) * size + 64];
    for (r, row) in rows.iter().enumerate() {
        bytes[(offset + r * stride) * size..][..row.len()].copy_from_slice(row);
    }
    bytes
}

/// Enough workspace for any launch.
pub const WORKSPACE_BYTES: u32 = internals::SPLIT_CTAS * (internals::SLOT_BYTES + internals::GROUP_BYTES);

/// Launches with a new workspace, and checks that the launch wrote nothing else.
pub fn run(engine: &Engine, input: &Rows, request: &Request) -> critbeta::Result<Done> {
    run_in(engine, input, request, &mut engine.zeroed(WORKSPACE_BYTES as usize)?)
}

/// Does the same with a workspace that earlier launches may have used.
pub fn run_in(
    engine: &Engine,
    input: &Rows,
    request: &Request,
    workspace: &mut DeviceMemory,
) -> critbeta::Result<Done> {
    let Rows { dtype, rows, cols, offset, gap, lens } = input;
    let (size, stride, count) = (dtype.size_bytes(), cols + gap, rows.len());
    let encoded: Vec<Vec<u8>> = rows.iter().map(|row| encode(*dtype, row)).collect();
    let given = block(size, *offset, stride, &encoded);
    let mut scores = engine.uploaded(&given)?;
    let lengths: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
    assert!(*lens || rows.iter().all(|row| row.len() == *cols), "rows of other lengths need lens");
    let mut lens_memory = engine.uploaded(bytemuck::cast_slice(&lengths))?;
    let mut betas = engine.uploaded(bytemuck::cast_slice(&request.betas))?;
    let mut positions = engine.uploaded(bytemuck::cast_slice(&request.positions))?;
    let mut report = engine.zeroed(count * size_of::<RowReport>())?;
    let mut betas_out = engine.zeroed(4 * count)?;
    let (out_dtype, out_offset, out_stride) = match request.out {
        Out::Apart(dtype, offset, gap) => (dtype, offset, cols + gap),
        _ => (*dtype, *offset, stride),
    };
    let out_size = out_dtype.size_bytes();
    let mut apart = engine.uploaded(&block(out_size, out_offset, out_stride, &vec![Vec::new(); count]))?;
    let out_address = if request.out == Out::InPlace { scores.address() } else { apart.address() };
    let at = scores.address() + (offset * size) as u64;
    let mut scores_rows = DeviceRows::dense(at, *dtype, count as u64, *cols as u64);
    scores_rows.stride = stride as u64;
    scores_rows.lens = lens.then_some(lens_memory.address());
    let mut out =
        DeviceOutput::new(out_address + (out_offset * out_size) as u64, out_dtype, out_stride as u64);
    let beta = if request.betas.is_empty() { request.beta } else { Beta::Each(betas.address()) };
    out.streamed = out_offset % 2 == 1;
    let mut call = Call::softmax(scores_rows, out, beta);
    call.out = call.out.filter(|_| request.out != Out::None);
    call.positions = (!request.positions.is_empty()).then_some(positions.address());
    (call.resolve, call.top_k) = (resolve_of(request), request.measure.top_k);
    call.both = request.both;
    call.report = request.report.then_some(report.address());
    call.sums = request.sums;
    call.betas_out = request.betas_out.then_some(betas_out.address());
    let needed = call.workspace_bytes(engine.arch())?;
    let before = engine.traffic().unwrap_or_default();
    let given_workspace = Workspace { address: workspace.address(), bytes: needed };
    let mut memory: Vec<&mut DeviceMemory> = vec![
        &mut scores,
        &mut lens_memory,
        &mut betas,
        &mut positions,
        &mut report,
        &mut betas_out,
        &mut apart,
        workspace,
    ];
    engine.launch_within(&call, (needed > 0).then_some(given_workspace), &mut memory)?;
    let after = engine.traffic().unwrap_or_default();

    let mut reports = vec![bytemuck::Zeroable::zeroed(); count];
    engine.download(&report, 0, bytemuck::cast_slice_mut(&mut reports))?;
    let mut betas = vec![0.0; if request.betas_out { count } else { 0 }];
    engine.download(&betas_out, 0, bytemuck::cast_slice_mut(&mut betas))?;
    let mut probs = Vec::new();
    if request.out != Out::None {
        let in_place = request.out == Out::InPlace;
        let from = if in_place { &scores } else { &apart };
        let mut bytes = vec![0; from.bytes()];
        engine.download(from, 0, &mut bytes)?;
        for r in 0..count {
            let row = &mut bytes[(out_offset + r * out_stride) * out_size..][..cols * out_size];
            probs.push(decode(out_dtype, row));
            row.fill(CANARY);
        }
        assert!(bytes.iter().all(|&byte| byte == CANARY), "written beside the rows");
    }
    if request.out != Out::InPlace {
        let mut bytes = vec![0; given.len()];
        engine.download(&scores, 0, &mut bytes)?;
        assert!(bytes == given, "the scores were written");
    }
    Ok(Done {
        reports,
        probs,
        betas,
        load_bytes: after.load_bytes - before.load_bytes,
        store_bytes: after.store_bytes - before.store_bytes,
    })
}
