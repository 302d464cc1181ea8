//! The built-in score, for those without a learned estimator's weights.
//!
//! What it measures, and no more: whether the words of the source that a dictionary knows have one of their equivalents in the translation
//! (by stem, so that inflection counts little), whether names and international words are found again, whether anything was left
//! untranslated, whether the numbers are the same, and whether the lengths fit. It sees omissions, untranslated words, wrong numbers and wrong content
//! words. It knows nothing of fluency, word order, agreement or negation, and a good free translation that avoids the dictionary's words scores low.
//!
//! score = coverage x (1 - untranslated) x numbers x length, each in 0..1:
//! coverage = (matched + 1) / (known + 1) over the source's known words, names and numbers (smoothed, so that few known words say little);
//! untranslated = share of the translation's words that stand in the source as they are, unless they are names, numbers, or
//! an equivalent of themselves; numbers: less for each that differs; length = 1 where the lengths differ by less than a tenth, then a bell curve of
//! their logarithms' difference.
//!
//! On FLORES devtest with FreeDict's dictionaries it separates human translations from those of the next sentence with an AUC of 0.987 (es), 0.998
//! (cs), 0.985 (ja), and 0.975 (th) with a dictionary learned from parallel text; nine tenths of them reach 0.42, 0.56, 0.39, 0.49 ([`TAU`]).
use std::{borrow::Cow, collections::HashSet, sync::LazyLock};

use anyhow::{Result, ensure};
use rayon::prelude::*;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::Scorer;
use crate::data::{
    alarms::length_ratio,
    dictionary::Dictionary,
    languages::charset::{is_mark, is_unspaced_letter},
    words,
};

mod numbers;

/// The threshold that nine of ten human translations reach, with a general dictionary.
pub const TAU: f64 = 0.35;

/// The built-in scorer over a bilingual dictionary.
pub struct BuiltinScorer {
    dictionary: Dictionary,
    name: String,
    /// Whether a word of some source was in the dictionary.
    knows_source: bool,
    /// Words of sources, where none was.
    unknown: Vec<String>,
}

/// So many unknown words are kept, to say at the end whether the dictionary is of the other direction.
const UNKNOWN: usize = 1000;

/// Function words are in every translation and say nothing; words of fewer letters are taken for such.
const CONTENT_LETTERS: usize = 4;
/// English ones with more.
static FUNCTION_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    "that with this from have been were their they there which will would could should about into than then them these those also \
     more most some such only other over when where what while your does being both each between through because very just"
        .split(' ')
        .collect()
});
/// Letters that an international word has in common with its like in another language.
const COMMON_LETTERS: usize = 4;

/// A translation as words are looked for in it.
struct Target {
    text: String,
    /// One after the other, a line break on either side of each.
    words: String,
    /// The same without marks and accents.
    bare: String,
    /// Where each word's first line break stands in `bare` and in `words`.
    starts: Vec<(usize, usize)>,
    unspaced: bool,
}

impl Target {
    fn new(translation: &str) -> Target {
        let text = nfc(translation.to_lowercase());
        let room = || String::with_capacity(text.len() + text.len() / 2);
        let (mut words, mut bare, mut starts) = (room(), room(), vec![]);
        for word in words::words(&text) {
            starts.push((bare.len(), words.len()));
            words.extend(["\n", word, "\n"]);
            bare.extend(["\n", &without_marks(word), "\n"]);
        }
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        let unspaced =
            text.chars().filter(|c| *c >= '\u{e00}' && is_unspaced_letter(*c)).count() * 2 > letters;
        Target { text, words, bare, starts, unspaced }
    }

