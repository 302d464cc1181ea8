//! Exact match and token F1 of short answers, normalised as MKQA's official script does (apple/ml-mkqa, `mkqa_eval.py`, its quirks included).
use std::{collections::HashMap, sync::LazyLock};

use regex::Regex;

use super::tokenize::{is_space, split};
use crate::data::languages;

/// Articles by language; the French and Italian patterns have no word boundary at their end there either.
const ARTICLES: &[(&str, &str)] = &[
    ("en", r"\b(a|an|the)\b"),
    ("es", r"\b(un|una|unos|unas|el|la|los|las)\b"),
    ("vi", r"\b(của|là|cái|chiếc|những)\b"),
    ("de", r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    ("ar", r"\sال^|ال"),
    ("nl", r"\b(de|het|een|des|der|den)\b"),
    ("sv", r"\b(en|ett)\b"),
    ("da", r"\b(en|et)\b"),
    ("no", r"\b(en|et|ei)\b"),
    ("fr", r"\b(le|la|l'|les|du|de|d'|des|un|une|des)"),
    ("pt", r"\b(o|a|os|as|um|uma|uns|umas)\b"),
    ("it", r"\b(il|lo|la|l'|i|gli|le|del|dello|della|dell'|dei|degli|degl'|delle|un'|uno|una|un)"),
    ("fi", r"\b(se|yks|yksi)\b"),
    ("hu", r"\b(a|az|egy)\b"),
];

/// In these every character is a word.
const BY_CHARACTER: &[&str] = &["ja", "th", "km", "zh"];

static ARTICLE: LazyLock<HashMap<&str, Regex>> = LazyLock::new(|| {
    ARTICLES.iter().filter_map(|(code, pattern)| Some((*code, Regex::new(pattern).ok()?))).collect()
});

/// The words that are compared: lower case, without ASCII punctuation and articles.
pub(super) fn normalised(text: &str, language: &str) -> Vec<String> {
    let code = languages::without_script(language);
    let lower: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let bare = match ARTICLE.get(code) {
        Some(article) => article.replace_all(&lower, " ").into_owned(),
        None => lower,
    };
    if BY_CHARACTER.contains(&code) {
        return bare.chars().filter(|c| !is_space(*c)).map(String::from).collect();
    }
    split(&bare).map(String::from).collect()
}

/// 1 if the prediction equals one of the gold answers, else 0.
pub fn exact_match(prediction: &str, golds: &[&str], language: &str) -> f64 {
    let prediction = normalised(prediction, language);
    f64::from(u8::from(golds.iter().any(|g| normalised(g, language) == prediction)))
}

/// Token F1, 0..1, against the best of the gold answers.
pub fn f1(prediction: &str, golds: &[&str], language: &str) -> f64 {
    let prediction = normalised(prediction, language);
    golds.iter().map(|g| f1_of(&prediction, &normalised(g, language))).fold(0.0, f64::max)
}

fn f1_of(prediction: &[String], gold: &[String]) -> f64 {
    if prediction.is_empty() || gold.is_empty() {
        return f64::from(u8::from(prediction.is_empty() && gold.is_empty()));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    gold.iter().for_each(|w| *left.entry(w).or_default() += 1);
    let mut common = 0u32;
    for word in prediction {
        if let Some(n) = left.get_mut(word.as_str()).filter(|n| **n > 0) {
            *n -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    // In the script's order of operations, for the last bit.
    let (precision, recall) =
        (f64::from(common) / prediction.len() as f64, f64::from(common) / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_normalised_by_language() {
        assert_eq!(exact_match("The Queen!", &["queen"], "en"), 1.0);
        assert_eq!(exact_match("La reina", &["reina."], "es"), 1.0);
        assert_eq!(exact_match("la reina", &["reina"], "en"), 0.0);
        assert_eq!(normalised("東京 2020年", "ja"), ["東", "京", "2", "0", "2", "0", "年"]);
        assert_eq!(
            normalised("l'été", "fr"),
            ["lété"],
            "the apostrophe goes before the article is looked for"
        );
        assert_eq!((exact_match("", &[""], "en"), f1("", &["x"], "en")), (1.0, 0.0));
    }

    #[test]
    fn f1_counts_common_words() {
        // 2 common words of 3 and 2: 2 * 2 / 5.
        assert!((f1("red green blue", &["x", "green red"], "en") - 0.8).abs() < 1e-12);
        assert!((f1("a a b", &["a"], "cs") - 0.5).abs() < 1e-12, "repeats count once");
    }
}
