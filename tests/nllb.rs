//! SentencePiece tokenizers held to transformers (scripts/golden_sentencepiece.py), and the engine `nllb` from end to end.
use std::{cell::RefCell, fs, path::Path, process::Stdio};

use proptest::prelude::*;
use sdrrl::{
    data::{
        languages,
        random::RowRandom,
        tokenizer::{
            Tokenizer,
            sentencepiece::{FILE, IdLayout, NLLB_CODES, build},
        },
    },
    device::Device,
    models::{
        m2m100::{BeamParams, GenerateOptions, M2m100, M2m100Config},
        weights::export::write_safetensors,
    },
    mt::{
        Translator,
        nllb::{Nllb, NllbText, NllbTranslator},
    },
    tensor::{DType, Tensor},
};
use serde_json::{Value, json};

use crate::common::program;

const DIR: &str = "tests/golden/sentencepiece";

fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string(format!("{DIR}/golden.json")).unwrap()).unwrap()
}

#[test]
fn sentencepiece_files_give_the_ids_of_transformers_in_all_languages() {
    let golden = golden();
    for name in ["nllb", "xlm-roberta"] {
        let tokenizer = Tokenizer::load(&Path::new(DIR).join(name)).unwrap();
        for (i, text) in golden["texts"].as_array().unwrap().iter().enumerate() {
            let want: Vec<u32> = serde_json::from_value(golden[name]["ids"][i].clone()).unwrap();
            let got = tokenizer.encode(text.as_str().unwrap(), false).unwrap();
            assert_eq!(got, want, "{name}: {text}");
            assert_eq!(
                tokenizer.decode(&got).unwrap(),
                golden[name]["decoded"][i].as_str().unwrap(),
                "{name}: {text}"
            );
        }
    }
}

#[test]
fn own_tokens_follow_the_pieces() {
    let golden = golden();
    let xlmr = Tokenizer::load(&Path::new(DIR).join("xlm-roberta")).unwrap();
    assert_eq!(xlmr.id("<mask>").unwrap() as u64, golden["xlm-roberta"]["mask"].as_u64().unwrap());
    assert_eq!(xlmr.vocab_size() as u64, golden["xlm-roberta"]["size"].as_u64().unwrap());
    // A file of 256000 pieces puts ace_Arab at 256001 and <mask> at 256203, as NLLB-200's own tokenizer.json does: pieces + 1.
    let nllb = Tokenizer::load(&Path::new(DIR).join("nllb")).unwrap();
    let codes: Vec<&str> = NLLB_CODES.split_whitespace().collect();
    assert_eq!(codes.len(), 202);
    for (i, code) in codes.iter().enumerate() {
        assert_eq!(nllb.id(code), Some(701 + i as u32), "{code}");
    }
    assert_eq!(nllb.id("<mask>"), Some(701 + 202));
    assert_eq!(["<s>", "<pad>", "</s>", "<unk>"].map(|t| nllb.id(t)), [0, 1, 2, 3].map(Some));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn damaged_sentencepiece_files_tokenize_or_are_refused(
        which in any::<bool>(), at in any::<usize>(), bit in 0u8..8, in_map in any::<bool>(), cut in any::<bool>(),
    ) {
        let (name, layout) = if which { ("nllb", IdLayout::Nllb) } else { ("xlm-roberta", IdLayout::XlmRoberta) };
        let mut bytes = fs::read(Path::new(DIR).join(name).join(FILE)).unwrap();
        // The character map is at the end, the pieces at the start.
        let at = if in_map { at % bytes.len() } else { at % 9000 };
        bytes[at] ^= 1 << bit;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(tokenizer) = build(&bytes, layout) {
            for text in golden()["texts"].as_array().unwrap() {
                tokenizer.encode(text.as_str().unwrap(), false).unwrap();
            }
        }
    }
}

/// A folder with a model in `nllb`.
pub fn place_with_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("nllb")).unwrap();
    model(&dir.path().join("nllb"));
    dir
}

/// A directory of a random model with the small tokenizer.
fn model(dir: &Path) {
    let config = json!({"model_type": "m2m_100", "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 906, "max_position_embeddings": 64,
        "activation_function": "relu", "scale_embedding": true, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        "max_length": 24});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::copy(Path::new(DIR).join("nllb").join(FILE), dir.join(FILE)).unwrap();
    let tensors: RefCell<Vec<(String, Tensor)>> = RefCell::new(vec![]);
    M2m100::build(M2m100Config::from_json(&config.to_string()).unwrap(), &mut |name, dims, _| {
        let mut random = RowRandom::new(3, "weights", name);
        let center = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values: Vec<f32> =
            (0..dims.iter().product()).map(|_| (center + random.uniform() - 0.5) as f32).collect();
        let t = Tensor::from_f32(name, dims, &values)?;
        tensors.borrow_mut().push((format!("model.{name}"), t.to_device(&Device::Cpu)?));
        Ok(t)
    })
    .unwrap();
    let tensors = tensors.into_inner();
    write_safetensors(&dir.join("model.safetensors"), &tensors.iter().collect::<Vec<_>>(), DType::F32)
        .unwrap();
}