    /// Whether every content word of the equivalent is there: the beginning of a word (six tenths of it, at least three letters), or inside of one
    /// (behind an article or a prefix that is written with it), or anywhere in scripts without spaces.
    fn has(&self, equivalent: &str) -> bool {
        let equivalent = equivalent.to_lowercase();
        if self.unspaced {
            return self.text.contains(&equivalent);
        }
        let mut start = String::from("\n");
        equivalent.split(' ').filter(|w| w.chars().count() > 2 || !equivalent.contains(' ')).all(|e| {
            let letters = e.chars().count();
            let need = (letters * 6).div_ceil(10).max(3).min(letters);
            let inside = if e.is_ascii() { 5 } else { 3 };
            start.truncate(1);
            start.extend(e.chars().take(need));
            self.words.contains(&start) || letters >= inside && self.words.contains(e)
        })
    }

    /// Whether a word begins with the same letters, accents aside. But for names, the word itself does not count: it was left as it is.
    fn has_like(&self, word: &str, is_name: bool) -> bool {
        let lower = word.to_lowercase();
        let bare = without_marks(&lower);
        if self.unspaced || bare.chars().nth(COMMON_LETTERS - 1).is_none() {
            return false;
        }
        let start: String = ['\n'].into_iter().chain(bare.chars().take(COMMON_LETTERS)).collect();
        if is_name || !self.bare.contains(&start) {
            return self.bare.contains(&start);
        }
        let itself = format!("\n{lower}\n");
        let is_like = |&(bare, word): &(usize, usize)| {
            self.bare[bare..].starts_with(&start) && !self.words[word..].starts_with(&itself)
        };
        self.starts.iter().any(is_like)
    }
}

/// Composed, as it is where it is so already.
fn nfc(text: String) -> String {
    if is_nfc_quick(text.chars()) == IsNormalized::Yes { text } else { text.nfc().collect() }
}

fn without_marks(text: &str) -> Cow<'_, str> {
    if text.is_ascii() { text.into() } else { text.nfd().filter(|c| !is_mark(*c)).collect() }
}

impl BuiltinScorer {
    /// A scorer from the source to the target language of `dictionary`; `name` says which.
    pub fn new(dictionary: Dictionary, name: &str) -> BuiltinScorer {
        BuiltinScorer { dictionary, name: name.into(), knows_source: false, unknown: vec![] }
    }

    fn pair(&self, source: &str, translation: &str) -> f64 {
        let from = words::words(source);
        let target = Target::new(translation);
        let (mut known, mut matched) = (0.0, 0.0);
        for (i, word) in from.iter().enumerate() {
            let (weight, found) = self.evidence(word, i > 0, &target);
            known += weight;
            matched += if found { weight } else { 0.0 };
        }
        let (common, source_only, target_only) = numbers::compare(source, translation);
        let coverage = (matched + common as f64 + 1.0) / (known + common as f64 + 1.0);
        let mut sorted = from;
        sorted.sort_unstable();
        let to = words::words(translation);
        let copied = to.iter().filter(|w| self.is_copied(w, &sorted)).count();
        let untranslated = copied as f64 / to.len().max(1) as f64;
        coverage
            * (1.0 - untranslated)
            * numbers::agreement(common, source_only, target_only)
            * length(source, translation)
    }

    /// How much a source word says about the translation, and whether it speaks for it.
    fn evidence(&self, word: &str, is_inside: bool, target: &Target) -> (f64, bool) {
        if !is_content(word) {
            return (0.0, false);
        }
        let is_name = is_inside && word.starts_with(char::is_uppercase);
        let lower = word.to_lowercase();
        if FUNCTION_WORDS.contains(lower.as_str()) {
            return (0.0, false);
        }
        let mut equivalents = self.dictionary.lookup(&lower);
        if equivalents.is_empty() {
            let mut forms = base_forms(&lower).map(|form| self.dictionary.lookup(&form));
            equivalents = forms.find(|found| !found.is_empty()).unwrap_or(&[]);
        }
        if !equivalents.is_empty() {
            return (1.0, equivalents.iter().any(|e| target.has(e)) || target.has_like(word, is_name));
        }
        // A word that the dictionary lacks: a name or an international word if it is found again; a name counts half against if not.
        match (target.unspaced, target.has_like(word, is_name), is_name) {
            (true, ..) | (false, false, false) => (0.0, false),
            (false, true, true) => (1.0, true),
            (false, true, false) => (0.4, true),
            (false, false, true) => (0.5, false),
        }
    }

