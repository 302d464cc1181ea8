//! Words of Japanese, Korean and Thai, ROUGE-L and MKQA against their references.
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sdrrl::metrics::{
    mkqa, qa,
    rouge::Rouge,
    tokenize::{BleuTokenizer, Mecab, ThaiWords},
};
use serde_json::Value;

use super::{digits, lines, read, same, texts};

#[test]
fn mkqa_equals_the_official_script() {
    let sample = Path::new("tests/golden/metrics/mkqa_sample.jsonl.gz");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("predictions.jsonl");
    for case in read("mkqa.json")["cases"].as_array().unwrap() {
        let language = case["language"].as_str().unwrap();
        let rows: Vec<String> = case["rows"].as_array().unwrap().iter().map(|r| r.to_string()).collect();
        std::fs::write(&path, rows.join("\n")).unwrap();
        let golds = mkqa::read_gold(sample, language).unwrap();
        let predictions = mkqa::read_predictions(&path).unwrap();
        for (i, (gold, prediction)) in golds.iter().zip(&predictions).enumerate() {
            let answers: Vec<&str> = gold.answers.iter().map(String::as_str).collect();
            let what = format!("{language} {prediction:?} {answers:?}");
            same(
                qa::exact_match(&prediction.answer, &answers, language),
                case["em"][i].as_f64().unwrap(),
                &what,
            );
            same(qa::f1(&prediction.answer, &answers, language), case["f1"][i].as_f64().unwrap(), &what);
        }
        let ours = serde_json::to_value(mkqa::evaluate(&golds, &predictions, language).unwrap()).unwrap();
        assert_eq!(ours.as_object().unwrap().len(), case["scores"].as_object().unwrap().len());
        for (key, theirs) in case["scores"].as_object().unwrap() {
            digits(ours[key].as_f64().unwrap(), theirs.as_f64().unwrap(), &format!("{language} {key}"));
        }
    }
    // The numbers that its own test expects of its own sample.
    let golds = mkqa::read_gold(sample, "en").unwrap();
    let predictions =
        mkqa::read_predictions(Path::new("tests/golden/metrics/mkqa_en_prediction.jsonl")).unwrap();
    let s = mkqa::evaluate(&golds, &predictions, "en").unwrap();
    let found = [
        s.best_em,
        s.best_f1,
        s.best_answerable_em,
        s.best_answerable_f1,
        s.best_unanswerable_em,
        s.best_f1_threshold,
    ];
    assert_eq!(found, [66.67, 80.95, 33.33, 61.9, 100.0, -6.91]);
}

