//! Signs that the numbers of a row are not the scores that a softmax saw. They become notes of the summary.

/// What the numbers of one row show about their origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// All numbers lie from 0 to 1 and add up to 1: the row is the result of a softmax.
    Probabilities,
    /// All numbers are 0 or 1, and they are no probabilities: the row is one of a mask.
    Mask,
    /// A score that counts as visible lies more than [`Remark::FAR`] below the largest one.
    FarBelow,
}

/// Rows with a remark.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remarks {
    /// Rows of probabilities.
    pub probabilities: u64,
    /// Rows of a mask.
    pub mask: u64,
    /// Rows with scores far below the rest.
    pub far_below: u64,
}

/// Weights that were rounded to bf16 differ from their sum by half of an ulp in the worst case, 2^-9. Twice
/// that leaves room for the softmax that made them. It holds for every dtype, because NumPy has no bf16:
/// rounded weights arrive as f32.
const ROUNDING: f64 = 1.0 / 256.0;
/// Half of the distance of the smallest numbers of f16. Each of n small weights may be off by it.
const LEAST_F16: f64 = 1.0 / (1 << 25) as f64;
/// A sum is never accepted beyond this, however long its row is.
const LOOSEST: f64 = 0.1;

impl Remark {
    /// A gap of 1,000 leaves a weight of 0 in f32 at any beta above 0.104, because e^-104 is below the
    /// least number of f32. So the key takes no part in the softmax, but it counts in n and in every law of
    /// n. The largest gap of the example is 48.6 (12 heads of SmolLM2-135M, 2026-11-29).
    ///
    /// Such scores are not hidden. Nobody but their author knows whether -1e4 is a mask: ALiBi's own bias
    /// reaches it at 20,000 keys (slope 1/2). And a rule that looks at the rest of a row would hide a key in
    /// one row and count it in the next.
    pub const FAR: f64 = 1000.0;

    /// What a note says of rows with such scores.
    pub const FAR_NOTE: &str = "have scores more than 1,000 below their largest one, which count as visible \
                                keys: if these are masked, give -inf";

    /// The remark on a row whose scores were `shift` lower before, -inf where masked. The first `excluded` of
    /// them are left out of the measurement.
    pub fn of(scores: &[f32], excluded: usize, shift: f64) -> Option<Remark> {
        let all = range(scores);
        let seen = if excluded == 0 { all } else { range(&scores[excluded.min(scores.len())..]) };
        // A row with +inf is poisoned, and says nothing about its other scores.
        if seen[1] < f64::INFINITY && seen[1] - seen[0] > Self::FAR {
            return Some(Remark::FarBelow);
        }
        // A shifted 0 is off by the rounding of its gap.
        let least = if shift == 0.0 { 0.0 } else { -f64::from(f32::EPSILON) };
        let [low, high] = all.map(|score| score + shift);
        if !(low >= least && high <= 1.0 + ROUNDING) {
            return None;
        }
        let (mut sum, mut n, mut flags) = (0.0, 0.0, 0.0);
        for &score in scores.iter().filter(|score| **score != f32::NEG_INFINITY) {
            let number = f64::from(score) + shift;
            sum += number;
            n += 1.0;
            flags += f64::from(u8::from(number == 0.0 || number == 1.0));
        }
        if (sum - 1.0).abs() <= (ROUNDING + n * LEAST_F16).min(LOOSEST) {
            return Some(Remark::Probabilities);
        }
        (n > 1.0 && flags == n).then_some(Remark::Mask)
    }
}

/// The least and the largest score that is not masked; of none [inf, -inf]. NaN are passed over.
fn range(scores: &[f32]) -> [f64; 2] {
    const LANES: usize = 16;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut see = |at: usize, score: f32| {
        let visible = if score == f32::NEG_INFINITY { f32::INFINITY } else { score };
        low[at] = if visible < low[at] { visible } else { low[at] };
        high[at] = if score > high[at] { score } else { high[at] };
    };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for chunk in chunks {
        for (at, &score) in chunk.iter().enumerate() {
            see(at, score);
        }
    }
    rest.iter().for_each(|&score| see(0, score));
    [low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max)]
        .map(f64::from)
}

