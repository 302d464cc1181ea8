//! Losses of a preference as functions of the log-probabilities of whole replies, with their derivatives; f64.

/// How a pair's margin becomes a loss; TRL's names.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PairLoss {
    /// Negative log-sigmoid (DPO, Rafailov et al. 2023)
    #[default]
    Sigmoid,
    /// Squared distance of the margin per token from 1 / (2 beta) (IPO, Azar et al. 2023)
    Ipo,
    /// Hinge at a margin of 1 (SLiC, Zhao et al. 2023)
    Hinge,
    /// Negative log-sigmoid that expects a share of the pairs, label-smoothing, to be the wrong way round (Chowdhury et al. 2024)
    Robust,
}

/// What is known of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reply {
    /// Σ ln p of its tokens.
    pub logp: f64,
    /// The same under the reference model.
    pub reference: f64,
    /// Tokens.
    pub tokens: f64,
}

impl Reply {
    /// ln of how much more probable it is than under the reference.
    pub fn ratio(&self) -> f64 {
        self.logp - self.reference
    }
}

/// ln σ(x).
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ(x).
fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// DPO's loss of a pair, and its derivatives with respect to the log-probabilities of the chosen and the rejected reply.
///
/// With Δ = ratio of the chosen - ratio of the rejected reply and ε = `smoothing`: sigmoid is -(1 - ε) ln σ(β Δ) - ε ln σ(-β Δ) (Rafailov et al. 2023,
/// equation 7; conservative DPO where ε > 0), robust ((1 - ε) (-ln σ(β Δ)) + ε ln σ(-β Δ)) / (1 - 2 ε), hinge max(0, 1 - β Δ), IPO
/// (δ - 1 / (2 β))² with the ratios per token in δ (equation 17 of its paper, normalised by length as TRL does it).
pub fn dpo([chosen, rejected]: [Reply; 2], kind: PairLoss, beta: f64, smoothing: f64) -> (f64, [f64; 2]) {
    let margin = beta * (chosen.ratio() - rejected.ratio());
    let (right, wrong) = (-log_sigmoid(margin), -log_sigmoid(-margin));
    // d right / d margin and d wrong / d margin.
    let (dright, dwrong) = (-sigmoid(-margin), sigmoid(margin));
    let both = |loss: f64, slope: f64| (loss, [beta * slope, -beta * slope]);
    match kind {
        PairLoss::Sigmoid => both(
            (1.0 - smoothing) * right + smoothing * wrong,
            (1.0 - smoothing) * dright + smoothing * dwrong,
        ),
        PairLoss::Robust => {
            let scale = 1.0 / (1.0 - 2.0 * smoothing);
            let of = |right: f64, wrong: f64| scale * ((1.0 - smoothing) * right - smoothing * wrong);
            both(of(right, wrong), of(dright, dwrong))
        }
        PairLoss::Hinge => both((1.0 - margin).max(0.0), if margin < 1.0 { -1.0 } else { 0.0 }),
        PairLoss::Ipo => {
            let [a, b] = [chosen, rejected].map(|r| r.tokens.max(1.0));
            let off = chosen.ratio() / a - rejected.ratio() / b - 1.0 / (2.0 * beta);
            (off * off, [2.0 * off / a, -2.0 * off / b])
        }
    }
}

/// ORPO's odds of a pair: -β ln σ of the log odds ratio of the replies' mean log-probabilities a and b, ln (a's odds / b's odds) with odds e^a / (1 - e^a)
/// (Hong et al. 2024, equations 4 and 7, per token as TRL has them); derivatives with respect to the log-probabilities, and the log odds ratio.
pub fn orpo(replies: [Reply; 2], beta: f64) -> (f64, [f64; 2], f64) {
    // A reply that is certain has no odds.
    let means = replies.map(|r| (r.logp / r.tokens.max(1.0)).min(-1e-9));
    // ln (1 - e^a), and d log odds / d a.
    let [(a, slope_a), (b, slope_b)] = means.map(|x| ((-x.exp_m1()).ln(), -1.0 / x.exp_m1()));
    let odds = (means[0] - means[1]) - (a - b);
    let slope = -beta * sigmoid(-odds);
    let per_token = replies.map(|r| slope / r.tokens.max(1.0));
    (-beta * log_sigmoid(odds), [per_token[0] * slope_a, -per_token[1] * slope_b], odds)
}

