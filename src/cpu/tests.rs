//! Every instruction set that this machine has, in any number of parts: the same bits, and those of the reference.

use super::lanes::{CHUNK, Exponent, Isa, WEIGHT_ONE};
use super::row::{Beta, Workspace};
use crate::families::Family;
use crate::reference::Row;
use crate::{DType, Element, Rescaling, Scores};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

fn draw(family: Family, n: usize) -> Vec<f32> {
    let mut row = Vec::new();
    family.draw(n, &mut Xoshiro256PlusPlus::seed_from_u64(n as u64), &mut row);
    row
}

/// Bits of what is told of a row, and its probabilities.
fn measured<T: Element, O: Element>(
    isa: Isa,
    parts: usize,
    row: &[T],
    rule: &Rescaling,
    stream: bool,
) -> (String, Vec<O>) {
    let mut workspace = Workspace::new(isa, parts);
    let (told, fill) = workspace.softmax(row, &[], Beta::Rule(rule, 7));
    let mut out = vec![O::from_f32(9.0); row.len()];
    workspace.write(&mut out, fill, stream);
    let bits = (told.beta.to_bits(), told.log_partition.to_bits());
    (format!("{bits:?} {:?}", told.top), out)
}

fn bytes<O: Element>((told, out): (String, Vec<O>)) -> (String, Vec<u8>) {
    (told, bytemuck::cast_slice(&out).to_vec())
}

fn rules() -> Vec<Rescaling> {
    let texts = [
        "identity",
        "fixed:0",
        "fixed:1e300",
        "fixed:1e-300",
        "velickovic",
        "critical",
        "critical:resolve=0.69,cap=9",
    ];
    let mut rules: Vec<Rescaling> = texts.iter().map(|text| text.parse().unwrap()).collect();
    rules.push(Rescaling::Fixed(f64::INFINITY));
    rules
}

fn edges(n: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = Family::ALL.into_iter().map(|family| draw(family, n)).collect();
    let gaussian = draw(Family::Gaussian, n);
    for (at, value) in [(n / 2, f32::NAN), (n.saturating_sub(1), f32::INFINITY), (0, f32::NEG_INFINITY)] {
        let mut row = gaussian.clone();
        row.iter_mut().skip(at).take(1).for_each(|s| *s = value);
        rows.push(row);
    }
    rows.push(vec![f32::NEG_INFINITY; n]);
    rows.push((0..n).map(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN }).collect());
    rows.push((0..n).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect());
    rows.push((0..n).map(|i| -(i as f32) * 1e-45).collect());
    rows
}