#[test]
fn bad_mkqa_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.jsonl");
    let row = r#"{"example_id": 1, "prediction": "x", "binary_answer": null}"#;
    for (text, expected) in [
        (String::new(), "has no rows"),
        (format!("{row}\n{row}"), "p.jsonl:2: example_id 1 stands in the file twice"),
        (row.replace("null", "\"maybe\""), "expected yes, no or null"),
        (row.replace("prediction", "answer"), "there is no prediction"),
        ("{".into(), "p.jsonl:1: not JSON"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", mkqa::read_predictions(&path).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    let sample = Path::new("tests/golden/metrics/mkqa_sample.jsonl.gz");
    let error = mkqa::read_gold(sample, "cs").unwrap_err().to_string();
    assert!(error.contains("no answers in cs; there are"), "{error}");
    std::fs::write(&path, row).unwrap();
    let golds = mkqa::read_gold(sample, "no").unwrap();
    let error =
        mkqa::evaluate(&golds, &mkqa::read_predictions(&path).unwrap(), "no").unwrap_err().to_string();
    assert!(error.starts_with("6 of 6 questions have no prediction"), "{error}");
}

/// ROUGE-L of a part of the golden file; languages that need a dictionary only if there is one.
fn check_rouge(part: &Value, folder: &Path, dictionary: impl Fn(&str) -> Option<PathBuf>) {
    for (language, theirs) in part.as_object().unwrap() {
        let path = dictionary(language);
        if path.is_none() && matches!(language.as_str(), "ja" | "th") {
            continue;
        }
        let rouge = Rouge::new(language, path.as_deref(), false).unwrap();
        let read = |name: &str| lines(folder, &format!("test.{name}{language}"));
        let scores = rouge.scores(&read("google."), &read("")).unwrap();
        for (i, theirs) in theirs["each"].as_array().into_iter().flatten().enumerate() {
            digits(scores[i], theirs.as_f64().unwrap(), &format!("{language}, line {}", i + 1));
        }
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        same(mean, theirs["mean"].as_f64().unwrap(), language);
    }
}

#[test]
fn rouge_equals_the_multilingual_package() {
    let g = read("rouge.json");
    check_rouge(&g["excerpt"], Path::new("tests/golden/metrics/flores"), |_| None);
    for (language, cases) in g["own"].as_object().unwrap() {
        let rouge = Rouge::new(language, None, false).unwrap();
        for case in cases.as_array().unwrap() {
            let text = |key: &str| case[key].as_str().unwrap();
            assert_eq!(rouge.words(text("prediction")), texts(&case["words"]), "{case}");
            digits(rouge.f1(text("prediction"), text("target")), case["f1"].as_f64().unwrap(), language);
        }
    }
    let signature = Rouge::new("es", None, true).unwrap().signature();
    assert!(
        signature.starts_with("rougeL|lang:es|case:lc|punct:no|tok:onmt-aggressive|stem:snowball-nltk|"),
        "{signature}"
    );
    assert!(Rouge::new("th", None, false).err().unwrap().to_string().contains("pythainlp"));
    assert!(Rouge::new("ko", None, true).is_err());
}

/// NLTK's Snowball, stop words left alone; but for Hungarian suffixes that NLTK misspells.
#[test]
fn stems_and_stemmed_rouge_are_the_multilingual_packages() {
    let g = &read("rouge.json")["stemmed"];
    let stem = |language: &str, word: &str| Rouge::new(language, None, true).unwrap().words(word);
    let mut kept = 0;
    for (language, pairs) in g["words"].as_object().unwrap() {
        let rouge = Rouge::new(language, None, true).unwrap();
        for pair in pairs.as_array().unwrap().iter().map(texts) {
            assert_eq!(rouge.words(pair[0]), [pair[1]], "{language} {pair:?}");
            kept += usize::from(pair[0] == pair[1]);
        }
    }
    assert!(kept > 200, "stop words are among the words: {kept} were kept");
    assert_eq!(stem("es", "estuvieron"), ["estuvieron"], "a stop word");
    assert_eq!(stem("es", "cantaron"), ["cant"]);
    for pair in g["misspelt-suffixes"].as_array().unwrap().iter().map(texts) {
        assert!(pair[1].starts_with(&stem("hu", pair[0])[0]), "{pair:?}");
    }
    let folder = Path::new("tests/golden/metrics/flores");
    let rouge = Rouge::new("es", None, true).unwrap();
    let scores = rouge.scores(&lines(folder, "test.google.es"), &lines(folder, "test.es")).unwrap();
    assert_eq!(scores.len(), 40);
    for (i, theirs) in g["es"].as_array().unwrap().iter().enumerate() {
        digits(scores[i], theirs.as_f64().unwrap(), &format!("line {}", i + 1));
    }
}

/// All 1,012 lines, and the languages with segmenters.
#[test]
#[ignore = "needs SDRRL_FLORES=DIR, SDRRL_THAI_WORDS=words_th.txt of PyThaiNLP, SDRRL_UNIDIC=the folder of unidic-lite"]
fn rouge_of_flores_devtest_equals_the_multilingual_package() {
    let folder = |name| PathBuf::from(std::env::var(name).unwrap());
    let g = read("rouge.json");
    let dictionary = |language: &str| match language {
        "th" => Some(folder("SDRRL_THAI_WORDS")),
        "ja" => Some(folder("SDRRL_UNIDIC")),
        _ => None,
    };
    check_rouge(&g["excerpt"], Path::new("tests/golden/metrics/flores"), dictionary);
    check_rouge(&g["devtest"], &folder("SDRRL_FLORES"), dictionary);
}

const MECAB_FILES: [&str; 4] = ["sys.dic", "unk.dic", "matrix.bin", "char.bin"];

/// The compiled files of the made-up dictionary.
fn mecab_files() -> Vec<Vec<u8>> {
    let unpacked = |name: &str| {
        let file = std::fs::File::open(format!("tests/golden/metrics/mecab/{name}.gz")).unwrap();
        let mut bytes = vec![];
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut bytes).unwrap();
        bytes
    };
    MECAB_FILES.iter().map(|name| unpacked(name)).collect()
}

