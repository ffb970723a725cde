//! An axis turns values into places. It also chooses its ticks and their labels.

/// How an axis turns values into places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    Linear,
    Log,
    /// The log of the log: a power of log n is a straight line if the other axis is [`Scale::Log`].
    LogLog,
}

impl Scale {
    /// The function to even steps, and the one back.
    fn functions(self) -> [fn(f64) -> f64; 2] {
        match self {
            Scale::Linear => [|v| v, |v| v],
            Scale::Log => [f64::ln, f64::exp],
            Scale::LogLog => [|v| v.ln().ln(), |v| v.exp().exp()],
        }
    }
}

/// An axis from `low` to `high`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub title: &'static str,
    scale: Scale,
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<f64>,
}

impl Axis {
    /// An axis from 0 to the next round number above `high`.
    pub(super) fn linear(title: &'static str, high: f64) -> Axis {
        let high = if high > 0.0 && high.is_finite() { high.clamp(1.0 / FAR, FAR) } else { 1.0 };
        let step = rounded(high / 5.0, true);
        let count = (high / step - 1e-9).ceil() as usize;
        let ticks: Vec<f64> = (0..=count).map(|i| i as f64 * step).collect();
        Axis { title, scale: Scale::Linear, low: 0.0, high: count as f64 * step, ticks }
    }

    /// An axis from the round number below `low` to the one above `high`. Values that are not positive and
    /// finite stand at its ends.
    pub(super) fn log(title: &'static str, low: f64, high: f64) -> Axis {
        let (low, high) =
            if low > 0.0 && high.is_finite() && low <= high { (low, high) } else { (0.1, 10.0) };
        let (low, high) = (low.clamp(1.0 / FAR, FAR), high.clamp(1.0 / FAR, FAR));
        let (low, mut high) = (rounded(low, false), rounded(high, true));
        if high <= low * 1.5 {
            high = rounded(low * 5.0, true);
        }
        let decades = (high / low).log10();
        let per_decade: &[f64] = if decades > 2.3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        // At most about seven decades get labels.
        let stride = if decades > 5.0 { (decades / 6.0).ceil() as i32 } else { 1 };
        let from = low.log10().floor() as i32;
        let ticks = (from..=high.log10().ceil() as i32)
            .filter(|decade| decade.rem_euclid(stride) == 0)
            .flat_map(|decade| per_decade.iter().map(move |step| step * 10f64.powi(decade)))
            .filter(|&tick| tick >= low * (1.0 - 1e-9) && tick <= high * (1.0 + 1e-9))
            .collect();
        Axis { title, scale: Scale::Log, low, high, ticks }
    }

    /// An axis for numbers of keys, 3 or more, from one power of two to another.
    pub(super) fn keys(title: &'static str, low: f64, high: f64) -> Axis {
        let (first, last) = (low.max(3.0).log2().floor().max(2.0), high.max(4.0).log2().ceil());
        let last = last.max(first + 1.0);
        let mut axis = Axis {
            title,
            scale: Scale::LogLog,
            low: 2f64.powf(first),
            high: 2f64.powf(last),
            ticks: Vec::new(),
        };
        for power in first as i32..=last as i32 {
            let tick = 2f64.powi(power);
            if axis.ticks.last().is_none_or(|&before| axis.place(tick) - axis.place(before) >= TICK_APART) {
                axis.ticks.push(tick);
            }
        }
        axis
    }

