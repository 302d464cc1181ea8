//! Hidden states against transformers, alignment metrics against numpy (tests/golden/hidden.json, scripts/golden_hidden.py).
use std::path::Path;

use sdrrl::{
    infer::hidden::{Pooling, sentence_vectors},
    metrics::alignment::Alignment,
    models::{transformer::decode::Decoder, transformer::weights::Transformer},
    tensor::DType,
};
use serde::Deserialize;

use crate::common::assert_close;

#[derive(Deserialize)]
struct Case {
    model: String,
    pooling: Pooling,
    vectors: Vec<Vec<Vec<f32>>>,
    cka: Vec<f64>,
    cosine: Vec<Vec<f64>>,
    forward: Vec<Vec<bool>>,
    backward: Vec<Vec<bool>>,
}

#[derive(Deserialize)]
struct Golden {
    source: Vec<Vec<u32>>,
    target: Vec<Vec<u32>>,
    cases: Vec<Case>,
}

fn golden() -> Golden {
    serde_json::from_str(&std::fs::read_to_string("tests/golden/hidden.json").unwrap()).unwrap()
}

fn model(name: &str) -> Transformer {
    Transformer::load(&Path::new("tests/golden/models").join(name), DType::F32).unwrap()
}

#[test]
fn hidden_states_equal_transformers_and_alignment_equals_numpy() {
    let g = golden();
    for case in &g.cases {
        let model = model(&case.model);
        // A budget that splits the sentences into several calls.
        let vectors = |s: &[Vec<u32>]| sentence_vectors(&model, s, case.pooling, 20, &mut |_| {}).unwrap();
        let (source, target) = (vectors(&g.source), vectors(&g.target));
        assert_eq!(source.len(), case.vectors.len());
        for (l, expected) in case.vectors.iter().enumerate() {
            let what = format!("{} {:?} hidden state {l}", case.model, case.pooling);
            assert_close(&what, source[l].concat(), &expected.concat(), 1e-4);
            let found = Alignment::of(&source[l], &target[l]).unwrap();
            assert!(
                (found.cka() - case.cka[l]).abs() < 1e-4,
                "{what}: CKA {} for {}",
                found.cka(),
                case.cka[l]
            );
            for (a, b) in found.cosines.iter().zip(&case.cosine[l]) {
                assert!((a - b).abs() < 1e-4, "{what}: cosine {a} for {b}");
            }
            assert_eq!((&found.forward, &found.backward), (&case.forward[l], &case.backward[l]), "{what}");
        }
    }
}

/// The hook changes nothing: the last hidden state it hands out is what a plain forward returns, bit for bit.
#[test]
fn looking_at_hidden_states_changes_no_bit() {
    let g = golden();
    let model = model("llama-tied");
    let texts: Vec<&[u32]> = g.source.iter().map(Vec::as_slice).collect();
    let n: usize = texts.iter().map(|t| t.len()).sum();
    let mut decoder = Decoder::new(&model, n, 64).unwrap();
    let plain = decoder.prompts(&model, &texts, None, &[]).unwrap().to_f32_vec().unwrap();
    let mut last = vec![];
    decoder
        .hidden_states(&model, &texts, &mut |_, states| {
            last = states.to_f32_vec()?;
            Ok(())
        })
        .unwrap();
    assert_eq!(plain, last);
}