/// KTO's loss of a reply, and its derivative with respect to its log-probability (Ethayarajh et al. 2024, equation 7): 1 - σ(β (ratio - `kl`)) of a desirable
/// one, 1 - σ(β (`kl` - ratio)) of another.
pub fn kto(reply: Reply, is_desirable: bool, kl: f64, beta: f64) -> (f64, f64) {
    let sign = if is_desirable { 1.0 } else { -1.0 };
    let value = sigmoid(sign * beta * (reply.ratio() - kl));
    (1.0 - value, -sign * beta * value * (1.0 - value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(logp: f64, reference: f64, tokens: f64) -> Reply {
        Reply { logp, reference, tokens }
    }

    /// Checks `derivatives` of `f` at the two log-probabilities by central differences.
    fn differences(what: &str, at: [f64; 2], derivatives: [f64; 2], f: &dyn Fn([f64; 2]) -> f64) {
        const H: f64 = 1e-5;
        for i in 0..2 {
            let moved = |by: f64| {
                let mut at = at;
                at[i] += by;
                f(at)
            };
            let slope = (moved(H) - moved(-H)) / (2.0 * H);
            assert!((slope - derivatives[i]).abs() < 1e-6, "{what}, {i}: {slope} {}", derivatives[i]);
        }
    }

    #[test]
    fn derivatives_are_those_of_the_losses() {
        for (kind, smoothing) in [
            (PairLoss::Sigmoid, 0.0),
            (PairLoss::Sigmoid, 0.2),
            (PairLoss::Robust, 0.1),
            (PairLoss::Hinge, 0.0),
            (PairLoss::Ipo, 0.0),
        ] {
            for at in [[-20.0, -30.0], [-31.0, -12.5], [-25.0, -28.0]] {
                let of = |x: [f64; 2]| {
                    dpo([reply(x[0], -24.0, 7.0), reply(x[1], -27.0, 4.0)], kind, 0.3, smoothing)
                };
                differences(&format!("{kind:?}"), at, of(at).1, &|x| of(x).0);
            }
        }
    }

    #[test]
    fn derivatives_of_odds_and_of_single_replies_are_those_of_the_losses() {
        for at in [[-20.0, -30.0], [-3.0, -0.2], [-25.0, -28.0]] {
            let of = |x: [f64; 2]| orpo([reply(x[0], 0.0, 7.0), reply(x[1], 0.0, 4.0)], 0.3);
            differences("orpo", at, of(at).1, &|x| of(x).0);
            for is_desirable in [true, false] {
                let of = |x: [f64; 2]| kto(reply(x[0], x[1], 5.0), is_desirable, 1.5, 0.2);
                let d = of(at).1;
                differences("kto", at, [d, -d], &|x| of(x).0);
            }
        }
        let (loss, d, _) = orpo([reply(0.0, 0.0, 3.0), reply(-2.0, 0.0, 3.0)], 0.3);
        assert!(loss.is_finite() && d.iter().all(|x| x.is_finite()), "{loss} {d:?}");
    }

    #[test]
    fn known_values_and_far_ends_are_finite() {
        let equal = [reply(-10.0, -10.0, 3.0); 2];
        assert!((dpo(equal, PairLoss::Sigmoid, 0.1, 0.0).0 - 2f64.ln()).abs() < 1e-12);
        assert_eq!(dpo(equal, PairLoss::Ipo, 0.1, 0.0).0, 25.0);
        assert_eq!(dpo(equal, PairLoss::Hinge, 0.1, 0.0), (1.0, [-0.1, 0.1]));
        for logp in [-1e6, 1e6] {
            let (loss, d) = dpo([reply(logp, 0.0, 1.0), reply(0.0, 0.0, 1.0)], PairLoss::Sigmoid, 1.0, 0.1);
            assert!(loss.is_finite() && d.iter().all(|x| x.is_finite()), "{loss} {d:?}");
        }
    }
}
