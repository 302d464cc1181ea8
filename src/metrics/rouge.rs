//! ROUGE-L (Lin 2004) of any language, tokenized as XL-SUM's authors do (csebuetnlp, multilingual_rouge_scoring): lower case, split at
//! every punctuation mark, then words by a segmenter of the language, or by runs of letters and of digits with each ideograph alone.
use std::{collections::HashSet, path::Path, sync::LazyLock};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use regex::Regex;
use rust_stemmers::{Algorithm, Stemmer};

use super::{
    ngrams::WordIds,
    tokenize::{ChineseWords, Mecab, ThaiWords, split, syllables},
};
use crate::data::languages;

enum Segmenter {
    Thai(ThaiWords),
    Japanese(Mecab),
    Chinese(ChineseWords),
    Burmese,
}

/// ROUGE-L for one language.
pub struct Rouge {
    language: String,
    segmenter: Option<Segmenter>,
    stemmer: Option<Stemmer>,
    /// Words that are not stemmed.
    stop_words: HashSet<&'static str>,
}

/// Words of at most so many characters are not stemmed.
const UNSTEMMED: usize = 3;

impl Rouge {
    /// For texts in `language`. Thai needs a word list and Japanese the folder of a MeCab dictionary. `stem` is refused where there is no
    /// Snowball stemmer; stop words (NLTK's lists) keep their form, as in the authors' package. (NLTK's Hungarian suffixes have õ for ő, so
    /// that it leaves words in -ből, -ről and the like whole; here they are stemmed as Snowball has it.)
    pub fn new(language: &str, dictionary: Option<&Path>, stem: bool) -> Result<Rouge> {
        let code = languages::without_script(language);
        let segmenter = match code {
            "th" => Some(Segmenter::Thai(ThaiWords::open(dictionary.context(
                "ROUGE in Thai needs a word list: `pip install pythainlp`, then the file corpus/words_th.txt in the package `pythainlp`",
            )?)?)),
            "ja" => Some(Segmenter::Japanese(Mecab::open(dictionary.context(
                "ROUGE in Japanese needs the folder of a compiled MeCab dictionary: `pip install unidic-lite`, then the folder `dicdir` in the package `unidic_lite`",
            )?)?)),
            "zh" | "zho_Hant" => Some(Segmenter::Chinese(ChineseWords::open()?)),
            "my" => Some(Segmenter::Burmese),
            _ => None,
        };
        let stemmer = algorithm(code).filter(|_| stem).map(Stemmer::create);
        ensure!(stemmer.is_some() || !stem, "there is no stemmer for {language}: leave it out");
        let listed = stop_words::lookup(if code == "nb" { "no" } else { code }).unwrap_or_default();
        let stop_words = if stem { listed.iter().copied().collect() } else { HashSet::new() };
        Ok(Rouge { language: code.into(), segmenter, stemmer, stop_words })
    }

    /// How scores were computed. sacrebleu has no such metric: the words are our own.
    pub fn signature(&self) -> String {
        let tokenizer = match &self.segmenter {
            Some(Segmenter::Thai(words)) => format!("newmm-compatible-{}", words.len()),
            Some(Segmenter::Japanese(mecab)) => format!("mecab-0.996-{}", mecab.len()),
            Some(Segmenter::Chinese(_)) => "jieba-0.42.1".into(),
            Some(Segmenter::Burmese) => "syllables-my".into(),
            None => "onmt-aggressive".into(),
        };
        let stem = if self.stemmer.is_some() { "snowball-nltk" } else { "no" };
        format!(
            "rougeL|lang:{}|case:lc|punct:no|tok:{tokenizer}|stem:{stem}|version:{}",
            self.language,
            env!("CARGO_PKG_VERSION")
        )
    }

    /// The words that are compared.
    pub fn words(&self, text: &str) -> Vec<String> {
        let text = sanitised(&text.to_lowercase());
        let mut words = match &self.segmenter {
            Some(Segmenter::Thai(thai)) => thai.words(&text),
            Some(Segmenter::Japanese(mecab)) => {
                mecab.words(&text).into_iter().flat_map(split).map(String::from).collect()
            }
            Some(Segmenter::Chinese(chinese)) => chinese.words(&text),
            Some(Segmenter::Burmese) => syllables(&text),
            None => aggressive(&text),
        };
        if let Some(stemmer) = &self.stemmer {
            let stemmed =
                |w: &&mut String| w.chars().count() > UNSTEMMED && !self.stop_words.contains(w.as_str());
            for word in words.iter_mut().filter(stemmed) {
                *word = stemmer.stem(word).into_owned();
            }
        }
        words.retain(|w| !w.is_empty());
        words
    }