#[test]
fn every_instruction_set_and_any_number_of_parts_have_the_same_bits() {
    let isas = Isa::available();
    for n in [0, 1, 15, 16, 17, 127, 129, 511, 513, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 77] {
        for row in edges(n) {
            let halves: Vec<f16> = row.iter().map(|&s| f16::from_f32(s)).collect();
            let bfloats: Vec<bf16> = row.iter().map(|&s| bf16::from_f32(s)).collect();
            for rule in &rules() {
                let first = (
                    bytes(measured::<f32, f32>(Isa::Portable, 1, &row, rule, false)),
                    bytes(measured::<f16, f16>(Isa::Portable, 1, &halves, rule, false)),
                    bytes(measured::<bf16, bf16>(Isa::Portable, 1, &bfloats, rule, false)),
                    bytes(measured::<bf16, f32>(Isa::Portable, 1, &bfloats, rule, false)),
                );
                for &isa in &isas {
                    for (parts, stream) in [(1, true), (2, false), (3, true), (7, false)] {
                        let same = (
                            bytes(measured::<f32, f32>(isa, parts, &row, rule, stream)),
                            bytes(measured::<f16, f16>(isa, parts, &halves, rule, stream)),
                            bytes(measured::<bf16, bf16>(isa, parts, &bfloats, rule, stream)),
                            bytes(measured::<bf16, f32>(isa, parts, &bfloats, rule, stream)),
                        );
                        assert!(
                            same == first,
                            "{isa}, {parts} parts, n = {n}, {rule}: {} and {}",
                            same.0.0,
                            first.0.0
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_finds_the_contact_of_the_reference() {
    for isa in Isa::available() {
        let mut workspace = Workspace::new(isa, 1);
        for n in [2, 3, 64, 65, 300, 4097, 20_000] {
            for row in edges(n) {
                let reference = Row::from_f32(&row);
                for resolve in [0.0, 0.69, 3.0] {
                    let ours = workspace.resolved(&row, resolve);
                    let expected = reference.resolved_critical_beta(resolve);
                    assert!(
                        ours == expected || reference.is_poisoned() && ours.beta.is_nan(),
                        "{isa} n = {n}: {ours:?}, not {expected:?}"
                    );
                }
            }
        }
    }
}

/// Scores and probabilities at every offset within a vector, and nothing written outside.
#[test]
fn every_alignment_is_the_same_row() {
    fn check<T: Element + PartialEq>(convert: fn(f32) -> T) {
        for isa in Isa::available() {
            for n in [1, 31, 100, 700] {
                let scores: Vec<T> = draw(Family::Gaussian, n).into_iter().map(convert).collect();
                let rule = Rescaling::Identity;
                let expected = bytes(measured::<T, T>(isa, 1, &scores, &rule, false));
                for offset in 0..64 {
                    let mut shifted = vec![convert(5.0); offset / 3];
                    shifted.extend_from_slice(&scores);
                    let mut out = vec![convert(9.0); n + 128];
                    let mut workspace = Workspace::new(isa, 1);
                    let (_, fill) = workspace.softmax(&shifted[offset / 3..], &[], Beta::Rule(&rule, 7));
                    workspace.write(&mut out[offset..][..n], fill, offset % 2 == 0);
                    assert!(
                        bytemuck::cast_slice::<T, u8>(&out[offset..][..n]) == expected.1,
                        "{isa} n = {n} offset {offset}"
                    );
                    assert!(out[..offset].iter().chain(&out[offset + n..]).all(|&p| p == convert(9.0)));
                }
            }
        }
    }
    check::<f32>(|s| s);
    check::<f16>(f16::from_f32);
    check::<bf16>(bf16::from_f32);
}

/// Relative error of 2^25 exp(-gap) in units of 2^-23, at every `step`-th gap that a float holds and whose weight is not 0.
fn worst_weight(isa: Isa, step: usize) -> f64 {
    let (first, last) = (1e-9f32.to_bits(), 103.9f32.to_bits());
    let (mut weights, mut sums, mut worst) = (Vec::new(), Vec::new(), 0.0f64);
    let gaps: Vec<u32> = (first..=last).step_by(step).collect();
    for gaps in gaps.chunks(CHUNK) {
        let row: Vec<f32> = gaps.iter().map(|&bits| -f32::from_bits(bits)).collect();
        isa.weigh(&row, &[], 0.0, Exponent::of(1.0), &mut weights, &mut sums);
        for (&score, &weight) in row.iter().zip(&weights) {
            let exact = f64::from(score).exp() * f64::from(WEIGHT_ONE);
            worst = worst.max((f64::from(weight) - exact).abs() / exact);
        }
    }
    worst * 2f64.powi(23)
}

#[test]
fn weights_are_within_an_ulp() {
    for isa in Isa::available() {
        let worst = worst_weight(isa, 1009);
        assert!(worst <= 0.84, "{isa}: {worst} * 2^-23");
        let (mut weights, mut sums) = (Vec::new(), Vec::new());
        let row = [0.0, -104.5, -1e9, f32::MIN, f32::NEG_INFINITY];
        isa.weigh(&row, &[], 0.0, Exponent::of(1.0), &mut weights, &mut sums);
        assert_eq!((weights[0], sums[0]), (WEIGHT_ONE, 1.0), "{isa}: exact at 0");
        assert!(weights[1..].iter().all(|w| (w / WEIGHT_ONE) * 0.5 == 0.0), "{isa}: {weights:?}");
    }
}

/// All 300 million gaps: `cargo test --release -- --ignored every_gap`, 10 s an instruction set.
#[test]
#[ignore = "minutes without optimisation"]
fn every_gap_has_a_weight_within_an_ulp() {
    for isa in Isa::available() {
        let worst = worst_weight(isa, 1);
        println!("{isa}: {worst} * 2^-23");
        assert!(worst <= 0.84, "{isa}: {worst} * 2^-23");
    }
}

#[test]
fn rows_in_place_are_rows_apart() {
    let (rows, cols, stride) = (5, 37, 41);
    let scores: Vec<f32> =
        (0..rows).flat_map(|r| draw(Family::Gaussian, stride + r)[..stride].to_vec()).collect();
    let lens = [37, 0, 1, 16, 36];
    let positions = [36; 5];
    let rule: Rescaling = "critical".parse().unwrap();
    let view = Scores::strided(&scores, rows, cols, stride).unwrap().with_lens(&lens).unwrap();
    let mut apart = vec![9.0f32; rows * cols];
    let told = super::softmax(&view, &rule, &positions, &mut apart).unwrap();
    let mut place = scores.clone();
    let again =
        super::softmax_in_place(&mut place, [rows, cols, stride], Some(&lens), &rule, &positions).unwrap();
    assert_eq!(format!("{told:?}"), format!("{again:?}"));
    for r in 0..rows {
        assert_eq!(place[r * stride..][..cols], apart[r * cols..][..cols], "row {r}");
        assert_eq!(place[r * stride..][cols..stride], scores[r * stride..][cols..stride], "behind row {r}");
    }
    let betas: Vec<f64> = told.iter().map(|row| row.beta).collect();
    let mut given = vec![9.0f32; rows * cols];
    super::softmax_at(&view, &betas, &mut given).unwrap();
    assert_eq!(given, apart);
    assert!(
        super::softmax_at(&view, &[f64::NAN; 5], &mut given).unwrap().iter().all(|row| row.beta.is_nan())
    );
    assert!(given[..37].iter().all(|p| p.is_nan()));
    let short = super::softmax_at(&view, &betas[1..], &mut given).unwrap_err().to_string();
    assert!(short.contains("4 betas given, expected one per row"), "{short}");
    let far = super::softmax_in_place(&mut place, [rows, cols, 30], None, &rule, &positions)
        .unwrap_err()
        .to_string();
    assert!(far.contains("30 elements apart would overlap"), "{far}");
}

#[test]
fn every_byte_of_a_copy_arrives_at_every_alignment_and_length() {
    let from: Vec<u8> = (0..400u32).map(|i| (i * 7) as u8).collect();
    for isa in Isa::available() {
        for offset in 0..65 {
            for len in [0, 1, 15, 63, 64, 65, 200, 300] {
                let mut to = vec![0xAA; 400];
                isa.copy_past(&from[offset / 3..][..len], &mut to[offset..][..len]);
                assert_eq!(to[offset..][..len], from[offset / 3..][..len], "{isa}");
                let is_outside = |&at: &usize| at < offset || at >= offset + len;
                assert!((0..400).filter(is_outside).all(|at| to[at] == 0xAA), "{isa} {offset} {len}");
            }
        }
    }
}

#[test]
fn a_plan_splits_few_long_rows_and_no_others() {
    use super::Plan;
    let told = |rows, cols| Plan::choose(rows, cols, DType::F32.size_bytes(), 64).to_string();
    assert!(told(4096, 4096).contains("each takes"));
    assert!(told(1, 1 << 20).contains("few and long, each row in 64 parts"));
    assert!(told(1, 1 << 20).contains("stay in the caches"));
    assert!(told(256, 65_536).contains("past the caches"));
    assert_eq!(Plan::choose(0, 0, 4, 0).parts, 1);
    assert_eq!(Plan::choose(1, 1 << 20, 4, 1).parts, 1);
}