    /// Where a value stands: 0 is the low end and 1 the high one. A value beyond an end stands at that end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.low } else { value.clamp(self.low, self.high) };
        self.beyond(value)
    }

    /// Like [`Axis::place`], but a value beyond an end stands beyond it.
    pub(super) fn beyond(&self, value: f64) -> f64 {
        let [of, _] = self.scale.functions();
        (of(value) - of(self.low)) / (of(self.high) - of(self.low))
    }

    /// The value that stands at a place.
    pub(super) fn value(&self, place: f64) -> f64 {
        let [of, back] = self.scale.functions();
        back(of(self.low) + place * (of(self.high) - of(self.low)))
    }

    /// Where a value stands between two ends, chart units.
    pub(super) fn pixel(&self, value: f64, from: i32, to: i32) -> i32 {
        from + (self.place(value) * f64::from(to - from)).round() as i32
    }

    /// Values from `low` to `high` at even steps of the axis.
    pub(super) fn even(&self, low: f64, high: f64, steps: usize) -> impl Iterator<Item = f64> {
        let (from, to) = (self.place(low), self.place(high));
        (0..=steps).map(move |i| self.value(from + (to - from) * i as f64 / steps as f64))
    }
}

/// No axis goes further: beyond it powers of ten leave the range of f64.
const FAR: f64 = 1e250;

/// The share of an axis that a label of five digits takes.
const TICK_APART: f64 = 0.17;

/// The nearest 1, 2 or 5 times a power of ten: at or above `value` if `up`, else at or below.
fn rounded(value: f64, up: bool) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let found = match up {
        true => steps.into_iter().find(|&step| step >= value * (1.0 - 1e-9)),
        false => steps.into_iter().rev().find(|&step| step <= value * (1.0 + 1e-9)),
    };
    found.unwrap_or(value)
}

/// The label of a tick, in few characters.
pub(super) fn tick(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 || (size < 1e-3 && size > 0.0) {
        let power = size.log10().floor();
        let digit = (value / 10f64.powf(power)).round();
        return if digit == 1.0 { format!("1e{power}") } else { format!("{digit}e{power}") };
    }
    // Four decimals hide the rounding errors of sums of steps.
    format!("{}", (value * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_between_round_ends() {
        for high in [1e-7, 0.03, 1.0, 4.99, 5.0, 37.0, 8e9] {
            let axis = Axis::linear("", high);
            assert!(axis.high >= high * (1.0 - 1e-9) && axis.high <= high * 2.01, "{axis:?}");
            assert!((2..=7).contains(&axis.ticks.len()), "{axis:?}");
        }
        for (low, high) in [(0.3, 0.4), (1.0, 1.0), (0.001, 900.0), (1e-30, 1e30), (2.0, 11.0)] {
            let axis = Axis::log("", low, high);
            assert!(axis.low <= low * 1.001 && axis.high >= high * 0.999, "{axis:?}");
            assert!((2..=18).contains(&axis.ticks.len()), "{axis:?}");
        }
        for (low, high) in [(5e-324, f64::MAX), (5e-324, 5e-324), (1e300, f64::MAX)] {
            let axis = Axis::log("", low, high);
            assert!((1..=18).contains(&axis.ticks.len()) && axis.low < axis.high, "{axis:?}");
            assert!((0.0..=1.0).contains(&axis.place(low)) && (0.0..=1.0).contains(&axis.place(high)));
        }
        assert!((2..=7).contains(&Axis::linear("", f64::MAX).ticks.len()));
        for (low, high) in [(2.0, 2.0), (64.0, 7658.0), (5.0, 5.0), (100.0, 1e6)] {
            let axis = Axis::keys("", low, high);
            assert!(axis.low <= low.max(4.0) && axis.high >= high && axis.ticks.len() >= 2, "{axis:?}");
        }
        let odd = [f64::NAN, f64::INFINITY, -1.0];
        for axis in [Axis::log("", f64::NAN, 1.0), Axis::linear("", f64::INFINITY), Axis::log("", 0.0, 0.0)] {
            assert!(odd.iter().all(|&value| (0..=100).contains(&axis.pixel(value, 0, 100))), "{axis:?}");
        }
    }

    #[test]
    fn ticks_are_short() {
        let labels = [0.0, 0.30000000000000004, 1024.0, 5e-7, 1e12, 0.002, 1e-4].map(tick);
        assert_eq!(labels, ["0", "0.3", "1024", "5e-7", "1e12", "0.002", "1e-4"]);
    }
}
