//! Masks that are finite numbers: a score below half of the lowest number of its type is masked, as -inf is.
//!
//! Every verb gives the same bits for a row with finite masks and for the row with -inf in their place.

use critbeta::cpu::{self, Measure, Workspace};
use critbeta::reference::Row;
use critbeta::{DType, Element, Rescaling, Scores, ScoresMut, rebase_shift, rebased};
use half::{bf16, f16};

/// Finite masks of a type, the highest last, and the lowest score that is not masked.
fn masks<T: Element>() -> ([T; 3], T) {
    let half = T::DTYPE.masked_below() as f32;
    // The numbers of a type beside its half lowest are 2^-8 of it apart, or less.
    let next = T::from_f32(half * (1.0 + 2f32.powi(-7)));
    // Just inside the range, because rounding to the type may give -inf.
    ([T::from_f32(half * 1.98), T::from_f32(half * 1.5), next], T::from_f32(half))
}

/// Two blocks of `rows` x `cols` scores, with finite masks and with -inf in their place. Row 1 is masked
/// whole, row 2 has one key, row 3 a NaN, row 4 both kinds of masks and the lowest score that is not masked,
/// and row 5 no mask.
fn blocks<T: Element>(rows: usize, cols: usize) -> [Vec<T>; 2] {
    let (masks, lowest) = masks::<T>();
    let at = |row: usize, col: usize, mask: T| match (row % 6, col) {
        (1, _) => mask,
        (2, _) if col != cols / 2 => mask,
        (3, 2) => T::from_f32(f32::NAN),
        (4, 1) => lowest,
        (4, _) if col % 7 == 3 => T::from_f32(f32::NEG_INFINITY),
        (0 | 3 | 4, _) if col.is_multiple_of(3) || col > cols - cols / 4 => mask,
        _ => T::from_f32(((row * 31 + col * 7919) % 997) as f32 / 64.0 - 8.0),
    };
    let block =
        |of: &dyn Fn(usize) -> T| (0..rows * cols).map(|i| at(i / cols, i % cols, of(i))).collect::<Vec<T>>();
    [block(&|i| masks[i % 3]), block(&|_| T::from_f32(f32::NEG_INFINITY))]
}

fn bits<T: Element>(probs: &[T]) -> Vec<u32> {
    probs.iter().map(|p| p.to_f32().to_bits()).collect()
}

fn rescalings() -> Vec<Rescaling> {
    ["identity", "fixed:0", "ssmax:s=0.43", "critical", "critical:resolve=0.7", "velickovic"]
        .map(|text| text.parse().unwrap_or_else(|error| panic!("{text}: {error}")))
        .to_vec()
}

fn agree<T: Element>(rows: usize, cols: usize) {
    let case = format!("{} {rows} x {cols}", T::DTYPE);
    let blocks = blocks::<T>(rows, cols);
    assert!(blocks[0].iter().zip(&blocks[1]).any(|(a, b)| a.to_f32() != b.to_f32()), "{case}");
    let [hidden, plain] = [0, 1].map(|i| Scores::dense(&blocks[i], rows, cols).unwrap());
    for measure in [Measure::default(), Measure::new(0.7, None), Measure::new(0.0, Some(5))] {
        let of = |scores| format!("{:?}", cpu::row_reports(scores, 1.25, measure));
        assert_eq!(of(&hidden), of(&plain), "{case} {measure:?}");
    }
    assert_eq!(
        format!("{:?}", cpu::critical_betas(&hidden, 0.7)),
        format!("{:?}", cpu::critical_betas(&plain, 0.7)),
        "{case}"
    );
    for rescaling in rescalings() {
        let mut outs = [vec![0f32; rows * cols], vec![0f32; rows * cols]];
        let of =
            |scores, out: &mut [f32]| format!("{:?}", cpu::softmax(scores, &rescaling, None, out).unwrap());
        assert_eq!(of(&hidden, &mut outs[0]), of(&plain, &mut outs[1]), "{case} {rescaling}");
        assert_eq!(bits(&outs[0]), bits(&outs[1]), "{case} {rescaling}");
        let mut narrow = [vec![f16::ZERO; rows * cols], vec![f16::ZERO; rows * cols]];
        for (scores, out) in [hidden, plain].iter().zip(&mut narrow) {
            cpu::softmax(scores, &rescaling, None, out).unwrap();
        }
        assert_eq!(bits(&narrow[0]), bits(&narrow[1]), "{case}");
        let mut places = blocks.clone();
        let mut of = |i: usize| {
            let mut scores = ScoresMut::dense(&mut places[i], rows, cols).unwrap();
            format!("{:?}", cpu::softmax_in_place(&mut scores, &rescaling, None).unwrap())
        };
        assert_eq!(of(0), of(1), "{case} {rescaling}");
        let [left, right] = places.map(|block| bits(&block));
        assert_eq!(left, right, "{case} {rescaling} in place");
    }
    let mut outs = [vec![0f32; rows * cols], vec![0f32; rows * cols]];
    let betas: Vec<f32> = (0..rows).map(|row| [0.0, 1.5, f32::INFINITY][row % 3]).collect();
    let of = |scores, out: &mut [f32]| format!("{:?}", cpu::softmax_at(scores, &betas, out).unwrap());
    assert_eq!(of(&hidden, &mut outs[0]), of(&plain, &mut outs[1]), "{case}");
    assert_eq!(bits(&outs[0]), bits(&outs[1]), "{case}");
    for row in 0..rows {
        assert_eq!(hidden.last_visible(row), plain.last_visible(row), "{case} row {row}");
    }
}

