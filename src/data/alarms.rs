//! Alarms: cheap signs that a decoded answer or a translation went wrong. A side with any alarm is not used (stage `filter`).
//!
//! | alarm | fires when |
//! |---|---|
//! | `empty` | no letter or digit, although there should be one |
//! | `truncated` | decoding ended for length; a translation is short and stops in the middle of a sentence (any of Unicode's ends counts) |
//! | `loop` | words repeat in a row, or most of a long text is repetition ([`is_loop`]) |
//! | `length-ratio` | a translation is far shorter or longer than its source ([`length_ratio`]) |
//! | `wrong-language` | reliably another language than expected ([`contradicts`]) |
//! | `copied` | the answer is a part of its prompt: the system prompt, an earlier turn, the question, its context; the translation is its source |
//! | `mostly-copied` | a stated share of the answer's word 4-grams stand in its prompt ([`COPIED_SHARE`]) |
//! | `damaged` | marks of a broken program: `<unk>`, ⁇, U+FFFD, letters in the wrong encoding ([`is_damaged`]) |
//! | `unanswerable` | the question does not fit the model's context or its template (`--on-bad-row skip`) |
use std::collections::HashSet;

use super::{
    conversation::Prompt,
    language_id::contradicts,
    languages::{charset, is_unspaced, same_language},
};

mod copies;
mod counted;
mod loops;

pub use copies::COPIED_SHARE;
use copies::Copied;
pub use counted::Alarms;
pub use loops::is_loop;

/// Every alarm, for settings and messages.
pub const ALARMS: [&str; 9] = [
    "empty",
    "truncated",
    "loop",
    "length-ratio",
    "wrong-language",
    "copied",
    "mostly-copied",
    "damaged",
    UNANSWERABLE,
];

/// The alarm of a question that the model could not be asked.
pub const UNANSWERABLE: &str = "unanswerable";

/// Alarms of a model's answer to `prompt`, whose question is in `language`; `finish` is `stop` or `length`. From `copied_share` of its 4-grams on, an
/// answer is `mostly-copied`.
pub fn answer_alarms(
    prompt: &Prompt,
    answer: &str,
    finish: &str,
    language: &str,
    copied_share: f64,
) -> Vec<String> {
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
        let copied = copies::copied(prompt, answer, copied_share);
        add("copied", copied == Copied::Whole);
        add("mostly-copied", copied == Copied::Mostly);
    }
    let turns: Vec<&str> = prompt.earlier.iter().map(|turn| turn.content.as_str()).collect();
    let asked = [prompt.system.unwrap_or_default(), &turns.join("\n"), &prompt.question()].join("\n");
    add("damaged", is_damaged(&asked, answer));
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
        add("damaged", is_damaged(source, target));
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
    add("damaged", is_damaged(source, target));
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

/// The length of a text in characters of an alphabet.
pub(super) fn weight(text: &str) -> f64 {
    let of = |c: char| match c as u32 {
        0x3040..=0x30FF | 0x3400..=0x9FFF | 0x20000..=0x2FA1F => 2.4,
        0x1100..=0x11FF | 0xAC00..=0xD7AF => 2.0,
        // Thai and Lao write no spaces and few vowels.
        0xE01..=0xE30 | 0xE32..=0xE33 | 0xE40..=0xE46 | 0xE81..=0xEB0 | 0xEB2..=0xEB3 | 0xEC0..=0xEC6 => 1.2,
        _ if c.is_whitespace() || c.is_alphanumeric() => 1.0,
        // Marks that combine with the letter before them.
        0x300..=0x36F | 0xE31 | 0xE34..=0xE3A | 0xE47..=0xE4E | 0xEB1 | 0xEB4..=0xEBC | 0xEC8..=0xECE => 0.0,
        _ => 1.0,
    };
    text.trim().chars().map(of).sum()
}

/// The source ends a sentence and the target does not. Thai and Lao mark no ends.
fn stops_early(source: &str, target: &str, target_language: &str) -> bool {
    ends(source) && !ends(target) && !["th", "lo"].iter().any(|l| same_language(l, target_language))
}

/// Whether a text stops where a sentence may: at one of Unicode's ends, a colon or semicolon, a bracket or a quotation mark. Invisible characters and
/// pictures behind it do not count.
fn ends(text: &str) -> bool {
    // Armenian's colon for a full stop, Ethiopic's word spaces, Greek's question mark, the Devanagari danda typed as a bar, what Urdu and Arabic have for ; and :
    const MORE: &str = ":;：；؛۔|‖～~፡";
    let passed = |c: &char| !c.is_whitespace() && !charset::is_format(*c) && !is_picture(*c);
    let last = text.chars().rev().find(passed);
    last.is_some_and(|c| charset::ends_sentence(c) || charset::closes(c) || MORE.contains(c))
}

