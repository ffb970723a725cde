//! Bad input gets a typed error before any launch, with its numbers, and the next call works.
#![allow(unsafe_code)]

#[path = "common/device.rs"]
mod device;

use critbeta::cuda::RowReport;
use critbeta::cuda::internals::Scope;
use critbeta::cuda::{Arch, Beta, Call, DeviceMemory, DeviceOutput, DeviceRows, Engine, Workspace};
use critbeta::rescaling::Calibrated;
use critbeta::{DType, Error, Rescaling, Scores};
use device::{engine, small};

const ROWS: u64 = 3;
const COLS: u64 = 40;

fn with<'a>(mut call: Call<'a>, change: impl FnOnce(&mut Call<'a>)) -> Call<'a> {
    change(&mut call);
    call
}

/// Memory for everything that a call may name, and a call that is right.
struct Fixture {
    engine: Engine,
    memory: Vec<DeviceMemory>,
}

impl Fixture {
    fn new(test: &str, arch: &Arch) -> Option<Fixture> {
        let engine = engine(test, arch)?;
        let memory = (0..7).map(|_| engine.zeroed(1 << 16).unwrap()).collect();
        Some(Fixture { engine, memory })
    }

    fn address(&self, which: usize) -> u64 {
        self.memory[which].address()
    }

    fn call(&self) -> Call<'static> {
        let mut scores = DeviceRows::dense(self.address(0), DType::F16, ROWS, COLS);
        scores.lens = Some(self.address(2));
        let out = DeviceOutput::new(self.address(1), DType::F32, COLS);
        let mut call = Call::softmax(scores, out, &Rescaling::Identity);
        (call.positions, call.report) = (Some(self.address(3)), Some(self.address(4)));
        call
    }

    fn launch(&mut self, call: &Call, workspace: Option<Workspace>) -> critbeta::Result<()> {
        let mut memory: Vec<&mut DeviceMemory> = self.memory.iter_mut().collect();
        self.engine.launch_within(call, workspace, &mut memory)
    }

    /// The message of a refusal. This checks that the right call works after it.
    fn refusal(&mut self, call: &Call) -> String {
        let before = self.engine.traffic();
        let error = self.launch(call, None).expect_err("it must be refused");
        assert!(matches!(error, Error::Launch { .. } | Error::Spec { .. }), "{error:?}");
        assert_eq!(self.engine.traffic(), before, "nothing was launched");
        let right = self.call();
        self.launch(&right, None).unwrap_or_else(|e| panic!("after {error}: {e}"));
        error.to_string()
    }
}

#[test]
fn bad_shapes_pointers_and_strides_are_refused() {
    let Some(mut f) =
        Fixture::new("bad_shapes_pointers_and_strides_are_refused", &small(Scope::Block, 600, 4, 1))
    else {
        return;
    };
    let right = f.call();
    let scores = |change: fn(&mut DeviceRows)| {
        let mut call = right;
        change(&mut call.scores);
        call
    };
    let out = |change: fn(&mut DeviceOutput)| {
        let mut call = right;
        change(call.out.as_mut().unwrap());
        call
    };
    let cases = [
        (scores(|s| s.rows = 0), "0 rows x 40 columns: expected 1 to 2147483647 rows"),
        (scores(|s| s.rows = 1 << 31), "2147483648 rows"),
        (scores(|s| s.cols = 0), "3 rows x 0 columns: expected 1 to 16777216 columns"),
        (scores(|s| (s.cols, s.stride) = ((1 << 24) + 1, 1 << 25)), "16777217 columns"),
        (scores(|s| s.dtype = DType::F64), "no kernel reads f64: expected f32, f16 or bf16"),
        (scores(|s| s.address = 0), "scores are at address 0"),
        (scores(|s| s.address += 1), "not aligned to 2 bytes"),
        (scores(|s| s.stride = 39), "scores of rows 39 elements apart would overlap"),
        (scores(|s| s.stride = u64::MAX / 2), "reach beyond the address space"),
        (scores(|s| s.lens = Some(2)), "lens at 0x2 are not aligned to 4 bytes"),
        (scores(|s| s.lens = Some(0)), "lens are at address 0"),
        (out(|o| o.dtype = DType::Bf16), "probabilities as bf16: expected f32 or the scores' f16"),
        (out(|o| o.dtype = DType::F64), "probabilities as f64"),
        (out(|o| o.address += 2), "not aligned to 4 bytes"),
        (out(|o| o.stride = 12), "probabilities of rows 12 elements apart would overlap"),
        (with(right, |c| c.positions = Some(6)), "positions at 0x6 are not aligned to 4 bytes"),
        (with(right, |c| c.beta = Beta::Each(0)), "betas are at address 0"),
        (with(right, |c| c.report = Some(12)), "reports at 0xc are not aligned to 8 bytes"),
        (with(right, |c| (c.report, c.out) = (None, None)), "neither probabilities nor reports"),
        (with(right, |c| c.both = true), "launch twice"),
        (with(right, |c| c.resolve = Some(-1.0)), "found -1"),
        (with(right, |c| c.resolve = Some(f64::NAN)), "found NaN"),
        (with(right, |c| c.top_k = Some(0)), "top-k must be at least 1"),
    ];
    for (call, expected) in cases {
        let message = f.refusal(&call);
        assert!(message.contains(expected), "{expected:?} is not in {message:?}");
    }
}

