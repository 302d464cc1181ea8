//! CometKiwi and sentence similarity against unbabel-comet and transformers (scripts/golden_cometkiwi.py); `import`, `score`, `sweep`.
use std::{fs, path::Path};

use proptest::prelude::*;
use safetensors::SafeTensors;
use sdrrl::{
    device::Device,
    models::{
        weights::safetensors::Checkpoint,
        xlm_roberta::{Encoder, LastLayer, XlmRoberta},
    },
    qe::{
        Scorer,
        cometkiwi::{CometKiwi, Files},
        similarity::Similarity,
    },
    tensor::DType,
};
use serde_json::{Value, json};

use crate::common::program;

pub const MODEL: &str = "tests/golden/cometkiwi/model";

pub fn golden() -> Value {
    serde_json::from_str(&fs::read_to_string("tests/golden/cometkiwi/golden.json").unwrap()).unwrap()
}

fn pairs(golden: &Value) -> Vec<(String, String)> {
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_string();
    golden["pairs"].as_array().unwrap().iter().map(|p| (text(p, "source"), text(p, "translation"))).collect()
}

fn numbers(golden: &Value, key: &str) -> Vec<f64> {
    golden["pairs"].as_array().unwrap().iter().map(|p| p[key].as_f64().unwrap()).collect()
}

fn load(model: &str) -> CometKiwi {
    CometKiwi::load(&Files::find(model, None).unwrap(), DType::F32, &Device::Cpu, 64).unwrap()
}

#[track_caller]
fn near(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "{what} {i}: {g} for {w}");
    }
}

fn copy_model(to: &Path) {
    fs::create_dir_all(to.join("checkpoints")).unwrap();
    for name in ["hparams.yaml", "config.json", "tokenizer.json", "checkpoints/model.ckpt"] {
        fs::copy(Path::new(MODEL).join(name), to.join(name)).unwrap();
    }
}

#[test]
fn token_ids_and_scores_are_those_of_unbabel_comet() {
    let golden = golden();
    let mut kiwi = load(MODEL);
    for p in golden["pairs"].as_array().unwrap() {
        let ids = kiwi.token_ids(p["source"].as_str().unwrap(), p["translation"].as_str().unwrap()).unwrap();
        assert_eq!(json!(ids), p["ids"], "{p}");
    }
    near("scores", &kiwi.score(&pairs(&golden)).unwrap(), &numbers(&golden, "score"), 1e-4);
    assert!(kiwi.name().contains("cometkiwi"));
    // As many as reach the encoder's 40 positions; none of the golden pairs has exactly as many tokens.
    let full =
        golden["pairs"].as_array().unwrap().iter().filter(|p| p["ids"].as_array().unwrap().len() == 40);
    assert!(kiwi.cut() >= full.count() && kiwi.cut() < pairs(&golden).len(), "{}", kiwi.cut());
    assert!(kiwi.score(&[]).unwrap().is_empty());
}

#[test]
fn other_mixtures_that_hparams_may_ask_for_are_computed_as_asked() {
    let golden = golden();
    let files = Files::find(MODEL, None).unwrap();
    for (key, hparam, value) in
        [("sparsemax", "layer_transformation", json!("sparsemax")), ("layer_2", "sent_layer", json!(2))]
    {
        let mut files = Files::find(MODEL, None).unwrap();
        files.hparams[hparam] = value;
        let mut kiwi = CometKiwi::load(&files, DType::F32, &Device::Cpu, 0).unwrap();
        near(key, &kiwi.score(&pairs(&golden)).unwrap(), &numbers(&golden, key), 1e-4);
    }
    let mut wrong = files;
    wrong.hparams["layer_norm"] = json!(true);
    let error = format!("{:#}", CometKiwi::load(&wrong, DType::F32, &Device::Cpu, 0).err().unwrap());
    assert!(error.contains("layer_norm"), "{error}");
}

