//! The share of other programs' cases that are split in the same way, by language (`tests/golden/languages/sentences.txt`).
use std::{collections::BTreeMap, fs, path::PathBuf};

use super::{TextPiece, split};

/// (section, text, sentences)
fn cases() -> Vec<(String, String, Vec<String>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/languages/sentences.txt");
    let (mut out, mut section) = (vec![], String::new());
    let text = |line: &str| line.replace("\\n", "\n");
    for line in fs::read_to_string(path).unwrap().lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').into();
        } else if let Some(input) = line.strip_prefix("< ") {
            out.push((section.clone(), text(input), vec![]));
        } else if let Some(sentence) = line.strip_prefix("> ") {
            out.last_mut().unwrap().2.push(text(sentence));
        }
    }
    out
}

/// The sentences, each with the marker of a list before it; what is kept as it is stands alone.
fn segments(text: &str, language: &str) -> Vec<String> {
    let (mut out, mut kept) = (vec![], String::new());
    let mut flush = |kept: &mut String, with: &str| {
        let whole = format!("{kept}{with}");
        if !whole.trim().is_empty() {
            out.push(whole.trim().to_string());
        }
        kept.clear();
    };
    for piece in split(text, language) {
        match piece {
            TextPiece::Sentence(s) => flush(&mut kept, s),
            TextPiece::Keep(k) if k.trim().is_empty() => flush(&mut kept, ""),
            TextPiece::Keep(k) => kept.push_str(k),
        }
    }
    flush(&mut kept, "");
    out
}

/// Sections where less than 90 % agree: of Japanese two of eight texts, which are not cut between a full stop and a numeral.
const FLOORS: &[(&str, usize)] = &[("ja", 75)];

#[test]
fn texts_are_split_as_other_programs_readers_split_them() {
    let mut shares: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut differing = vec![];
    for (section, text, expected) in cases() {
        let language = section.split(' ').next().unwrap();
        let found = segments(&text, language);
        let share = shares.entry(section.clone()).or_default();
        share.1 += 1;
        if found == expected {
            share.0 += 1;
        } else {
            differing.push(format!("[{section}] {text}\n    found    {found:?}\n    expected {expected:?}"));
        }
    }
    println!("{}", differing.join("\n"));
    for (section, (agree, all)) in &shares {
        println!("{section}: {agree} of {all} agree, {:.1} %", *agree as f64 * 100.0 / *all as f64);
    }
    for (section, (agree, all)) in &shares {
        let floor = FLOORS.iter().find(|f| f.0 == section).map_or(90, |f| f.1);
        assert!(agree * 100 >= floor * all, "{section}: {agree} of {all} agree, {floor} % did before");
    }
}