    /// A word of the translation that is a word of the source (sorted): untranslated, unless it is a name or the dictionary says so.
    fn is_copied(&self, word: &str, source: &[&str]) -> bool {
        let name = word.chars().next().is_some_and(char::is_uppercase);
        let letters = || word.chars().filter(|c| c.is_alphabetic()).count();
        let itself = || self.dictionary.lookup(word).iter().any(|e| e.to_lowercase() == word.to_lowercase());
        !name && source.binary_search(&word).is_ok() && letters() >= 2 && !itself()
    }
}

impl Scorer for BuiltinScorer {
    fn name(&self) -> String {
        format!("builtin {}", self.name)
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let sources = pairs.iter().take_while(|_| !self.knows_source && self.unknown.len() < UNKNOWN);
        let words: Vec<String> = sources.flat_map(|(s, _)| words::words(s)).map(str::to_lowercase).collect();
        self.knows_source |= words.iter().any(|w| !self.dictionary.lookup(w).is_empty());
        self.unknown.extend(words);
        Ok(pairs.par_iter().map(|(s, t)| self.pair(s, t)).collect())
    }

    fn finish(&mut self) -> Result<()> {
        if self.knows_source || self.unknown.is_empty() {
            return Ok(());
        }
        let turned = self.dictionary.invert();
        let found = self.unknown.iter().filter(|w| !turned.lookup(w).is_empty()).count();
        ensure!(
            found == 0,
            "{}: no word of the sources has an entry in the dictionary, and {found} of {} are equivalents in it: are its columns the other way round?",
            self.name,
            self.unknown.len()
        );
        Ok(())
    }
}

fn is_content(word: &str) -> bool {
    let long = word.chars().count() >= CONTENT_LETTERS || !word.is_ascii();
    long && word.chars().any(char::is_alphabetic)
}

/// What an English word in lower case may be a form of (houses, carried, making, bigger); harmless where it is of another language.
fn base_forms(word: &str) -> impl Iterator<Item = String> {
    const ENDINGS: &[(&str, &str)] = &[
        ("'s", ""),
        ("ies", "y"),
        ("es", ""),
        ("s", ""),
        ("ied", "y"),
        ("ed", ""),
        ("ed", "e"),
        ("ing", ""),
        ("ing", "e"),
        ("er", ""),
        ("est", ""),
        ("ly", ""),
    ];
    ENDINGS.iter().flat_map(move |(ending, instead)| {
        let stem = word.strip_suffix(ending).filter(|stem| stem.len() >= 3 && stem.is_ascii());
        let doubled =
            stem.filter(|s| instead.is_empty() && s.as_bytes()[s.len() - 1] == s.as_bytes()[s.len() - 2]);
        let single = doubled.map(|s| s[..s.len() - 1].to_string());
        stem.map(|stem| format!("{stem}{instead}")).into_iter().chain(single)
    })
}