#[test]
fn a_score_has_the_same_bits_in_any_company_order_batch_and_number_of_threads() {
    let golden = golden();
    let pairs = pairs(&golden);
    let mut kiwi = load(MODEL);
    let all = kiwi.score(&pairs).unwrap();
    for (i, pair) in pairs.iter().enumerate() {
        assert_eq!(
            kiwi.score(std::slice::from_ref(pair)).unwrap()[0].to_bits(),
            all[i].to_bits(),
            "pair {i} alone"
        );
    }
    let reversed: Vec<_> = pairs.iter().rev().cloned().collect();
    let mut scores = kiwi.score(&reversed).unwrap();
    scores.reverse();
    assert_eq!(scores, all);
    let files = Files::find(MODEL, None).unwrap();
    for (tokens, threads) in [(0, 1), (100_000, 3)] {
        let mut kiwi = CometKiwi::load(&files, DType::F32, &Device::Cpu, tokens).unwrap();
        let many: Vec<_> = pairs.iter().cycle().take(5 * pairs.len()).cloned().collect();
        let scores = crate::common::with_threads(threads, move || kiwi.score(&many).unwrap());
        for (i, s) in scores.iter().enumerate() {
            assert_eq!(s.to_bits(), all[i % all.len()].to_bits(), "pair {i}, batches of {tokens} tokens");
        }
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let golden = golden();
    let bytes = fs::read("tests/golden/cometkiwi/golden.safetensors").unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let config = sdrrl::models::xlm_roberta::XlmRobertaConfig::from_dir(Path::new(MODEL)).unwrap();
    let checkpoint = Checkpoint::open_file(&Path::new(MODEL).join("checkpoints/model.ckpt")).unwrap();
    let model = XlmRoberta::from_checkpoint(config, &checkpoint, DType::F32).unwrap();
    let numbers = [0usize, 1, 8];
    let ids: Vec<Vec<u32>> =
        numbers.iter().map(|&i| serde_json::from_value(golden["pairs"][i]["ids"].clone()).unwrap()).collect();
    let sentences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let want: Vec<Vec<f32>> = numbers
        .iter()
        .map(|i| bytemuck::pod_collect_to_vec(stored.tensor(&format!("hidden.{i}")).unwrap().data()))
        .collect();
    for last in [LastLayer::All, LastLayer::First] {
        let mut layers = 0;
        Encoder::new(&model, 256, last)
            .unwrap()
            .forward(&model, &sentences, &mut |s| {
                let (got, first) = (s.states.to_f32_vec()?, s.first.to_u32_vec()?);
                for (d, ids) in sentences.iter().enumerate() {
                    let rows = if last == LastLayer::First && s.layer == 3 { 1 } else { ids.len() };
                    let got = &got[first[d] as usize * 32..][..rows * 32];
                    let want = &want[d][s.layer * ids.len() * 32..][..rows * 32];
                    for (g, w) in got.iter().zip(want) {
                        assert!((g - w).abs() <= 1e-4, "layer {} of sentence {d}: {g} for {w}", s.layer);
                    }
                }
                layers += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(layers, 4);
    }
}

#[test]
fn sentences_that_do_not_fit_the_encoder_are_named() {
    let files = Files::find(MODEL, None).unwrap();
    let checkpoint = Checkpoint::open_file(files.pickle.as_ref().unwrap()).unwrap();
    let config = sdrrl::models::xlm_roberta::XlmRobertaConfig::from_value(files.encoder).unwrap();
    let model = XlmRoberta::from_checkpoint(config, &checkpoint, DType::F32).unwrap();
    let mut encoder = Encoder::new(&model, 60, LastLayer::All).unwrap();
    let (long, half) = ([5u32; 41], [5u32; 40]);
    for (sentences, named) in [
        (vec![&long[..]], "sentence 0 has 41 tokens"),
        (vec![&half[..], &half], "80 tokens at once"),
        (vec![&half[..3], &[]], "sentence 1 has no tokens"),
        (vec![&[5, 60000][..]], "token 60000"),
    ] {
        let error = encoder.forward(&model, &sentences, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
    encoder.forward(&model, &[], &mut |_| Ok(())).unwrap();
}

/// A Hugging Face directory of the golden model's encoder, by `import` of CometKiwi with its config.json replaced.
pub fn encoder_dir(dir: &Path) -> String {
    let to = dir.join("encoder");
    let out = run(&["import", "--model", MODEL, "--out", to.to_str().unwrap()]);
    assert!(out.0, "{}", out.1);
    fs::copy(Path::new(MODEL).join("config.json"), to.join("config.json")).unwrap();
    to.to_str().unwrap().to_string()
}

/// BERT's positions begin at the first row of their table (multilingual-e5-small): the same encoder with a table that has only the rows in use.
#[test]
fn an_encoder_of_type_bert_has_its_positions_from_0() {
    let dir = tempfile::tempdir().unwrap();
    let xlm_r = encoder_dir(dir.path());
    let bert = dir.path().join("bert");
    fs::create_dir(&bert).unwrap();
    fs::copy(Path::new(&xlm_r).join("tokenizer.json"), bert.join("tokenizer.json")).unwrap();
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(&xlm_r).join("config.json")).unwrap()).unwrap();
    let unused = config["pad_token_id"].as_u64().unwrap() + 1;
    let rows = config["max_position_embeddings"].as_u64().unwrap() - unused;
    config["model_type"] = json!("bert");
    config["max_position_embeddings"] = json!(rows);
    let fields = config.as_object_mut().unwrap();
    fields.remove("bos_token_id");
    fields.remove("eos_token_id");
    fs::write(bert.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(Path::new(&xlm_r).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if name.ends_with("position_embeddings.weight") {
                let row = data.len() / shape[0];
                data.drain(..row * unused as usize);
                shape[0] -= unused as usize;
            }
            (name.replace("encoder.model.", "bert."), view.dtype(), shape, data)
        })
        .collect();
    let views = views.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(bert.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let load = |dir: &Path| Similarity::load(dir, "", DType::F32, &Device::Cpu, 64).unwrap();
    let pairs = pairs(&golden());
    let (a, b) = (load(Path::new(&xlm_r)).score(&pairs).unwrap(), load(&bert).score(&pairs).unwrap());
    near("similarity", &b, &a, 1e-6);
}

#[test]
fn similarities_are_those_of_mean_pooled_transformers_states() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let model = encoder_dir(dir.path());
    let load =
        |tokens| Similarity::load(Path::new(&model), "query: ", DType::F32, &Device::Cpu, tokens).unwrap();
    let sentences: Vec<String> = golden["sentences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap().strip_prefix("query: ").unwrap().to_string())
        .collect();
    let mut similarity = load(64);
    for (i, a) in sentences.iter().enumerate() {
        let pairs: Vec<_> = sentences.iter().map(|b| (a.clone(), b.clone())).collect();
        let got = similarity.score(&pairs).unwrap();
        let want: Vec<f64> =
            golden["similarities"][i].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        near(&format!("similarity of {i}"), &got, &want, 1e-4);
        assert!(got.iter().all(|x| (-1.0..=1.0).contains(x)));
        assert!((got[i] - 1.0).abs() < 1e-6);
        let other = load(100_000).score(&pairs[i..]).unwrap();
        assert_eq!(got[i..], other, "in other company");
    }
}

/// Whether the program succeeded, and what it said.
fn run(args: &[&str]) -> (bool, String) {
    let out = program().args(args).env("NO_COLOR", "1").env("HF_HOME", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (out.status.success(), said)
}

#[track_caller]
fn refused(args: &[&str], named: &[&str]) {
    let (success, said) = run(args);
    assert!(!success, "{args:?} succeeded: {said}");
    named.iter().for_each(|n| assert!(said.contains(n), "{n:?} is not in: {said}"));
}

#[test]
fn import_makes_a_directory_that_scores_with_the_same_bits() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("kiwi");
    let at = out.to_str().unwrap();
    let (success, said) = run(&["import", "--model", MODEL, "--out", at]);
    assert!(success && said.contains("tensors"), "{said}");
    let (a, b) = (load(MODEL).score(&pairs(&golden)).unwrap(), load(at).score(&pairs(&golden)).unwrap());
    assert_eq!(a, b);
    let config: Value = serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["model_type"], &config["hparams"]["sent_layer"]),
        (&json!("cometkiwi"), &json!("mix"))
    );
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert!(metadata.tensors().keys().all(|name| !name.contains("dropout")));
    assert!(!dir.path().join("kiwi.partial").exists());
    let (success, said) = run(&["import", "--model", MODEL, "--out", at]);
    assert!(success && said.contains("unchanged"), "{said}");
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), bytes);
    // What is there stays: a result of another checkpoint, and what no stage made.
    let (other, mine) = (dir.path().join("other"), dir.path().join("mine"));
    [&other, &mine].iter().for_each(|d| fs::create_dir(d).unwrap());
    fs::copy("tests/golden/pickle/views.bin", other.join("pytorch_model.bin")).unwrap();
    fs::write(other.join("config.json"), "{}").unwrap();
    refused(
        &["import", "--model", other.to_str().unwrap(), "--out", at],
        &["exists", "other inputs", "--out"],
    );
    refused(&["import", "--model", MODEL, "--out", mine.to_str().unwrap()], &["mine exists", "--out"]);
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
    refused(&["import", "--model", at, "--out", &format!("{at}2")], &["nothing to convert"]);
}

