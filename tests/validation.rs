//! Validation documents of any length: batches are sized for them, and what does not fit is counted.
use std::path::{Path, PathBuf};

use sdrrl::{
    data::token_shard::{Document, TokenShard, write},
    models::transformer::{
        config::Config,
        train_step::{TrainStep, Trainable},
        weights::Transformer,
    },
    train::{
        trainer::TrainerSettings,
        validation::{largest_batch, validation_loss},
    },
};
use serde_json::json;

use crate::common::program;

fn shard(dir: &Path, name: &str, lengths: &[usize]) -> TokenShard {
    let path = dir.join(name);
    let document = |&n: &usize| Document {
        tokens: (0..n).map(|i| (i * 7 + n) as u32 % 48).collect(),
        weights: vec![1.0; n],
        note: "0 S>S".into(),
    };
    write(&path, &lengths.iter().map(document).collect::<Vec<_>>()).unwrap();
    TokenShard::open(&path).unwrap()
}

fn config() -> serde_json::Value {
    json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 48,
        "max_position_embeddings": 1024, "bos_token_id": null, "eos_token_id": null})
}

/// The room that a step needs is that of the largest batch of any shard, and the loss does not depend on how documents are packed.
#[test]
fn the_loss_is_that_of_all_documents_however_they_are_packed() {
    let dir = tempfile::tempdir().unwrap();
    let train = shard(dir.path(), "t.tokens", &[5, 9]);
    let validation = shard(dir.path(), "v.tokens", &[590, 160, 3, 40, 40]);
    assert_eq!(largest_batch([&train, &validation], 600), 600);
    assert_eq!(largest_batch([&train], 600), 14);
    let config: Config = Config::from_json(&config().to_string()).unwrap();
    let mut losses = vec![];
    for batch_tokens in [590, 700, 5000] {
        let mut model = Transformer::random(config.clone(), 1).unwrap();
        model.make_trainable().unwrap();
        let room = largest_batch([&train, &validation], batch_tokens);
        let mut step = TrainStep::new(&model, Trainable::Full, room).unwrap();
        let settings = TrainerSettings { batch_tokens, ..crate::training::settings() };
        losses.push(validation_loss(&model, &mut step, &validation, &settings).unwrap());
    }
    assert!(losses.iter().all(|l| (l - losses[0]).abs() < 1e-6), "{losses:?}");
}

/// A model folder and shards for the program; validation documents of these lengths.
fn files(dir: &Path, validation: &[usize]) -> (PathBuf, PathBuf) {
    let (model, shards) = (dir.join("m"), dir.join("shards"));
    std::fs::create_dir_all(&model).unwrap();
    std::fs::create_dir_all(&shards).unwrap();
    Transformer::random(Config::from_json(&config().to_string()).unwrap(), 1)
        .unwrap()
        .save_pretrained(&model, sdrrl::models::weights::stored::Stored::F32, None)
        .unwrap();
    std::fs::copy("tests/golden/tokenizer/bpe.json", model.join("tokenizer.json")).unwrap();
    shard(&shards, "train.tokens", &[12, 20, 16, 9]);
    shard(&shards, "validation.tokens", validation);
    (model, shards)
}

fn train(dir: &Path, validation: &[usize], batch_tokens: &str) -> (bool, String) {
    let (model, shards) = files(dir, validation);
    let out = program()
        .args(["train", "--epochs", "1", "--batch-tokens", batch_tokens, "--model"])
        .arg(&model)
        .arg("--shards")
        .arg(&shards)
        .arg("--out")
        .arg(dir.join("out"))
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[test]
fn long_validation_documents_are_run_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (done, said) = train(dir.path(), &[590, 30], "2048");
    assert!(done && said.contains("validation loss") && !said.contains("left out"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let (done, said) = train(dir.path(), &[590, 30, 100], "64");
    assert!(done && said.contains("2 of 3 validation documents are longer than batch-tokens"), "{said}");
    assert!(said.contains("the longest has 590 tokens"), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let (done, said) = train(dir.path(), &[590, 100], "64");
    assert!(!done && said.contains("every one of the 2 validation documents"), "{said}");
}
