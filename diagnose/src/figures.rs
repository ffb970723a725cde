//! Numbers as people read them.

/// `digits` significant digits of the rounded value: 9.9996 in four is 10.00. Below 0.001 and from 100,000 on
/// they stand before a power of ten. NaN is a dash.
pub fn significant(value: f64, digits: usize) -> String {
    let scientific = format!("{value:.*e}", digits - 1);
    let power = scientific.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok());
    match power {
        None if value.is_nan() => "-".into(),
        None => "inf".into(),
        _ if value == 0.0 => "0".into(),
        Some(power) if (1e-3..1e5).contains(&value.abs()) => {
            format!("{value:.*}", (digits as i32 - 1 - power).max(0) as usize)
        }
        _ => scientific,
    }
}

/// Two decimals, and no -0.00.
pub fn hundredths(value: f64) -> String {
    format!("{:.2}", (value * 100.0).round() / 100.0 + 0.0)
}

#[cfg(test)]
mod tests {
    use super::significant;

    #[test]
    fn the_rounded_value_says_how_many_decimals_are_shown() {
        let shown = [9.9996, 0.99996, 9.9994, -12.345, 1234.6, 12346.0, 0.0012345, 1e5, 99999.6, -0.0];
        let texts =
            ["10.00", "1.000", "9.999", "-12.35", "1235", "12346", "0.001234", "1.000e5", "100000", "0"];
        assert_eq!(shown.map(|value| significant(value, 4)), texts);
        let [nan, infinite] = [f64::NAN, f64::INFINITY].map(|value| significant(value, 3));
        assert_eq!((nan.as_str(), infinite.as_str()), ("-", "inf"));
    }
}
