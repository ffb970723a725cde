//! Tests plans without a GPU.

use critbeta::DType;
use critbeta::cuda::internals as params;
use critbeta::cuda::internals::{Family, Scope};
use critbeta::cuda::{Arch, DecodePlan, DecodeShape, Plan, Problem};

fn plan(rows: u64, cols: u64, dtype: DType, arch: &str) -> Plan {
    let problem = Problem::softmax(rows, cols, dtype);
    Plan::choose(&problem, &Arch::named(arch).unwrap()).unwrap()
}

/// For every problem, the GPU can run the plan, and the plan covers the row.
#[test]
fn every_plan_is_within_the_limits_of_its_part() {
    for name in Arch::names() {
        let arch = Arch::named(name).unwrap();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let per_vector = 16 / dtype.size_bytes() as u64;
            for power in 0..=24 {
                for cols in [(1 << power) - 1, 1 << power, (1 << power) + 1] {
                    for rows in [1, 7, 131, 132, 4096, 1 << 26] {
                        if !(1..=1 << 24).contains(&cols) {
                            continue;
                        }
                        for (family, problem) in [
                            (Family::GapProfile, Problem::statistics(rows, cols, dtype)),
                            (Family::CriticalSoftmax, Problem::softmax(rows, cols, dtype)),
                        ] {
                            let plan = Plan::choose(&problem, &arch).unwrap();
                            let text = format!("{plan}");
                            let (variant, shared) = (plan.launch().variant, plan.launch().shared_bytes);
                            assert_eq!((variant.family(), variant.dtype()), (family, dtype), "{text}");
                            assert!(shared <= arch.shared_per_block_bytes - 16, "{text}");
                            let per_sm = plan.launch().ctas_per_sm;
                            assert!(
                                per_sm >= 1 && per_sm * (shared + 1024) <= arch.shared_per_sm_bytes,
                                "{text}"
                            );
                            assert!(per_sm * variant.threads() <= arch.threads_per_sm, "{text}");
                            let registers =
                                params::RESIDENT_THREADS.iter().find(|of| of.0 == variant.scope());
                            let bound = registers.map_or(512, |of| of.1.into_iter().max().unwrap()).max(512);
                            assert!(per_sm * variant.threads() <= bound, "{text}");
                            let vectors = (cols + per_vector - 1).div_ceil(per_vector);
                            let on_chip = u64::from(plan.launch().resident) * u64::from(plan.launch().ctas);
                            assert_eq!(plan.fits_on_chip(), on_chip >= vectors, "{text}");
                            let groups = match variant.scope() {
                                Scope::Warp => rows.div_ceil(4),
                                // All CTAs run at once, and each has room for two rows.
                                Scope::Block if plan.launch().loads_ahead(rows) => {
                                    let two = 2 * 16 * plan.launch().resident;
                                    assert_eq!(shared, params::BLOCK_CONTROL_BYTES + two, "{text}");
                                    (arch.sm_count * per_sm).into()
                                }
                                Scope::Cluster if plan.launch().loads_ahead(rows) => {
                                    let (groups, ctas) = (plan.launch().groups, plan.launch().ctas);
                                    let resident = plan.launch().resident;
                                    let control = params::CLUSTER_CONTROL_BYTES;
                                    assert_eq!(shared, control + 2 * 16 * resident, "{text}");
                                    let most = arch.sm_count * per_sm / ctas;
                                    // A GPC of 16 SMs may have no place for another cluster.
                                    assert!(groups <= most && groups + 9 > most, "{text}");
                                    u64::from(groups * ctas)
                                }
                                Scope::Block => rows,
                                Scope::Cluster => {
                                    assert!(
                                        arch.clusters && plan.launch().ctas <= arch.max_cluster,
                                        "{text}"
                                    );
                                    rows * u64::from(plan.launch().ctas)
                                }
                                Scope::Split => {
                                    assert!(
                                        plan.launch().grid <= arch.sm_count,
                                        "all must run at once: {text}"
                                    );
                                    assert!(u64::from(plan.launch().groups) <= rows, "{text}");
                                    let slots = params::SPLIT_CTAS * params::SLOT_BYTES;
                                    let bytes = slots + plan.launch().groups * params::GROUP_BYTES;
                                    assert!(plan.launch().grid <= params::SPLIT_CTAS, "{text}");
                                    assert_eq!(plan.workspace_bytes(), u64::from(bytes), "{text}");
                                    u64::from(plan.launch().groups * plan.launch().ctas)
                                }
                            };
                            assert_eq!(u64::from(plan.launch().grid), groups, "{text}");
                            assert!(plan.fits_on_chip() || variant.scope() == Scope::Split, "{text}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_ladder_goes_from_warps_to_the_whole_grid() {
    let scope = |rows, cols, arch| plan(rows, cols, DType::F32, arch).launch().variant.scope();
    for arch in Arch::names() {
        assert_eq!(scope(4096, 1, arch), Scope::Warp);
        assert_eq!(scope(4096, 1024, arch), Scope::Warp);
        assert_eq!(scope(4096, 1025, arch), Scope::Block);
        assert_eq!(scope(1, 1 << 24, arch), Scope::Split);
    }
    // 65,536 f32 are 256 KiB. They take a cluster if the GPU has clusters, and exceed one CTA if it has none.
    assert_eq!(scope(4096, 65_536, "sm_90"), Scope::Cluster);
    assert_eq!(scope(4096, 65_536, "sm_80"), Scope::Split);
    assert_eq!(scope(4096, 20_000, "sm_80"), Scope::Block);
    // Few very long rows are split although a cluster would hold them.
    assert_eq!(scope(4, 300_000, "sm_90"), Scope::Split);
    assert_eq!(scope(4096, 262_144, "sm_90"), Scope::Cluster);
    // Rows of 16-bit scores have half the bytes.
    assert_eq!(
        plan(4096, 60_000, DType::Bf16, "sm_90").launch().ctas,
        plan(4096, 30_000, DType::F32, "sm_90").launch().ctas
    );
    // One million f32 fit no cluster, but they fit the grid. One million bf16 fit a cluster of 16.
    let long = plan(64, 1 << 20, DType::F32, "sm_90");
    assert_eq!((long.launch().variant.scope(), long.fits_on_chip()), (Scope::Split, true));
    assert_eq!(plan(64, 1 << 20, DType::Bf16, "sm_90").launch().ctas, 16);
    // The whole grid holds 7.5 million f32, and twice as many 16-bit scores.
    let whole = |cols, dtype| plan(1, cols, dtype, "sm_90").fits_on_chip();
    assert!(whole(7_500_000, DType::F32) && !whole(7_600_000, DType::F32));
    assert!(whole(15_000_000, DType::F16) && !whole(15_200_000, DType::Bf16));
}

/// Registers decide too how many CTAs share an SM.
#[test]
fn plans_count_registers() {
    let per_sm = |problem, arch| {
        let plan = Plan::choose(&problem, &Arch::named(arch).unwrap()).unwrap();
        plan.launch().ctas_per_sm
    };
    // Shared memory and threads would let 10, 9, 5, 6, 3 and 3 share an SM.
    assert_eq!(per_sm(Problem::softmax(4096, 1024, DType::F32), "sm_90"), 5);
    assert_eq!(per_sm(Problem::softmax(700, 4096, DType::F32), "sm_90"), 6);
    assert_eq!(per_sm(Problem::softmax(4096, 4096, DType::F32), "sm_90"), 5);
    assert_eq!(per_sm(Problem::softmax(4096, 8000, DType::F32), "sm_90"), 3);
    assert_eq!(per_sm(Problem::softmax(4096, 65_536, DType::F32), "sm_90"), 3);
    assert_eq!(per_sm(Problem::statistics(4096, 65_536, DType::F32), "sm_90"), 2);
    assert_eq!(per_sm(Problem::softmax(4096, 8000, DType::F32), "sm_100"), 2);
    // Where registers allow two CTAs, each takes half of the shared memory.
    let of =
        |cols| Plan::choose(&Problem::statistics(4096, cols, DType::F32), &Arch::named("sm_90").unwrap());
    assert!(of(98_304).unwrap().launch().shared_bytes > 90_000);
}

#[test]
fn split_rows_take_equal_rounds() {
    let groups = |rows, cols| {
        let launch = *plan(rows, cols, DType::F32, "sm_90").launch();
        assert_eq!(launch.variant.scope(), Scope::Split);
        (launch.groups, launch.ctas)
    };
    // 19 CTAs hold a row of 2^20, so six rows would fit at once: eight run as 4 + 4, not as 6 + 2.
    assert_eq!(groups(8, 1 << 20), (4, 33));
    assert_eq!(groups(6, 1 << 20), (6, 22));
    assert_eq!(groups(7, 1 << 20), (4, 33));
    assert_eq!(groups(64, 1 << 20), (6, 22));
    assert_eq!(groups(13, 1 << 20), (5, 26));
    for arch in Arch::names() {
        for rows in 1..300 {
            let plan = plan(rows, 1 << 24, DType::F16, arch);
            let groups = u64::from(plan.launch().groups);
            // One group fewer would need one more round.
            assert!(groups == 1 || rows.div_ceil(groups - 1) > rows.div_ceil(groups), "{plan}");
        }
    }
}

#[test]
fn few_long_rows_get_a_cluster_until_a_share_of_the_grid_is_faster() {
    let scope = |rows, cols| {
        let plan = plan(rows, cols, DType::F32, "sm_90");
        (plan.launch().variant.scope(), plan.launch().ctas)
    };
    assert_eq!(scope(1, 65_536), (Scope::Cluster, 16));
    assert_eq!(scope(1, 196_608), (Scope::Cluster, 16));
    assert_eq!(scope(1, 196_609).0, Scope::Split);
    assert_eq!(scope(3, 196_609), (Scope::Cluster, 16));
    assert_eq!(scope(4, 294_913).0, Scope::Split);
    assert_eq!(scope(5, 100_000).0, Scope::Split);
    assert_eq!(plan(1, 65_536, DType::F32, "sm_90").launch().variant.threads(), 512);
    // Three CTAs of a cluster of 2 just have room for 65,536 bf16, or for two parts of a cluster of 4. Few
    // rows do not get a cluster that is larger still.
    for (rows, ctas) in [(4096, 4), (192, 4), (191, 2), (60, 2)] {
        assert_eq!(plan(rows, 65_536, DType::Bf16, "sm_90").launch().ctas, ctas, "{rows}");
    }
    // Without clusters, or with small ones, the row may still be split.
    assert_eq!(plan(1, 131_072, DType::F32, "sm_80").launch().variant.scope(), Scope::Split);
    for cols in [65_536, 100_000, 131_072] {
        for rows in 1..=8 {
            assert!(plan(rows, cols, DType::F32, "sm_90").fits_on_chip());
        }
    }
}

#[test]
fn a_plan_says_the_true_reason() {
    let why = |rows, cols, dtype, arch| {
        let text = plan(rows, cols, dtype, arch).to_string();
        text.split_once("why").unwrap().1.lines().next().unwrap().trim().to_owned()
    };
    assert!(why(64, 1 << 20, DType::F32, "sm_90").starts_with("no cluster holds the row"));
    assert!(why(1, 1 << 20, DType::F32, "sm_90").starts_with("no cluster holds the row"));
    assert!(why(4, 300_000, DType::F32, "sm_90").starts_with("rows are long and too few"));
    assert!(why(4, 131_072, DType::F32, "sm_90").starts_with("rows are long and few"));
    assert!(why(64, 1 << 20, DType::F32, "sm_80").starts_with("no CTA holds the row"));
    assert!(why(700, 4096, DType::F32, "sm_90").starts_with("CTAs of few threads"));
    assert!(why(4096, 4096, DType::F32, "sm_90").starts_with("rows are taken in turn"));
    assert!(why(300, 8192, DType::F32, "sm_90").starts_with("three such CTAs"));
    assert!(why(4096, 16_384, DType::F32, "sm_90").starts_with("three such CTAs"));
}

#[test]
fn longer_rows_never_get_a_narrower_scope() {
    for arch in Arch::names() {
        let scopes = (0..=24)
            .map(|power| plan(100_000, 1 << power, DType::Bf16, arch).launch().variant.scope() as u32);
        assert!(scopes.is_sorted(), "{arch}");
    }
}

#[test]
fn what_no_kernel_can_do_is_refused_with_its_numbers() {
    let refused = |rows, cols, dtype, arch: &Arch| {
        let problem = Problem::statistics(rows, cols, dtype);
        Plan::choose(&problem, arch).unwrap_err().to_string()
    };
    let h100 = Arch::named("sm_90").unwrap();
    assert!(refused(0, 5, DType::F32, &h100).contains("0 rows x 5 columns: expected 1 to 2147483647 rows"));
    assert!(refused(5, 0, DType::F32, &h100).contains("expected 1 to 16777216 columns"));
    assert!(refused(5, (1 << 24) + 1, DType::F32, &h100).contains("16777217 columns"));
    assert!(refused(1 << 31, 5, DType::F32, &h100).contains("2147483648 rows"));
    assert!(refused(5, 5, DType::F64, &h100).contains("f64: expected f32, f16 or bf16"));
    assert!(refused(1 << 30, 1 << 17, DType::F32, &h100).contains("launch fewer rows"));
    let mut volta = h100.clone();
    (volta.sm, volta.name) = (70, "a Tesla V100".into());
    assert!(
        refused(5, 5, DType::F32, &volta).contains("a Tesla V100 is sm_70, the kernels need sm_80 or later")
    );
    let mut tiny = h100;
    tiny.shared_per_block_bytes = 4 << 10;
    assert!(refused(5, 5, DType::F32, &tiny).contains("4096 bytes of shared memory"));
    assert!(Arch::named("sm_70").unwrap_err().to_string().contains("expected sm_80, sm_86"));
}

#[test]
fn a_plan_says_what_it_does_and_why() {
    let text = plan(4096, 32_768, DType::F32, "sm_90").to_string();
    for expected in
        ["critical_softmax_f32_cluster", "why", "100.0 % of a row", "1 global read, 1 write", "at most"]
    {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let text = plan(1, 1 << 24, DType::F32, "sm_90").to_string();
    assert!(plan(1, 1 << 24, DType::F32, "sm_90").predictions().is_empty());
    for expected in ["split", "are read again by every pass", "132 CTAs"] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
}

/// Rows of attention are measured alike in every batch.
#[test]
fn a_plan_of_columns_depends_on_no_rows() {
    let h200 = Arch::named("sm_90").unwrap();
    for cols in [1, 1024, 1025, 16_384, 56_000, 60_000, 131_072, 400_000, 800_000] {
        let of = |rows| {
            let plan = Plan::of_columns(&Problem::softmax(rows, cols, DType::F32), &h200).unwrap();
            assert!(plan.fits_on_chip(), "{rows} x {cols}: {plan}");
            assert!(plan.launch().shared_bytes <= h200.shared_per_block_bytes, "{rows} x {cols}: {plan}");
            (plan.kernel(), plan.launch().ctas)
        };
        assert!([1, 7, 32, 4096, 1 << 24].iter().all(|&rows| of(rows) == of(64)), "{cols}");
        let alone = of(1).0 == "critical_softmax_f32_block256x1";
        assert_eq!(alone, cols <= 56_000, "{cols}: {}", of(1).0);
    }
}

/// Without a GPU a decode step says what it would launch; more bytes take longer, and fewer values less.
#[test]
fn a_decode_plan_says_what_it_launches() {
    let h200 = Arch::named("sm_90").unwrap();
    let shape = DecodeShape {
        seqs: 1,
        query_len: 1,
        heads: 32,
        kv_heads: 8,
        dim: 128,
        len: 1 << 17,
        page: 16,
        dtype: DType::Bf16,
        eps: 0.0,
        keep: 1.0,
    };
    let seconds = |shape: &DecodeShape| DecodePlan::choose(shape, &h200).unwrap().seconds().unwrap();
    let text = DecodePlan::choose(&shape, &h200).unwrap().to_string();
    for part in [
        "one pass  attention_one_pass_bf16",
        "scores    attention_scores_bf16",
        "rows      critical_softmax_f32",
        "values    attention",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("masses") && !text.contains("repair"), "{text}");
    let skipping = DecodeShape { eps: 1e-2, keep: 0.3, ..shape };
    let text = DecodePlan::choose(&skipping, &h200).unwrap().to_string();
    assert!(text.contains("attention_masses_f32") && text.contains("repair    attention_one_pass"), "{text}");
    assert!(text.contains("with 65 % of") && text.contains("with 30 % of"), "{text}");
    let [given, critical] = seconds(&shape);
    // The bytes of keys and values at the speed of a copy are 125 us.
    assert!(given > 125e-6 && critical > given, "{given} {critical}");
    assert!(seconds(&skipping)[0] < given);
    assert!(seconds(&DecodeShape { len: 1 << 18, ..shape })[0] > 1.8 * given);
    let many = DecodeShape { seqs: 64, len: 1 << 16, ..shape };
    assert!(DecodePlan::choose(&many, &h200).unwrap().to_string().contains("near the top: waves 16,"));
    assert!(seconds(&DecodeShape { dtype: DType::F32, ..shape })[0] > 1.8 * given);
    // Short chunks cost more for each key, and 32 rows are two times 16 that read the values.
    let mut without_clusters = h200.clone();
    (without_clusters.clusters, without_clusters.max_cluster) = (false, 1);
    let of_key = |rows: u64, len: u64| {
        let shape = DecodeShape { heads: 8 * rows, len, ..shape };
        let text = DecodePlan::choose(&shape, &without_clusters).unwrap().to_string();
        let line = text.lines().find(|line| line.contains("attention_values")).unwrap();
        let slots = line.split(", ").last().unwrap().strip_suffix(" M lane slots").unwrap();
        slots.parse::<f64>().unwrap() / len as f64
    };
    assert!(of_key(4, 1 << 15) > 1.1 * of_key(4, 1 << 17), "{} {}", of_key(4, 1 << 15), of_key(4, 1 << 17));
    assert!(of_key(16, 1 << 14) > 1.2 * of_key(8, 1 << 14));
    let twice = of_key(32, 1 << 14) / of_key(16, 1 << 14);
    assert!((twice - 2.0).abs() < 0.01, "{twice}");
    // Shorter sequences stay on chip, and that is faster than what it replaces.
    for (seqs, len) in [(1, 1 << 15), (64, 1 << 12)] {
        let shape = DecodeShape { seqs, len, ..shape };
        let plan = DecodePlan::choose(&shape, &h200).unwrap();
        assert!(plan.to_string().contains("on chip   attention_on_chip_bf16"), "{plan}");
        assert!(plan.seconds().unwrap()[1] < plan.seconds_off_chip().unwrap(), "{plan}");
    }
    let wrong = DecodeShape { kv_heads: 5, ..shape };
    let error = DecodePlan::choose(&wrong, &h200).unwrap_err().to_string();
    assert!(error.contains("32 query heads: 5 key heads must divide them"), "{error}");
}
