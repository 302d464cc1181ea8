//! generation_config.json honoured whole: ids equal to transformers' for one configuration after the other (scripts/golden_generation_config.py).
use std::{path::Path, sync::Arc};

use sdrrl::{
    data::{conversation::Prompt, template::ChatTemplate, tokenizer::Tokenizer},
    infer::{
        answerer::{AnswerOptions, Answerer},
        engine::{EngineOptions, Finish},
        generation_config::GenerationConfig,
    },
    models::transformer::weights::Transformer,
    tensor::DType,
};
use serde_json::{Value, json};

const DIR: &str = "tests/golden/generation";

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{DIR}/cases.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

/// The model with a generation_config.json of these fields.
fn answerer(fields: &Value) -> Answerer {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(DIR).join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join("generation_config.json"), fields.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    Answerer {
        model: Transformer::load(Path::new(DIR), DType::F32).unwrap(),
        template: Arc::new(ChatTemplate::load("auto", &tokenizer).unwrap()),
        tokenizer: Arc::new(tokenizer),
        generation: GenerationConfig::from_model(dir.path()).unwrap(),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn greedy_ids_equal_transformers() {
    let cases = cases();
    let mut at = 0;
    // All prompts of a configuration run together, and none depends on the others.
    while at < cases.len() {
        let fields = &cases[at]["fields"];
        let same: Vec<&Value> = cases[at..].iter().take_while(|c| c["fields"] == *fields).collect();
        let answerer = answerer(fields);
        let text = |c: &Value| c["prompt"].as_str().unwrap().to_string();
        let prompts: Vec<String> = same.iter().map(|c| text(c)).collect();
        let asked: Vec<_> = prompts.iter().map(|p| (p.as_str(), Prompt::new(None, p, ""))).collect();
        for batch_rows in [1, 3] {
            let batch = EngineOptions { batch_rows, ..Default::default() };
            let options = AnswerOptions { batch, ..Default::default() };
            let replies = answerer.answer(&asked, &options, &mut |_| {}).unwrap();
            for (reply, case) in replies.iter().zip(&same) {
                assert_eq!(reply.ids, ids(&case["ids"]), "{fields} {}", case["prompt"]);
                let stopped = case["ended"] == true
                    || fields["stop_strings"] != Value::Null && reply.finish == Finish::Stop;
                assert_eq!(reply.finish == Finish::Stop, stopped, "{fields} {}", case["prompt"]);
            }
        }
        at += same.len();
    }
}

/// Without a generation_config.json, what an older config.json says counts; its unasked-for defaults do not.
#[test]
fn older_files_keep_the_fields_in_config_json() {
    let dir = tempfile::tempdir().unwrap();
    let read = |fields: Value| {
        let text = std::fs::read_to_string(format!("{DIR}/config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        GenerationConfig::from_model(dir.path()).unwrap()
    };
    let asked =
        read(json!({"repetition_penalty": 1.4, "suppress_tokens": [293], "max_length": 20, "num_beams": 1}));
    asked.refuse_unsupported(0.0).unwrap();
    assert_eq!(
        (asked.repetition_penalty, asked.rules.suppress_tokens, asked.max_length),
        (Some(1.4), vec![293], None)
    );
    assert_eq!(read(json!({"max_length": 64})).max_length, Some(64));
    let beams = read(json!({"num_beams": 3})).refuse_unsupported(0.0).unwrap_err();
    assert!(beams.to_string().contains("num_beams = 3"), "{beams}");
}

/// Settings of the command line or the recipe come first.
#[test]
fn given_settings_win_over_the_models() {
    let answerer = answerer(
        &json!({"eos_token_id": 2, "max_length": 9, "min_new_tokens": 3, "do_sample": true, "temperature": 0.5, "top_k": 7,
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "suppress_tokens": [5]}),
    );
    let left_open = answerer.sampling(&AnswerOptions::default());
    assert_eq!((left_open.temperature, left_open.top_k, left_open.max_length), (0.5, 7, Some(9)));
    assert_eq!((left_open.min_new_tokens, left_open.no_repeat_ngram_size), (3, 4));
    let given = answerer.sampling(&AnswerOptions {
        max_new_tokens: Some(30),
        min_new_tokens: Some(0),
        temperature: Some(0.0),
        top_k: Some(2),
        top_p: Some(0.5),
        repetition_penalty: Some(1.0),
        no_repeat_ngram_size: Some(0),
        ..Default::default()
    });
    assert_eq!((given.max_new_tokens, given.max_length, given.min_new_tokens), (30, None, 0));
    assert_eq!((given.temperature, given.top_k, given.top_p, given.repetition_penalty), (0.0, 2, 0.5, 1.0));
    assert_eq!((given.no_repeat_ngram_size, given.rules.suppress_tokens), (0, vec![5]));
}

#[test]
fn what_is_not_supported_is_refused_by_name_before_anything_is_generated() {
    let asked = [("r", Prompt::new(None, "hello", ""))];
    for (fields, temperature, what) in [
        (json!({"num_beams": 4}), None, "num_beams = 4"),
        (json!({"do_sample": true, "typical_p": 0.9}), None, "typical_p = 0.9"),
        (json!({"typical_p": 0.9}), Some(0.5), "typical_p = 0.9"),
        (json!({"sequence_bias": [[[5], 2.0]]}), Some(0.0), "sequence_bias"),
    ] {
        let options = AnswerOptions { temperature, ..Default::default() };
        let error = answerer(&fields).answer(&asked, &options, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    let options = AnswerOptions { temperature: Some(0.0), max_new_tokens: Some(2), ..Default::default() };
    answerer(&json!({"do_sample": true, "typical_p": 0.9})).answer(&asked, &options, &mut |_| {}).unwrap();
    // A prompt that fills the model's max_length leaves no room.
    let error = answerer(&json!({"max_length": 2}))
        .answer(&asked, &AnswerOptions::default(), &mut |_| {})
        .unwrap_err();
    assert!(format!("{error:#}").contains("--max-new-tokens"), "{error:#}");
}
