//! What the program does with one true sentence pair of every language at hand, and with faults planted in it.
use std::{fs, path::PathBuf};

use crate::data::{
    alarms::translation_alarms,
    dictionary::Dictionary,
    language_id::{Coverage, contradicts, coverage, identify},
    languages::{LANGUAGES, find, is_unspaced, same_language},
    sentences::{join, sentences, split},
    words::{tokens, units, words},
};

/// (code, article 1), English first.
fn pairs() -> Vec<(String, String)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/languages/udhr.tsv");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|l| l.split_once('\t').unwrap()).map(|(code, text)| (code.into(), text.into())).collect()
}

fn has(alarms: &[String], alarm: &str) -> bool {
    alarms.iter().any(|a| a == alarm)
}

/// Fails with all that is wrong, not with the first.
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_true_pair_of_any_language_raises_no_alarm() {
    let all = pairs();
    assert!(all.len() > 150 && all.iter().all(|(code, _)| find(code).is_some_and(|l| l.code == code)));
    let english = &all[0].1;
    let alarms = |(code, text): &(String, String)| {
        let alarms = translation_alarms(english, text, "en", code);
        (!alarms.is_empty()).then(|| format!("{code}: {alarms:?}: {text}"))
    };
    report(all[1..].iter().filter_map(alarms).collect());
}

#[test]
fn planted_faults_are_found_in_any_language() {
    let all = pairs();
    let english = &all[0].1;
    let mut wrong = vec![];
    for (code, text) in &all[1..] {
        let expect = |fault: &str, target: &str, alarm: &str| {
            let alarms = translation_alarms(english, target, "en", code);
            (!has(&alarms, alarm)).then(|| format!("{code}: {fault}: {alarms:?} for {target}"))
        };
        let own = words(text);
        let (space, n) = if is_unspaced(code) { ("", 6) } else { (" ", 3) };
        let phrase = own[..n.min(own.len())].join(space);
        wrong.extend(expect("loop", &vec![phrase; 6].join(space), "loop"));
        // Thai and Lao mark no ends: there is nothing to see.
        if !["th", "lo"].contains(&code.as_str()) {
            let half = text.chars().count() * 2 / 5;
            let cut: String = text.chars().take(half).collect();
            let cut = cut.trim_end_matches(|c: char| !c.is_alphanumeric());
            let alarms = translation_alarms(english, cut, "en", code);
            if !has(&alarms, "truncated") && !has(&alarms, "length-ratio") {
                wrong.push(format!("{code}: cut: {alarms:?} for {cut}"));
            }
        }
        wrong.extend(expect("copy", english, "copied"));
        if coverage(code) == Coverage::Full && contradicts(english, code, &["en"]).is_none() {
            wrong.push(format!("{code}: English passes"));
        }
        wrong.extend(expect("damage", &format!("{text} \u{fffd}"), "damaged"));
    }
    report(wrong);
}

#[test]
fn the_sentences_of_any_language_are_split_and_joined() {
    let mut wrong = vec![];
    for (code, text) in pairs() {
        let found = sentences(&text, &code);
        // Article 1 has two sentences; some translations make one or three of them, and these write no ends.
        let at_least = if ["th", "lo", "grn_Latn"].contains(&code.as_str()) { 1 } else { 2 };
        if !(at_least..=5).contains(&found.len()) {
            wrong.push(format!("{code}: {found:?}"));
        }
        let own: Vec<String> = found.iter().map(|s| s.to_string()).collect();
        assert_eq!(join(&split(&text, &code), &own), text, "{code}");
    }
    // One sentence in these translations.
    wrong.retain(|w| !ONE_SENTENCE.iter().any(|code| w.starts_with(&format!("{code}:"))));
    report(wrong);
}

/// Whose translation of article 1 is one sentence.
const ONE_SENTENCE: &[&str] = &[
    "es", "gl", "eu", "la", "sw", "ast_Latn", "ayr_Latn", "fon_Latn", "kab_Latn", "lug_Latn", "som_Latn",
    "umb_Latn",
];

#[test]
fn a_dictionary_finds_a_word_of_any_language() {
    let mut wrong = vec![];
    for (code, text) in pairs() {
        let longest =
            words(&text).into_iter().filter(|w| w.chars().count() < 20).max_by_key(|w| w.chars().count());
        let word = longest.unwrap().to_string();
        let mut dictionary = Dictionary::default();
        dictionary.insert(&word, "x");
        let known = |word: &str| !dictionary.lookup(word).is_empty();
        if !units(&text, &known).iter().any(|t| t.is_word && known(t.text)) {
            wrong.push(format!("{code}: {word}"));
        }
        assert_eq!(tokens(&text).iter().map(|t| t.text).collect::<String>(), text);
        // Nothing breaks inside of a word: no word begins with a mark.
        let broken = words(&text).into_iter().find(|w| w.starts_with(super::charset::is_mark));
        wrong.extend(broken.map(|w| format!("{code}: a word begins with a mark: {w}")));
    }
    report(wrong);
}

#[test]
fn a_language_is_identified_or_said_not_to_be() {
    let (mut right, mut known) = (0, 0);
    for (code, text) in pairs() {
        if coverage(&code) == Coverage::Full {
            known += 1;
            right += usize::from(identify(&text).is_some_and(|i| same_language(&i.code, &code)));
        }
    }
    assert!(known > 60 && right * 100 >= known * 90, "{right} of {known}");
    assert!(LANGUAGES.iter().all(|l| coverage(l.code) != Coverage::None));
}

#[test]
#[ignore = "needs FLORES files: SDRRL_FLORES=DIR"]
fn human_translations_hardly_raise_an_alarm() {
    let folder = std::env::var("SDRRL_FLORES").expect("SDRRL_FLORES");
    let read = |part: &str, l: &str| fs::read_to_string(format!("{folder}/{part}.{l}")).unwrap();
    for language in ["es", "cs", "ja", "th"] {
        let (mut counts, mut pairs) = (std::collections::BTreeMap::new(), 0);
        for part in ["dev", "test"] {
            let (english, target) = (read(part, "en"), read(part, language));
            for (a, b) in english.lines().zip(target.lines()) {
                pairs += 1;
                translation_alarms(a, b, "en", language)
                    .into_iter()
                    .for_each(|x| *counts.entry(x).or_insert(0) += 1);
            }
        }
        println!("{language}: {counts:?} of {pairs}");
        let rate = |alarm: &str| *counts.get(alarm).unwrap_or(&0) as f64 / pairs as f64;
        assert!(
            rate("loop") <= 0.001 && rate("damaged") <= 0.001 && rate("truncated") <= 0.01,
            "{language}: {counts:?}"
        );
    }
}
