//! Properties of every row: symmetries, merges, the finite-n bounds, certificates.

mod common;

use common::{RESOLVES, any_row, any_score, draw, every_family, lattice_score, prob_error, sum_error};
use critbeta::cpu::{self, Measure};
use critbeta::families::Family;
use critbeta::reference::{BOUNDS, Row, certificate_slack, tail_mass_slack};
use critbeta::stats::{GapProfile, Partition, RowMax, TopK};
use critbeta::{CriticalBeta, Element, Rescaling, Scores, operating_ratio};
use proptest::prelude::*;

fn lattice_row() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(lattice_score(), 1..200)
}

/// A row, where to cut it, and the order in which neighbours merge until one piece is left.
fn cut_row(
    score: impl Strategy<Value = f32>,
) -> impl Strategy<Value = (Vec<f32>, Vec<usize>, Vec<prop::sample::Index>)> {
    prop::collection::vec(score, 1..200).prop_flat_map(|row| {
        let cuts = prop::collection::vec(0..=row.len(), 0..8);
        (Just(row), cuts, prop::collection::vec(any::<prop::sample::Index>(), 8))
    })
}

/// Merges the pieces between `cuts`. `picks` gives the order of the merges between neighbours.
fn merge_pieces<P: Clone>(
    row: &[f32],
    mut cuts: Vec<usize>,
    picks: &[prop::sample::Index],
    piece: impl Fn(&[f32], usize) -> P,
    merge: impl Fn(P, P) -> P,
) -> P {
    cuts.extend([0, row.len()]);
    cuts.sort_unstable();
    let mut pieces: Vec<P> = cuts.windows(2).map(|w| piece(&row[w[0]..w[1]], w[0])).collect();
    for pick in picks {
        if pieces.len() > 1 {
            let at = pick.index(pieces.len() - 1);
            let right = pieces.remove(at + 1);
            pieces[at] = merge(pieces[at].clone(), right);
        }
    }
    assert_eq!(pieces.len(), 1);
    pieces.remove(0)
}

fn permuted(row: &[f32], seed: u64) -> Vec<f32> {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;
    let mut row = row.to_vec();
    row.shuffle(&mut rand::rngs::Xoshiro256PlusPlus::seed_from_u64(seed));
    row
}

fn critical_betas(row: &[f32]) -> [CriticalBeta; 3] {
    RESOLVES.map(|resolve| cpu::critical_beta(row, resolve))
}

