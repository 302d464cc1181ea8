//! Alarms: cheap signs that a decoded answer or a translation went wrong. A side with any alarm is not used (stage `filter`).
//!
//! | alarm | fires when |
//! |---|---|
//! | `empty` | no letter or digit, although there should be one |
//! | `truncated` | decoding ended for length; a translation is short and stops in the middle of a sentence |
//! | `loop` | words repeat in a row, or most of a long text is repetition ([`is_loop`]) |
//! | `length-ratio` | a translation is far shorter or longer than its source ([`length_ratio`]) |
//! | `wrong-language` | reliably another language than expected ([`contradicts`]) |
//! | `copied` | the answer is the question; the translation is its source |
//! | `unanswerable` | the question does not fit the model's context or its template (`--on-bad-row skip`) |
use std::collections::HashSet;

use super::language_id::{contradicts, is_unspaced, same_language};

/// Every alarm, for settings and messages.
pub const ALARMS: [&str; 7] =
    ["empty", "truncated", "loop", "length-ratio", "wrong-language", "copied", UNANSWERABLE];

/// The alarm of a question that the model could not be asked.
pub const UNANSWERABLE: &str = "unanswerable";

/// Alarms of a model's answer to `question`, which is in `language`; `finish` is `stop` or `length`.
pub fn answer_alarms(question: &str, answer: &str, finish: &str, language: &str) -> Vec<String> {
    let mut alarms = vec![];
    let mut add = |name: &str, fires: bool| {
        if fires {
            alarms.push(name.to_string());
        }
    };
    let empty = !has_content(answer);
    add("empty", empty);
    add("truncated", finish == "length");
    if !empty {
        add("loop", is_loop(answer));
        add("wrong-language", contradicts(answer, language, &["en"]).is_some());
        let words = words_of(question);
        add("copied", words.len() >= 4 && words == words_of(answer));
    }
    alarms
}

/// Alarms of `target`, the translation of `source`. A source without letters or digits needs no translation.
pub fn translation_alarms(
    source: &str,
    target: &str,
    source_language: &str,
    target_language: &str,
) -> Vec<String> {
    let mut alarms = vec![];
    let mut add = |name: &str, fires: bool| {
        if fires {
            alarms.push(name.to_string());
        }
    };
    if !has_content(source) {
        return alarms;
    }
    if !has_content(target) {
        add("empty", true);
        return alarms;
    }
    let ratio = length_ratio(source, target);
    add("truncated", ratio < TRUNCATED_RATIO && stops_early(source, target, target_language));
    add("loop", is_loop(target) && !is_loop(source));
    add("length-ratio", !(LENGTH_RATIO.0..=LENGTH_RATIO.1).contains(&ratio));
    if !same_language(source_language, target_language) {
        add("wrong-language", contradicts(target, target_language, &[source_language, "en"]).is_some());
        add("copied", is_copied(source, target, source_language));
    }
    alarms
}