#[test]
fn overlapping_buffers_are_refused() {
    let Some(mut f) = Fixture::new("overlapping_buffers_are_refused", &small(Scope::Block, 600, 4, 1)) else {
        return;
    };
    let right = f.call();
    let scores = right.scores.address;
    let bytes = ROWS * COLS * 2;
    let out =
        |address, dtype, stride| with(right, |c| c.out = Some(DeviceOutput::new(address, dtype, stride)));
    let in_lens = right.scores.lens;
    for (call, expected) in [
        (out(scores, DType::F32, COLS), "scores at"),
        (out(scores, DType::F16, COLS + 1), "scores at"),
        (out(scores + 2, DType::F16, COLS), "only be in place"),
        (out(scores + bytes - 2, DType::F16, COLS), "scores at"),
        (with(right, |c| c.report = Some(scores)), "scores at"),
        (with(right, |c| c.report = Some(right.out.unwrap().address)), "probabilities at"),
        (with(right, |c| c.report = in_lens), "lens at"),
        (with(right, |c| c.report = right.positions), "positions at"),
        (with(right, |c| c.beta = Beta::Each(right.report.unwrap())), "betas at"),
    ] {
        let message = f.refusal(&call);
        assert!(
            message.contains(expected) && message.contains("overlap"),
            "{expected:?} is not in {message:?}"
        );
        assert!(message.contains(&format!("{:#x}", call.report.unwrap())) || call.report == right.report);
    }
    // Memory that is only read may be shared, and neighbours do not overlap.
    f.launch(&with(right, |c| c.positions = in_lens), None).unwrap();
    f.launch(&out(scores, DType::F16, COLS), None).unwrap();
    f.launch(&out(scores + bytes, DType::F16, COLS), None).unwrap();
}

#[test]
fn rules_that_kernels_cannot_follow_are_refused() {
    let Some(mut f) =
        Fixture::new("rules_that_kernels_cannot_follow_are_refused", &small(Scope::Block, 600, 4, 1))
    else {
        return;
    };
    let critical: Rescaling = "critical:resolve=0.5".parse().unwrap();
    let anchored = Rescaling::Calibrated(Calibrated::new(1.0, 1.0, Some(1.0)));
    let right = f.call();
    for own in [0.5, 0.7] {
        let call = with(right, |c| (c.beta, c.resolve) = (Beta::Rescaling(&critical), Some(own)));
        let expected = format!("resolve {own} beside a critical rescaling, whose resolve is 0.5");
        let message = f.refusal(&call);
        assert!(message.contains(&expected), "{message}");
    }
    let message = f.refusal(&with(right, |c| c.beta = Beta::Rescaling(&anchored)));
    assert!(message.contains("anchor must be a finite length above 1"), "{message}");
    f.launch(&with(right, |c| c.beta = Beta::Rescaling(&critical)), None).unwrap();
}