proptest! {
    #[test]
    fn the_working_path_is_the_reference_on_any_row(row in any_row(), resolve in 0.0f64..6.0) {
        let reference = Row::from_f32(&row);
        prop_assert_eq!(cpu::critical_beta(&row, 0.0), reference.critical_beta());
        prop_assert_eq!(cpu::critical_beta(&row, resolve), reference.resolved_critical_beta(resolve));
    }

    #[test]
    fn order_does_not_matter(row in any_row(), seed: u64) {
        prop_assert_eq!(critical_betas(&permuted(&row, seed)), critical_betas(&row));
        prop_assert_eq!(Row::from_f32(&permuted(&row, seed)), Row::from_f32(&row));
    }

    #[test]
    fn an_exact_shift_changes_nothing(row in lattice_row(), shift in -1000i32..1000) {
        let moved: Vec<f32> = row.iter().map(|s| s + shift as f32).collect();
        let measure = Measure::new(0.69, None);
        let (before, after) = (cpu::row_report(&row, 1.0, measure), cpu::row_report(&moved, 1.0, measure));
        let mut same = after;
        same.top = before.top;
        prop_assert_eq!(same, before);
        prop_assert_eq!((after.top.len, after.top.argmax, after.top.ties),
                        (before.top.len, before.top.argmax, before.top.ties));
    }

    #[test]
    fn scaling_by_a_power_of_two_divides_exactly(row in lattice_row(), power in -20i32..20) {
        let scale = 2f64.powi(power);
        let scaled: Vec<f32> = row.iter().map(|s| s * scale as f32).collect();
        for (before, after) in critical_betas(&row).into_iter().zip(critical_betas(&scaled)) {
            prop_assert_eq!(after.beta, before.beta / scale);
            prop_assert_eq!(after.contact_gap, before.contact_gap * scale);
            prop_assert_eq!(after.contact_rank, before.contact_rank);
        }
    }

    #[test]
    fn masked_scores_anywhere_change_nothing(
        row in any_row(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..70),
    ) {
        let mut padded = row.clone();
        for place in places {
            padded.insert(place.index(padded.len() + 1), [f32::NEG_INFINITY, f32::MIN][padded.len() % 2]);
        }
        let (before, mut after) =
            [&row, &padded].map(|row| cpu::row_report(row, 1.0, Measure::default())).into();
        after.top.argmax = before.top.argmax;
        prop_assert_eq!(after, before);
    }

    #[test]
    fn gap_counts_rise_and_profiles_agree_with_them(
        row in any_row(), t in 0.0f64..50.0, more in 0.0f64..50.0
    ) {
        let reference = Row::from_f32(&row);
        prop_assert!(reference.gap_count(t) <= reference.gap_count(t + more));
        prop_assert_eq!(reference.gap_count(f64::INFINITY), reference.n());
        let top = RowMax::of(&row, 0);
        prop_assume!(top.len > 0);
        let mut within = 0;
        for (bin, count) in GapProfile::of(&row, top.max).counts().iter().enumerate() {
            within += count;
            prop_assert_eq!(within, reference.gap_count(GapProfile::edges(bin).1.into()), "bin {}", bin);
        }
    }

    #[test]
    fn tops_merge_in_any_grouping((row, cuts, picks) in cut_row(prop_oneof![
        20 => any_score(),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY]),
    ])) {
        let whole = RowMax::of(&row, 0);
        let merged = merge_pieces(&row, cuts, &picks, |s, at| RowMax::of(s, at as u64), RowMax::merge);
        prop_assert_eq!(format!("{merged:?}"), format!("{whole:?}"));
    }

    #[test]
    fn gap_profiles_merge_in_any_grouping((row, cuts, picks) in cut_row(any_score())) {
        let anchor = RowMax::of(&row, 0).max;
        prop_assume!(anchor.is_finite());
        let merged = merge_pieces(&row, cuts, &picks, |s, _| GapProfile::of(s, anchor),
                                  |a, b| a.merge(&b).unwrap());
        prop_assert_eq!(merged, GapProfile::of(&row, anchor));
    }

    #[test]
    fn the_k_largest_merge_in_any_grouping((row, cuts, picks) in cut_row(any_score()), k in 1usize..100) {
        let piece = |s: &[f32], _| {
            let mut top = TopK::new(k);
            top.extend(s);
            top
        };
        let merged = merge_pieces(&row, cuts, &picks, piece, |a, b| a.merge(&b)).into_sorted();
        let mut sorted: Vec<f32> = row.into_iter().filter(|s| s.score() > f32::NEG_INFINITY).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.truncate(k);
        prop_assert_eq!(merged, sorted);
    }

    #[test]
    fn partitions_merge_in_any_grouping(
        (row, cuts, picks) in cut_row(lattice_score()), beta in 0.0f64..20.0
    ) {
        let piece = |s: &[f32], _| match RowMax::of(s, 0) {
            top if top.len == 0 => Partition::EMPTY,
            top => Partition::of(s, top.max, beta),
        };
        let whole = piece(&row, 0);
        let merged = merge_pieces(&row, cuts, &picks, piece, |a, b| a.merge(b, beta));
        prop_assert_eq!(merged.max, whole.max);
        // Gaps are exact on the lattice. Each of at most 9 rebasings multiplies by one rounded exponential.
        // Its argument, at most 20 * 10, is rounded too: 200 * 2^-53 + 2^-53 each.
        let tolerance = 2.0 * sum_error(row.len()) + 9.0 * 201.0 * f64::EPSILON;
        prop_assert!((merged.sum - whole.sum).abs() <= tolerance * whole.sum);
        prop_assert!((merged.gap_sum - whole.gap_sum).abs() <= tolerance * whole.gap_sum);
    }

    #[test]
    fn probabilities_sum_to_one(row in any_row(), beta in prop_oneof![0.0f64..50.0, Just(f64::INFINITY)]) {
        let mut probs = vec![f32::NAN; row.len()];
        let view = Scores::dense(&row, 1, row.len()).unwrap();
        cpu::softmax(&view, &Rescaling::Fixed(beta), Some(&[0]), &mut probs).unwrap();
        prop_assert!(probs.iter().all(|p| (0.0..=1.0).contains(p)));
        let sum: f64 = probs.iter().map(|&p| f64::from(p)).sum();
        let expected = if RowMax::of(&row, 0).len == 0 { 0.0 } else { 1.0 };
        // Each probability is within prob_error of its exact value, and these sum to 1. The bound of one f32
        // rounding that stood here fails on [-0.375, 5.4e-5, 0] at beta 35: 1.00000007, the same at ea9dbbe.
        let max = Row::from_f32(&row).max();
        let error = |(&p, &score): (&f32, &f32)| {
            let gap = max - f64::from(score);
            prob_error(p.into(), if p == 0.0 || gap == 0.0 { 0.0 } else { beta * gap })
        };
        let tolerance: f64 = probs.iter().zip(&row).map(error).sum();
        prop_assert!((sum - expected).abs() <= tolerance, "{}", sum);
    }
}