/// Emoji and their variation selectors.
fn is_picture(c: char) -> bool {
    matches!(c as u32, 0x1F000..=0x1FAFF | 0x2600..=0x27BF | 0xFE00..=0xFE0F)
}

/// Signs that a program broke the text, unless `source` has as many of them: a tokenizer's mark for what it does not know (`<unk>`, ⁇), the replacement
/// character, and UTF-8 that was read as Latin-1 or Windows-1252 (`Ã©`, `â€™`, `Ð¿Ñ€`, control characters of Latin-1).
pub fn is_damaged(source: &str, text: &str) -> bool {
    let count = |text: &str| {
        let named = |mark: &str| text.matches(mark).count();
        named("<unk>") + named("[UNK]") + named("⁇") + named("\u{fffd}") + misread(text)
    };
    let found = count(text);
    found > 0 && found > count(source)
}

/// Characters of UTF-8 that was read one byte at a time, as Latin-1 or Windows-1252, and what else only such a reader leaves: control characters of
/// Latin-1.
fn misread(text: &str) -> usize {
    if text.is_ascii() {
        return 0;
    }
    let chars: Vec<char> = text.chars().collect();
    let controls = chars.iter().filter(|c| matches!(**c as u32, 0x80..=0x84 | 0x86..=0x9F)).count();
    let continues = |i: usize| chars.get(i).is_some_and(|c| byte_of(*c).is_some_and(|b| b & 0xC0 == 0x80));
    // What stands behind a letter in real text too: quotation marks, dashes, an ellipsis, letters (`Úžasné`, `„Vidíš…“`).
    let common = |i: usize| chars.get(i).is_some_and(|c| "‘’“”–—…«»\u{a0}°·šžœŠŽŒªºµ".contains(*c));
    // A capital inside of a word.
    let odd = |i: usize| chars[i].is_uppercase() && i > 0 && chars[i - 1].is_lowercase();
    let begins = |i: usize| match chars[i] {
        // Hebrew's letters only: a sign between numbers is real.
        '×' => {
            chars.get(i + 1).is_some_and(|c| byte_of(*c).is_some_and(|b| (0x90..=0xAA).contains(&b)))
                && !common(i + 1)
        }
        // Of two bytes: accented Latin, Cyrillic, Greek, Arabic, Armenian.
        'Â'..='Ï' | 'Ð'..='Û' => continues(i + 1) && (!common(i + 1) || odd(i)),
        // Of three: all other scripts, and punctuation.
        'â' if chars.get(i + 1).is_some_and(|c| matches!(c, '€' | '\u{80}')) => true,
        'à'..='ï' => continues(i + 1) && continues(i + 2) && !(common(i + 1) && common(i + 2)),
        _ => false,
    };
    controls + (0..chars.len()).filter(|i| begins(*i)).count()
}

/// The byte that stands for a character in Windows-1252, or in Latin-1.
fn byte_of(c: char) -> Option<u8> {
    const FROM_0X80: &str = "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ";
    match c as u32 {
        latin @ 0..=0xFF => Some(latin as u8),
        _ => FROM_0X80.chars().position(|known| known == c).map(|at| 0x80 + at as u8),
    }
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
    text.split(|c: char| !charset::is_word(c)).filter(|w| !w.is_empty()).map(str::to_string).collect()
}

