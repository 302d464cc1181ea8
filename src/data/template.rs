//! Chat templates: the model's own Jinja, or one of the field's by name. Rendering and special tokens are one step, so that there is
//! exactly one begin token, and the end token is part of what is learnt.
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use minijinja::{Environment, Error, ErrorKind, context, syntax::SyntaxConfig};
use serde_json::{Value, json};

use super::tokenizer::Tokenizer;

/// The names of the built-in templates.
pub const NAMES: [&str; 7] =
    ["auto", "alpaca", "alpaca-llamafactory", "llama2", "chatml", "seallm-v2", "plain"];

enum Kind {
    Jinja(Box<Environment<'static>>),
    Alpaca,
    AlpacaLlamaFactory,
    Llama2,
    ChatMl,
    SeaLlmV2,
    Plain,
}

/// How a question becomes a prompt, and an answer its continuation.
pub struct ChatTemplate {
    kind: Kind,
    name: String,
}

/// A rendered example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedExample {
    /// Prompt, answer, end token.
    pub tokens: Vec<u32>,
    /// Index of the answer's first token.
    pub answer_start: usize,
}

impl ChatTemplate {
    /// The template called `name`; `auto` is the model's own.
    pub fn load(name: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let kind = match name {
            "auto" => Kind::Jinja(Box::new(jinja(own_template(tokenizer)?)?)),
            "alpaca" => Kind::Alpaca,
            "alpaca-llamafactory" => Kind::AlpacaLlamaFactory,
            "llama2" => Kind::Llama2,
            "chatml" => Kind::ChatMl,
            "seallm-v2" => Kind::SeaLlmV2,
            "plain" => Kind::Plain,
            path if path.ends_with(".jinja") => {
                let text = std::fs::read_to_string(Path::new(path))
                    .with_context(|| format!("read template {path}"))?;
                Kind::Jinja(Box::new(jinja(text)?))
            }
            other => {
                bail!("template `{other}` is not known: {} or the path of a .jinja file", NAMES.join(", "))
            }
        };
        Ok(ChatTemplate { kind, name: name.into() })
    }

    /// The ids of a prompt, ready for the answer.
    pub fn encode_prompt(
        &self,
        tok: &Tokenizer,
        system: Option<&str>,
        instruction: &str,
        input: &str,
    ) -> Result<Vec<u32>> {
        let (prompt, _) = self.render(tok, system, instruction, input, "")?;
        self.prompt_ids(tok, &prompt, &[system.unwrap_or(""), instruction, input])
    }

    /// The ids of a prompt with its answer and the end token.
    pub fn encode_example(
        &self,
        tok: &Tokenizer,
        system: Option<&str>,
        instruction: &str,
        input: &str,
        output: &str,
    ) -> Result<EncodedExample> {
        let (prompt, rest) = self.render(tok, system, instruction, input, output)?;
        let mut tokens = self.prompt_ids(tok, &prompt, &[system.unwrap_or(""), instruction, input])?;
        let answer_start = tokens.len();
        // A SentencePiece tokenizer puts the space there itself.
        let rest = if tok.prefix_space() { rest.strip_prefix(' ').unwrap_or(&rest) } else { &rest };
        let answer = tok.encode_template(rest, &[output])?;
        let end = answer.iter().position(|id| tok.eos().contains(id));
        match end {
            Some(end) => tokens.extend(&answer[..=end]),
            None => {
                let eos = tok
                    .eos()
                    .first()
                    .context("the tokenizer has no end token: say `eos_token` in tokenizer_config.json")?;
                tokens.extend(&answer);
                tokens.push(*eos);
            }
        }
        Ok(EncodedExample { tokens, answer_start })
    }

    fn prompt_ids(&self, tok: &Tokenizer, prompt: &str, contents: &[&str]) -> Result<Vec<u32>> {
        let mut ids = tok.encode_template(prompt, contents)?;
        let wants_bos = tok.adds_bos() || matches!(self.kind, Kind::Llama2 | Kind::SeaLlmV2);
        if let Some(bos) = tok.bos().filter(|_| wants_bos) {
            if ids.first() != Some(&bos) {
                ids.insert(0, bos);
            }
            ensure!(ids.get(1) != Some(&bos), "template {} writes the begin token twice", self.name);
        }
        Ok(ids)
    }