fn length(source: &str, translation: &str) -> f64 {
    let off = (length_ratio(source, translation).max(1e-9).ln().abs() - 0.1).max(0.0) / 0.4;
    (-0.5 * off * off).exp()
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

    #[test]
    fn a_dictionary_of_the_other_direction_is_named() {
        let pairs = |source: &str| vec![(source.to_string(), "La casa verde.".to_string())];
        let mut turned = BuiltinScorer::new(scorer().dictionary.invert(), "test");
        turned.score(&pairs("The green house.")).unwrap();
        assert!(turned.finish().unwrap_err().to_string().contains("the other way round"));
        let mut right = scorer();
        right.score(&pairs("The green house.")).unwrap();
        assert!(right.finish().is_ok());
        let mut neither = scorer();
        neither.score(&pairs("Nothing.")).unwrap();
        assert!(neither.finish().is_ok());
    }

    #[test]
    fn forms_prefixes_scripts_and_digits_are_no_mismatch() {
        for (entries, source, translation) in [
            (
                [("friend", "صديق"), ("books", "كتب"), ("school", "مدرسة")],
                "My friend reads books in the school.",
                "صديقي يقرأ الكتب في المدرسة.",
            ),
            (
                [("friend", "বন্ধু"), ("books", "পুস্তক"), ("school", "বিদ্যালয়")],
                "My friend reads books in the school.",
                "আমার বন্ধু বিদ্যালয়ে পুস্তক পড়ে।",
            ),
            (
                [("friend", "သူငယ်ချင်း"), ("books", "စာအုပ်"), ("school", "ကျောင်း")],
                "My friend reads books in the school.",
                "ကျွန်ုပ်၏ သူငယ်ချင်း သည် ကျောင်း တွင် စာအုပ် ဖတ်သည်။",
            ),
            (
                [("friend", "友達"), ("book", "本"), ("school", "学校")],
                "My 12 friends read 3,000 books in the school.",
                "私の１２人の友達は学校で３０００冊の本を読みます。",
            ),
        ] {
            let mut d = Dictionary::default();
            entries.iter().for_each(|(a, b)| d.insert(a, b));
            let score = BuiltinScorer::new(d, "test").pair(source, translation);
            assert!(score >= 0.8, "{translation}: {score}");
        }
    }

    /// Area under the ROC curve of true pairs against pairs with the next sentence, and the score that nine of ten true pairs reach.
    fn separation(scorer: &BuiltinScorer, sources: &[&str], targets: &[&str]) -> (f64, f64) {
        let n = targets.len();
        let mut good: Vec<f64> = (0..n).map(|i| scorer.pair(sources[i], targets[i])).collect();
        let bad: Vec<f64> = (0..n).map(|i| scorer.pair(sources[i], targets[(i + 1) % n])).collect();
        let wins = |g: &f64| {
            bad.iter().map(|b| f64::from(u8::from(g > b)) + 0.5 * f64::from(u8::from(g == b))).sum::<f64>()
        };
        let auc = good.iter().map(wins).sum::<f64>() / (n * n) as f64;
        good.sort_by(f64::total_cmp);
        (auc, good[n / 10])
    }

    #[test]
    #[ignore = "needs FLORES devtest and FreeDict: SDRRL_FLORES=DIR SDRRL_FREEDICT=DIR"]
    fn true_pairs_are_told_from_shifted_ones_and_pass_the_default_threshold() {
        let folder = |name: &str| std::env::var(name).expect("a folder");
        let read = |l: &str| std::fs::read_to_string(format!("{}/test.{l}", folder("SDRRL_FLORES"))).unwrap();
        let english = read("en");
        for (language, three) in [("es", "spa"), ("cs", "ces"), ("ja", "jpn")] {
            let path = format!("{}/freedict-eng-{three}.index", folder("SDRRL_FREEDICT"));
            let dictionary =
                Dictionary::load(path.as_ref(), crate::data::dictionary::DictionaryFormat::Auto).unwrap();
            let scorer = BuiltinScorer::new(dictionary, three);
            let target = read(language);
            let (sources, targets): (Vec<&str>, Vec<&str>) = english.lines().zip(target.lines()).unzip();
            let (auc, tenth) = separation(&scorer, &sources, &targets);
            println!("{language}: AUC {auc:.4}, nine of ten reach {tenth:.3}");
            assert!(auc >= 0.97 && tenth >= TAU, "{language}: {auc} {tenth}");
        }
    }

    proptest! {
        #[test]
        fn scores_lie_between_0_and_1(a in "\\PC{0,60}", b in "\\PC{0,60}") {
            let x = scorer().pair(&a, &b);
            prop_assert!((0.0..=1.0).contains(&x), "{x}");
        }
    }
}