#[test]
fn workspaces_are_checked_and_memory_is_looked_up() {
    // There is no room for a row, so it is split over four SMs.
    let arch = small(Scope::Split, 2, 4, 1);
    let Some(mut f) = Fixture::new("workspaces_are_checked_and_memory_is_looked_up", &arch) else { return };
    let mut right = f.call();
    (right.scores.cols, right.scores.stride) = (1030, 1030);
    right.out = right.out.map(|out| DeviceOutput::new(out.address, out.dtype, 1030));
    let needed = right.workspace_bytes(&arch).unwrap();
    assert!(needed > 0);
    let address = f.address(5);
    let message =
        |f: &mut Fixture, call: &Call, workspace| f.launch(call, workspace).unwrap_err().to_string();
    let refusal = message(&mut f, &right, None);
    assert!(refusal.contains(&format!("a workspace of 0 bytes, expected {needed}")), "{refusal}");
    let refusal = message(&mut f, &right, Some(Workspace { address, bytes: needed - 1 }));
    assert!(
        refusal.contains(&format!("a workspace of {} bytes, expected {needed}", needed - 1)),
        "{refusal}"
    );
    let refusal = message(&mut f, &right, Some(Workspace { address: address + 128, bytes: needed }));
    assert!(refusal.contains("not aligned to 256 bytes"), "{refusal}");
    let refusal = message(&mut f, &right, Some(Workspace { address: 0, bytes: needed }));
    assert!(refusal.contains("workspace are at address 0"), "{refusal}");
    let report = f.address(5) + 256;
    let workspace = Workspace { address, bytes: needed };
    let refusal = message(&mut f, &with(right, |c| c.report = Some(report)), Some(workspace));
    assert!(refusal.contains("workspace at") && refusal.contains("overlap"), "{refusal}");
    let refusal = message(&mut f, &right, Some(Workspace { address: 256, bytes: needed }));
    assert!(refusal.contains("outside of the memory given"), "{refusal}");
    f.launch(&right, Some(workspace)).unwrap();
}

#[test]
fn host_verbs_name_what_they_refuse() {
    let Some(f) = Fixture::new("host_verbs_name_what_they_refuse", &small(Scope::Block, 600, 4, 1)) else {
        return;
    };
    let data = [0.5f32; 6];
    let view = Scores::dense(&data, 2, 3).unwrap();
    let softmax = |rule: &Rescaling, positions: &[u32], out: &mut [f32]| {
        f.engine.softmax(&view, rule, Some(positions), out).unwrap_err().to_string()
    };
    let identity = Rescaling::Identity;
    assert!(softmax(&identity, &[0, 1], &mut [0.0; 5]).contains("the output holds 5 elements"));
    assert!(softmax(&identity, &[0], &mut [0.0; 6]).contains("1 positions given"));
    // Lengths in host memory are checked when the view is made.
    assert!(view.with_lens(&[3, 4]).unwrap_err().to_string().contains("length 4 of row 1"));
    let mut small = f.engine.zeroed(16).unwrap();
    let refusal = f.engine.upload(&mut small, 10, &[0; 8]).unwrap_err().to_string();
    assert!(refusal.contains("8 bytes from byte 10 on of device memory of 16 bytes"), "{refusal}");
    assert!(f.engine.download(&small, usize::MAX, &mut [0; 8]).is_err());
    assert_eq!(size_of::<RowReport>(), 72);
}

#[test]
fn the_simulator_has_one_stream() {
    let Some(f) = Fixture::new("the_simulator_has_one_stream", &small(Scope::Block, 600, 4, 1)) else {
        return;
    };
    if !f.engine.is_simulated() {
        eprintln!("skipped the_simulator_has_one_stream: this is a GPU");
        return;
    }
    let call = f.call();
    // SAFETY: the memory of the fixture is as large as the call says, and nobody else uses it.
    let refusal = unsafe { f.engine.launch(&call, None, 0x1230) }.unwrap_err().to_string();
    assert!(refusal.contains("stream 0x1230: the simulator has only the default stream"), "{refusal}");
    // SAFETY: as above.
    unsafe { f.engine.launch(&call, None, 0) }.unwrap();
}