fn translator(dir: &Path, source: &str, target: &str) -> anyhow::Result<NllbTranslator> {
    let nllb = Nllb::load(dir, DType::F32, &Device::Cpu)?;
    NllbTranslator::new(&nllb, source, target, BeamParams::from_dir(dir)?, GenerateOptions::default())
}

#[test]
fn languages_go_by_all_their_names_and_unknown_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let sentence = ["All human beings are born free.".to_string()];
    let one = translator(dir.path(), "en", "cs").unwrap().translate(&sentence).unwrap();
    for (source, target) in [("eng_Latn", "ces_Latn"), ("English", "Czech"), ("eng", "ces"), ("en", "cze")] {
        assert_eq!(
            translator(dir.path(), source, target).unwrap().translate(&sentence).unwrap(),
            one,
            "{target}"
        );
    }
    let error = format!("{:#}", translator(dir.path(), "en", "Klingon").err().unwrap());
    assert!(error.contains("Klingon") && error.contains("ces_Latn"), "{error}");
}

#[test]
fn long_sentences_are_split_and_empty_ones_stay_empty() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let nllb = Nllb::load(dir.path(), DType::F32, &Device::Cpu).unwrap();
    let params = BeamParams::from_dir(dir.path()).unwrap();
    assert_eq!(params.max_length, 24);
    let mut translator = NllbTranslator::new(&nllb, "en", "da", params, GenerateOptions::default()).unwrap();
    let long = "All human beings are born free and equal in dignity and rights ".repeat(12);
    let sentences = ["".to_string(), long, "---".into(), "Short one.".into()];
    let out = translator.translate(&sentences).unwrap();
    assert_eq!((out[0].as_str(), out[2].as_str()), ("", "---"));
    assert_eq!(translator.scores().len(), 4);
    assert!(translator.scores()[1] < 0.0 && translator.scores()[3] < 0.0);
    let happened = nllb.happened().to_string();
    assert!(happened.contains("1 sentences longer than the model"), "{happened}");
    // Alone or together, a sentence has the same translation.
    assert_eq!(translator.translate(&sentences[3..]).unwrap()[0], out[3]);
}

