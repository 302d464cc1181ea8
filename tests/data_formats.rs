//! Files of others: dictionaries, parallel corpora, text; language identification and alarms on real text.
use std::{fs, io::Write, path::Path};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use sdrrl::data::{
    alarms,
    dictionary::{Dictionary, DictionaryFormat, parse_dictd},
    language_id::contradicts,
    text_file,
};

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> std::path::PathBuf {
    fs::write(dir.join(name), bytes).unwrap();
    dir.join(name)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn error<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => format!("{e:#}"),
    }
}

/// A dictd database of these (headword in the index, entry).
fn dictd(entries: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
    let digits = |mut n: usize| {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = vec![];
        loop {
            out.insert(0, alphabet[n % 64]);
            n /= 64;
            if n == 0 {
                return String::from_utf8(out).unwrap();
            }
        }
    };
    let (mut index, mut text) = (String::new(), String::from("00-database-info, not an entry\n"));
    for (word, entry) in entries {
        index += &format!("{word}\t{}\t{}\n", digits(text.len()), digits(entry.len()));
        text += entry;
    }
    (index.into_bytes(), text.into_bytes())
}

const ENTRIES: &[(&str, &str)] = &[
    ("00databaseinfo", "00-database-info\n"),
    ("water", "water colour /wɔːtə/ <n>\nacuarela\n"),
    ("water", "water /wɔːtər/\n1. agua\n2. regar, abrevar (animales)\n"),
    ("water", "water <n>\nagua <fem>, aguas {pl} [geol.]\n         Note: not an equivalent\n"),
    ("water colour", "water colour /wɔːtə/ <n>\nacuarela\n"),
    ("all", "All /lhælouz/\nTodos los Santos\n"),
    ("all", "all /ɔːl/\ntodo,\ntoda\n"),
    ("brother", "brother //ˈbɹɐðə// <n>\nбра́т 2.\nson of the same parents\n"),
    (
        "leave",
        "leave <v>\n1. изоставям, напускам\nto leave behind or desert; to forsake\n2. отказвам се от\nto relinquish a claim\n",
    ),
];

#[test]
fn dictd_entries_give_their_equivalents_only() {
    let dir = tempfile::tempdir().unwrap();
    let (index, text) = dictd(ENTRIES);
    write(dir.path(), "x.index", index);
    write(dir.path(), "x.dict.dz", gzip(&text));
    for name in ["x.index", "x.dict.dz", "x"] {
        let d = Dictionary::load(&dir.path().join(name), DictionaryFormat::Auto).unwrap();
        assert_eq!(d.lookup("Water"), ["agua", "regar", "abrevar", "aguas"]);
        assert_eq!(d.lookup("water  Colour"), ["acuarela"], "phrases too");
        assert_eq!(d.lookup("all"), ["todo", "toda"], "the lower-case entry, not the phrase cut short");
        assert_eq!(d.lookup("brother"), ["брат"]);
        assert_eq!(d.lookup("leave"), ["изоставям", "напускам", "отказвам се от"]);
        assert_eq!((d.len(), d.max_words()), (5, 2));
        assert_eq!(d.longest_match(&["water", "colour", "is"]), Some((2, &["acuarela".to_string()][..])));
        assert!(d.lookup("fire").is_empty());
    }
}

#[test]
fn damaged_dictionaries_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (index, text) = dictd(ENTRIES);
    let load = |name: &str| error(Dictionary::load(&dir.path().join(name), DictionaryFormat::Auto));
    write(dir.path(), "x.index", &index);
    assert!(load("x.index").contains("neither .dict nor .dict.dz"));
    write(dir.path(), "x.dict", &text[..text.len() - 3]);
    assert!(load("x.index").contains("line 9 of the index: \"leave\""), "{}", load("x.index"));
    fs::remove_file(dir.path().join("x.dict")).unwrap();
    write(dir.path(), "x.dict.dz", &gzip(&text)[..40]);
    assert!(load("x.index").contains("cut off or damaged"), "{}", load("x.index"));
    assert!(load("y.index").contains("y.index is missing"));
    write(dir.path(), "m.txt", "water agua\nfire\n");
    assert!(load("m.txt").contains("m.txt:2: expected a word"), "{}", load("m.txt"));
    write(dir.path(), "empty.txt", "\n\n");
    assert!(load("empty.txt").contains("no dictionary entry"));
}

#[test]
fn muse_and_tsv_lines_are_read_in_order_and_filtered_and_inverted() {
    let dir = tempfile::tempdir().unwrap();
    let muse = write(
        dir.path(),
        "en-es.txt",
        "\u{feff}cat gato\r\ncat gata\r\ncat gato\r\n\r\nthe the\r\na\tun\r\ndog  perro\r\nkitty gato\r\n",
    );
    let d = Dictionary::load(&muse, DictionaryFormat::Auto).unwrap();
    assert_eq!(d.lookup("CAT"), ["gato", "gata"]);
    assert_eq!((d.lookup("the"), d.lookup("dog")), (&["the".to_string()][..], &["perro".to_string()][..]));
    assert_eq!(d.invert().lookup("gato"), ["cat", "kitty"]);
    let clean = d.filtered(true, true);
    assert!(clean.lookup("the").is_empty() && clean.lookup("a").is_empty() && clean.len() == 3);
    let tsv = write(dir.path(), "p.tsv.gz", gzip("ice cream\thelado\t0.9\n犬\tperro\n".as_bytes()));
    let d = Dictionary::load(&tsv, DictionaryFormat::Auto).unwrap();
    assert_eq!(d.lookup("ice cream"), ["helado"]);
    assert!(!d.filtered(true, true).lookup("犬").is_empty(), "one ideograph is a word");
}