    /// (prompt, answer with what ends it)
    fn render(
        &self,
        tok: &Tokenizer,
        system: Option<&str>,
        instruction: &str,
        input: &str,
        output: &str,
    ) -> Result<(String, String)> {
        let joined =
            if input.is_empty() { instruction.to_string() } else { format!("{instruction}\n{input}") };
        Ok(match &self.kind {
            Kind::Jinja(env) => return self.render_jinja(env, tok, system, &joined, output),
            Kind::Plain => (joined, output.into()),
            Kind::Alpaca => (alpaca(instruction, input), output.into()),
            Kind::AlpacaLlamaFactory => {
                let head = "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
                (format!("{head}\n\n### Instruction:\n{joined}\n\n### Response:\n"), output.into())
            }
            Kind::Llama2 => {
                let system = system.map(|s| format!("<<SYS>>\n{s}\n<</SYS>>\n\n")).unwrap_or_default();
                (format!("[INST] {system}{joined} [/INST]"), format!(" {output}"))
            }
            Kind::ChatMl => {
                let system =
                    system.map(|s| format!("<|im_start|>system\n{s}<|im_end|>\n")).unwrap_or_default();
                let prompt = format!("{system}<|im_start|>user\n{joined}<|im_end|>\n<|im_start|>assistant\n");
                (prompt, format!("{output}<|im_end|>"))
            }
            Kind::SeaLlmV2 => {
                let system = system.map(|s| format!("<|im_start|>system\n{s}</s>")).unwrap_or_default();
                (
                    format!("{system}<|im_start|>user\n{joined}</s><|im_start|>assistant\n"),
                    format!("{output}</s>"),
                )
            }
        })
    }

    fn render_jinja(
        &self,
        env: &Environment,
        tok: &Tokenizer,
        system: Option<&str>,
        user: &str,
        output: &str,
    ) -> Result<(String, String)> {
        let mut messages: Vec<Value> =
            system.map(|s| json!({"role": "system", "content": s})).into_iter().collect();
        messages.push(json!({"role": "user", "content": user}));
        let (bos_token, eos_token) = tok.bos_eos_text();
        let render = |messages: &[Value], add_generation_prompt: bool| -> Result<String> {
            let messages = minijinja::Value::from(minijinja::value::Serde(messages));
            let values = context! { messages, add_generation_prompt, bos_token => &bos_token, eos_token => &eos_token };
            let template = env.get_template("chat").map_err(|e| anyhow!("{e:#}"))?;
            template.render(values).map_err(|e| anyhow!("chat template: {e:#}"))
        };
        let prompt = render(&messages, true)?;
        messages.push(json!({"role": "assistant", "content": output}));
        let whole = render(&messages, false)?;
        let rest = whole.strip_prefix(&prompt).with_context(|| {
            format!("template {}: the prompt is not the beginning of the whole conversation, so the answer cannot be told apart", self.name)
        })?;
        Ok((prompt.clone(), rest.to_string()))
    }
}

/// Stanford Alpaca's prompt (train.py).
fn alpaca(instruction: &str, input: &str) -> String {
    let (context, block) = match input.is_empty() {
        true => ("", String::new()),
        false => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
    };
    format!(
        "Below is an instruction that describes a task{context}. Write a response that appropriately completes the \
         request.\n\n### Instruction:\n{instruction}\n\n{block}### Response:"
    )
}

fn own_template(tokenizer: &Tokenizer) -> Result<String> {
    let value = &tokenizer.config()["chat_template"];
    let named = || {
        let list = value.as_array()?;
        let pick = list.iter().find(|t| t["name"] == "default").or(list.first())?;
        pick["template"].as_str()
    };
    value.as_str().or_else(named).map(String::from).with_context(|| {
        format!("the model has no chat template of its own: choose one by name ({})", NAMES[1..].join(", "))
    })
}

/// An environment as transformers sets it up.
fn jinja(source: String) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| anyhow!("{e:#}"))?;
    env.set_syntax(syntax);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |text: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    // No `strftime_now`: templates that ask for it fall back to a fixed date, and a run stays reproducible.
    env.set_fuel(Some(5_000_000));
    env.add_template_owned("chat", source).map_err(|e| anyhow!("the chat template does not parse: {e:#}"))?;
    Ok(env)
}