/// Rows for the properties with tolerances: every family, short and long.
fn rows() -> impl Iterator<Item = (Family, Vec<f32>)> {
    [2, 3, 8, 65, 1000, 4096].into_iter().flat_map(|n| (0..3).flat_map(move |seed| every_family(n, seed)))
}

#[test]
fn every_bound_holds_on_both_sides_of_the_critical_beta() {
    let mut checked = [0u32; BOUNDS.len()];
    for (family, scores) in rows() {
        let row = Row::from_f32(&scores);
        let critical = row.critical_beta().beta;
        let scale = if critical.is_finite() && critical > 0.0 { critical } else { 1.0 };
        // If a bound holds with equality (all tied; one score), its slack is the rounding of log Z or H.
        // Their terms are relative to 1 + log n.
        let allowance = 2.0 * sum_error(scores.len()) * (1.0 + (scores.len() as f64).ln());
        for rho in [0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.001, 1.1, 1.5, 3.0, 10.0, 1e3, 1e9, f64::INFINITY] {
            for (i, (name, slack)) in BOUNDS.iter().enumerate() {
                if let Some(slack) = slack(&row, rho * scale) {
                    checked[i] += 1;
                    assert!(
                        slack >= -allowance,
                        "{family} n = {} rho = {rho}: {name}: slack {slack}",
                        scores.len()
                    );
                }
            }
            for quantile in [0, 1, 2, row.gaps().len() / 2, row.gaps().len()] {
                let gap = row.gaps().get(quantile).or(row.gaps().last()).copied().unwrap_or(0.0);
                for t in [gap, gap * 0.999, gap + 1.0] {
                    if let Some(slack) = tail_mass_slack(&row, rho * scale, t) {
                        assert!(slack >= -allowance, "{family} rho = {rho}: tail beyond {t}: {slack}");
                    }
                }
            }
        }
    }
    assert!(checked.iter().all(|&count| count > 500), "{checked:?}");
}

#[test]
fn a_certified_top_k_is_the_whole_answer() {
    let (mut certified, mut refused) = (0, 0);
    for n in [1, 2, 9, 300, 4096] {
        for (family, scores) in (0..3).flat_map(|seed| every_family(n, 50 + seed)) {
            let row = Row::from_f32(&scores);
            for k in (0..=11).map(|log| 1 << log) {
                for resolve in RESOLVES {
                    let case = format!("{family} n = {n} k = {k} r = {resolve}");
                    let measure = Measure::new(resolve, Some(k));
                    let seen = cpu::row_report(&scores, 1.0, measure).resolved;
                    let whole = cpu::critical_beta(&scores, resolve);
                    assert!(
                        seen.beta <= whole.beta && whole.beta <= seen.upper,
                        "{case}: {seen:?} {whole:?}"
                    );
                    if seen.is_exact() {
                        certified += 1;
                        assert_eq!(seen, whole, "{case}");
                    } else {
                        refused += 1;
                    }
                    if let Some(slack) = certificate_slack(&row, k, resolve) {
                        let complete = k as u64 >= row.n();
                        assert_eq!(seen.is_exact(), slack >= 0.0 || complete, "{case}: slack {slack}");
                    }
                }
            }
        }
    }
    assert!(certified > 1000 && refused > 1000, "{certified} certified, {refused} refused");
}

