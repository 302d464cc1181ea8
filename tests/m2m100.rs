//! M2M100 held to PyTorch and transformers (scripts/golden_m2m100.py).
use std::{fs, path::Path};

use sdrrl::{
    device::Device,
    models::m2m100::{
        BeamParams, BeamStopping, GenerateOptions, M2m100, M2m100Config, Runner, StepRow, Translated,
        TranslationRequest, generate,
    },
    tensor::DType,
};
use serde_json::Value;

use crate::common::{assert_close, with_threads};

const DIR: &str = "tests/golden/m2m100";

fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{DIR}/golden.json")).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn floats(v: &Value) -> Vec<f32> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn requests(golden: &Value) -> Vec<TranslationRequest> {
    let (sources, forced) = (golden["sources"].as_array().unwrap(), ids(&golden["forced"]));
    sources
        .iter()
        .zip(forced)
        .map(|(s, f)| TranslationRequest { tokens: ids(s), forced_bos: Some(f) })
        .collect()
}

fn params(case: &Value) -> BeamParams {
    let s = &case["settings"];
    let early_stopping = match &s["early_stopping"] {
        Value::Bool(true) => BeamStopping::FirstComplete,
        Value::String(_) => BeamStopping::Never,
        _ => BeamStopping::Heuristic,
    };
    BeamParams {
        num_beams: s["num_beams"].as_u64().unwrap() as usize,
        length_penalty: s["length_penalty"].as_f64().unwrap_or(1.0) as f32,
        early_stopping,
        no_repeat_ngram_size: s["no_repeat_ngram_size"].as_u64().unwrap_or(0) as usize,
        max_length: case["max_length"].as_u64().unwrap() as usize,
        forced_eos: s["forced_eos_token_id"].as_u64().map(|id| id as u32),
    }
}

fn every_fourth(x: Vec<f32>) -> Vec<f32> {
    x.into_iter().step_by(4).collect()
}

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter()
        .zip(want)
        .map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() })
        .fold(0.0, f32::max)
}

/// Encoder states of packed sentences, and the decoder's states of a given target, token by token over the cache.
fn check_states(model: &M2m100, tolerance: f32) {
    let golden = golden();
    let states = golden["states"].as_array().unwrap();
    let sources: Vec<Vec<u32>> =
        golden["sources"].as_array().unwrap()[..states.len()].iter().map(ids).collect();
    let mut runner = Runner::new(model, 64, states.len(), 40).unwrap();
    let sentences: Vec<&[u32]> = sources.iter().map(Vec::as_slice).collect();
    let starts: Vec<usize> =
        (0..sentences.len()).map(|i| sentences[..i].iter().map(|s| s.len()).sum()).collect();
    let encoded = every_fourth(runner.encode(&sentences, &starts).unwrap().to_f32_vec().unwrap());
    let want: Vec<f32> = states.iter().flat_map(|s| floats(&s["encoder"])).collect();
    let error = largest_difference(&encoded, &want);
    assert!(error < tolerance, "encoder: {error}");
    let width = model.config.d_model / 4;
    let targets: Vec<Vec<u32>> = states.iter().map(|s| ids(&s["target"])).collect();
    for length in 0..targets.iter().map(Vec::len).max().unwrap() {
        let mut start = 0;
        let (mut rows, mut want) = (vec![], vec![]);
        for (region, (source, target)) in sources.iter().zip(&targets).enumerate() {
            if let Some(&token) = target.get(length) {
                rows.push(StepRow { token, region, length, source: (start, source.len()) });
                want.extend(floats(&states[region]["decoder"])[length * width..][..width].to_vec());
            }
            start += source.len();
        }
        let got = every_fourth(runner.step(&rows).unwrap().to_f32_vec().unwrap());
        let error = largest_difference(&got, &want);
        assert!(error < tolerance, "decoder position {length}: {error}");
    }
}

#[test]
fn encoder_and_decoder_states_equal_pytorchs() {
    check_states(&M2m100::load(Path::new(DIR), DType::F32).unwrap(), 1e-4);
}