#[test]
fn import_converts_shards_and_refuses_what_is_no_list_of_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    let shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    fs::copy("tests/golden/pickle/views.bin", from.join(shards[0])).unwrap();
    fs::copy(Path::new(MODEL).join("checkpoints/model.ckpt"), from.join(shards[1])).unwrap();
    fs::write(from.join("config.json"), "{}").unwrap();
    let index = |map: Value| {
        fs::write(from.join("pytorch_model.bin.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    };
    let right = json!({"f64": shards[0], "encoder.model.embeddings.LayerNorm.bias": shards[1]});
    let args = ["import", "--model", from.to_str().unwrap(), "--out", to.to_str().unwrap()];
    // What somebody else calls so stays; what a killed import left goes.
    let (foreign, left) = (dir.path().join("to.partial"), dir.path().join(".to.sdrrl-import.partial"));
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("mine"), "1").unwrap();
    fs::create_dir(&left).unwrap();
    fs::write(left.join("model-00001-of-00002.safetensors"), "half").unwrap();
    // A tensor that its shard does not have, and a shard that is no name.
    index(json!({"f64": shards[0], "encoder.missing": shards[1]}));
    refused(&args, &["encoder.missing", shards[1], "has no tensor"]);
    index(json!({"f64": shards[1], "encoder.model.embeddings.LayerNorm.bias": shards[1]}));
    refused(&args, &["f64", shards[1], "has no tensor"]);
    index(json!({"f64": shards[0], "b": 3}));
    refused(&args, &["tensor b is 3", "not a plain file name"]);
    index(right);
    let (success, said) = run(&args);
    assert!(success, "{said}");
    assert!(foreign.join("mine").exists() && !left.exists());
    let (old, new) = (Checkpoint::open(&from).unwrap(), Checkpoint::open(&to).unwrap());
    assert!(new.names().len() > 50);
    for name in new.names() {
        let dims = new.shape(name).unwrap();
        let [a, b] = [&old, &new].map(|c| c.tensor(name, dims, DType::F32).unwrap().to_f32_vec().unwrap());
        assert_eq!(a, b, "{name}");
    }
    fs::remove_dir_all(&to).unwrap();
    fs::copy("tests/golden/pickle/evil.bin", from.join(shards[1])).unwrap();
    refused(&args, &[shards[1], "system"]);
    assert!(!to.exists() && !left.exists() && foreign.join("mine").exists());
    fs::remove_file(from.join(shards[1])).unwrap();
    refused(&args, &[shards[1]]);
}

#[test]
fn missing_files_are_named_with_their_source_and_licence() {
    let needed =
        ["Unbabel/wmt22-cometkiwi-da", "CC-BY-NC-SA-4.0", "gated", "model.ckpt", "microsoft/infoxlm-large"];
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rows.jsonl"), "{\"id\":\"1\",\"instruction\":\"a\"}\n").unwrap();
    let (input, out) = (dir.path().join("rows.jsonl"), dir.path().join("s"));
    let score = |more: &[&str]| {
        let base = ["score", "--engine", "cometkiwi", "--target-languages", "es"];
        let paths = ["--input", input.to_str().unwrap(), "--out", out.to_str().unwrap()];
        refused(&[&base[..], &paths, more].concat(), &needed);
    };
    score(&[]);
    let model = dir.path().join("model");
    copy_model(&model);
    let at = model.to_str().unwrap();
    fs::remove_file(model.join("checkpoints/model.ckpt")).unwrap();
    score(&["--model", at]);
    copy_model(&model);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    let files = Files::find(at, None).unwrap();
    let error = format!("{:#}", CometKiwi::load(&files, DType::F32, &Device::Cpu, 64).err().unwrap());
    assert!(needed.iter().all(|n| error.contains(n)), "{error}");
    fs::remove_file(model.join("config.json")).unwrap();
    score(&["--model", at]);
    // The encoder's files may stand elsewhere.
    assert!(Files::find(at, Some(MODEL)).is_ok());
}

fn scored_rows(dir: &Path) -> String {
    let golden = golden();
    let rows: Vec<String> = pairs(&golden)
        .into_iter()
        .filter(|(a, b)| !a.is_empty() && !b.is_empty())
        .enumerate()
        .map(|(i, (source, translation))| {
            let t = json!({"instruction": translation, "answer": translation, "engine": "test"});
            let answer = json!({"text": source, "model": "m", "finish": "stop", "tokens": 3});
            json!({"id": format!("r{i}"), "language": "en", "instruction": source, "answer": answer, "translations": {"es": t}})
                .to_string()
                + "\n"
        })
        .collect();
    fs::write(dir.join("rows.jsonl"), rows.concat()).unwrap();
    let (input, out) = (dir.join("rows.jsonl"), dir.join("scored"));
    let (success, said) = run(&[
        "score",
        "--engine",
        "cometkiwi",
        "--model",
        MODEL,
        "--input",
        input.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--target-languages",
        "es",
    ]);
    assert!(success && said.contains("longer than the scorer reads were cut"), "{said}");
    out.to_str().unwrap().to_string()
}

fn rows(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("rows-00000.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn sweep_counts_what_filter_keeps_without_scoring_again() {
    let dir = tempfile::tempdir().unwrap();
    let scored = scored_rows(dir.path());
    let raw = rows(Path::new(&scored));
    assert!(raw[0]["scores"]["es"]["engine"].as_str().unwrap().starts_with("cometkiwi"));
    let out = dir.path().join("sweep");
    let args = [
        "sweep",
        "--input",
        &scored,
        "--out",
        out.to_str().unwrap(),
        "--target-languages",
        "es",
        "--taus=-0.2..0.4:0.1",
        "--write-rows",
    ];
    let (success, said) = run(&args);
    assert!(success, "{said}");
    let json: Value = serde_json::from_str(&fs::read_to_string(out.join("sweep.json")).unwrap()).unwrap();
    let results = json["results"].as_array().unwrap();
    let tsv = fs::read_to_string(out.join("sweep.tsv")).unwrap();
    assert_eq!((results.len(), tsv.lines().count()), (7, 8));
    let mut before = usize::MAX;
    for r in results {
        let (tau, kept) = (r["tau"].as_f64().unwrap(), r["kept"].as_u64().unwrap() as usize);
        let filtered = rows(&out.join(format!("tau-{tau:.2}")));
        let verdicts = filtered.iter().filter(|r| r["verdicts"]["es"]["keep"] == true);
        assert_eq!(verdicts.clone().count(), kept, "{r}");
        let characters: usize =
            verdicts.map(|r| r["translations"]["es"]["answer"].as_str().unwrap().chars().count()).sum();
        let mean = r["characters"]["answer"]["mean"].as_f64().unwrap();
        assert!((mean * kept as f64 - characters as f64).abs() < 1e-6, "{r}");
        assert!(kept <= before);
        before = kept;
    }
    assert!(results[0]["kept"].as_u64() > results[6]["kept"].as_u64(), "{results:?}");
    refused(
        &["sweep", "--input", &scored, "--out", out.to_str().unwrap(), "--target-languages", "de"],
        &["no translation into de"],
    );
    refused(
        &[
            "sweep",
            "--input",
            &scored,
            "--out",
            out.to_str().unwrap(),
            "--target-languages",
            "es",
            "--taus",
            "x",
        ],
        &["--taus"],
    );
}

#[test]
fn similarity_is_an_engine_of_score() {
    let dir = tempfile::tempdir().unwrap();
    let scored = scored_rows(dir.path());
    let model = encoder_dir(dir.path());
    let out = dir.path().join("s");
    let (success, said) = run(&[
        "score",
        "--engine",
        "similarity",
        "--model",
        &model,
        "--prefix",
        "query: ",
        "--input",
        &scored,
        "--out",
        out.to_str().unwrap(),
        "--target-languages",
        "es",
    ]);
    assert!(success, "{said}");
    for row in rows(&out) {
        let x = row["scores"]["es"]["sides"]["answer"].as_f64().unwrap();
        assert!((-1.0..=1.0).contains(&x), "{row}");
    }
}

/// A SentencePiece file (sentencepiece_model.proto) with the pieces and scores of the golden tokenizer.json.
fn sentencepiece_file() -> Vec<u8> {
    let json: Value =
        serde_json::from_str(&fs::read_to_string(Path::new(MODEL).join("tokenizer.json")).unwrap()).unwrap();
    let vocab: Vec<(String, f32)> = serde_json::from_value(json["model"]["vocab"].clone()).unwrap();
    assert_eq!((vocab[3].0.as_str(), vocab[vocab.len() - 1].0.as_str()), ("<unk>", "<mask>"));
    let own = [("<unk>", 0.0, 2u8), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
    let body = vocab[4..vocab.len() - 1].iter().map(|(text, score)| (text.as_str(), *score, 1));
    let mut file = vec![];
    for (text, score, kind) in own.into_iter().chain(body) {
        let head = [&[0x0a, text.len() as u8], text.as_bytes(), &[0x15], &score.to_le_bytes(), &[0x18, kind]]
            .concat();
        file.extend([&[0x0a, head.len() as u8], &head[..]].concat());
    }
    file
}

#[test]
fn a_sentencepiece_file_stands_in_for_tokenizer_json() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_model(&model);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    fs::write(model.join("sentencepiece.bpe.model"), sentencepiece_file()).unwrap();
    let at = model.to_str().unwrap();
    // The golden tokenizer normalises and knows special tokens in text; these pairs have nothing of the kind.
    let plain = |p: &&Value| {
        let text = format!("{}{}", p["source"].as_str().unwrap(), p["translation"].as_str().unwrap());
        text.chars().all(|c| c.is_alphanumeric() && c < '\u{3000}' || " .,:!¿?".contains(c))
    };
    let chosen: Vec<&Value> = golden["pairs"].as_array().unwrap().iter().filter(plain).collect();
    assert!(chosen.len() >= 7, "{}", chosen.len());
    let text = |p: &Value, key: &str| p[key].as_str().unwrap().to_string();
    let pairs: Vec<_> = chosen.iter().map(|p| (text(p, "source"), text(p, "translation"))).collect();
    let want: Vec<f64> = chosen.iter().map(|p| p["score"].as_f64().unwrap()).collect();
    let mut kiwi = load(at);
    for (p, (source, translation)) in chosen.iter().zip(&pairs) {
        assert_eq!(json!(kiwi.token_ids(source, translation).unwrap()), p["ids"], "{p}");
    }
    let scores = kiwi.score(&pairs).unwrap();
    near("scores", &scores, &want, 1e-4);
    // Imported, it has a tokenizer.json, since the layout of the pieces is said by the encoder's config.json only.
    let out = dir.path().join("kiwi");
    let (success, said) = run(&["import", "--model", at, "--out", out.to_str().unwrap()]);
    assert!(success, "{said}");
    assert!(out.join("tokenizer.json").exists());
    assert_eq!(load(out.to_str().unwrap()).score(&pairs).unwrap(), scores);
    // An encoder's own directory, for similarity.
    fs::copy(Path::new(MODEL).join("config.json"), out.join("config.json")).unwrap();
    fs::remove_file(out.join("tokenizer.json")).unwrap();
    let mut similarity = Similarity::load(&out, "query: ", DType::F32, &Device::Cpu, 64).unwrap();
    let sentence = |i: usize| text(&json!({"s": golden["sentences"][i]}), "s").replacen("query: ", "", 1);
    let got = similarity.score(&[(sentence(0), sentence(1)), (sentence(0), sentence(2))]).unwrap();
    let want = [1, 2].map(|i| golden["similarities"][0][i].as_f64().unwrap());
    near("similarities", &got, &want, 1e-4);
    // Without either, the error says what is needed.
    fs::remove_file(out.join("sentencepiece.bpe.model")).unwrap();
    let error = format!("{:#}", Similarity::load(&out, "", DType::F32, &Device::Cpu, 64).err().unwrap());
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn the_emulated_gpu_gives_the_same_scores() {
    let golden = golden();
    let (pairs, files) = (pairs(&golden), Files::find(MODEL, None).unwrap());
    let device = Device::emulated();
    let mut kiwi = CometKiwi::load(&files, DType::F32, &device, 0).unwrap();
    near("scores", &kiwi.score(&pairs[..4]).unwrap(), &numbers(&golden, "score")[..4], 1e-4);
    let dir = tempfile::tempdir().unwrap();
    let encoder = encoder_dir(dir.path());
    let of = |device: &Device| {
        let mut similarity = Similarity::load(Path::new(&encoder), "", DType::F32, device, 0).unwrap();
        similarity.score(&pairs[..2]).unwrap()
    };
    near("similarities", &of(&device), &of(&Device::Cpu), 1e-4);
}

#[test]
fn import_rounds_64_bit_floats_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::copy("tests/golden/pickle/views.bin", from.join("pytorch_model.bin")).unwrap();
    fs::write(from.join("config.json"), "{}").unwrap();
    let args = ["import", "--model", from.to_str().unwrap(), "--out", to.to_str().unwrap()];
    let (success, said) = run(&args);
    assert!(success && said.contains("1 tensors of 64-bit floats (f64 ...) were rounded"), "{said}");
    let new = Checkpoint::open(&to).unwrap();
    let [wide, narrow] =
        ["f64", "f32"].map(|n| new.tensor(n, &[6, 4], DType::F32).unwrap().to_f32_vec().unwrap());
    assert_eq!(wide, narrow);
    // 1e300 in its place is named.
    fs::remove_dir_all(&to).unwrap();
    let mut bytes = fs::read("tests/golden/pickle/views.bin").unwrap();
    let first = (f64::from(narrow[0])).to_le_bytes();
    let at = bytes.windows(8).position(|w| w == first).unwrap();
    bytes[at..at + 8].copy_from_slice(&1e300f64.to_le_bytes());
    fs::write(from.join("pytorch_model.bin"), bytes).unwrap();
    refused(&args, &["f64", "1e300", "64-bit"]);
    assert!(!to.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_damaged_model_folder_scores_or_is_refused(at in any::<u32>(), bit in 0u8..8, cut in any::<bool>(), which in 0usize..4) {
        let dir = tempfile::tempdir().unwrap();
        copy_model(dir.path());
        let file = dir.path().join(["config.json", "hparams.yaml", "checkpoints/model.ckpt", "tokenizer.json"][which]);
        let mut bytes = fs::read(&file).unwrap();
        let at = at as usize % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&file, bytes).unwrap();
        let loaded = Files::find(dir.path().to_str().unwrap(), None)
            .and_then(|files| CometKiwi::load(&files, DType::F32, &Device::Cpu, 64));
        if let Ok(mut kiwi) = loaded {
            let _ = kiwi.score(&[("a house".into(), "una casa".into())]);
        }
    }
}