fn words_of(text: &str) -> Vec<String> {
    words_keeping_case(text).iter().map(|w| w.to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answered(question: &str, answer: &str, finish: &str, language: &str) -> Vec<String> {
        answer_alarms(&Prompt::new(None, question, ""), answer, finish, language, COPIED_SHARE)
    }

    fn translated(source: &str, target: &str) -> Vec<String> {
        translation_alarms(source, target, "en", "es")
    }

    #[test]
    fn a_good_answer_has_no_alarm() {
        let answer = "The capital of France is Paris. It lies on the Seine.\n\n1. Paris\n2. Lyon\n3. Nice";
        assert!(answered("What is the capital of France?", answer, "stop", "en").is_empty());
        assert!(answered("How many?", "7", "stop", "en").is_empty());
        assert!(
            answered(
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
        assert_eq!(answered(question, " ...", "stop", "en"), ["empty"]);
        assert_eq!(answered(question, "The capital of France", "length", "en"), ["truncated"]);
        assert_eq!(
            answered(question, "I'm sorry, I'm sorry, I'm sorry, I'm sorry, I'm sorry,", "stop", "en"),
            ["loop"]
        );
        assert_eq!(
            answered(question, "La capital de Francia es una ciudad que se llama París.", "stop", "en"),
            ["wrong-language"]
        );
        assert_eq!(answered(question, "what is the capital of france", "stop", "en"), ["copied"]);
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
    fn every_end_of_a_sentence_is_an_end() {
        let source = "Is it possible that they will be able to come to the meeting tomorrow morning with us?";
        for (target, language) in [
            ("آیا فردا صبح می‌توانند با ما بیایند؟", "fa"),
            ("کیا وہ کل صبح ہمارے ساتھ آ سکیں گے۔", "ur"),
            ("هل يمكنهم حضور الاجتماع صباح غد معنا?", "ar"),
            ("သူတို့မနက်ဖြန်နံနက်လာနိုင်မလား။", "my"),
            ("ነገ ጠዋት ወደ ስብሰባው መምጣት ይችላሉ።", "am"),
            ("ነገ ጠዋት ወደ ስብሰባው መምጣት ይችላሉ፧", "am"),
            ("Կարո՞ղ են վաղը առավոտյան գալ ժողովին։", "hy"),
            ("क्या वे कल सुबह बैठक में आ सकेंगे।»", "hi"),
            ("তারা কি কাল সকালে আসতে পারবে।”)", "bn"),
            ("តើពួកគេអាចមកប្រជុំព្រឹកស្អែកបានទេ។", "km"),
            ("Μπορούν να έρθουν αύριο το πρωί μαζί μας;", "el"),
            ("明天早上他们能来和我们一起开会吗？」", "zh"),
            ("彼らは明日の朝会議に来られますか｡", "ja"),
            ("སང་ཉིན་ཞོགས་པ་ཚོགས་འདུར་ཡོང་ཐུབ་བམ།", "bod_Tibt"),
            ("ᱱᱚᱶᱟ ᱫᱚ ᱥᱟᱱᱛᱟᱲᱤ ᱯᱟᱹᱨᱥᱤ ᱠᱟᱱᱟ᱾", "sat_Olck"),
            ("¿Pueden venir mañana a la reunión? \u{200f}🙂", "es"),
        ] {
            let alarms = translation_alarms(source, target, "en", language);
            assert!(!alarms.contains(&"truncated".to_string()), "{language}: {alarms:?}");
            let cut: String = target.chars().filter(|c| !c.is_ascii_punctuation()).collect();
            let cut = cut.trim_end_matches(|c: char| !charset::is_word(c));
            let alarms = translation_alarms(source, cut, "en", language);
            assert!(alarms.contains(&"truncated".to_string()), "{language}: {cut}: {alarms:?}");
        }
    }

    #[test]
    fn damaged_text_is_seen_and_real_text_left_alone() {
        for damaged in [
            "Hola <unk> mi amigo.",
            "Hola ⁇ mi amigo.",
            "Hola \u{fffd} mi amigo.",
            "El niÃ±o comiÃ³.",
            "Itâ€™s here.",
            "ÐŸÑ€Ð¸Ð²ÐµÑ‚",
            "GÃ¼zel ÄŸÃ¼n",
            "Å‚Ä…ka",
            "à¸ªà¸§à¸±à¸ªà¸”à¸µ",
            "à¤¨à¤®à¤¸à¥à¤¤à¥‡",
            "ã“ã‚“ã«ã¡ã¯",
            "ä½ å¥½",
            "ì•ˆë…•",
            "×©×œ×•×",
            "áƒ’áƒáƒ›áƒáƒ",
            "It\u{92}s",
        ] {
            assert!(
                translated("Hello there my friend.", damaged).contains(&"damaged".to_string()),
                "{damaged}"
            );
            assert!(!is_damaged(damaged, damaged), "the source has it");
            assert!(answered("Hello?", damaged, "stop", "xx").contains(&"damaged".to_string()));
        }
        for fine in [
            "São João, AÇÃO «À bientôt» Ã, Ñandú, Ångström, Âge",
            "Hvað er að? Ðað",
            "«Â»",
            "La question ? Oui…",
            "Đường Ñuñoa’s",
            "Úžasné, „Vidíš…“ řekl: „mluvíš“ Úšklebek, Œuvre, Íslendingaþáttur",
            "le café…» — à l’été…” é–è",
            "É «oui» È… Ö– 3×4, 2×½ Ó° Ñ·",
            "ΑÏ",
        ] {
            assert!(!is_damaged("", fine), "{fine}");
        }
    }

    proptest! {
        #[test]
        fn any_texts_are_judged(a in "\\PC{0,80}", b in "\\PC{0,80}") {
            for alarm in translation_alarms(&a, &b, "en", "th").iter().chain(&answered(&a, &b, "stop", "ja")) {
                prop_assert!(ALARMS.contains(&alarm.as_str()));
            }
        }
    }
}
