//! The field's templates that stand in no model's files, by name.
use std::ops::Range;

use anyhow::{Result, ensure};

use crate::data::conversation::{Prompt, Role, Turn};

/// A built-in template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// Stanford Alpaca's prompt (train.py).
    Alpaca,
    /// LLaMA-Factory's `alpaca`.
    AlpacaLlamaFactory,
    /// LLaMA-2-chat.
    Llama2,
    /// OpenAI's ChatML.
    ChatMl,
    /// SeaLLM v2 and v2.5.
    SeaLlmV2,
    /// The question, then the answer.
    Plain,
}

/// A text under construction, with the parts that the model writes.
#[derive(Default)]
pub(super) struct Text {
    pub text: String,
    /// One for each assistant turn: what it covers, its end token included.
    pub answers: Vec<Range<usize>>,
}

impl Text {
    fn answer(&mut self, content: &str, end: &str) {
        let start = self.text.len();
        self.text.push_str(content);
        self.text.push_str(end);
        self.answers.push(start..self.text.len());
    }
}

pub(super) const LLAMA_FACTORY_HEAD: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

impl Named {
    pub fn by_name(name: &str) -> Option<Named> {
        Some(match name {
            "alpaca" => Named::Alpaca,
            "alpaca-llamafactory" => Named::AlpacaLlamaFactory,
            "llama2" => Named::Llama2,
            "chatml" => Named::ChatMl,
            "seallm-v2" => Named::SeaLlmV2,
            "plain" => Named::Plain,
            _ => return None,
        })
    }

    /// The begin token stands first whatever the tokenizer does by itself.
    pub fn begins(self) -> bool {
        matches!(self, Named::Llama2 | Named::SeaLlmV2)
    }

    /// Prompt and answer are tokenised apart: nothing stands between them that would keep their letters from joining.
    pub fn is_apart(self) -> bool {
        self == Named::Plain
    }

    /// The conversation up to the place where the answer begins, and with `answer` behind it; `specials` are the texts of the begin and the
    /// end token.
    pub fn render(self, prompt: &Prompt, answer: Option<&str>, specials: (&str, &str)) -> Result<Text> {
        let mut turns = prompt.turns();
        turns.pop();
        let system = turns.first().filter(|t| t.role == Role::System).map(|t| t.content.clone());
        if system.is_some() {
            turns.remove(0);
        }
        let mut out = Text::default();
        match self {
            Named::Alpaca | Named::Plain => {
                ensure!(system.is_none(), "template {} has no place for a system prompt", self.name());
                ensure!(turns.is_empty(), "template {} has no place for earlier turns", self.name());
                out.text = if self == Named::Plain {
                    prompt.question()
                } else {
                    alpaca(prompt.instruction, prompt.input)
                };
            }
            _ => {
                out.text = self.head(system.as_deref());
                self.earlier(&turns, specials, &mut out)?;
                out.text.push_str(&self.question(&prompt.question()));
            }
        }
        if let Some(answer) = answer {
            let (before, after) = self.around();
            out.answer(&format!("{before}{answer}"), after);
        }
        Ok(out)
    }

    fn name(self) -> &'static str {
        match self {
            Named::Alpaca => "alpaca",
            Named::AlpacaLlamaFactory => "alpaca-llamafactory",
            Named::Llama2 => "llama2",
            Named::ChatMl => "chatml",
            Named::SeaLlmV2 => "seallm-v2",
            Named::Plain => "plain",
        }
    }

    /// What stands before the first question.
    fn head(self, system: Option<&str>) -> String {
        match (self, system) {
            (Named::AlpacaLlamaFactory, system) => format!("{}\n\n", system.unwrap_or(LLAMA_FACTORY_HEAD)),
            (Named::ChatMl, Some(s)) => format!("<|im_start|>system\n{s}<|im_end|>\n"),
            (Named::SeaLlmV2, Some(s)) => format!("<|im_start|>system\n{s}</s>"),
            (Named::Llama2, Some(s)) => format!("[INST] <<SYS>>\n{s}\n<</SYS>>\n\n"),
            (Named::Llama2, None) => "[INST] ".into(),
            _ => String::new(),
        }
    }

    /// A question with what asks for its answer. Llama 2's opening stands before it already.
    fn question(self, text: &str) -> String {
        match self {
            Named::AlpacaLlamaFactory => format!("### Instruction:\n{text}\n\n### Response:\n"),
            Named::Llama2 => format!("{text} [/INST]"),
            Named::ChatMl => format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"),
            Named::SeaLlmV2 => format!("<|im_start|>user\n{text}</s><|im_start|>assistant\n"),
            Named::Alpaca | Named::Plain => text.into(),
        }
    }

    /// What stands around the last answer.
    fn around(self) -> (&'static str, &'static str) {
        match self {
            Named::Llama2 => (" ", ""),
            Named::ChatMl => ("", "<|im_end|>"),
            Named::SeaLlmV2 => ("", "</s>"),
            _ => ("", ""),
        }
    }

    /// Earlier questions and answers, which must take turns.
    fn earlier(self, turns: &[Turn], (bos, eos): (&str, &str), out: &mut Text) -> Result<()> {
        for pair in turns.chunks(2) {
            let [user, assistant] = pair else { anyhow::bail!(uneven(self.name())) };
            ensure!(user.role == Role::User && assistant.role == Role::Assistant, uneven(self.name()));
            out.text.push_str(&self.question(&user.content));
            match self {
                Named::Llama2 => {
                    out.answer(&format!(" {} ", assistant.content), eos);
                    out.text.push_str(&format!("{bos}[INST] "));
                }
                Named::AlpacaLlamaFactory => {
                    out.answer(&assistant.content, eos);
                    out.text.push_str("\n\n");
                }
                Named::ChatMl => {
                    out.answer(&assistant.content, "<|im_end|>");
                    out.text.push('\n');
                }
                _ => out.answer(&assistant.content, "</s>"),
            }
        }
        Ok(())
    }
}

fn uneven(name: &str) -> String {
    format!("template {name}: the turns of user and assistant must alternate")
}

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
