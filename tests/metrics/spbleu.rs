//! spBLEU against SentencePiece and sacrebleu (scripts/golden_spbleu.py).
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use proptest::prelude::*;
use sdrrl::{
    data::tokenizer::sentencepiece::Pieces,
    eval::{measure, sample::Sample},
    metrics::{corpus::CorpusMetric, tokenize::BleuTokenizer},
    recipe::eval::EvalTask,
};
use serde_json::Value;

use super::{lines, read, same, texts};

const FOLDER: &str = "tests/golden/metrics/spbleu";

fn model(name: &str) -> PathBuf {
    let trained = Path::new("tests/golden/sentencepiece").join(name).join("sentencepiece.bpe.model");
    if trained.exists() { trained } else { Path::new(FOLDER).join(format!("{name}.model")) }
}

#[test]
fn pieces_are_sentencepieces_own() {
    let g = read("spbleu/golden.json");
    for name in ["nllb", "xlm-roberta", "bytes", "suffix", "spaces"] {
        let pieces = Pieces::open(&model(name)).unwrap();
        for (text, theirs) in texts(&g["odd"]).iter().zip(g["pieces"][name].as_array().unwrap()) {
            assert_eq!(pieces.encode(text), texts(theirs), "{name} {text:?}");
        }
    }
    for name in ["nllb", "xlm-roberta"] {
        let pieces = Pieces::open(&model(name)).unwrap();
        for (text, theirs) in texts(&g["lines"]).iter().zip(texts(&g["pieces"][format!("{name} lines")])) {
            assert_eq!(pieces.encode(text).join(" "), theirs, "{name} {text:?}");
        }
    }
}

/// Every system's score; `models` say which file stands in for a tokenizer's own.
fn check(golden: &Value, models: &Value, folder: &Path) {
    for (name, theirs) in golden.as_object().unwrap() {
        let kind = BleuTokenizer::from_str(name, false).unwrap();
        let path = models[name]["model"].as_str().unwrap();
        let metric = CorpusMetric::Bleu(kind.load(Some(Path::new(path))).unwrap().into());
        assert_eq!(kind.name(), name);
        assert_eq!(metric.signature(), theirs["signature"].as_str().unwrap());
        for (system, score) in theirs["scores"].as_object().unwrap() {
            let reference = lines(folder, &format!("test.{}", system.rsplit('.').next().unwrap()));
            let counts = metric.counts(&lines(folder, system), &reference).unwrap();
            same(metric.score(&counts), score.as_f64().unwrap(), &format!("{name} {system}"));
        }
    }
}

#[test]
fn spbleu_equals_sacrebleu() {
    let g = read("spbleu/golden.json");
    check(&g["bleu"], &g["bleu"], Path::new("tests/golden/metrics/flores"));
}

/// All 1,012 lines.
#[test]
#[ignore = "needs FLORES devtest and its translations: SDRRL_FLORES=DIR"]
fn spbleu_of_flores_devtest_equals_sacrebleu() {
    let g = read("spbleu/golden.json");
    check(&g["devtest"], &g["bleu"], Path::new(&std::env::var("SDRRL_FLORES").unwrap()));
}

#[test]
fn eval_tasks_take_a_sentencepiece_model() {
    let of = |dictionary: &str| -> EvalTask {
        let text = "name = \"th\"\nkind = \"translation\"\nfile = \"a\"\nlanguage = \"th\"\ntokenizer = \"flores200\"\n";
        toml::from_str(&format!("{text}{dictionary}")).unwrap()
    };
    let missing = measure::check(&of("")).err().unwrap().to_string();
    assert!(missing.contains("flores200 needs FLORES-200's SentencePiece model"), "{missing}");
    let task = of("dictionary = \"tests/golden/sentencepiece/nllb/sentencepiece.bpe.model\"\n");
    assert!(measure::check(&task).unwrap().is_empty());
    let folder = Path::new("tests/golden/metrics/flores");
    let pairs = lines(folder, "test.google.th").into_iter().zip(lines(folder, "test.th"));
    let samples: Vec<Sample> = pairs
        .map(|(response, target)| Sample { response, targets: vec![target], ..Default::default() })
        .collect();
    let all = measure::measures(&task, &samples).unwrap();
    let ours = all.iter().find(|m| m.about.name == "bleu").unwrap();
    let theirs = &read("spbleu/golden.json")["bleu"]["flores200"];
    assert_eq!(ours.signature, theirs["signature"].as_str().unwrap());
    let rows: Vec<usize> = (0..samples.len()).collect();
    same(ours.value(&rows), theirs["scores"]["test.google.th"].as_f64().unwrap(), "eval");
}

#[test]
fn missing_and_other_files_are_refused() {
    let error = |tok: BleuTokenizer, path| format!("{:#}", tok.load(path).err().unwrap());
    assert!(error(BleuTokenizer::Flores101, None).contains("sacrebleu_tokenizer_spm.model"));
    let gone = error(BleuTokenizer::Flores200, Some(Path::new("nowhere.model")));
    assert!(gone.contains("flores200sacrebleuspm") && gone.contains("read nowhere.model"), "{gone}");
    let other = error(BleuTokenizer::SpBleu1K, Some(Path::new("tests/golden/metrics/flores/test.es")));
    assert!(other.contains("test.es is not a usable SentencePiece model"), "{other}");
    let parse = |bytes: &[u8]| format!("{:#}", Pieces::parse(bytes).err().unwrap());
    assert!(parse(&[]).contains("none of its pieces is for unknown text"));
    // <unk>, and twice a piece "a".
    let twice = b"\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a";
    assert!(parse(twice).contains("pieces 1 and 2 are both \"a\""), "{}", parse(twice));
    let words = b"\x0a\x09\x0a\x05<unk>\x18\x02\x12\x02\x18\x03";
    assert!(parse(words).contains("its model type is 3"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any file gives pieces or an error.
    #[test]
    fn damaged_models_split_or_are_refused(
        name in prop::sample::select(vec!["nllb", "bytes", "suffix", "spaces"]), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        keep in any::<prop::sample::Index>(), text in "\\PC{0,40}",
    ) {
        let mut bytes = std::fs::read(model(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if keep.index(4) == 0 {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(pieces) = Pieces::parse(&bytes) {
            pieces.encode(&text);
        }
    }

    /// Nothing but spaces is lost or added where the normalisation changes no letters.
    #[test]
    fn pieces_hold_the_whole_text(text in "[a-z 가-낗ก-ฮ①é]{0,60}") {
        let pieces = Pieces::open(&model("suffix")).unwrap().encode(&text).concat();
        let words: Vec<&str> = text.split(' ').filter(|w| !w.is_empty()).collect();
        let expected: String = words.iter().map(|w| format!("{w}▁")).collect();
        prop_assert_eq!(pieces, expected);
    }
}
