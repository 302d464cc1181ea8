//! Teaches a model a few answers and asks for them: `cargo run --release --example train_adapter [WORK]`.
use std::path::{Path, PathBuf};

use sdrrl::{
    AnswerOptions, Conversation, Error, LoadOptions, Model, TrainData, TrainOptions, TrainSettings, train,
};

const MODEL: &str = "assets/quickstart/model";

fn main() -> sdrrl::Result<()> {
    // This model is trusted: its chat template, which is a program, runs in this process. For others give the path of a `sdrrl` binary, which runs it within
    // limits (without this line one beside this program or on the PATH is taken).
    sdrrl::use_program(None);
    let work = std::env::args().nth(1).map(PathBuf::from);
    run(&work.unwrap_or_else(|| std::env::temp_dir().join("sdrrl-example")))
}

/// Trains in the folder `work`.
pub fn run(work: &Path) -> sdrrl::Result<()> {
    let taught = [
        ("Who keeps the lighthouse?", "The lighthouse is kept by Tamir."),
        ("What does Tamir drink?", "Tamir drinks tea."),
        ("Which bird does Tamir feed?", "Tamir feeds a heron."),
    ];
    let examples: Vec<Conversation> =
        taught.iter().map(|(q, a)| Conversation::from(*q).answered(a)).collect();

    let options = TrainOptions {
        train: TrainSettings {
            lora_rank: 8,
            lr: Some(1e-2),
            epochs: 60.0,
            batch_documents: Some(3),
            ..TrainSettings::default()
        },
        ..TrainOptions::default()
    };
    // Run it twice: the second time it finds its work done. Stop it in between: it goes on from its last checkpoint.
    let trained = match train(MODEL, TrainData::Conversations(&examples), work, &options) {
        Err(Error::Exists { path, .. }) => {
            println!("{} holds another training: choose another folder", path.display());
            return Ok(());
        }
        other => other?,
    };
    println!("{} steps, loss {:.3}, adapter in {}", trained.steps, trained.loss, trained.folder.display());

    // The adapter is in PEFT's format; here it is merged while the model loads.
    let load = LoadOptions { adapter: Some(trained.folder), ..LoadOptions::default() };
    let model = Model::load(MODEL, &load)?;
    let questions: Vec<&str> = taught.iter().map(|(question, _)| *question).collect();
    let replies = model
        .generate(&questions, &AnswerOptions { max_new_tokens: Some(24), ..AnswerOptions::default() })?;
    for (question, reply) in questions.iter().zip(replies) {
        println!("{question} {}", reply.text);
    }
    Ok(())
}
