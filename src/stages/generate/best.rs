//! Several samples of an answer, and the choice of one.
//!
//! Sampling at temperature 1 keeps the model's own distribution, which greedy answers sharpen. Of several samples the one with the highest mean
//! utility against the others is the minimum-Bayes-risk decision over the samples (Eikema & Aziz 2020, "Is MAP decoding all you need?"; chrF as
//! utility as in Eikema & Aziz 2022), the free-text form of self-consistency (Wang et al. 2022). A quality estimator is no choice here: those that
//! `score` has judge a translation by its source, and an answer is no translation of its question.
use anyhow::{Result, ensure};

use crate::{
    data::record::{Answer, Choice},
    error::Error,
    metrics::chrf,
    recipe::generate::{Best, GenerateSettings},
};

/// Samples at most: a row is written when all of its own are there, and each is compared with every other.
const MOST: usize = 1000;

/// Refuses several samples of a model that answers greedily: they are all the same.
pub(super) fn check(s: &GenerateSettings, temperature: f32) -> Result<()> {
    let many = || format!("generate.samples is {}: at most {MOST} were expected", s.samples);
    ensure!(s.samples <= MOST, Error::setting("generate.samples", many()));
    let one = format!(
        "generate.samples is {}, and with generate.top-k = 1 all of them are one answer: leave top-k out",
        s.samples
    );
    ensure!(s.samples <= 1 || s.top_k != Some(1), Error::setting("generate.top-k", one));
    let message = || {
        format!(
            "generate.samples is {}, and at temperature 0 all of them are one answer: set generate.temperature above 0 (1 draws as the model's own distribution has it)",
            s.samples
        )
    };
    ensure!(s.samples <= 1 || temperature > 0.0, Error::setting("generate.samples", message()));
    Ok(())
}

/// What seeds the draws of a row's sample: the first one's are those of a row with one.
pub(super) fn sample_id(row: &str, sample: usize) -> String {
    if sample == 0 { row.into() } else { format!("{row} sample {}", sample + 1) }
}

/// The sample that becomes the answer, with how it was chosen where there are several. Samples with an alarm are left out, unless all have one.
pub(super) fn of(mut samples: Vec<Answer>, best: Best) -> Option<Answer> {
    if samples.len() < 2 {
        return samples.pop();
    }
    let sound: Vec<usize> = (0..samples.len()).filter(|&i| samples[i].alarms.is_empty()).collect();
    let candidates = if sound.is_empty() { (0..samples.len()).collect() } else { sound };
    let agreement = match best {
        Best::First => vec![],
        Best::SelfConsistency => agreement(&samples, &candidates),
    };
    let better = |taken: usize, i: usize| agreement.get(i) > agreement.get(taken);
    let taken = candidates.iter().copied().reduce(|taken, i| if better(taken, i) { i } else { taken })?;
    let alarms = samples.iter().map(|a| a.alarms.clone()).collect();
    let mut answer = samples.swap_remove(taken);
    answer.choice = Some(Choice { taken, alarms, agreement });
    Some(answer)
}

/// The mean chrF of each candidate against the other candidates as references, 0 of samples that are none.
fn agreement(samples: &[Answer], candidates: &[usize]) -> Vec<f64> {
    let mut all = vec![0.0; samples.len()];
    for &i in candidates {
        let others = candidates.iter().filter(|&&j| j != i);
        let scores = others.map(|&j| {
            chrf::from_statistics([chrf::statistics(&samples[i].text, &samples[j].text, 0)].iter())
        });
        all[i] = scores.sum::<f64>() / (candidates.len() - 1).max(1) as f64;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(texts: &[(&str, bool)]) -> Vec<Answer> {
        let answer = |(text, sound): &(&str, bool)| Answer {
            text: text.to_string(),
            alarms: if *sound { vec![] } else { vec!["loop".into()] },
            ..Answer::default()
        };
        texts.iter().map(answer).collect()
    }

    fn taken(texts: &[(&str, bool)], best: Best) -> (usize, Vec<f64>) {
        let choice = of(drawn(texts), best).unwrap().choice.unwrap();
        (choice.taken, choice.agreement)
    }

    #[test]
    fn the_sample_that_the_others_agree_with_is_taken() {
        let texts = [("The sky is green.", true), ("The sky is blue.", true), ("The sky is blue!", true)];
        let (best, agreement) = taken(&texts, Best::SelfConsistency);
        // sacrebleu 2.6.0: sentence_chrf(hypothesis, [reference]) of the two pairs of each, averaged.
        let wanted = [52.00203967614017, 70.04032472734117, 69.43643642256882];
        for (got, want) in agreement.iter().zip(wanted) {
            assert!((got - want).abs() < 1e-9, "{agreement:?}");
        }
        assert_eq!(best, 1);
        assert_eq!(taken(&texts, Best::First), (0, vec![]));
    }

    #[test]
    fn samples_that_are_all_the_same_or_endless_are_refused() {
        let of = |samples, top_k, temperature| {
            let s = GenerateSettings { samples, top_k, ..GenerateSettings::default() };
            check(&s, temperature).map_err(|e| format!("{e:#}"))
        };
        assert!(of(4, None, 0.0).unwrap_err().contains("at temperature 0"));
        assert!(of(4, Some(1), 1.0).unwrap_err().contains("generate.top-k = 1"));
        assert!(of(1001, None, 1.0).unwrap_err().contains("at most 1000"));
        assert!(of(1000, Some(2), 1.0).is_ok() && of(1, Some(1), 1.0).is_ok());
    }

    #[test]
    fn samples_with_an_alarm_are_left_out_unless_all_have_one() {
        let (bad, good) = (("blue blue blue", false), ("Blue, I think.", true));
        assert_eq!(taken(&[bad, bad, good], Best::SelfConsistency), (2, vec![0.0; 3]));
        assert_eq!(taken(&[bad, good, good], Best::First).0, 1);
        let (best, agreement) = taken(&[("red", false), bad, bad], Best::SelfConsistency);
        assert!(best == 1 && agreement[1] == agreement[2] && agreement[1] > agreement[0], "{agreement:?}");
        assert_eq!(taken(&[good, good], Best::SelfConsistency), (0, vec![100.0; 2]), "the first of equals");
        assert_eq!(of(drawn(&[bad]), Best::First).unwrap().choice, None);
    }
}