impl Remarks {
    /// Counts the remark of one more row.
    pub fn count(&mut self, remark: Option<Remark>) {
        match remark {
            Some(Remark::Probabilities) => self.probabilities += 1,
            Some(Remark::Mask) => self.mask += 1,
            Some(Remark::FarBelow) => self.far_below += 1,
            None => {}
        }
    }

    /// The sum of two counts.
    pub(crate) fn and(self, other: Remarks) -> Remarks {
        Remarks {
            probabilities: self.probabilities + other.probabilities,
            mask: self.mask + other.mask,
            far_below: self.far_below + other.far_below,
        }
    }
}

/// The rows of one layer, or of one tensor.
pub(crate) struct LayerRows<'a> {
    pub name: &'a str,
    /// Rows with at least two visible keys and no NaN or +inf.
    pub measured: u64,
    pub remarks: Remarks,
}

/// The notes on rows of scores.
pub(crate) fn notes(layers: &[LayerRows]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |of: fn(&Remarks) -> u64, least: fn(u64) -> u64, text: &str| {
        let found = layers.iter().filter(|layer| of(&layer.remarks) > least(layer.measured));
        let (names, (rows, all)): (Vec<&str>, (Vec<u64>, Vec<u64>)) =
            found.map(|layer| (layer.name, (of(&layer.remarks), layer.measured))).unzip();
        if !names.is_empty() {
            let (rows, all): (u64, u64) = (rows.iter().sum(), all.iter().sum());
            notes.push(format!("{}: {rows} of {all} rows {text}", named(&names)));
        }
    };
    // Padded rows may be all zeros, and dropout changes a sum.
    note(
        |remarks| remarks.probabilities,
        |measured| measured / 2,
        "hold probabilities (each number lies from 0 to 1, and a row adds up to 1): give logits, or log p",
    );
    note(
        |remarks| remarks.mask,
        // One row of real scores shows that it is none.
        |measured| measured.saturating_sub(1),
        "hold no number but 0 and 1, as a mask does, and no scores",
    );
    note(|remarks| remarks.far_below, |_| 0, Remark::FAR_NOTE);
    notes
}