#[test]
fn every_verb_takes_finite_masks_for_masks_in_every_type() {
    // The last rows are split among threads.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (rows, cols) in [(6, 8), (12, 257), (6, 5000), (6, 1 << 17)] {
        pool.install(|| {
            agree::<f32>(rows, cols);
            agree::<f16>(rows, cols);
            agree::<bf16>(rows, cols);
        });
    }
}

#[test]
fn a_row_at_a_time_gives_the_same() {
    let cols = 300;
    let blocks = blocks::<f32>(6, cols);
    let mut workspace = Workspace::default();
    for (hidden, plain) in blocks[0].chunks(cols).zip(blocks[1].chunks(cols)) {
        let reference = Row::from_f32(hidden);
        assert_eq!(format!("{:?}", Row::from_f32(plain)), format!("{reference:?}"));
        let found = cpu::critical_beta(hidden, 0.0);
        assert_eq!(format!("{found:?}"), format!("{:?}", reference.critical_beta()));
        let measure = Measure::new(0.7, None);
        let mut reports = |scores: &[f32]| {
            let mut out = Vec::new();
            let row = workspace.softmax_f64(scores, &rescalings()[2], 40, &mut out);
            let bits: Vec<u64> = out.iter().map(|p| p.to_bits()).collect();
            let under = workspace.reports_under(scores, &rescalings(), 40, measure);
            format!("{row:?} {bits:?} {under:?} {:?}", workspace.report(scores, 0.5, measure))
        };
        assert_eq!(reports(hidden), reports(plain));
    }
}

#[test]
fn the_border_is_half_of_the_lowest_number() {
    fn of<T: Element>() {
        let ([lowest, middle, next], border) = masks::<T>();
        assert_eq!(f64::from(border.to_f32()), T::DTYPE.masked_below(), "{}", T::DTYPE);
        for masked in [lowest, middle, next] {
            assert!(masked.to_f32().is_finite() && masked.to_f32() < border.to_f32(), "{}", T::DTYPE);
            assert_eq!(masked.score(), f32::NEG_INFINITY);
        }
        assert_eq!(border.score(), border.to_f32());
        let row = [border, next, T::from_f32(1.0)];
        let report = &cpu::row_reports(&Scores::dense(&row, 1, 3).unwrap(), 1.0, Measure::default())[0];
        assert_eq!((report.top.len, report.top.argmax), (2, 2), "{}", T::DTYPE);
    }
    of::<f32>();
    of::<f16>();
    of::<bf16>();
    assert_eq!(DType::F16.masked_below(), -65504.0 / 2.0);
    // f64 rows lose their masks before they become f32.
    let wide = [f64::MIN, f32::MIN.into(), -1e38, 1e300, 1.0];
    let shift = rebase_shift(wide.iter().copied());
    let row: Vec<f32> = wide.iter().map(|&score| rebased(score, shift)).collect();
    assert_eq!(
        (shift, row[0], cpu::row_report(&row, 1.0, Measure::default()).top.len),
        (1e300, f32::NEG_INFINITY, 3)
    );
    assert_eq!(Row::new(&wide).n(), 3);
    assert_eq!(rebase_shift([f64::MIN, f64::NEG_INFINITY].into_iter()), 0.0);
}
