//! What plots share: the range of data, its pixels and its round numbers.
use super::plots::Series;

/// What the vertical axis spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero, for shares and rates.
    Zero,
    /// The range of the values, so that small changes are seen.
    Range,
    /// Their logarithms, where they differ by an order of magnitude.
    Log,
}

impl Scale {
    /// For losses: logarithmic where the highest is ten times the lowest or more, else their own range.
    pub fn of_losses(series: &[Series]) -> Scale {
        let values = series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).filter(|y| drawn(*y));
        let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(a, b), y| (a.min(y), b.max(y)));
        if low > 0.0 && low < high && high / low >= 10.0 { Scale::Log } else { Scale::Range }
    }
}

/// Data range to pixels.
pub struct Axes {
    pub x: (f64, f64),
    pub y: (f64, f64),
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    /// Whether `y` holds base-10 logarithms of the values.
    pub log: bool,
}

impl Axes {
    pub fn px(&self, x: f64) -> f64 {
        self.left + (x - self.x.0) / (self.x.1 - self.x.0) * (self.right - self.left)
    }
    pub fn py(&self, y: f64) -> f64 {
        let y = if self.log { y.log10() } else { y };
        self.bottom - (y - self.y.0) / (self.y.1 - self.y.0) * (self.bottom - self.top)
    }
}

/// What is not a number, or so large that its differences could overflow, is left out.
pub fn drawn(x: f64) -> bool {
    x.abs() < 1e100
}

/// The range of values, never empty and never without extent.
pub fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    match (low <= high, high - low) {
        (false, _) => (0.0, 1.0),
        (true, d) if d > low.abs().max(high.abs()) * 1e-9 && d > 1e-300 => (low, high),
        _ => (low - low.abs().max(1e-9) * 0.1, high + high.abs().max(1e-9) * 0.1),
    }
}

/// About six round numbers in a range.
pub fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let raw = (high - low) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(raw);
    let first = (low / step).ceil();
    (0..12).map(|i| (first + i as f64) * step).take_while(|t| *t <= high + step * 1e-6).collect()
}

/// The values 1, 2 and 5 of each power of ten whose logarithms are in a range, or the powers alone where it is wide; a narrow one gets round numbers.
pub fn log_ticks((low, high): (f64, f64)) -> Vec<f64> {
    let steps: &[f64] = if high - low > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let every = ((high - low) / 10.0).ceil().max(1.0) as usize;
    let powers = (low.floor() as i32..=high.floor() as i32).step_by(every);
    let all = powers.flat_map(|power| steps.iter().map(move |s| s * 10f64.powi(power)));
    let inside: Vec<f64> = all.filter(|t| (low..=high).contains(&t.log10())).collect();
    if inside.len() > 1 { inside } else { ticks((10f64.powf(low), 10f64.powf(high))) }
}

/// As short as it can be read.
pub fn number(x: f64) -> String {
    let size = x.abs();
    let text = match size {
        _ if size != 0.0 && !(1e-3..1e6).contains(&size) => return format!("{x:.1e}"),
        _ if size >= 100.0 => format!("{x:.0}"),
        _ if size >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.3}"),
    };
    let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if trimmed == "-0" { "0".into() } else { trimmed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 1.0)), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(
            [number(0.6000000000000001), number(1234.0), number(0.0), number(-0.5)],
            ["0.6", "1234", "0", "-0.5"]
        );
    }

    #[test]
    fn losses_are_drawn_where_they_lie() {
        let of = |points: &[f64]| {
            let points = points.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect();
            Scale::of_losses(&[Series { name: "s".into(), points }])
        };
        assert_eq!(of(&[1.5, 0.9, f64::NAN]), Scale::Range);
        assert_eq!(of(&[1.5, 0.01]), Scale::Log);
        assert_eq!(of(&[1.5, 0.0]), Scale::Range, "no logarithm");
        assert_eq!(of(&[]), Scale::Range);
        assert_eq!(log_ticks((-2.0, 0.5)), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]);
        assert_eq!(log_ticks((-6.0, -1.0)), [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1]);
        assert!(log_ticks((0.0, 0.05)).len() > 2, "narrow");
        assert!(log_ticks((-90.0, 90.0)).len() < 30, "wide");
    }
}