    /// F1 of the longest common subsequence, 0..1.
    pub fn f1(&self, prediction: &str, target: &str) -> f64 {
        let (prediction, target) = (self.words(prediction), self.words(target));
        if prediction.is_empty() || target.is_empty() {
            return 0.0;
        }
        let mut ids = WordIds::default();
        let (p, t) =
            (ids.of(prediction.iter().map(String::as_str)), ids.of(target.iter().map(String::as_str)));
        let common = longest_common_subsequence(&p, &t) as f64;
        let (precision, recall) = (common / p.len() as f64, common / t.len() as f64);
        if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
    }

    /// F1 of each pair, 0..1, on all threads. Their mean times 100 is the score of the corpus.
    pub fn scores(
        &self,
        predictions: &[impl AsRef<str> + Sync],
        targets: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<f64>> {
        ensure!(
            predictions.len() == targets.len(),
            "{} predictions for {} targets",
            predictions.len(),
            targets.len()
        );
        Ok(predictions.par_iter().zip(targets).map(|(p, t)| self.f1(p.as_ref(), t.as_ref())).collect())
    }
}

fn algorithm(code: &str) -> Option<Algorithm> {
    Some(match code {
        "da" => Algorithm::Danish,
        "nl" => Algorithm::Dutch,
        "en" => Algorithm::English,
        "fi" => Algorithm::Finnish,
        "fr" => Algorithm::French,
        "de" => Algorithm::German,
        "hu" => Algorithm::Hungarian,
        "it" => Algorithm::Italian,
        "no" | "nb" => Algorithm::Norwegian,
        "pt" => Algorithm::Portuguese,
        "ro" => Algorithm::Romanian,
        "ru" => Algorithm::Russian,
        "es" => Algorithm::Spanish,
        "sv" => Algorithm::Swedish,
        _ => return None,
    })
}

fn pattern(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

static CONTROLS: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"[\p{C}\x{FFFD}--\t\n\r]+"));
static PUNCTUATION: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"[!-/:-@\[-`\{-~\p{P}]+"));
/// A run of letters or of numbers, each with its marks; any other character with its marks.
static PIECES: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"\p{L}[\p{L}\p{M}]*|\p{N}[\p{N}\p{M}]*|\p{M}+|.\p{M}*"));

fn replaced(text: &str, pattern: &LazyLock<Option<Regex>>, to: &str) -> String {
    LazyLock::force(pattern).as_ref().map_or_else(|| text.into(), |p| p.replace_all(text, to).into_owned())
}

/// Words between punctuation, with one space between them (BERT's basic tokenizer, punctuation dropped).
fn sanitised(text: &str) -> String {
    let text = replaced(&replaced(text, &CONTROLS, ""), &PUNCTUATION, " ");
    split(&text).collect::<Vec<_>>().join(" ")
}

/// OpenNMT's `aggressive` tokenization of words without punctuation, then each ideograph alone.
fn aggressive(text: &str) -> Vec<String> {
    let mut out = vec![];
    let Some(pieces) = LazyLock::force(&PIECES).as_ref() else { return out };
    let text: String = text
        .chars()
        .map(|c| match c {
            // Marks of its own, which it replaces in texts.
            '\u{2581}' => '_',
            '\u{ffed}' => '■',
            '\u{ffe8}' => '│',
            other => other,
        })
        .collect();
    for (i, word) in split(&text).enumerate() {
        for piece in pieces.find_iter(word) {
            // A mark behind a space holds on to the space, which is escaped.
            let lone = piece.start() == 0 && i > 0 && piece.as_str().chars().all(is_mark);
            let mut spaced = String::from(if lone { "％0020" } else { "" });
            for c in piece.as_str().chars() {
                if is_ideograph(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
            }
            out.extend(split(&spaced).map(String::from));
        }
    }
    out
}

fn is_mark(c: char) -> bool {
    static MARK: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"\p{M}"));
    MARK.as_ref().is_some_and(|m| m.is_match(c.encode_utf8(&mut [0; 4])))
}

fn is_ideograph(c: char) -> bool {
    matches!(c as u32, 0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        | 0x2B820..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

fn longest_common_subsequence(a: &[u32], b: &[u32]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