#[test]
fn text_files_report_what_is_wrong_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let read = |path: &Path| text_file::read_lines(path);
    assert_eq!(
        read(&write(dir.path(), "a.txt", "\u{feff}one\r\ntwo\n\nlast")).unwrap(),
        ["one", "two", "", "last"]
    );
    assert_eq!(
        read(&write(dir.path(), "a.gz", [gzip(b"one\n"), gzip(b"two\n")].concat())).unwrap(),
        ["one", "two"]
    );
    assert!(
        error(read(&write(dir.path(), "l1.txt", b"ok\ncaf\xe9\n")))
            .contains("l1.txt:2: byte 4 (0xe9) is not UTF-8")
    );
    assert!(error(read(&write(dir.path(), "a.xz", b""))).contains("xz -d"));
    assert!(error(read(&write(dir.path(), "a.zst", b""))).contains("zstd -d"));
    assert!(error(read(&write(dir.path(), "b.gz", b"not gzip"))).contains("b.gz:1"));
    assert!(error(read(dir.path())).contains("is a folder"));
    assert!(error(read(&dir.path().join("none"))).contains("none"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_dictionary_or_an_error(index in proptest::collection::vec(any::<u8>(), 0..200), text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_dictd(&index, &text);
    }

    #[test]
    fn a_flipped_bit_or_a_cut_in_a_dictd_file_gives_a_dictionary_or_an_error(at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>()) {
        let (index, text) = dictd(ENTRIES);
        let (mut a, mut b) = (index.clone(), text.clone());
        a[at.index(index.len())] ^= 1 << bit;
        b[at.index(text.len())] ^= 1 << bit;
        let _ = (parse_dictd(&a, &text), parse_dictd(&index, &b), parse_dictd(&index[..cut.index(index.len())], &text));
        let short = parse_dictd(&index, &text[..cut.index(text.len())]);
        prop_assert!(short.is_err(), "a shorter text cannot hold the last entry");
    }

    #[test]
    fn any_entry_is_read(entry in "\\PC{0,20}\n\\PC{0,60}\n\\PC{0,20}") {
        let _ = sdrrl::data::dictionary::equivalents(&entry);
    }

    #[test]
    fn any_file_is_lines_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), gz in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), if gz { "x.gz" } else { "x" }, &bytes);
        let _ = text_file::read_lines(&path);
        let _ = Dictionary::load(&path, DictionaryFormat::Auto);
    }
}

/// Every FreeDict in a folder: `SDRRL_FREEDICT=DIR`. Prints sizes and samples to look at.
#[test]
#[ignore = "needs dictd dictionaries: SDRRL_FREEDICT=DIR"]
fn real_freedicts_are_read() {
    let dir = std::env::var("SDRRL_FREEDICT").expect("SDRRL_FREEDICT");
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "index"))
        .collect();
    names.sort();
    for path in names {
        let d = Dictionary::load(&path, DictionaryFormat::Auto).unwrap();
        println!("{}: {} entries, longest {} words", path.display(), d.len(), d.max_words());
        for word in ["water", "dog", "all", "run", "house", "big", "brother", "time"] {
            println!("  {word}: {:?}", d.lookup(word));
        }
        assert!(!d.lookup("water").is_empty() || d.len() < 500);
    }
}

/// Real sentences, where the machine has them: `SDRRL_FLORES=DIR` with dev.en, dev.es ... Prints the rates quoted in `language_id`.
#[test]
#[ignore = "needs FLORES files: SDRRL_FLORES=DIR"]
fn language_check_on_flores() {
    let dir = std::env::var("SDRRL_FLORES").expect("SDRRL_FLORES");
    let read = |l: &str| std::fs::read_to_string(format!("{dir}/dev.{l}")).unwrap();
    for (is, said) in [
        ("en", "en"),
        ("es", "es"),
        ("cs", "cs"),
        ("ja", "ja"),
        ("th", "th"),
        ("en", "es"),
        ("en", "cs"),
        ("en", "th"),
        ("es", "en"),
        ("es", "pt"),
        ("cs", "pl"),
        ("ja", "zh"),
    ] {
        for letters in [20, 30, 40, 60, 1000] {
            let text = read(is);
            let cut: Vec<String> = text.lines().map(|l| l.chars().take(letters).collect()).collect();
            let fires = cut.iter().filter(|l| contradicts(l, said, &["en"]).is_some()).count();
            println!("text {is} said to be {said}, {letters} characters: {fires} of {}", cut.len());
        }
    }
    let sources = read("en");
    for l in ["es", "cs", "ja", "th"] {
        let targets = read(l);
        let mut counts = std::collections::BTreeMap::new();
        for (s, t) in sources.lines().zip(targets.lines()) {
            for alarm in alarms::translation_alarms(s, t, "en", l) {
                *counts.entry(alarm).or_insert(0) += 1;
            }
        }
        let mut ratios: Vec<f64> =
            sources.lines().zip(targets.lines()).map(|(s, t)| alarms::length_ratio(s, t)).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "{l}: {counts:?} ratio min {:.2} median {:.2} max {:.2}",
            ratios[0], ratios[498], ratios[996]
        );
        let shifted = sources
            .lines()
            .skip(1)
            .zip(targets.lines())
            .filter(|(s, t)| !alarms::translation_alarms(s, t, "en", l).is_empty())
            .count();
        println!("{l}: {shifted} of 996 shifted pairs alarmed");
    }
}
