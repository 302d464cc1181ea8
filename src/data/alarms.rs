//! Signs that a text went wrong: each a name that is kept with the row. A row with any is not used.
use std::collections::HashMap;

use super::language_id::{find, is_wrong_language};

/// Every alarm, for settings and messages.
pub const ALARMS: [&str; 6] = ["empty", "truncated", "loop", "length-ratio", "wrong-language", "copied"];

/// Alarms of a model's answer; `finish` is `length` where it did not end by itself.
pub fn answer_alarms(question: &str, answer: &str, finish: &str, language: &str) -> Vec<String> {
    let mut alarms = vec![];
    let mut raise = |name: &str, fires: bool| alarms.extend(fires.then(|| name.to_string()));
    raise("empty", answer.trim().is_empty());
    raise("truncated", finish == "length");
    raise("loop", is_loop(answer));
    raise("wrong-language", is_wrong_language(answer, language));
    raise("copied", answer.trim() == question.trim() && !answer.trim().is_empty());
    alarms
}

/// Alarms of one translated side. An empty source translates to an empty target.
pub fn translation_alarms(
    source: &str,
    target: &str,
    source_language: &str,
    target_language: &str,
) -> Vec<String> {
    let mut alarms = vec![];
    if source.trim().is_empty() {
        return alarms;
    }
    let mut raise = |name: &str, fires: bool| alarms.extend(fires.then(|| name.to_string()));
    raise("empty", target.trim().is_empty());
    raise("loop", is_loop(target) && !is_loop(source));
    raise(
        "length-ratio",
        !target.trim().is_empty() && length_ratio(source, target, source_language, target_language),
    );
    raise("wrong-language", is_wrong_language(target, target_language));
    raise("copied", is_copied(source, target));
    alarms
}

/// Words, or characters for languages without spaces.
fn units(text: &str) -> Vec<String> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let letters = text.chars().filter(|c| c.is_alphanumeric()).count();
    if letters > 20 * words.len() { text.chars().map(|c| c.to_string()).collect() } else { words }
}

/// The same few words over and over: some n-gram of 1 to 8 units fills at least 12 units and most of the text's last 40.
pub fn is_loop(text: &str) -> bool {
    let all = units(text);
    let tail = &all[all.len().saturating_sub(40)..];
    if tail.len() < 12 {
        return false;
    }
    (1..=8).any(|n| {
        let mut counts: HashMap<&[String], usize> = HashMap::new();
        for gram in tail.windows(n) {
            *counts.entry(gram).or_default() += 1;
        }
        let most = counts.values().max().copied().unwrap_or(0);
        most >= 4 && most * n >= 12 && most * n * 10 >= tail.len() * if n == 1 { 6 } else { 8 }
    })
}

/// One side more than three times as long as the other, in characters weighted by how dense the scripts are.
fn length_ratio(source: &str, target: &str, source_language: &str, target_language: &str) -> bool {
    let size = |text: &str, language: &str| {
        let density = match find(language).map(|l| l.code) {
            Some("ja" | "zh") => 2.5,
            Some("ko") => 2.0,
            _ => 1.0,
        };
        text.chars().filter(|c| !c.is_whitespace()).count() as f64 * density
    };
    let (a, b) = (size(source, source_language), size(target, target_language));
    // A constant on both sides: short texts vary more.
    (a + 15.0) > 3.0 * (b + 15.0) || (b + 15.0) > 3.0 * (a + 15.0)
}

/// The source came back untranslated: at least three words, nearly all of them the same.
fn is_copied(source: &str, target: &str) -> bool {
    let (a, b) = (units(source), units(target));
    if a.len() < 3 || b.is_empty() {
        return false;
    }
    let mut counts: HashMap<&String, isize> = HashMap::new();
    a.iter().for_each(|w| *counts.entry(w).or_default() += 1);
    let shared = b
        .iter()
        .filter(|w| {
            let n = counts.entry(w).or_default();
            *n -= 1;
            *n >= 0
        })
        .count();
    shared * 10 >= a.len().max(b.len()) * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENGLISH: &str = "The capital of France is Paris, a city on the river Seine.";
    const SPANISH: &str = "La capital de Francia es París, una ciudad a orillas del río Sena.";

    #[test]
    fn good_texts_raise_nothing() {
        assert!(answer_alarms("What is the capital of France?", ENGLISH, "stop", "en").is_empty());
        assert!(translation_alarms(ENGLISH, SPANISH, "en", "es").is_empty());
        assert!(translation_alarms("", "", "en", "es").is_empty());
        assert!(translation_alarms("4 + 4 = 8", "4 + 4 = 8", "en", "es") == ["copied"]);
    }

    #[test]
    fn each_fault_raises_its_alarm() {
        let looping = "I'm sorry, ".repeat(20);
        for (alarm, found) in [
            ("empty", answer_alarms("q", " ", "stop", "en")),
            ("truncated", answer_alarms("q", "a", "length", "en")),
            ("loop", answer_alarms("q", &looping, "stop", "en")),
            ("wrong-language", answer_alarms("q", SPANISH, "stop", "en")),
            ("empty", translation_alarms(ENGLISH, "", "en", "es")),
            ("loop", translation_alarms(ENGLISH, &"lo siento ".repeat(20), "en", "es")),
            ("length-ratio", translation_alarms(&ENGLISH.repeat(4), "La capital.", "en", "es")),
            ("wrong-language", translation_alarms(ENGLISH, ENGLISH, "en", "es")),
            ("copied", translation_alarms(ENGLISH, ENGLISH, "en", "es")),
        ] {
            assert!(found.iter().any(|a| a == alarm), "{alarm}: {found:?}");
            assert!(found.iter().all(|a| ALARMS.contains(&a.as_str())));
        }
    }

    proptest! {
        #[test]
        fn any_texts_are_judged(a in "\\PC{0,80}", b in "\\PC{0,80}") {
            translation_alarms(&a, &b, "en", "th");
            answer_alarms(&a, &b, "stop", "ja");
        }
    }
}