#[test]
fn states_on_the_emulated_gpu_equal_pytorchs() {
    let model = M2m100::load(Path::new(DIR), DType::F32).unwrap();
    check_states(&model.to_device(&Device::emulated()).unwrap(), 1e-4);
}

#[test]
fn bf16_weights_stay_near() {
    check_states(&M2m100::load(Path::new(DIR), DType::Bf16).unwrap(), 0.15);
}

#[test]
fn greedy_and_beam_search_find_what_transformers_finds() {
    let (golden, model) = (golden(), M2m100::load(Path::new(DIR), DType::F32).unwrap());
    let requests = requests(&golden);
    for (name, case) in golden["search"].as_object().unwrap() {
        let options = GenerateOptions { batch_rows: 64, batch_tokens: 200 };
        let got = generate(&model, &requests, &params(case), options, &mut |_| {}).unwrap();
        for (i, (got, want)) in got.iter().zip(case["out"].as_array().unwrap()).enumerate() {
            assert_eq!(got.tokens, ids(&want["ids"]), "{name}, sentence {i}");
            if let Some(score) = want["score"].as_f64() {
                assert!(
                    (got.score as f64 - score).abs() < 1e-5 * score.abs().max(10.0),
                    "{name}, sentence {i}: {} is not {score}",
                    got.score
                );
            }
            assert_eq!(got.complete, got.tokens.last() == Some(&2));
        }
    }
}

/// Greedy and with beams; two sentences at a time, so that others join while these run.
#[test]
fn the_emulated_gpu_finds_the_same_translations() {
    let (golden, model) = (golden(), M2m100::load(Path::new(DIR), DType::F32).unwrap());
    let emulated = model.to_device(&Device::emulated()).unwrap();
    let requests = &requests(&golden)[3..8];
    for num_beams in [1, 2] {
        let params = BeamParams { num_beams, max_length: 12, ..BeamParams::default() };
        let options = GenerateOptions { batch_rows: 2 * num_beams, ..GenerateOptions::default() };
        let run = |model: &M2m100| generate(model, requests, &params, options, &mut |_| {}).unwrap();
        let tokens = |t: Vec<Translated>| t.into_iter().map(|t| t.tokens).collect::<Vec<_>>();
        assert_eq!(tokens(run(&emulated)), tokens(run(&model)), "{num_beams} beams");
    }
}

#[test]
fn a_translation_does_not_depend_on_its_batch_order_or_threads() {
    let (golden, model) = (golden(), M2m100::load(Path::new(DIR), DType::F32).unwrap());
    let all = requests(&golden);
    let params = BeamParams { max_length: 24, ..BeamParams::default() };
    let run = |requests: &[TranslationRequest], batch_rows: usize, batch_tokens: usize| {
        generate(&model, requests, &params, GenerateOptions { batch_rows, batch_tokens }, &mut |_| {})
            .unwrap()
    };
    let alone: Vec<Translated> = all.iter().flat_map(|r| run(std::slice::from_ref(r), 1, 1)).collect();
    // Few seats, few slots, and room for all: sentences join at other moments each time.
    for (rows, tokens) in [(4, 1), (8, 70), (28, 60), (28, 4096), (400, 4096)] {
        assert_eq!(run(&all, rows, tokens), alone, "{rows} {tokens}");
    }
    let backwards: Vec<TranslationRequest> = all.iter().rev().cloned().collect();
    let mut got = with_threads(3, || run(&backwards, 60, 300));
    got.reverse();
    assert_eq!(got, alone);
}

