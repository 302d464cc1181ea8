//! The built-in score, for those without a learned estimator's weights.
//!
//! What it measures, and no more: whether the words of the source that a dictionary knows have one of their equivalents in the translation
//! (by a common beginning, so that inflection counts little), whether anything was left untranslated, whether the numbers are the same, and
//! whether the lengths fit. It sees omissions, untranslated words, wrong numbers and wrong content words. It knows nothing of fluency, word order,
//! agreement or negation, and a good free translation that avoids the dictionary's words scores low: choose tau by its histogram.
//!
//! score = coverage x (1 - untranslated) x numbers x length, each in 0..1:
//! coverage = (matched + 1) / (known + 1) over the source's known words (smoothed, so that few known words say little);
//! untranslated = share of the translation's words that stand in the source as they are, unless they are names, numbers, or
//! an equivalent of themselves; numbers = Jaccard index of the multisets of digit groups; length = 1 inside 0.5..2, falling off outside.
use std::collections::HashSet;

use anyhow::Result;

use super::Scorer;
use crate::data::{alarms::length_ratio, dictionary::Dictionary, words};

/// The built-in scorer over a bilingual dictionary.
pub struct BuiltinScorer {
    dictionary: Dictionary,
    name: String,
}

/// Function words are in every translation and say nothing; words of fewer letters are taken for such.
const CONTENT_LETTERS: usize = 4;

impl BuiltinScorer {
    /// A scorer from the source to the target language of `dictionary`; `name` says which.
    pub fn new(dictionary: Dictionary, name: &str) -> BuiltinScorer {
        BuiltinScorer { dictionary, name: name.into() }
    }

    fn pair(&self, source: &str, translation: &str) -> f64 {
        let (from, to) = (words::words(source), words::words(translation));
        let lower_to: Vec<String> = to.iter().map(|w| w.to_lowercase()).collect();
        let (mut known, mut matched) = (0usize, 0usize);
        for word in &from {
            let equivalents = self.dictionary.lookup(&word.to_lowercase());
            if equivalents.is_empty() || !is_content(word) {
                continue;
            }
            known += 1;
            matched += usize::from(equivalents.iter().any(|e| appears(e, &lower_to)));
        }
        let coverage = (matched + 1) as f64 / (known + 1) as f64;
        let source_words: HashSet<&str> = from.iter().copied().collect();
        let copied = to.iter().filter(|w| self.is_copied(w, &source_words)).count();
        let untranslated = copied as f64 / to.len().max(1) as f64;
        coverage * (1.0 - untranslated) * numbers(source, translation) * length(source, translation)
    }

    /// A word of the translation that is a word of the source: untranslated, unless it is a name or the dictionary says so.
    fn is_copied(&self, word: &str, source: &HashSet<&str>) -> bool {
        let name = word.chars().next().is_some_and(char::is_uppercase);
        let letters = word.chars().filter(|c| c.is_alphabetic()).count();
        let itself = || self.dictionary.lookup(word).iter().any(|e| e.to_lowercase() == word.to_lowercase());
        !name && letters >= 2 && source.contains(word) && !itself()
    }
}

impl Scorer for BuiltinScorer {
    fn name(&self) -> String {
        format!("builtin {}", self.name)
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        Ok(pairs.iter().map(|(s, t)| self.pair(s, t)).collect())
    }
}

fn is_content(word: &str) -> bool {
    word.chars().count() >= CONTENT_LETTERS || !word.is_ascii()
}

/// Whether every content word of the equivalent has a word with the same beginning (two thirds of it, at least three letters).
fn appears(equivalent: &str, words: &[String]) -> bool {
    equivalent.to_lowercase().split(' ').filter(|w| w.chars().count() > 2 || !equivalent.contains(' ')).all(
        |e| {
            let need = (e.chars().count() * 2).div_ceil(3).max(3).min(e.chars().count());
            let stem: String = e.chars().take(need).collect();
            words.iter().any(|w| w.starts_with(&stem))
        },
    )
}

fn numbers(source: &str, translation: &str) -> f64 {
    let groups = |text: &str| -> Vec<String> {
        let mut all: Vec<String> =
            text.split(|c: char| !c.is_numeric()).filter(|g| !g.is_empty()).map(String::from).collect();
        all.sort();
        all
    };
    let (a, b) = (groups(source), groups(translation));
    let mut rest = b.clone();
    let common =
        a.iter().filter(|g| rest.iter().position(|r| r == *g).map(|i| rest.remove(i)).is_some()).count();
    let union = a.len() + b.len() - common;
    if union == 0 { 1.0 } else { common as f64 / union as f64 }
}

fn length(source: &str, translation: &str) -> f64 {
    let ratio = length_ratio(source, translation);
    let off = ratio.max(1.0 / ratio.max(1e-9));
    if off <= 2.0 { 1.0 } else { (2.0 / off).powi(2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scorer() -> BuiltinScorer {
        let mut d = Dictionary::default();
        for (a, b) in [
            ("house", "casa"),
            ("table", "mesa"),
            ("green", "verde"),
            ("write", "escribir"),
            ("hotel", "hotel"),
        ] {
            d.insert(a, b);
        }
        BuiltinScorer::new(d, "test")
    }

    #[test]
    fn better_translations_score_higher() {
        let s = scorer();
        let source = "The green house has 3 tables.";
        let good = s.pair(source, "La casa verde tiene 3 mesas.");
        assert!(good > 0.95, "{good}");
        for worse in [
            "La mujer tiene 3 mesas.",
            "La casa verde tiene 4 mesas.",
            "La green house has 3 tables.",
            "La casa.",
        ] {
            let score = s.pair(source, worse);
            assert!(score < 0.8 * good, "{worse}: {score}");
        }
        assert_eq!(s.pair("The hotel.", "El hotel."), 1.0, "an equivalent of itself is no copy");
        assert_eq!(s.pair("Ada is here.", "Ada está aquí."), 1.0, "names stay");
    }

    proptest! {
        #[test]
        fn scores_lie_between_0_and_1(a in "\\PC{0,60}", b in "\\PC{0,60}") {
            let x = scorer().pair(&a, &b);
            prop_assert!((0.0..=1.0).contains(&x), "{x}");
        }
    }
}
