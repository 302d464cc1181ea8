//! `sdrrl chat`: a conversation in the terminal, with the model alone or with it and its adapters side by side.
use std::{
    io::{BufRead, IsTerminal, Read},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

use crate::{
    data::conversation::{Prompt, Role, Turn},
    error::Error,
    infer::{
        answerer::{AnswerOptions, Answerer},
        engine::Request,
        session::Told,
        text_stream::TextStream,
    },
    pipeline::{interrupt::interrupted, placement::Placement},
    report::out::{self, note, say, say_text},
};

/// Arguments of `chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// Adapter directory (PEFT); model and adapters answer side by side, each with its own history (repeatable)
    #[arg(long = "adapter", value_name = "DIR")]
    pub adapters: Vec<PathBuf>,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
    /// Chat template: auto (the model's own), a built-in name, or a .jinja file
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt; /system changes it
    #[arg(long)]
    pub system: Option<String>,
    /// Most tokens in a conversation
    #[arg(long, default_value_t = 4096)]
    pub context: usize,
    /// Most tokens in a reply [default: from the model's generation_config.json, else 256]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy [default: from the model's generation_config.json, else greedy]
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Sample from the fewest most likely tokens whose probabilities sum to at least this
    #[arg(long)]
    pub top_p: Option<f32>,
    /// Repetition penalty: above 1, tokens that have occurred become less likely
    #[arg(long)]
    pub repetition_penalty: Option<f32>,
    /// Seed of sampling
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// Most bytes in a line of input.
const LINE: u64 = 1 << 20;
const HELP: &str = "/system TEXT  another system prompt (none without TEXT); the conversation begins anew
/reset        the conversation begins anew
/history      what was said so far
/exit         the end, as Ctrl-D is
anything else is said to the model; a line that ends with \\ goes on in the next";

/// A model or adapter that answers.
struct Speaker {
    name: String,
    answerer: Answerer,
    turns: Vec<Turn>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let base = args.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
    let adapters = args.adapters.iter().map(|dir| (dir.display().to_string(), Some(dir.as_path())));
    let mut speakers = vec![];
    for (name, adapter) in [(base, None)].into_iter().chain(adapters) {
        let answerer = Answerer::load(&args.model, adapter, args.placement, &args.template)?;
        speakers.push(Speaker { name, answerer, turns: vec![] });
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        let names: Vec<&str> = speakers.iter().map(|s| s.name.as_str()).collect();
        say!("{}: /help lists the commands, Ctrl-D ends", names.join(" and "));
    }
    let mut talk = Talk { speakers, system: args.system.clone(), args };
    while let Some(line) = read(terminal)? {
        match line.split_once(char::is_whitespace).unwrap_or((&line, "")) {
            ("", _) => {}
            ("/exit" | "/quit", "") => break,
            ("/help", "") => say!("{HELP}"),
            ("/reset", "") => talk.reset(),
            ("/history", "") => talk.show(),
            ("/system", text) => {
                talk.system = Some(text.trim().to_string()).filter(|t| !t.is_empty());
                talk.reset();
            }
            (word, _) if word.starts_with('/') && !word[1..].contains('/') => {
                note!("{word} is no command here: /help lists them; a space in front says it to the model");
            }
            _ => talk.say(line.trim())?,
        }
        if interrupted() {
            break;
        }
    }
    Ok(())
}

/// A line, or several that are joined by \; `None` at the end.
fn read(terminal: bool) -> Result<Option<String>> {
    let mut whole = String::new();
    loop {
        if terminal {
            say_text!("{}", if whole.is_empty() { "> " } else { "| " });
        }
        let mut line = vec![];
        let input = std::io::stdin().lock();
        let n = input.take(LINE).read_until(b'\n', &mut line).context("read standard input")?;
        let long = format!(
            "a line of standard input has more than {LINE} bytes: send it in a request to `serve`, or shorten it"
        );
        ensure!((n as u64) < LINE, Error::bad_input("standard input", long));
        let line = String::from_utf8(line).context("standard input is not UTF-8")?;
        if n == 0 {
            return Ok(if whole.is_empty() { None } else { Some(whole) });
        }
        let text = line.trim_end_matches(['\n', '\r']);
        match text.strip_suffix('\\') {
            Some(begun) => whole.extend([begun, "\n"]),
            None => {
                whole.push_str(text);
                return Ok(Some(whole));
            }
        }
    }
}

struct Talk<'a> {
    speakers: Vec<Speaker>,
    system: Option<String>,
    args: &'a Args,
}

