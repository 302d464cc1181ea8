//! Tokenizers and templates against tokenizers, sentencepiece and transformers (scripts/golden_tokenizer.py).
use std::path::Path;

use proptest::prelude::*;
use sdrrl::data::{
    conversation::Prompt,
    template::{ChatTemplate, Encoded, TrainOn},
    tokenizer::Tokenizer,
};
use serde_json::Value;

const DIR: &str = "tests/golden/tokenizer";

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{DIR}/golden.json")).unwrap()).unwrap()
}

fn load(file: &str) -> Tokenizer {
    Tokenizer::load(&Path::new(DIR).join(file)).unwrap()
}

fn encode(template: &ChatTemplate, tok: &Tokenizer, prompt: &Prompt, answer: &str) -> Encoded {
    template.encode(tok, prompt, answer, TrainOn::All).unwrap().without_tail()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_equal_tokenizers_and_sentencepiece() {
    let golden = golden();
    for (file, key) in [("bpe.json", "bpe"), ("bpe.gguf", "bpe"), ("spm.gguf", "spm")] {
        let tok = load(file);
        for (text, want) in golden[key].as_object().unwrap() {
            assert_eq!(tok.encode(text, false).unwrap(), ids(want), "{file}: {text:?}");
        }
    }
}

/// A tokenizer of pre.gguf's vocabulary under another pre-tokeniser, whose name is the file's last value.
fn pre_tokenized(dir: &Path, name: &str) -> anyhow::Result<Tokenizer> {
    let bytes = std::fs::read(format!("{DIR}/pre.gguf")).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    let value = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    std::fs::write(dir.join("m.gguf"), [&bytes[..at], &value].concat()).unwrap();
    Tokenizer::load(&dir.join("m.gguf"))
}

/// scripts/golden_pre_tokenizers.py
#[test]
fn every_pre_tokeniser_of_gguf_files_cuts_as_its_models_own() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{DIR}/pre.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    for (name, wanted) in golden["pre"].as_object().unwrap() {
        let tok = pre_tokenized(dir.path(), name).unwrap();
        for (text, want) in texts.iter().zip(wanted.as_array().unwrap()) {
            assert_eq!(tok.encode(text, false).unwrap(), ids(want), "{name}: {text:?}");
        }
    }
    let gemma = load("gemma.gguf");
    for (text, want) in texts.iter().zip(golden["gemma"]["texts"].as_array().unwrap()) {
        assert_eq!(gemma.encode(text, false).unwrap(), ids(want), "gemma: {text:?}");
        assert_eq!(gemma.decode(&ids(want)).unwrap(), *text, "gemma");
    }
    let end = golden["gemma"]["end"].as_u64().unwrap() as u32;
    assert_eq!((gemma.eos(), gemma.adds_bos(), gemma.bos()), (&[1, end][..], true, Some(2)));
    let error = format!("{:#}", pre_tokenized(dir.path(), "a-name-of-tomorrow").map(drop).unwrap_err());
    assert!(
        error.contains("`a-name-of-tomorrow`") && error.contains("llama-bpe") && error.contains("tekken"),
        "{error}"
    );
}

#[test]
fn decoding_returns_the_text() {
    for file in ["bpe.json", "bpe.gguf", "spm.gguf"] {
        let tok = load(file);
        for text in golden()["spm"].as_object().unwrap().keys() {
            let ids = tok.encode(text, false).unwrap();
            assert_eq!(tok.decode(&ids).unwrap(), *text, "{file}");
        }
    }
}

#[test]
fn special_tokens_in_somebodys_text_stay_letters() {
    let tok = load("bpe.gguf");
    let end = tok.id("<|im_end|>").unwrap();
    assert!(!tok.encode("stop <|im_end|> here", false).unwrap().contains(&end));
    let template = ChatTemplate::load("chatml", &tok).unwrap();
    let example = encode(&template, &tok, &Prompt::new(None, "say <|im_end|> twice", ""), "ok <|im_end|> ok");
    let ends: Vec<usize> = (0..example.tokens.len()).filter(|&i| example.tokens[i] == end).collect();
    assert_eq!(ends.len(), 2, "one after the question, one after the answer");
    assert_eq!(ends[1], example.tokens.len() - 1);
    assert!(tok.decode(&example.tokens).unwrap().contains("say <|im_end|> twice"));
}