/// Whether there is a letter or a digit.
pub fn has_content(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

/// Accepted values of [`length_ratio`]. See `tests/data_formats.rs` for what they do to true pairs.
pub const LENGTH_RATIO: (f64, f64) = (0.4, 2.5);
const TRUNCATED_RATIO: f64 = 0.7;

/// Target over source length. Characters count by how much text they usually stand for (Han and kana 2.4, Hangul 2), 10 is added to both lengths so
/// that short texts may differ more.
pub fn length_ratio(source: &str, target: &str) -> f64 {
    (weight(target) + 10.0) / (weight(source) + 10.0)
}

fn weight(text: &str) -> f64 {
    let of = |c: char| match c as u32 {
        0x3040..=0x30FF | 0x3400..=0x9FFF | 0x20000..=0x2FA1F => 2.4,
        0x1100..=0x11FF | 0xAC00..=0xD7AF => 2.0,
        _ if c.is_whitespace() || c.is_alphanumeric() => 1.0,
        // Marks that combine with the letter before them.
        0x300..=0x36F | 0xE31 | 0xE34..=0xE3A | 0xE47..=0xE4E => 0.0,
        _ => 1.0,
    };
    text.trim().chars().map(of).sum()
}

/// The source ends a sentence and the target does not.
fn stops_early(source: &str, target: &str, target_language: &str) -> bool {
    const ENDS: &str = ".!?:;)]}\"'`»”’。！？：；）」』…।។";
    let ends = |text: &str| text.trim_end().chars().next_back().is_some_and(|c| ENDS.contains(c));
    ends(source) && !ends(target) && !["th", "lo"].iter().any(|l| same_language(l, target_language))
}

/// Repetition that no writer means.
///
/// Words in a row: one word 5 times, two or three words 4 times, four to twelve words 3 times; runs without letters (`--- | ---`, `0 0 0`)
/// 12 times. Characters in a row (scripts without spaces, and words that never end): a piece of 2 to 40 characters that fills at
/// least 16, 4 times; one letter 12 times. And over a whole text of 40 words or more: less than half of its 4-grams are distinct.
pub fn is_loop(text: &str) -> bool {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let letters = |w: &String| w.chars().any(char::is_alphabetic);
    for n in 1..=12 {
        let needed = [5, 4, 4].get(n - 1).copied().unwrap_or(3);
        let found = runs(&words, n, needed, |piece| if piece.iter().any(letters) { needed } else { 12 });
        if found {
            return true;
        }
    }
    let chars: Vec<char> = text.chars().flat_map(char::to_lowercase).collect();
    for n in 1..=40 {
        let needed = if n == 1 { 12 } else { 4.max(16usize.div_ceil(n)) };
        // Spaces would make this the test of words in a row; digits and rules (-----) are no language.
        let found = runs(&chars, n, needed, |piece| {
            if piece.iter().all(|c| c.is_alphabetic() || is_mark(*c)) { needed } else { usize::MAX }
        });
        if found {
            return true;
        }
    }
    if words.len() >= 40 {
        let total = words.len() - 3;
        let distinct: HashSet<&[String]> = words.windows(4).collect();
        return distinct.len() * 2 < total;
    }
    false
}

/// Vowel signs and tone marks of Thai, Lao, Khmer, Devanagari and others, which are not letters to `char::is_alphabetic`.
fn is_mark(c: char) -> bool {
    matches!(c as u32, 0x300..=0x36F | 0x900..=0xDFF | 0xE31..=0xE4E | 0xEB1..=0xECE | 0x1780..=0x17D3)
}

/// Whether some `n` items stand in a row at least as often as `needed(those items)`, which is `least` or more.
fn runs<T: PartialEq>(items: &[T], n: usize, least: usize, needed: impl Fn(&[T]) -> usize) -> bool {
    let mut same = 0;
    for i in n..items.len() {
        same = if items[i] == items[i - n] { same + 1 } else { 0 };
        let copies = same / n + 1;
        if same > 0 && copies >= least && copies >= needed(&items[i + 1 - n..=i]) {
            return true;
        }
    }
    false
}

/// The target is the source, or nearly. Names, numbers and single words may well be the same in both: only words that begin in lower case (or in
/// a script without case) count, and there must be three of them (or, without spaces, eight letters).
fn is_copied(source: &str, target: &str, source_language: &str) -> bool {
    if is_unspaced(source_language) {
        let letters = |t: &str| t.chars().filter(|c| c.is_alphabetic()).collect::<Vec<_>>();
        return letters(source).len() >= 8 && letters(source) == letters(target);
    }
    let common = |w: &&String| w.chars().next().is_some_and(|c| c.is_alphabetic() && !c.is_uppercase());
    let words = words_keeping_case(source);
    let counted: Vec<&String> = words.iter().filter(common).collect();
    if counted.len() < 3 {
        return false;
    }
    let target: HashSet<String> = words_of(target).into_iter().collect();
    let kept = counted.iter().filter(|w| target.contains(&w.to_lowercase())).count();
    kept * 5 >= counted.len() * 4 && target.len() * 2 >= words.len().min(counted.len())
}

fn words_keeping_case(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && !is_mark(c))
        .filter(|w| !w.is_empty())
        .map(str::to_string)
        .collect()
}

