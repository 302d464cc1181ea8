//! Learning-rate schedules, as transformers' `get_scheduler` has them.
use serde::{Deserialize, Serialize};

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine wave down to the minimum.
    Cosine,
    /// A straight line down to the minimum.
    Linear,
    /// No change.
    #[serde(alias = "constant_with_warmup")]
    #[value(alias = "constant_with_warmup")]
    Constant,
    /// Warm-up, stable, decay: no change, then half a cosine wave down to the minimum over the last steps (see `decay-ratio`)
    #[serde(alias = "warmup_stable_decay")]
    #[value(alias = "warmup_stable_decay")]
    Wsd,
    /// One over the square root of the steps, in units of the warm-up
    #[serde(alias = "inverse_sqrt")]
    #[value(alias = "inverse_sqrt")]
    InverseSqrt,
}

/// A schedule over a known number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The shape.
    pub kind: ScheduleKind,
    /// Steps that rise from 0.
    pub warmup: u64,
    /// All steps.
    pub total: u64,
    /// With [`ScheduleKind::Wsd`] the last steps, over which the rate falls.
    pub decay: u64,
    /// The lowest factor at the end.
    pub min_ratio: f64,
    /// The first step of the warm-up has its share of the rate already, not 0.
    pub above_zero: bool,
}

impl Schedule {
    /// The factor on the learning rate at `step`, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            let done = step as f64 + self.above_zero as u8 as f64;
            return done / (self.warmup + self.above_zero as u64).max(1) as f64;
        }
        let progress = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let shape = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::InverseSqrt => {
                // Without a warm-up transformers counts in units of 10,000 steps.
                let unit = if self.warmup == 0 { 10_000 } else { self.warmup } as f64;
                let shift = unit - self.warmup as f64;
                return (unit / (step as f64 + shift)).sqrt().max(self.min_ratio);
            }
            ScheduleKind::Wsd => {
                let left = self.total.saturating_sub(step);
                match self.decay {
                    decay if left >= decay => 1.0,
                    decay => half_cosine(1.0 - left as f64 / decay as f64),
                }
            }
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            ScheduleKind::Cosine => half_cosine(progress),
        };
        self.min_ratio + (1.0 - self.min_ratio) * shape
    }
}

/// From 1 down to 0.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers 5.23: get_cosine_schedule_with_warmup and get_linear_schedule_with_warmup, 3 warm-up steps of 10.
    #[test]
    fn factors_equal_transformers() {
        let at = |kind, step| {
            Schedule { kind, warmup: 3, total: 10, decay: 4, min_ratio: 0.0, above_zero: false }.factor(step)
        };
        for (step, cosine, linear) in [
            (0, 0.0, 0.0),
            (2, 2.0 / 3.0, 2.0 / 3.0),
            (3, 1.0, 1.0),
            (5, 0.811_744_900_929_366_8, 5.0 / 7.0),
            (9, 0.049_515_566_048_790_48, 1.0 / 7.0),
        ] {
            assert!((at(ScheduleKind::Cosine, step) - cosine).abs() < 1e-12, "{step}");
            assert!((at(ScheduleKind::Linear, step) - linear).abs() < 1e-12, "{step}");
        }
        assert_eq!(at(ScheduleKind::Constant, 9), 1.0);
        // get_wsd_schedule with 4 steps of decay (its default, a cosine); get_inverse_sqrt_schedule. transformers 5.24.
        for (step, wsd, inverse) in [
            (0, 0.0, 0.0),
            (2, 2.0 / 3.0, 2.0 / 3.0),
            (3, 1.0, 1.0),
            (6, 1.0, 0.707_106_781_186_547_5),
            (7, 0.853_553_390_593_273_7, 0.654_653_670_707_977_1),
            (9, 0.146_446_609_406_726_27, 0.577_350_269_189_625_8),
            (10, 0.0, 0.547_722_557_505_166_1),
        ] {
            assert!((at(ScheduleKind::Wsd, step) - wsd).abs() < 1e-12, "{step}");
            assert!((at(ScheduleKind::InverseSqrt, step) - inverse).abs() < 1e-12, "{step}");
        }
        let wsd = Schedule {
            kind: ScheduleKind::Wsd,
            warmup: 3,
            total: 10,
            decay: 4,
            min_ratio: 0.1,
            above_zero: false,
        };
        assert!(
            (wsd.factor(7) - 0.868_198_051_533_946_4).abs() < 1e-12 && (wsd.factor(11) - 0.1).abs() < 1e-12
        );
        let above = |step| {
            let kind = ScheduleKind::Cosine;
            Schedule { kind, warmup: 3, total: 10, decay: 0, min_ratio: 0.0, above_zero: true }.factor(step)
        };
        assert_eq!([above(0), above(1), above(2), above(3)], [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(above(5), at(ScheduleKind::Cosine, 5));
    }
}
