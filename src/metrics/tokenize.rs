//! sacreBLEU's tokenizers, bit for bit (Post 2018; sacrebleu 2.6.0).
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// How text becomes words before BLEU counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum BleuTokenizer {
    /// mteval-v13a: the default for languages with spaces
    #[serde(rename = "13a")]
    #[value(name = "13a")]
    V13a,
    /// 13a, with each Chinese character a word
    #[serde(rename = "zh")]
    Zh,
    /// Each character is a word
    #[serde(rename = "char")]
    Char,
    /// Already tokenised
    #[serde(rename = "none")]
    None,
}

impl BleuTokenizer {
    /// As signatures have it.
    pub fn name(self) -> &'static str {
        match self {
            BleuTokenizer::V13a => "13a",
            BleuTokenizer::Zh => "zh",
            BleuTokenizer::Char => "char",
            BleuTokenizer::None => "none",
        }
    }

    /// The words of a line, each separated by one space.
    pub fn tokenize(self, line: &str) -> String {
        let line = line.trim_end_matches(is_space);
        match self {
            BleuTokenizer::V13a => {
                let mut line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
                if line.contains('&') {
                    for (entity, c) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
                        line = line.replace(entity, c);
                    }
                }
                by_regexp(&format!(" {line} "))
            }
            BleuTokenizer::Zh => {
                let spaced = |c: char| if is_chinese(c) { format!(" {c} ") } else { c.to_string() };
                by_regexp(&line.trim_matches(is_space).chars().map(spaced).collect::<String>())
            }
            BleuTokenizer::Char => line.chars().map(String::from).collect::<Vec<_>>().join(" "),
            BleuTokenizer::None => line.into(),
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

static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"([\{-\~\[-` -\&\(-\+:-@/])", " $1 "),
        (r"([^0-9])([\.,])", "$1 $2 "),
        (r"([\.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ]
    .into_iter()
    .filter_map(|(pattern, to)| Some((Regex::new(pattern).ok()?, to)))
    .collect()
});

fn by_regexp(line: &str) -> String {
    let line =
        RULES.iter().fold(line.to_string(), |line, (rule, to)| rule.replace_all(&line, *to).into_owned());
    split(&line).collect::<Vec<_>>().join(" ")
}

/// The ranges of sacrebleu's tokenizer_zh. Two of them are beyond 16 bits there and, compared as Python strings, mean U+2001..U+2A6D and
/// U+2F81..U+2FA1; the same is done here.
fn is_chinese(c: char) -> bool {
    matches!(c as u32,
        0x3400..=0x4DB5 | 0x4E00..=0x9FA5 | 0x9FA6..=0x9FBB | 0xF900..=0xFA2D | 0xFA30..=0xFA6A | 0xFA70..=0xFAD9
        | 0x2001..=0x2A6D | 0x2F81..=0x2FA1 | 0xFF00..=0xFFEF | 0x2E80..=0x2EFF | 0x3000..=0x303F | 0x31C0..=0x31EF
        | 0x2F00..=0x2FDF | 0x2FF0..=0x2FFF | 0x3100..=0x312F | 0x31A0..=0x31BF | 0xFE10..=0xFE1F | 0xFE30..=0xFE4F
        | 0x3200..=0x32FF | 0x3300..=0x33FF)
}