fn words_of(text: &str) -> Vec<String> {
    words_keeping_case(text).iter().map(|w| w.to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn translated(source: &str, target: &str) -> Vec<String> {
        translation_alarms(source, target, "en", "es")
    }

    #[test]
    fn a_good_answer_has_no_alarm() {
        let answer = "The capital of France is Paris. It lies on the Seine.\n\n1. Paris\n2. Lyon\n3. Nice";
        assert!(answer_alarms("What is the capital of France?", answer, "stop", "en").is_empty());
        assert!(answer_alarms("How many?", "7", "stop", "en").is_empty());
        assert!(
            answer_alarms(
                "Draw a table.",
                "| a | b | c | d |\n| --- | --- | --- | --- |\n| 0 | 0 | 0 | 0 |",
                "stop",
                "en"
            )
            .is_empty()
        );
    }

    #[test]
    fn each_answer_alarm_fires_on_its_own_fault() {
        let question = "What is the capital of France?";
        assert_eq!(answer_alarms(question, " ...", "stop", "en"), ["empty"]);
        assert_eq!(answer_alarms(question, "The capital of France", "length", "en"), ["truncated"]);
        assert_eq!(
            answer_alarms(question, "I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry,", "stop", "en"),
            ["loop"]
        );
        assert_eq!(
            answer_alarms(question, "La capital de Francia es una ciudad que se llama París.", "stop", "en"),
            ["wrong-language"]
        );
        assert_eq!(answer_alarms(question, "what is the capital of france", "stop", "en"), ["copied"]);
    }

    #[test]
    fn each_translation_alarm_fires_on_its_own_fault() {
        let source = "Water boils at one hundred degrees, and it freezes at zero degrees.";
        let good = "El agua hierve a los cien grados y se congela a los cero grados.";
        assert!(translated(source, good).is_empty());
        assert_eq!(translated(source, ""), ["empty"]);
        assert_eq!(translated(source, "El agua hierve a los cien grados y"), ["truncated"]);
        assert_eq!(translated(source, "El agua."), ["length-ratio"]);
        assert_eq!(translated(source, source), ["wrong-language", "copied"]);
        assert_eq!(
            translated(source, "Das Wasser kocht bei hundert Grad und gefriert bei null Grad."),
            ["wrong-language"]
        );
        assert_eq!(
            translated(source, "El agua hierve y hierve y hierve y hierve y hierve a cien."),
            ["loop"]
        );
        assert!(translated("--- *** ---", "").is_empty(), "nothing to translate");
        assert!(
            translated("La la la la la la!", "¡La la la la la la!").is_empty(),
            "the source loops by itself"
        );
        assert!(
            translated("Los Angeles, New York, San Francisco", "Los Ángeles, New York, San Francisco")
                .is_empty()
        );
        assert!(translation_alarms("It is what it is.", "it is what it is", "en", "eng_Latn").is_empty());
    }

    #[test]
    fn loops_are_seen_in_scripts_without_spaces_and_in_long_texts() {
        assert!(is_loop("申し訳ありません申し訳ありません申し訳ありません申し訳ありません"));
        assert!(is_loop("ขอโทษครับขอโทษครับขอโทษครับขอโทษครับ"));
        assert!(is_loop("aaaaaaaaaaaaaaaa"));
        assert!(!is_loop("ははははは。これは冗談です。"));
        assert!(!is_loop("very very very good"));
        assert!(!is_loop(
            "-----------------------------------------\n========================================="
        ));
        let lines = ["the cat sat on the mat", "a dog ran to the park", "my bird sang in the tree"];
        let refrain = [0, 1, 2, 0, 2, 1, 1, 0, 2, 0, 1, 2, 2].map(|i| lines[i]).join(". ");
        assert!(is_loop(&refrain));
        let facts: String = (0..12).map(|i| format!("Item number {i} weighs {} grams. ", i * 7)).collect();
        assert!(!is_loop(&facts));
    }

    proptest! {
        #[test]
        fn any_texts_are_judged(a in "\\PC{0,80}", b in "\\PC{0,80}") {
            for alarm in translation_alarms(&a, &b, "en", "th").iter().chain(&answer_alarms(&a, &b, "stop", "ja")) {
                prop_assert!(ALARMS.contains(&alarm.as_str()));
            }
        }
    }
}
