//! The choice of the rows of a text.

/// Shorter rows say nothing about a length law.
pub const SHORTEST: usize = 8;

/// The positions of at most `rows` rows of a text: three quarters of them evenly in log n from n = 8 on, and
/// the last ones, as `critbeta.hf.record` chooses them.
pub fn spread(tokens: usize, rows: usize) -> Vec<usize> {
    if tokens <= rows {
        return (0..tokens).collect();
    }
    let ends = (rows / 4).max(1);
    let last = tokens - ends;
    let begin = if SHORTEST < last { SHORTEST } else { 1 };
    let even = rows - ends;
    let step = (last as f64 / begin as f64).ln() / (even.max(2) - 1) as f64;
    let at = |i: usize| match i {
        0 => begin,
        _ if i + 1 == even => last,
        _ => (begin as f64 * (step * i as f64).exp()).round_ties_even() as usize,
    };
    let mut chosen: Vec<usize> = (0..even).map(at).chain(last + 1..=tokens).map(|n| n - 1).collect();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::spread;

    /// Of `spread(1, tokens, rows)` in python/critbeta/hf/_sample.py.
    #[test]
    fn rows_are_those_of_the_python_recorder() {
        assert_eq!(spread(5, 8), [0, 1, 2, 3, 4]);
        assert_eq!(spread(100, 8), [7, 12, 21, 35, 58, 97, 98, 99]);
        assert_eq!(
            spread(2048, 16),
            [7, 12, 21, 35, 59, 98, 164, 271, 450, 745, 1234, 2043, 2044, 2045, 2046, 2047]
        );
        assert_eq!(spread(9, 4), [0, 2, 7, 8]);
        assert_eq!(spread(10, 3), [7, 8, 9]);
        assert_eq!(spread(20, 2), [7, 19]);
        assert_eq!(spread(3000, 1), [2999]);
        let many = spread(3000, 700);
        assert_eq!((many.len(), many.iter().sum::<usize>()), (566, 758_938));
    }
}