#[test]
fn no_certificate_while_the_contact_lies_deeper() {
    for height in [12.0, 20.0, 60.0] {
        for seed in 0..5 {
            let scores = draw(Family::Sink { height }, 8192, seed);
            let whole = cpu::critical_beta(&scores, 0.0);
            assert!(whole.contact_rank > 2048, "height {height}: {whole:?}");
            for k in (0..=11).map(|log| 1 << log) {
                let seen = cpu::row_report(&scores, 1.0, Measure::new(0.0, Some(k))).critical;
                assert!(!seen.is_exact() && seen.beta < whole.beta, "height {height} k = {k}: {seen:?}");
            }
        }
    }
}

#[test]
fn resolving_falls_with_r_and_ends_every_tie() {
    for (family, scores) in rows() {
        let row = Row::from_f32(&scores);
        let tied = (row.gap_count(0.0) as f64).ln();
        let mut last = f64::INFINITY;
        for step in 0..=40 {
            let resolve = f64::from(step) * 0.25;
            let critical = cpu::critical_beta(&scores, resolve);
            assert_eq!(critical, row.resolved_critical_beta(resolve), "{family} r = {resolve}");
            assert!(critical.beta <= last, "{family} r = {resolve}: {critical:?} above {last}");
            last = critical.beta;
            assert_eq!(critical.beta.is_finite(), row.n() == 0 || resolve >= tied, "{family} r = {resolve}");
            if resolve >= (scores.len() as f64).ln() {
                assert_eq!(critical.beta, 0.0, "{family} r = {resolve}");
            }
        }
        if row.n() > 0 {
            assert!(cpu::critical_beta(&scores, tied).beta.is_finite(), "{family} at log N(0) itself");
        }
    }
}

#[test]
fn the_rank_boundary_leaves_e_to_the_r_scores() {
    let mut found = 0;
    for (family, scores) in rows() {
        let row = Row::from_f32(&scores);
        let log_n = (row.n() as f64).ln();
        assert_eq!(row.rank_boundary(-0.1), None);
        assert_eq!(row.rank_boundary(log_n + 0.1), None);
        if row.n() == 0 {
            continue;
        }
        for share in [0.05, 0.3, 0.6, 0.95] {
            let r = share * log_n;
            let boundary = row.rank_boundary(r).unwrap();
            if r <= (row.gap_count(0.0) as f64).ln() {
                assert_eq!(boundary, f64::INFINITY, "{family} r = {r}");
                continue;
            }
            found += 1;
            // One ulp of beta changes log Z by beta E[D] 2^-52 <= H 2^-52.
            let tolerance = sum_error(scores.len()) + log_n * f64::EPSILON;
            let log_z = row.log_partition(boundary);
            assert!((log_z - r).abs() <= tolerance, "{family} n = {}: log Z {log_z}, r {r}", scores.len());
        }
    }
    assert!(found > 500, "{found}");
}

#[test]
fn the_operating_ratio_is_beta_over_the_critical_beta() {
    assert_eq!(operating_ratio(3.0, 1.5), 2.0);
    assert_eq!(operating_ratio(3.0, f64::INFINITY), 0.0);
    assert_eq!(operating_ratio(3.0, 0.0), f64::INFINITY);
    assert!(operating_ratio(0.0, 0.0).is_nan());
    for (family, scores) in rows() {
        let report = cpu::row_report(&scores, 0.7, Measure::default());
        let expected = match report.critical.beta {
            f64::INFINITY => 0.0,
            critical => 0.7 / critical,
        };
        assert_eq!(report.ratio(), expected, "{family}");
    }
}

#[test]
fn sharpening_raises_the_largest_weight_and_lowers_the_entropy() {
    for (family, scores) in rows() {
        let reports = [0.0, 0.1, 0.5, 1.0, 2.0, 10.0, 1e4, f64::INFINITY]
            .map(|beta| cpu::row_report(&scores, beta, Measure::default()));
        let allowance = 2.0 * sum_error(scores.len()) * (1.0 + (scores.len() as f64).ln());
        for pair in reports.windows(2) {
            assert!(pair[0].max_weight <= pair[1].max_weight + allowance, "{family}: {pair:?}");
            assert!(pair[0].entropy >= pair[1].entropy - allowance, "{family}: {pair:?}");
        }
    }
}