#[test]
fn generation_config_is_read_as_transformers_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        fs::write(dir.path().join("generation_config.json"), text).unwrap();
        BeamParams::from_dir(dir.path())
    };
    let p = read(r#"{"forced_eos_token_id": 2, "max_length": 50, "num_beams": 3, "early_stopping": true}"#)
        .unwrap();
    assert_eq!((p.forced_eos, p.max_length, p.num_beams), (Some(2), 50, 3));
    assert_eq!(p.early_stopping, BeamStopping::FirstComplete);
    assert_eq!(read(r#"{"forced_eos_token_id": [7]}"#).unwrap().forced_eos, Some(7));
    assert_eq!(
        read(r#"{"forced_eos_token_id": null, "max_new_tokens": 9}"#).unwrap(),
        BeamParams { max_length: 10, ..BeamParams::default() }
    );
    for bad in ["\"x\"", "[2, 3]", "-1", "4294967296"] {
        let error = format!("{:#}", read(&format!("{{\"forced_eos_token_id\": {bad}}}")).unwrap_err());
        assert!(error.contains("forced_eos_token_id") && error.contains("generation_config.json"), "{error}");
    }
    let model = M2m100::load(Path::new(DIR), DType::F32).unwrap();
    let params = BeamParams { forced_eos: Some(131), max_length: 10, ..BeamParams::default() };
    let error = format!("{:#}", params.check(&model.config).unwrap_err());
    assert!(error.contains("forced_eos_token_id") && error.contains("131"), "{error}");
}

#[test]
fn sharded_pickles_hold_the_same_weights() {
    let one = M2m100::load(Path::new(DIR), DType::F32).unwrap();
    let two = M2m100::load(&Path::new(DIR).join("bin"), DType::F32).unwrap();
    assert_eq!(one.shared.to_f32_vec().unwrap(), two.shared.to_f32_vec().unwrap());
    for (a, b) in one.encoder.iter().chain(&one.decoder).zip(two.encoder.iter().chain(&two.decoder)) {
        for (a, b) in [(&a.feed_forward.fc1, &b.feed_forward.fc1), (&a.self_attn.q_proj, &b.self_attn.q_proj)]
        {
            assert_eq!(a.weight.to_f32_vec().unwrap(), b.weight.to_f32_vec().unwrap());
            assert_eq!(
                a.bias.as_ref().unwrap().to_f32_vec().unwrap(),
                b.bias.as_ref().unwrap().to_f32_vec().unwrap()
            );
        }
    }
    let got = |model: &M2m100| {
        generate(
            model,
            &requests(&golden())[..5],
            &BeamParams { max_length: 12, ..Default::default() },
            Default::default(),
            &mut |_| {},
        )
        .unwrap()
    };
    assert_eq!(got(&one), got(&two));
    assert_close(
        "positions",
        one.positions.to_f32_vec().unwrap(),
        &two.positions.to_f32_vec().unwrap(),
        1e-9,
    );
}

/// facebook/nllb-200-distilled-600M and -3.3B by the fields of their config.json.
#[test]
fn the_published_shapes_have_their_parameters() {
    let config = |c: usize, layers: usize, f: usize| {
        serde_json::json!({"model_type": "m2m_100", "d_model": c, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": 16,
            "decoder_attention_heads": 16, "encoder_ffn_dim": f, "decoder_ffn_dim": f, "vocab_size": 256206, "max_position_embeddings": 1024,
            "activation_function": "relu", "scale_embedding": true, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2})
    };
    for (json, parameters) in
        [(config(1024, 12, 4096), 615_073_792), (config(2048, 24, 8192), 3_344_863_232usize)]
    {
        assert_eq!(M2m100Config::from_json(&json.to_string()).unwrap().parameters(), parameters);
    }
}

#[test]
fn what_cannot_be_translated_is_refused_in_words() {
    let model = M2m100::load(Path::new(DIR), DType::F32).unwrap();
    let run = |tokens: Vec<u32>, params: BeamParams| {
        let request = TranslationRequest { tokens, forced_bos: Some(120) };
        format!(
            "{:#}",
            generate(&model, &[request], &params, GenerateOptions::default(), &mut |_| {}).unwrap_err()
        )
    };
    let short = BeamParams { max_length: 10, ..BeamParams::default() };
    for (tokens, params, word) in [
        (vec![], short.clone(), "no tokens"),
        (vec![5; 65], short.clone(), "takes 64"),
        (vec![500], short, "beyond the model's vocabulary"),
        (vec![5], BeamParams { num_beams: 0, max_length: 10, ..BeamParams::default() }, "num-beams"),
        (vec![5], BeamParams::default(), "max-length"),
    ] {
        let error = run(tokens, params);
        assert!(error.contains(word), "{error}");
    }
    let error =
        format!("{:#}", M2m100::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap_err());
    assert!(error.contains("m2m_100"), "{error}");
}
