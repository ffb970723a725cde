//! The workspace of the split scope: zeros once, then every launch leaves it ready for the next one. It runs
//! on the simulator, or on the first GPU with CRITBETA_REQUIRE_GPU=1.

mod common;
#[path = "common/device.rs"]
mod device;

use common::{draw, every_family};
use critbeta::cuda::internals::{self, Scope};
use critbeta::cuda::{Arch, Beta, DeviceMemory, Engine, SimtOptions};
use critbeta::families::Family;
use critbeta::{DType, Error, Rescaling};
use device::{Done, Out, Request, Rows, WORKSPACE_BYTES, engine, engine_of, run, run_in, small};

/// Every row is split; with 6 SMs there are 1 to 6 groups.
fn arch() -> Arch {
    small(Scope::Split, 600, 6, 1)
}

fn workspace(engine: &Engine) -> DeviceMemory {
    engine.zeroed(WORKSPACE_BYTES as usize).unwrap()
}

fn bits(done: &Done) -> (Vec<u8>, Vec<u32>) {
    let probs = done.probs.concat().iter().map(|p| p.to_bits()).collect();
    (bytemuck::cast_slice(&done.reports).to_vec(), probs)
}

/// The counter and the counts of every group, which a launch leaves as it found them. Only the top bit of a
/// counter may change.
fn assert_clean(engine: &Engine, workspace: &DeviceMemory, what: &str) {
    let mut words = vec![0u32; WORKSPACE_BYTES as usize / 4];
    engine.download(workspace, 0, bytemuck::cast_slice_mut(&mut words)).unwrap();
    let slots = (internals::SPLIT_CTAS * internals::SLOT_BYTES / 4) as usize;
    for (index, group) in words[slots..].chunks((internals::GROUP_BYTES / 4) as usize).enumerate() {
        assert_eq!(group[0] % (1 << 31), 0, "{what}: the counter of group {index} is {:#x}", group[0]);
        let counts = &group[1..32 + 3 * internals::SPLIT_BINS as usize];
        assert!(counts.iter().all(|&count| count == 0), "{what}: counts of group {index} are left");
    }
}

/// Shapes with other groups, CTAs and dtypes, one after the other, in one workspace.
#[test]
fn launches_of_any_shape_follow_each_other_in_one_workspace() {
    const NAME: &str = "launches_of_any_shape_follow_each_other_in_one_workspace";
    let mut options = SimtOptions::of(arch());
    options.shadow = true;
    let Some(engine) = engine_of(NAME, options) else { return };
    let rule: Rescaling = "critical:resolve=0.69,cap=9".parse().unwrap();
    let mut shared = workspace(&engine);
    let shapes =
        [(1, 4000, DType::F32), (6, 2500, DType::Bf16), (2, 9000, DType::F32), (5, 3000, DType::F16)];
    for (turn, (count, n, dtype)) in shapes.into_iter().enumerate() {
        let family = [Family::Gaussian, Family::LogGrid { beta: 2.5 }][turn % 2];
        let drawn: Vec<Vec<f32>> = (0..count).map(|row| draw(family, n, row + 10 * turn as u64)).collect();
        let rows = Rows::dense(dtype, &drawn);
        for out in [Out::Apart(dtype, 0, 0), Out::None] {
            let request = Request::new(out, Beta::Rescaling(&rule));
            let alone = run(&engine, &rows, &request).unwrap_or_else(|e| panic!("{count} x {n}: {e}"));
            let after = run_in(&engine, &rows, &request, &mut shared).unwrap();
            assert!(bits(&after) == bits(&alone), "{count} x {n} {dtype}, {out:?}");
            assert_clean(&engine, &shared, &format!("{count} x {n} {dtype}, {out:?}"));
        }
    }
}

#[test]
fn every_family_leaves_it_clean() {
    let Some(engine) = engine("every_family_leaves_it_clean", &arch()) else { return };
    let rule: Rescaling = "critical:cap=9".parse().unwrap();
    let mut shared = workspace(&engine);
    for (family, row) in every_family(3000, 5) {
        let rows = Rows::dense(DType::F32, &[row]);
        let mut request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
        run_in(&engine, &rows, &request, &mut shared).unwrap();
        assert_clean(&engine, &shared, &format!("{family:?}"));
        request.measure = critbeta::cpu::Measure::new(0.0, Some(700));
        (request.out, request.both) = (Out::None, true);
        run_in(&engine, &rows, &request, &mut shared).unwrap();
        assert_clean(&engine, &shared, &format!("{family:?}, top-k"));
    }
}

/// On a GPU two launches run at the same time on two streams. Here they do on two threads.
#[test]
fn launches_at_the_same_time_have_a_workspace_each() {
    let Some(engine) = engine("launches_at_the_same_time_have_a_workspace_each", &arch()) else { return };
    let rule: Rescaling = "critical:cap=9".parse().unwrap();
    let work = |seed: u64| {
        let drawn: Vec<Vec<f32>> = (0..3).map(|row| draw(Family::Gaussian, 4000, seed + row)).collect();
        let rows = Rows::dense(DType::F32, &drawn);
        let request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
        let mut own = workspace(&engine);
        let runs: Vec<_> =
            (0..3).map(|_| bits(&run_in(&engine, &rows, &request, &mut own).unwrap())).collect();
        assert!(runs.iter().all(|run| *run == runs[0]));
        runs.into_iter().next().unwrap()
    };
    let alone = [10, 20].map(work);
    let both = std::thread::scope(|scope| {
        let threads = [10, 20].map(|seed| scope.spawn(move || work(seed)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(both == alone);
}

#[test]
fn a_refused_launch_leaves_it_and_a_workspace_that_was_never_zeroed_is_found() {
    const NAME: &str = "a_refused_launch_leaves_it_and_a_workspace_that_was_never_zeroed_is_found";
    let Some(engine) = engine(NAME, &arch()) else { return };
    let rule: Rescaling = "critical:cap=9".parse().unwrap();
    let rows = Rows::dense(DType::F32, &[draw(Family::Gaussian, 4000, 1)]);
    let request = Request::new(Out::Apart(DType::F32, 0, 0), Beta::Rescaling(&rule));
    let expected = bits(&run(&engine, &rows, &request).unwrap());
    let mut shared = workspace(&engine);
    let mut wrong = request.clone();
    wrong.measure = critbeta::cpu::Measure::new(0.0, Some(0));
    assert!(matches!(run_in(&engine, &rows, &wrong, &mut shared), Err(Error::Launch { .. })));
    assert_eq!(bits(&run_in(&engine, &rows, &request, &mut shared).unwrap()), expected);
    if !engine.is_simulated() {
        return; // a GPU would wait for ever
    }
    let left = vec![0xC5; WORKSPACE_BYTES as usize];
    engine.upload(&mut shared, 0, &left).unwrap();
    let error = run_in(&engine, &rows, &request, &mut shared).err().expect("a fault").to_string();
    assert!(error.contains("a workspace must be zeros before its first launch"), "{error}");
    engine.upload(&mut shared, 0, &vec![0; left.len()]).unwrap();
    assert_eq!(bits(&run_in(&engine, &rows, &request, &mut shared).unwrap()), expected);
}
