//! What is asked of `/chat/completions`, and what is taken of its reply.
use serde_json::{Map, Value, json};

use super::client::{Client, Failure, Then};
use crate::data::conversation::Turn;

/// How an answer is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Sample from the fewest likeliest tokens that reach this probability.
    pub top_p: Option<f32>,
    /// Sample from the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Sample from the tokens that are at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Of the draws, where there are any.
    pub seed: Option<u64>,
}

impl Sampling {
    /// The likeliest tokens.
    pub fn greedy(max_new_tokens: usize) -> Sampling {
        Sampling { max_new_tokens, temperature: 0.0, top_p: None, top_k: None, min_p: None, seed: None }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its text, trimmed.
    pub text: String,
    /// Why it ended, in the server's word: `stop`, `length`, `content_filter` ...; empty where it does not say.
    pub finish: String,
    /// Who gave it, as the server names it.
    pub model: String,
    /// Tokens of the answer, as the server counts them (0: it does not).
    pub tokens: usize,
    /// Tokens of the prompt, likewise.
    pub prompt_tokens: usize,
    /// The server's name for it, if it gives names.
    pub(super) id: Option<String>,
    /// Its time, as the server wrote it.
    pub(super) created: String,
}

/// The body of a request.
pub(super) fn request(client: &Client, turns: &[Turn], s: &Sampling, stop: &[String]) -> String {
    let messages: Vec<Value> =
        turns.iter().map(|t| json!({"role": t.role.name(), "content": t.content})).collect();
    // 0.7 in 32 bits is no 0.7 in 64.
    let short = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::from(x));
    let mut body = Map::new();
    let mut set = |key: &str, value: Value| drop(body.insert(key.to_string(), value));
    set("model", json!(client.model));
    set("messages", json!(messages));
    // The newer of the two names, where the server wants it.
    if !client.extra.contains_key("max_completion_tokens") {
        set("max_tokens", json!(s.max_new_tokens));
    }
    set("temperature", json!(short(s.temperature)));
    s.top_p.into_iter().for_each(|p| set("top_p", json!(short(p))));
    s.top_k.into_iter().for_each(|k| set("top_k", json!(k)));
    s.min_p.into_iter().for_each(|p| set("min_p", json!(short(p))));
    s.seed.into_iter().for_each(|seed| set("seed", json!(seed)));
    if !stop.is_empty() {
        set("stop", json!(stop));
    }
    body.extend(client.extra.clone());
    Value::Object(body).to_string()
}

/// Takes what a server answered.
pub(super) fn answer(client: &Client, reply: &Value) -> Result<Answer, Failure> {
    let choices = reply["choices"].as_array().map_or(&[][..], Vec::as_slice);
    let choice = match choices {
        [one] => one,
        // Some servers send an error with status 200.
        [] => {
            let shown = client.key.cleaned(&reply.to_string());
            return Err(Failure::broken(format!("the reply has no choice: {shown}")));
        }
        all => {
            return Err(Failure::new(
                Then::End,
                format!("the reply has {} choices, and one was asked for", all.len()),
            ));
        }
    };
    let content = &choice["message"]["content"];
    let text = match content {
        Value::String(text) => text.trim().to_string(),
        // A refusal, or nothing but thoughts: an empty answer.
        Value::Null if choice["message"].is_object() => String::new(),
        other => {
            let shown = client.key.cleaned(&other.to_string());
            return Err(Failure::new(
                Then::End,
                format!("choices[0].message.content is {shown}: a text was expected"),
            ));
        }
    };
    // A server that does not part a reasoning model's thoughts from its answers; the template may have begun them.
    if text.starts_with("<think>") || text.contains("</think>") {
        let message = "the answer holds the model's thoughts (<think>): give the server its parser of reasoning, or turn thoughts off, as by extra-body {\"chat_template_kwargs\": {\"enable_thinking\": false}}";
        return Err(Failure::new(Then::LeaveOut, message));
    }
    // Some servers count in floating point.
    let count = |key: &str| {
        let n = &reply["usage"][key];
        n.as_u64().map_or_else(|| n.as_f64().unwrap_or(0.0) as usize, |n| n as usize)
    };
    Ok(Answer {
        text,
        finish: choice["finish_reason"].as_str().unwrap_or_default().to_string(),
        model: reply["model"].as_str().unwrap_or(&client.model).to_string(),
        tokens: count("completion_tokens"),
        prompt_tokens: count("prompt_tokens"),
        id: reply["id"].as_str().filter(|id| !id.is_empty()).map(String::from),
        created: reply["created"].to_string(),
    })
}
