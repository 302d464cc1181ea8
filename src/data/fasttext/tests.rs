use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fasttext")
}

const MODELS: [&str; 6] =
    ["softmax.bin", "tree.bin", "words.bin", "ova.bin", "quantised.ftz", "quantised_norm_pruned.ftz"];

#[test]
fn every_kind_of_model_predicts_what_fasttext_predicts() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("predictions.json")).unwrap()).unwrap();
    for name in MODELS {
        let model = FastText::open(&folder().join(name)).unwrap();
        assert_eq!(model.labels().len(), 7, "{name}");
        let expected = golden["predictions"][name].as_array().unwrap();
        for (text, expected) in golden["texts"].as_array().unwrap().iter().zip(expected) {
            let text = text.as_str().unwrap();
            let (label, probability) =
                model.predict(text).map(|(l, p)| (model.labels()[l].as_str(), p)).unzip();
            assert_eq!(label, expected[0].as_str(), "{name}: {text:?}");
            let (found, right) =
                (f64::from(probability.unwrap_or(-1.0)), expected[1].as_f64().unwrap_or(-1.0));
            assert!((found - right).abs() < 1e-5, "{name}: {text:?}: {found} for {right}");
        }
    }
}

#[test]
fn what_is_no_classifier_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.bin");
    let error = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        format!("{:#}", FastText::open(&path).err().unwrap())
    };
    let good = std::fs::read(folder().join("tree.bin")).unwrap();
    assert!(error(b"PK\x03\x04 something else").contains("does not begin with fastText's number"));
    assert!(error(&good[..good.len() - 7]).contains("x.bin"));
    assert!(error(&[&good[..4], &13i32.to_le_bytes(), &good[8..]].concat()).contains("version 13"));
    let vectors = [&good[..36], &2i32.to_le_bytes(), &good[40..]].concat();
    assert!(error(&vectors).contains("word vectors"), "{}", error(&vectors));
}

proptest! {
    #[test]
    fn a_damaged_model_predicts_something_or_is_an_error(which in 0..MODELS.len(), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = std::fs::read(folder().join(MODELS[which])).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        // Most of a file is vectors: damage its head more often.
        let at = if bit % 2 == 0 { at.index(200) } else { at.index(bytes.len()) };
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(model) = FastText::open(&path) {
            let _ = model.predict("The house is cold. Дом холодный");
        }
        std::fs::write(&path, &bytes[..cut.index(bytes.len())]).unwrap();
        prop_assert!(FastText::open(&path).is_err());
    }
}

/// Found by `fuzz`: a label's count beyond all others made a node of the tree its own child, and a prediction endless.
#[test]
fn counts_that_are_none_are_refused() {
    assert_eq!(tree(&[4, 2, 1]).unwrap(), [(2, 1), (3, 0)]);
    for counts in [&[i64::MAX, 2, 1][..], &[4, -1, 1], &[1 << 49, 1 << 49, 1 << 49], &[1_000_000_000_000_000]]
    {
        assert!(tree(counts).is_err(), "{counts:?}");
    }
}