#[test]
fn templates_render_as_transformers_does() {
    for case in golden()["rendered"].as_array().unwrap() {
        let mut tok_json: Value =
            serde_json::from_str(&std::fs::read_to_string(format!("{DIR}/bpe.json")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tok_json["post_processor"] = Value::Null;
        std::fs::write(dir.path().join("tokenizer.json"), tok_json.to_string()).unwrap();
        let config = serde_json::json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": false,
                                        "chat_template": case["template"]});
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tok = Tokenizer::load(dir.path()).unwrap();
        let template = ChatTemplate::load("auto", &tok).unwrap();
        let system = case["system"].as_str();
        let prompt = template.encode_prompt(&tok, &Prompt::new(system, "What is it?", "")).unwrap();
        assert_eq!(prompt, tok.encode_with_special(case["prompt"].as_str().unwrap()).unwrap());
        let example = encode(&template, &tok, &Prompt::new(system, "What is it?", ""), "A cat.");
        assert_eq!(example.tokens[..example.answer_start], prompt);
        let whole = tok.encode_with_special(case["whole"].as_str().unwrap()).unwrap();
        let end = whole.iter().rposition(|id| tok.eos().contains(id)).unwrap();
        assert_eq!(example.tokens, whole[..=end], "{case}");
    }
}

#[test]
fn named_templates_have_one_begin_and_a_trained_end() {
    let tok = load("spm.gguf");
    for name in ["alpaca", "alpaca-llamafactory", "llama2", "plain", "seallm-v2"] {
        let template = ChatTemplate::load(name, &tok).unwrap();
        let example = encode(&template, &tok, &Prompt::new(None, "Hello world", "some text"), "a cat");
        let count = |id: Option<u32>| example.tokens.iter().filter(|t| Some(**t) == id).count();
        assert_eq!(count(tok.bos()), 1, "{name}");
        assert_eq!(example.tokens.last(), tok.eos().first(), "{name}");
        assert_eq!(tok.decode(&example.tokens[example.answer_start..]).unwrap().trim(), "a cat", "{name}");
    }
    let alpaca = ChatTemplate::load("alpaca", &tok).unwrap();
    let text = tok.decode(&alpaca.encode_prompt(&tok, &Prompt::new(None, "Do it.", "")).unwrap()).unwrap();
    assert!(text.ends_with("### Instruction:\nDo it.\n\n### Response:"), "{text}");
    let error = ChatTemplate::load("alpacca", &tok).err().unwrap().to_string();
    assert!(error.contains("alpaca-llamafactory"), "{error}");
    let error = ChatTemplate::load("auto", &tok).err().unwrap().to_string();
    assert!(error.contains("choose one by name"), "{error}");
}

#[test]
fn broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    for bytes in ["", "{", "{}", "[1]", "{\"model\": 3}"] {
        std::fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", Tokenizer::load(dir.path()).err().unwrap());
        assert!(error.contains("tokenizer"), "{error}");
    }
    let whole = std::fs::read(format!("{DIR}/spm.gguf")).unwrap();
    let gguf = dir.path().join("x.gguf");
    for keep in (0..whole.len()).step_by(997) {
        std::fs::write(&gguf, &whole[..keep]).unwrap();
        assert!(Tokenizer::load(&gguf).is_err(), "{keep} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_text_returns(text in "\\PC{0,60}") {
        let tok = load("bpe.json");
        let ids = tok.encode(&text, false).unwrap();
        prop_assert_eq!(tok.decode(&ids).unwrap(), text);
    }
}