impl Talk<'_> {
    fn reset(&mut self) {
        self.speakers.iter_mut().for_each(|s| s.turns.clear());
    }

    fn show(&self) {
        if let Some(system) = &self.system {
            say!("system: {system}");
        }
        for speaker in &self.speakers {
            for turn in &speaker.turns {
                let who = if turn.role == Role::User { "you" } else { &speaker.name };
                say!("{who}: {}", turn.content);
            }
        }
    }

    /// What every speaker answers, as it comes. One whose conversation is too long says so, and the question is taken back.
    fn say(&mut self, text: &str) -> Result<()> {
        let a = self.args;
        let options = AnswerOptions {
            system: self.system.clone(),
            max_new_tokens: a.max_new_tokens,
            temperature: a.temperature,
            top_p: a.top_p,
            repetition_penalty: a.repetition_penalty,
            seed: a.seed,
            ..AnswerOptions::default()
        };
        let side_by_side = self.speakers.len() > 1;
        for speaker in &mut self.speakers {
            if side_by_side {
                say!("── {}", speaker.name);
            }
            speaker.turns.push(Turn::new(Role::User, text));
            match answer(&speaker.answerer, &speaker.turns, &options, self.args.context) {
                Ok(reply) => speaker.turns.push(Turn::new(Role::Assistant, &reply)),
                Err(e) if matches!(e.downcast_ref::<Error>(), Some(Error::BadInput { .. })) => {
                    speaker.turns.pop();
                    note!("{e:#}; /reset starts over");
                }
                Err(e) => return Err(e),
            }
            if interrupted() {
                break;
            }
        }
        Ok(())
    }
}

fn answer(a: &Answerer, turns: &[Turn], options: &AnswerOptions, context: usize) -> Result<String> {
    let prompt = Prompt::of_turns(turns).context("a conversation without a question")?;
    let id = turns.len().to_string();
    stream(a, &prompt, &id, options, context, &mut |piece| out::text(format_args!("{piece}")))
}

/// The reply to one prompt, which `on_text` gets as it comes; Ctrl-C ends it. Ends with a line break.
pub(super) fn stream(
    answerer: &Answerer,
    prompt: &Prompt,
    id: &str,
    options: &AnswerOptions,
    context: usize,
    on_text: &mut dyn FnMut(&str),
) -> Result<String> {
    answerer.check_settings(options)?;
    let prompt = Prompt { system: options.system.as_deref(), ..*prompt };
    let tokens = answerer.template.encode_prompt(&answerer.tokenizer, &prompt)?;
    let params = Arc::new(answerer.sampling(options));
    // As much as this reply may need, no more.
    let needed = params.limit(tokens.len()).min(context).max(2);
    let long =
        format!("the conversation has {} tokens, and with its reply it may have {context}", tokens.len());
    ensure!(tokens.len() < context, Error::bad_input("conversation", long));
    let mut session = answerer.session(1, needed)?;
    session.submit(Request { id: id.to_string(), tokens }, params)?;
    let (mut text, mut whole) = (TextStream::new(vec![]), String::new());
    let mut failed = None;
    while !session.is_idle() && !interrupted() && failed.is_none() {
        let mut tokens = vec![];
        session.step(&mut |_, told| match told {
            Told::Token(token) => tokens.push(token),
            Told::Done(_) => {}
            Told::Failed(e) => failed = Some(e),
        })?;
        for token in tokens {
            let piece = text.push(&answerer.tokenizer, token)?;
            if !piece.is_empty() {
                on_text(&piece);
                whole.push_str(&piece);
            }
        }
    }
    if let Some(e) = failed {
        return Err(e);
    }
    let rest = text.finish(&answerer.tokenizer)?;
    whole.push_str(&rest);
    on_text(&format!("{rest}\n"));
    Ok(whole)
}