#[test]
fn the_stage_translates_keeps_layout_and_scores_and_explains_what_is_missing() {
    let dir = place_with_model();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let rows: String = (0..5)
        .map(|i| json!({"id": format!("r{i}"), "instruction": format!("Say {i}. Then stop.\n\n- one"), "output": ""}).to_string() + "\n")
        .collect();
    fs::write(at("rows.jsonl"), rows).unwrap();
    let run = |out: &str, more: &[&str]| {
        let base = [
            "translate",
            "--input",
            &at("rows.jsonl"),
            "--out",
            &at(out),
            "--target-languages",
            "cs,da",
            "--engine",
            "nllb",
        ];
        program().args(base).args(more).output().unwrap()
    };
    for device in ["cpu", "emulated"] {
        let out = run(
            device,
            &["--translator", &at("nllb"), "--num-beams", "2", "--max-length", "8", "--device", device],
        );
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let text = |name: &str| fs::read_to_string(dir.path().join(name).join("rows-00000.jsonl")).unwrap();
    let first: Value = serde_json::from_str(text("cpu").lines().next().unwrap()).unwrap();
    let translation = &first["translations"]["cs"];
    assert_eq!(translation["scores"]["instruction"].as_array().unwrap().len(), 3, "{translation}");
    assert!(translation["instruction"].as_str().unwrap().contains("\n\n- "), "{translation}");
    assert!(translation["engine"].as_str().unwrap().starts_with("nllb nllb, beams 2"));
    for (a, b) in text("cpu").lines().zip(text("emulated").lines()) {
        let read =
            |l: &str| serde_json::from_str::<Value>(l).unwrap()["translations"]["da"]["instruction"].clone();
        assert_eq!(read(a), read(b));
    }
    let missing = String::from_utf8_lossy(&run("x", &[]).stderr).into_owned();
    assert!(missing.contains("translator") && missing.contains("CC-BY-NC"), "{missing}");
    fs::remove_file(dir.path().join("nllb/model.safetensors")).unwrap();
    let missing = String::from_utf8_lossy(&run("y", &["--translator", &at("nllb")]).stderr).into_owned();
    assert!(missing.contains("model.safetensors") && missing.contains("pytorch_model.bin"), "{missing}");
}

/// 150 rows are three chunks, so that tokenising, searching and writing overlap.
#[test]
fn a_translation_killed_at_any_moment_goes_on_to_the_same_bytes() {
    let dir = place_with_model();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let row = |i: usize| {
        let text = format!("Say {i} to {}. Then stop.", "the house ".repeat(i % 7));
        json!({"id": format!("r{i}"), "instruction": text, "output": "Yes."}).to_string() + "\n"
    };
    fs::write(at("rows.jsonl"), (0..150).map(row).collect::<String>()).unwrap();
    let command = |out: &str| {
        let mut command = program();
        command.args([
            "translate",
            "--input",
            &at("rows.jsonl"),
            "--out",
            &at(out),
            "--target-languages",
            "cs,quy_Latn",
        ]);
        command.args([
            "--engine",
            "nllb",
            "--translator",
            &at("nllb"),
            "--num-beams",
            "2",
            "--max-length",
            "12",
        ]);
        command
    };
    let text = |out: &str| fs::read(dir.path().join(out).join("rows-00000.jsonl")).unwrap();
    let whole = std::time::Instant::now();
    assert!(command("whole").output().unwrap().status.success());
    let whole = whole.elapsed();
    let mut random = RowRandom::new(2, "kill", "translate");
    let mut kills = 0;
    for _ in 0..6 {
        let mut child = command("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.3 + 0.6 * random.uniform()));
        child.kill().unwrap();
        kills += usize::from(!child.wait().unwrap().success());
    }
    assert!(kills > 0);
    assert!(command("killed").output().unwrap().status.success());
    assert!(text("killed") == text("whole"));
    let first: Value = serde_json::from_slice(text("whole").split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert!(first["translations"]["quy_Latn"]["instruction"].is_string());
    // A row that cannot be read stops the stage by name, behind the rows of the chunks before it.
    let mut bytes = fs::read(at("rows.jsonl")).unwrap();
    let line = bytes.windows(6).position(|w| w == b"\"r140\"").unwrap();
    bytes[line + 2] = 0xff;
    fs::write(at("rows.jsonl"), bytes).unwrap();
    let said = String::from_utf8_lossy(&command("bad").output().unwrap().stderr).into_owned();
    assert!(
        said.contains("rows.jsonl:141") && said.contains("not UTF-8") && said.contains("rows 128..150"),
        "{said}"
    );
    let partial = fs::read_dir(at("bad"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "partial"));
    assert_eq!(fs::read_to_string(partial.unwrap()).unwrap().lines().count(), 128);
}

#[test]
fn every_code_of_the_tokenizer_is_a_language_and_the_nearest_is_suggested() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let nllb = Nllb::load(dir.path(), DType::F32, &Device::Cpu).unwrap();
    let make = |to: &str| {
        NllbTranslator::new(
            &nllb,
            "en",
            to,
            BeamParams::from_dir(dir.path()).unwrap(),
            GenerateOptions::default(),
        )
    };
    let tokenizer = Tokenizer::load(&Path::new(DIR).join("nllb")).unwrap();
    let text = NllbText::load(dir.path()).unwrap();
    for code in NLLB_CODES.split_whitespace() {
        // By the model's code, and by what the stages write.
        for name in [code.to_string(), languages::code(code).unwrap()] {
            assert_eq!(text.language(&name).unwrap(), tokenizer.id(code).unwrap(), "{name}");
        }
        assert!(make(code).is_ok(), "{code}");
    }
    for (wrong, near) in [("quy_Latm", "quy_Latn"), ("zho_Hanz", "zho_Han"), ("tyv_Cyrl", "_Cyrl")] {
        let error = format!("{:#}", make(wrong).err().unwrap());
        assert!(error.contains(wrong) && error.contains("did you mean") && error.contains(near), "{error}");
    }
    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, "{\"id\":\"1\",\"instruction\":\"a\"}\n").unwrap();
    let out = dir.path().join("out");
    let said = program()
        .args([
            "translate",
            "--engine",
            "nllb",
            "--translator",
            dir.path().to_str().unwrap(),
            "--target-languages",
            "Quechua",
        ])
        .args(["--input", rows.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains("`Quechua` is ambiguous") && said.contains("quy_Latn (Ayacucho Quechua)"),
        "{said}"
    );
}
