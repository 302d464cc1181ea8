//! `sdrrl metric` as it is typed.
use std::process::Command;

use serde_json::Value;

const REFERENCE: &str = "tests/golden/metrics/flores/test.es";
const BERGAMOT: &str = "tests/golden/metrics/flores/test.bergamot-tiny.es";
const GOOGLE: &str = "tests/golden/metrics/flores/test.google.es";

/// Whether it succeeded, standard output, standard error.
fn metric(arguments: &[&str]) -> (bool, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_sdrrl")).arg("metric").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.success(), text(out.stdout), text(out.stderr))
}

#[test]
fn scores_stand_with_their_signatures() {
    let (good, out, error) =
        metric(&["-r", REFERENCE, "-i", BERGAMOT, GOOGLE, "-m", "bleu,chrf++,ter", "--paired-bs", "--json"]);
    assert!(good && error.is_empty(), "{error}");
    let out: Value = serde_json::from_str(&out).unwrap();
    let golden = &super::read("systems.json")["excerpt"]["es"]["metrics"];
    for (name, key) in [("BLEU", "bleu"), ("chrF2++", "chrf++"), ("TER", "ter")] {
        for system in 0..2 {
            let (ours, theirs) = (&out[system][name], &golden[key]["bs"][system]);
            super::same(ours["score"].as_f64().unwrap(), theirs["score"].as_f64().unwrap(), name);
            super::digits(ours["ci"].as_f64().unwrap(), theirs["ci"].as_f64().unwrap(), name);
            assert_eq!(ours["p_value"].as_f64().is_some(), system == 1);
            assert_eq!(ours["signature"], golden[key]["bs_signature"]);
        }
    }
    let (_, table, _) = metric(&["-r", REFERENCE, "-i", BERGAMOT, GOOGLE, "--paired-ar", "-m", "bleu"]);
    assert!(table.contains("p = ") && table.contains("nrefs:1|ar:10000|seed:12345|case:mixed"), "{table}");
    let model = "tests/golden/sentencepiece/nllb/sentencepiece.bpe.model";
    let (good, pieces, error) = metric(&[
        "-r",
        REFERENCE,
        "-i",
        GOOGLE,
        "-m",
        "bleu",
        "--tokenize",
        "flores200",
        "--dictionary",
        model,
    ]);
    assert!(good && pieces.contains("56.95") && pieces.contains("tok:flores200"), "{pieces} {error}");
    let (good, rouge, error) =
        metric(&["-r", REFERENCE, "-i", GOOGLE, "-m", "rouge,off-target", "-l", "es", "--confidence"]);
    assert!(
        good && rouge.contains("rougeL|bs:1000|seed:12345|lang:es") && rouge.contains(" ± "),
        "{rouge} {error}"
    );
}

/// Either side may come through a pipe, once.
#[test]
fn standard_input_is_a_reference_or_a_hypothesis() {
    let piped = |arguments: &[&str], file: &str| {
        let input = std::fs::File::open(file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sdrrl"));
        let out = command.arg("metric").args(arguments).stdin(input).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_string();
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    };
    let score = |arguments: &[&str], file: &str| {
        let (good, out, error) = piped(&[arguments, &["-m", "bleu,chrf,ter", "--json"]].concat(), file);
        assert!(good, "{error}");
        let all: Value = serde_json::from_str(&out).unwrap();
        ["BLEU", "chrF2", "TER"].map(|name| all[0][name]["score"].as_f64().unwrap())
    };
    let whole = score(&["-r", REFERENCE, "-i", GOOGLE], GOOGLE);
    assert_eq!(score(&["-r", REFERENCE, "-i", "-"], GOOGLE), whole);
    assert_eq!(score(&["-r", "-", "-i", GOOGLE], REFERENCE), whole);
    let (good, _, error) = piped(&["-r", "-", "-i", "-"], GOOGLE);
    assert!(!good && error.contains("standard input (-) can be read once"), "{error}");
}

#[test]
fn forms_of_unicode_that_differ_are_warned_of() {
    use unicode_normalization::UnicodeNormalization;
    let dir = tempfile::tempdir().unwrap();
    let decomposed: String = std::fs::read_to_string(GOOGLE).unwrap().nfd().collect();
    let path = dir.path().join("nfd.es");
    std::fs::write(&path, decomposed).unwrap();
    let path = path.to_string_lossy();
    let (good, _, error) = metric(&["-r", REFERENCE, "-i", &path]);
    assert!(good && error.contains("are not in Unicode's form NFC"), "{error}");
    let (good, _, error) = metric(&["-r", &path, "-i", &path]);
    assert!(good && error.is_empty(), "{error}");
}

#[test]
fn mkqa_is_scored_by_its_own_files() {
    let sample = "tests/golden/metrics/mkqa_sample.jsonl.gz";
    let (good, out, error) =
        metric(&["--mkqa", sample, "-i", "tests/golden/metrics/mkqa_en_prediction.jsonl", "-l", "en"]);
    assert!(good && out.contains("best_f1") && out.contains("80.95"), "{out} {error}");
}

#[test]
fn what_cannot_be_scored_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (short, empty, blank) =
        (file("short.txt", "uno\ndos\n"), file("empty.txt", ""), file("blank.txt", &"\n".repeat(40)));
    for (arguments, expected) in [
        (
            vec!["-r", REFERENCE, "-i", &short],
            "short.txt has 2 lines, but tests/golden/metrics/flores/test.es has 40",
        ),
        (vec!["-r", REFERENCE, "-i", &empty], "empty.txt is empty"),
        (vec!["-r", REFERENCE, "-i", &blank], "all its 40 lines are empty"),
        (vec!["-r", REFERENCE, "-i", "nowhere"], "open nowhere"),
        (vec!["-r", REFERENCE, "-i", GOOGLE, "--paired-bs"], "give more than one file"),
        (vec!["-r", REFERENCE, "-i", GOOGLE, "-m", "rouge"], "needs --language"),
        (vec!["-r", REFERENCE, "-i", GOOGLE, "--tokenize", "ja-mecab"], "pip install ipadic"),
        (vec!["-r", REFERENCE, "-i", GOOGLE, "--tokenize", "spBLEU-1K"], "spbleu-1k_tokenizer_spm.model"),
        (vec!["-r", REFERENCE, "-i", GOOGLE, "-m", "rouge", "-l", "th"], "pip install pythainlp"),
    ] {
        let (good, _, error) = metric(&arguments);
        assert!(!good && error.contains(expected), "{arguments:?}: {error}");
    }
    let thai = "tests/golden/metrics/flores/test.google.th";
    for more in [vec!["--tokenize", "13a"], vec!["--tokenize", "13a", "-l", "th"]] {
        let all = [vec!["-r", "tests/golden/metrics/flores/test.th", "-i", thai], more].concat();
        let (good, _, error) = metric(&all);
        assert!(good && error.contains("warning: Thai has no spaces between words"), "{error}");
    }
}