/// The first few of these names.
pub(crate) fn named(names: &[&str]) -> String {
    const NAMED: usize = 4;
    let first: Vec<String> = names.iter().take(NAMED).map(|name| format!("{name:?}")).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f32 = f32::INFINITY;

    #[test]
    fn probabilities_are_told_from_scores() {
        let remark = |row: &[f32]| Remark::of(row, 0, 0.0);
        let is = Some(Remark::Probabilities);
        assert_eq!(remark(&[0.25, 0.5, 0.25, 0.0, 0.0]), is);
        assert_eq!(remark(&[1.0, 0.0]), is);
        assert_eq!(remark(&[0.5, 0.5, -INF]), is);
        assert_eq!(remark(&[0.5, 0.51]), None);
        assert_eq!(remark(&[1.5, -0.5]), None);
        assert_eq!(remark(&[-1e-6, 1.0]), None);
        assert_eq!(remark(&[0.0]), None);
        assert_eq!(remark(&[-INF, -INF]), None);
        assert_eq!(remark(&[]), None);
        // The logs of them are scores.
        assert_eq!(remark(&[0.25f32.ln(), 0.75f32.ln()]), None);
        // A sink that is left out belongs to the sum.
        assert_eq!(Remark::of(&[0.9, 0.05, 0.05], 1, 0.0), is);
        assert_eq!(Remark::of(&[0.9, 0.5, 0.5], 1, 0.0), None);
    }

    #[test]
    fn masks_are_told_from_scores_and_probabilities() {
        let remark = |row: &[f32], shift| Remark::of(row, 0, shift);
        for row in [&[1.0f32, 1.0, 0.0][..], &[0.0, 0.0], &[0.0, -INF, 0.0], &[1.0; 40]] {
            assert_eq!(remark(row, 0.0), Some(Remark::Mask), "{row:?}");
            // As rows of f64 arrive.
            let most = row.iter().copied().fold(-INF, f32::max);
            let shifted: Vec<f32> = row.iter().map(|score| score - most).collect();
            assert_eq!(remark(&shifted, f64::from(most)), Some(Remark::Mask), "{row:?}");
        }
        for row in
            [&[1.0f32, 0.0, 0.5, 1.0][..], &[2.0, 2.0], &[0.0, -1.0], &[1.0, 1.0, f32::NAN], &[-INF, 1.0]]
        {
            assert_ne!(remark(row, 0.0), Some(Remark::Mask), "{row:?}");
        }
    }

    #[test]
    fn rounded_probabilities_of_any_length_are_probabilities() {
        for n in [2usize, 7, 300, 4096, 65_536, 1_000_000] {
            for spread in [0.0, 1.0, 6.0] {
                let wide: Vec<f64> = (0..n).map(|i| (spread * (i as f64 * 0.7).sin()).exp()).collect();
                let sum: f64 = wide.iter().sum();
                let p: Vec<f64> = wide.iter().map(|w| w / sum).collect();
                let rounded = [
                    p.iter().map(|&p| p as f32).collect::<Vec<f32>>(),
                    p.iter().map(|&p| half::f16::from_f64(p).to_f32()).collect(),
                    p.iter().map(|&p| half::bf16::from_f64(p).to_f32()).collect(),
                ];
                for row in &rounded {
                    assert_eq!(Remark::of(row, 0, 0.0), Some(Remark::Probabilities), "{n} {spread}");
                }
                let most = p.iter().copied().fold(0.0, f64::max);
                let shifted: Vec<f32> = p.iter().map(|p| (p - most) as f32).collect();
                assert_eq!(Remark::of(&shifted, 0, most), Some(Remark::Probabilities), "{n} {spread}");
            }
        }
    }

    #[test]
    fn scores_far_below_the_largest_are_told_from_masks() {
        for n in [2usize, 5, 16, 17, 40] {
            for at in 0..n {
                for low in [-1e9, -1e4, -65504.0, f32::MIN] {
                    let mut row = vec![2.0; n];
                    row[at] = low;
                    assert_eq!(Remark::of(&row, 0, 0.0), Some(Remark::FarBelow));
                    row[at] = -INF;
                    assert_eq!(Remark::of(&row, 0, 0.0), None);
                    row[at] = -998.0;
                    assert_eq!(Remark::of(&row, 0, 0.0), None);
                }
            }
        }
        // All scores are low alike, as in a row that is masked as a whole: nothing lies below the rest.
        assert_eq!(Remark::of(&[-1e9; 5], 0, 0.0), None);
        assert_eq!(Remark::of(&[-1e9, INF], 0, 0.0), None);
        // A sink that is left out is no rest.
        assert_eq!(Remark::of(&[5e3, 1.0, 2.0], 1, 0.0), None);
        assert_eq!(Remark::of(&[5e3, 1.0, -2e3], 1, 0.0), Some(Remark::FarBelow));
    }

    #[test]
    fn notes_name_layers_and_count_rows() {
        let layer = |name, probabilities, far_below| LayerRows {
            name,
            measured: 10,
            remarks: Remarks { probabilities, mask: 0, far_below },
        };
        assert!(notes(&[layer("a", 5, 0)]).is_empty());
        let found = notes(&[layer("a", 10, 0), layer("b", 0, 1), layer("c", 6, 2)]);
        assert!(found[0].starts_with("\"a\", \"c\": 16 of 20 rows hold probabilities"), "{found:?}");
        assert!(found[1].starts_with("\"b\", \"c\": 3 of 20 rows have scores"), "{found:?}");
        let masks =
            |mask| LayerRows { name: "m", measured: 10, remarks: Remarks { mask, ..Remarks::default() } };
        assert!(notes(&[masks(9)]).is_empty());
        assert!(notes(&[masks(10)])[0].starts_with("\"m\": 10 of 10 rows hold no number but 0 and 1"));
        let many: Vec<LayerRows> = (0..9).map(|_| layer("x", 10, 0)).collect();
        assert!(notes(&many)[0].contains("and 5 more: 90 of 90"));
    }
}
