//! Learning-rate schedules, as transformers' `get_scheduler` has them.
use serde::{Deserialize, Serialize};

/// How the learning rate moves after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine wave down to the minimum.
    Cosine,
    /// A straight line down to the minimum.
    Linear,
    /// No change.
    Constant,
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
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
        };
        self.min_ratio + (1.0 - self.min_ratio) * shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers 5.23: get_cosine_schedule_with_warmup and get_linear_schedule_with_warmup, 3 warm-up steps of 10.
    #[test]
    fn factors_equal_transformers() {
        let at = |kind, step| {
            Schedule { kind, warmup: 3, total: 10, min_ratio: 0.0, above_zero: false }.factor(step)
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
        let above = |step| {
            Schedule { kind: ScheduleKind::Cosine, warmup: 3, total: 10, min_ratio: 0.0, above_zero: true }
                .factor(step)
        };
        assert_eq!([above(0), above(1), above(2), above(3)], [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(above(5), at(ScheduleKind::Cosine, 5));
    }
}
