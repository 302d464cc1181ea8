//! What looks wrong while a training runs: a loss that jumps, a gradient of nothing, a loss that has collapsed. It changes no bit.
use crate::train::trainer::TrainEvent;

/// Steps that a loss is compared with.
const WINDOW: usize = 20;
/// Steps before a jump can be told from the beginning's noise.
const FIRST: usize = 8;
/// Nats that a jump has at least.
const JUMP: f64 = 0.5;
/// A training loss below this has learnt its documents by heart.
const COLLAPSED: f64 = 1e-3;

/// The last few losses, and what was said already.
#[derive(Default)]
pub(super) struct Watch {
    recent: Vec<f64>,
    still: bool,
    collapsed: bool,
}

impl Watch {
    /// What is wrong with an event, if anything is seen to be.
    pub fn see(&mut self, event: &TrainEvent) -> Option<String> {
        match event {
            TrainEvent::Step { step, loss, grad_norm, rewards: Some(_), .. }
                if *grad_norm == 0.0 || *loss < COLLAPSED =>
            {
                self.apart(*step, *loss)
            }
            // A teacher that says what the model says anyway.
            TrainEvent::Step { step, loss, grad_norm, answered: Some(_), .. }
                if *grad_norm == 0.0 || *loss < COLLAPSED =>
            {
                self.agreed(*step, *loss)
            }
            TrainEvent::Step { step, loss, grad_norm, lr, .. } => self.step(*step, *loss, *grad_norm, *lr),
            _ => None,
        }
    }

    /// Of preferences that leave nothing to learn.
    fn apart(&mut self, step: u64, loss: f64) -> Option<String> {
        (!std::mem::replace(&mut self.collapsed, true)).then(|| {
            format!(
                "step {step}: the loss is {loss:.1e}, and little is left to learn: the replies of the step are told apart already; look at the validation loss"
            )
        })
    }

    fn agreed(&mut self, step: u64, loss: f64) -> Option<String> {
        (!std::mem::replace(&mut self.collapsed, true)).then(|| {
            format!(
                "step {step}: the divergence is {loss:.1e}, and little is left to learn: the teacher says what the model says without what it is shown"
            )
        })
    }

    fn step(&mut self, step: u64, loss: f64, norm: f64, lr: f64) -> Option<String> {
        let n = self.recent.len();
        let mean = self.recent.iter().sum::<f64>() / n.max(1) as f64;
        let variance = self.recent.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n.max(1) as f64;
        self.recent.push(loss);
        if n == WINDOW {
            self.recent.remove(0);
        }
        if norm == 0.0 && !std::mem::replace(&mut self.still, true) {
            return Some(format!(
                "step {step}: the gradient is 0, so nothing is learned: do the documents have tokens with a weight that the model does not know yet?"
            ));
        }
        if loss < COLLAPSED && !std::mem::replace(&mut self.collapsed, true) {
            return Some(format!(
                "step {step}: the training loss is {loss:.1e}: little is left to learn from these documents; look at the validation loss, or train less"
            ));
        }
        let jumped = n >= FIRST && loss > mean + JUMP.max(6.0 * variance.sqrt());
        jumped.then(|| {
            format!(
                "step {step}: the loss jumped to {loss:.4} (the last {n} steps: {mean:.4} on average, gradient norm now {norm:.3}, learning rate {lr:.1e}): \
                 a lower --lr or a longer warm-up, or an odd document (`sdrrl inspect`)"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_nothing_learnt_and_collapse_are_told_and_noise_is_not() {
        let all = |losses: &[f64], norm: f64| -> Vec<String> {
            let mut watch = Watch::default();
            losses.iter().zip(1..).filter_map(|(x, i)| watch.step(i, *x, norm, 1e-4)).collect()
        };
        let noisy: Vec<f64> = (0..60).map(|i| 3.0 - i as f64 * 0.02 + (i * 7 % 5) as f64 * 0.1).collect();
        assert!(all(&noisy, 1.0).is_empty(), "{:?}", all(&noisy, 1.0));
        let mut jump = noisy.clone();
        jump[40] = 6.0;
        let told = all(&jump, 1.0);
        assert!(told.len() == 1 && told[0].contains("step 41: the loss jumped to 6.0000"), "{told:?}");
        let told = all(&noisy, 0.0);
        assert!(told.len() == 1 && told[0].contains("gradient is 0"), "once: {told:?}");
        let told = all(&[1.0, 0.1, 1e-4, 1e-5], 1.0);
        assert!(told.len() == 1 && told[0].contains("little is left to learn"), "{told:?}");
    }
}