fn write_mecab(folder: &Path, files: &[Vec<u8>], dicrc: &str) {
    for (name, bytes) in MECAB_FILES.iter().zip(files) {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    std::fs::write(folder.join("dicrc"), dicrc).unwrap();
}

#[test]
fn mecab_splits_as_mecab_and_mecab_ko_do() {
    let g = read("mecab/cases.json");
    let dicrc = g["dicrc"].as_str().unwrap();
    let penalty = g["penalty"].as_str().unwrap();
    for (key, settings) in [("mecab", dicrc.to_string()), ("mecab_ko", format!("{dicrc}{penalty}"))] {
        let dir = tempfile::tempdir().unwrap();
        write_mecab(dir.path(), &mecab_files(), &settings);
        let mecab = Mecab::open(dir.path()).unwrap();
        for case in g["cases"].as_array().unwrap() {
            assert_eq!(
                mecab.words(case["text"].as_str().unwrap()),
                texts(&case[key]),
                "{key} {}",
                case["text"]
            );
        }
    }
}

#[test]
#[ignore = "needs mecab-ko-dic: SDRRL_KODIC=DIR"]
fn korean_equals_mecab_ko() {
    let g = read("mecab/cases.json");
    let folder = PathBuf::from(std::env::var("SDRRL_KODIC").unwrap());
    let tokenizer = BleuTokenizer::KoMecab.load(Some(&folder)).unwrap();
    assert_eq!(tokenizer.kind().signature(), g["korean_signature"].as_str().unwrap());
    for case in g["korean"].as_array().unwrap() {
        assert_eq!(tokenizer.tokenize(case["text"].as_str().unwrap()), case["words"].as_str().unwrap());
    }
}

#[test]
fn other_or_missing_dictionaries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_mecab(dir.path(), &mecab_files(), "");
    let error = |tok: BleuTokenizer, path| format!("{:#}", tok.load(path).err().unwrap());
    assert!(error(BleuTokenizer::JaMecab, None).contains("pip install ipadic"));
    assert!(error(BleuTokenizer::KoMecab, Some(dir.path())).contains("defined by one of 811795"));
    std::fs::remove_file(dir.path().join("sys.dic")).unwrap();
    let gone = error(BleuTokenizer::JaMecab, Some(dir.path()));
    assert!(gone.contains("sys.dic is part of a compiled MeCab dictionary"), "{gone}");
}

#[test]
fn thai_words_are_newmms() {
    let g = &read("rouge.json")["thai"];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words.txt");
    std::fs::write(&path, texts(&g["list"]).join("\n")).unwrap();
    let thai = ThaiWords::open(&path).unwrap();
    for case in g["cases"].as_array().unwrap() {
        assert_eq!(thai.words(case["text"].as_str().unwrap()), texts(&case["words"]), "{case}");
    }
    std::fs::write(&path, "\n \n").unwrap();
    assert!(ThaiWords::open(&path).err().unwrap().to_string().contains("no words"));
}

#[test]
fn tokenizers_that_find_no_words_are_warned_of() {
    for language in ["th", "km", "ja", "jpn_Jpan", "zh"] {
        assert!(BleuTokenizer::V13a.warning(language).is_some(), "{language}");
        let chosen = BleuTokenizer::for_language(language, false);
        assert_eq!(chosen.warning(language), None, "{language}");
    }
    for language in ["es", "ko", "vi", "xx"] {
        assert_eq!(BleuTokenizer::V13a.warning(language), None, "{language}");
    }
    assert_eq!(BleuTokenizer::for_language("ja", true), BleuTokenizer::JaMecab);
}

proptest! {
    /// Damaged dictionaries give an error or words, and all words stand in the text in order.
    #[test]
    fn any_dictionary_is_read_or_refused(
        file in 0..4usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        text in "[かき日月a1 \u{3000}한🙂]{0,20}",
        dicrc in "(left-space-penalty-factor)? ?=[0-9,-]{0,9}",
    ) {
        let mut files = mecab_files();
        for (at, byte) in changes {
            // The headers of the words stay whole, so that the rest is reached.
            let header = if file < 2 { 72 } else { 0 };
            let at = at.index(files[file].len() - header) + header;
            files[file][at] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(files[file].len());
            files[file].truncate(length);
        }
        let dir = tempfile::tempdir().unwrap();
        write_mecab(dir.path(), &files, &dicrc);
        if let Ok(mecab) = Mecab::open(dir.path()) {
            let mut rest = text.as_str();
            for word in mecab.words(&text) {
                let at = rest.find(word);
                prop_assert!(at.is_some(), "{word:?} in {text:?}");
                rest = &rest[at.unwrap() + word.len()..];
            }
        }
    }

    #[test]
    fn any_text_gets_a_rouge_score_and_itself_the_best(a in "\\PC{0,30}", b in "\\PC{0,30}") {
        let rouge = Rouge::new("xx", None, false).unwrap();
        prop_assert!((0.0..=1.0).contains(&rouge.f1(&a, &b)));
        prop_assert!(rouge.words(&a).is_empty() || rouge.f1(&a, &a) == 1.0);
    }

    #[test]
    fn any_mkqa_file_is_read_or_refused(
        text in "(\\{\"example_id\": ?[0-9]{1,2}, \"(prediction|binary_answer|answers)\": ?(null|\"a\"|\\{\\}|\\[\\])\\}\n|.{0,20}\n){0,4}",
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, &text).unwrap();
        let _ = mkqa::read_predictions(&path);
        let _ = mkqa::read_gold(&path, "en");
    }
}
