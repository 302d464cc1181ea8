//! Answers questions: `cargo run --release --example generate [MODEL [QUESTION...]]`.
use sdrrl::{AnswerOptions, Conversation, LoadOptions, Model};

/// A Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache.
const MODEL: &str = "assets/quickstart/model";

fn main() -> sdrrl::Result<()> {
    // This model is trusted: its chat template, which is a program, runs in this process. For others give the path of a `sdrrl` binary, which runs it within
    // limits (without this line one beside this program or on the PATH is taken).
    sdrrl::use_program(None);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().map_or(MODEL, String::as_str);
    run(path, arguments.get(1..).unwrap_or_default())
}

/// Answers the questions, or two of its own.
pub fn run(path: &str, questions: &[String]) -> sdrrl::Result<()> {
    // Also here: dtype, device, an adapter to merge, a chat template, a system prompt.
    let model = Model::load(path, &LoadOptions::default())?;

    // What the options leave open is as the model's generation_config.json has it; greedy where it has none.
    let options = AnswerOptions { max_new_tokens: Some(24), ..AnswerOptions::default() };
    let mut asked: Vec<Conversation> = questions.iter().map(|q| Conversation::from(q.as_str())).collect();
    if asked.is_empty() {
        asked.push("What is the pet of Palal?".into());
        asked.push(
            Conversation::from("What is the pet of Palal?")
                .answered("A turtle.")
                .asked("Where does Palal live?"),
        );
    }
    for reply in model.generate(&asked, &options)? {
        println!("{} [{}, {} tokens]", reply.text, reply.finish.name(), reply.ids.len());
    }
    Ok(())
}
