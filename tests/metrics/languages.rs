//! sacreBLEU's metrics and ROUGE-L in every language of XL-Sum (scripts/golden_languages.py).
use std::path::PathBuf;

use sdrrl::metrics::{
    bleu, chrf,
    corpus::CorpusMetric,
    rouge::Rouge,
    tokenize::{BleuTokenizer, TercomOptions},
};
use serde_json::Value;

use super::{digits, numbers, read, same, texts};

const TOKENIZERS: [BleuTokenizer; 5] =
    [BleuTokenizer::V13a, BleuTokenizer::Intl, BleuTokenizer::Zh, BleuTokenizer::Char, BleuTokenizer::None];

#[test]
fn sacrebleus_metrics_and_signatures_are_equal_in_every_language() {
    let golden = read("languages.json");
    let all = golden["languages"].as_object().unwrap();
    assert_eq!(all.len(), 45);
    for (language, g) in all {
        let (hyps, refs) = (texts(&g["predictions"]), texts(&g["targets"]));
        let mut theirs = g["sacrebleu"].as_array().unwrap().iter();
        let mut check = |score: f64, signature: String| {
            let theirs = theirs.next().unwrap();
            same(score, theirs[2].as_f64().unwrap(), &format!("{language} {}", theirs[1]));
            assert_eq!(signature, theirs[1].as_str().unwrap(), "{language}");
        };
        for tokenizer in TOKENIZERS {
            let score = bleu::corpus_bleu(&hyps, &refs, &tokenizer.load(None).unwrap()).unwrap();
            check(score.score, score.signature);
        }
        for order in [0, 2] {
            let score = chrf::corpus_chrf(&hyps, &refs, order).unwrap();
            check(score.score, score.signature);
        }
        for options in [
            TercomOptions::default(),
            TercomOptions { normalized: true, asian_support: true, ..Default::default() },
            TercomOptions { no_punct: true, case_sensitive: true, ..Default::default() },
        ] {
            let metric = CorpusMetric::Ter(options);
            let counts = metric.counts(&hyps, &refs).unwrap();
            check(metric.score(&counts), metric.signature());
        }
        assert!(theirs.next().is_none());
    }
}

/// Every language but those that need a dictionary, which is not in the repository.
fn rouge_equals(language: &str, g: &Value, dictionary: Option<PathBuf>) {
    let rouge = Rouge::new(language, dictionary.as_deref(), false).unwrap();
    let (hyps, refs) = (texts(&g["predictions"]), texts(&g["targets"]));
    let scores = rouge.scores(&hyps, &refs).unwrap();
    for (i, (ours, theirs)) in scores.iter().zip(numbers(&g["rouge-l"])).enumerate() {
        digits(*ours, theirs, &format!("{language}, pair {}", i + 1));
    }
}

#[test]
fn rouge_l_equals_the_multilingual_package_in_every_language() {
    let golden = read("languages.json");
    for (language, g) in golden["languages"].as_object().unwrap() {
        if !matches!(language.as_str(), "ja" | "th") {
            rouge_equals(language, g, None);
        }
    }
    for (language, cases) in golden["own"].as_object().unwrap() {
        let rouge = Rouge::new(language, None, false).unwrap();
        for case in cases.as_array().unwrap() {
            let text = |key: &str| case[key].as_str().unwrap();
            assert_eq!(rouge.words(text("prediction")), texts(&case["words"]), "{case}");
            digits(rouge.f1(text("prediction"), text("target")), case["f1"].as_f64().unwrap(), language);
        }
    }
    let signature = |language: &str| Rouge::new(language, None, false).unwrap().signature();
    assert!(signature("zh-TW").contains("|tok:jieba-0.42.1|"), "{}", signature("zh-TW"));
    assert!(signature("my").contains("|tok:syllables-my|"), "{}", signature("my"));
}

#[test]
#[ignore = "needs SDRRL_THAI_WORDS=words_th.txt of PyThaiNLP, SDRRL_UNIDIC=the folder of unidic-lite"]
fn rouge_l_with_dictionaries_equals_the_multilingual_package() {
    let golden = read("languages.json");
    for (language, name) in [("th", "SDRRL_THAI_WORDS"), ("ja", "SDRRL_UNIDIC")] {
        let folder = PathBuf::from(std::env::var(name).unwrap());
        rouge_equals(language, &golden["languages"][language], Some(folder));
    }
}
