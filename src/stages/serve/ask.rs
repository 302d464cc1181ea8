//! Requests and replies in the form of OpenAI's API. What a request asks for is done or refused by name.
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::http::Refusal;
use crate::{
    data::conversation::{Role, Turn},
    infer::answerer::AnswerOptions,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    /// A conversation, the user's turn last.
    Turns(Vec<Turn>),
    /// Plain text.
    Text(String),
}

/// A request, understood whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub kind: Kind,
    pub model: String,
    pub input: Input,
    pub options: AnswerOptions,
    pub stops: Vec<String>,
    pub stream: bool,
    /// With a last event that counts tokens.
    pub usage: bool,
    /// Whether the draws are to be the same each time.
    pub seeded: bool,
}

/// Fields that say nothing about the reply.
const IGNORED: &[&str] =
    &["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

/// Fields that are taken only with a value that asks for nothing, and that value.
fn asks_nothing(key: &str, value: &Value) -> bool {
    match key {
        "n" | "best_of" => value == &json!(1),
        "frequency_penalty" | "presence_penalty" | "top_logprobs" => value.as_f64() == Some(0.0),
        "logprobs" | "echo" | "parallel_tool_calls" => value == &json!(false),
        "logit_bias" => value.as_object().is_some_and(Map::is_empty),
        "tools" | "functions" => value.as_array().is_some_and(Vec::is_empty),
        "tool_choice" | "function_call" => value == &json!("none"),
        "response_format" => value["type"] == json!("text"),
        "modalities" => value == &json!(["text"]),
        _ => false,
    }
}

fn bad(code: &'static str, message: String) -> Refusal {
    Refusal::new(400, code, message)
}

/// Reads a request; `defaults` are the server's own.
pub(super) fn parse(kind: Kind, body: &[u8], defaults: &AnswerOptions) -> Result<Asked, Refusal> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| bad("invalid_json", format!("the body is no JSON: {e}")))?;
    let Value::Object(map) = value else {
        return Err(bad("invalid_json", "the body must be a JSON object".into()));
    };
    let mut asked = Asked {
        kind,
        model: String::new(),
        input: Input::Text(String::new()),
        options: defaults.clone(),
        stops: vec![],
        stream: false,
        usage: false,
        seeded: false,
    };
    let input = if kind == Kind::Chat { "messages" } else { "prompt" };
    if !map.contains_key(input) {
        return Err(bad("missing_field", format!("`{input}` is missing")));
    }
    for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
        let known = set(&mut asked, key, value).map_err(|what| bad("invalid_value", what))?;
        if !known && !IGNORED.contains(&key.as_str()) && !asks_nothing(key, value) {
            let message = format!("`{key}` is not supported here with the value {}", shortened(value));
            return Err(bad("unsupported_field", message));
        }
    }
    Ok(asked)
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}

/// Takes a field; whether it is one that means something here.
fn set(asked: &mut Asked, key: &str, value: &Value) -> Result<bool, String> {
    let wrong = |what: &str| format!("`{key}` is {}: {what} was expected", shortened(value));
    let number = |low: f64, high: f64| {
        let within = value.as_f64().filter(|x| (low..=high).contains(x));
        within.ok_or_else(|| wrong(&format!("a number from {low} to {high}")))
    };
    let whole = |low: u64| {
        let within = value.as_u64().filter(|n| *n >= low && *n <= u32::MAX as u64).map(|n| n as usize);
        within.ok_or_else(|| wrong(&format!("a whole number from {low} on")))
    };
    let flag = || value.as_bool().ok_or_else(|| wrong("true or false"));
    let o = &mut asked.options;
    match key {
        "model" => asked.model = value.as_str().ok_or_else(|| wrong("a name"))?.to_string(),
        "messages" if asked.kind == Kind::Chat => asked.input = Input::Turns(turns(value)?),
        "prompt" if asked.kind == Kind::Text => {
            let one = value.as_array().filter(|all| all.len() == 1).map_or(value, |all| &all[0]);
            asked.input = Input::Text(one.as_str().ok_or_else(|| wrong("one text"))?.to_string());
        }
        "max_tokens" | "max_completion_tokens" => o.max_new_tokens = Some(whole(1)?),
        "temperature" => o.temperature = Some(number(0.0, 1000.0)? as f32),
        "top_p" => {
            // Half the smallest float is none.
            o.top_p = Some((number(0.0, 1.0)? as f32).max(f32::MIN_POSITIVE));
        }
        "top_k" => o.top_k = Some(whole(0)?),
        "min_p" => o.min_p = Some(number(0.0, 1.0)? as f32),
        "repetition_penalty" => o.repetition_penalty = Some(number(1e-3, 1e3)? as f32),
        "seed" => {
            o.seed = value.as_i64().ok_or_else(|| wrong("a whole number"))? as u64;
            asked.seeded = true;
        }
        "stop" => {
            let all = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            let texts: Option<Vec<String>> = all.iter().map(|v| v.as_str().map(String::from)).collect();
            let fits = |t: &Vec<String>| t.len() <= 16 && t.iter().all(|s| s.len() <= 1000);
            asked.stops = texts.filter(fits).ok_or_else(|| wrong("up to 16 texts"))?;
        }
        "stream" => asked.stream = flag()?,
        "stream_options" => {
            let map = value.as_object().ok_or_else(|| wrong("an object"))?;
            if let Some(other) = map.keys().find(|k| *k != "include_usage" && *k != "include_obfuscation") {
                return Err(format!("`stream_options.{other}` is not supported here"));
            }
            asked.usage = map.get("include_usage").is_some_and(|v| v == &json!(true));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn turns(value: &Value) -> Result<Vec<Turn>, String> {
    let all = value.as_array().ok_or("`messages` must be an array")?;
    let mut turns = vec![];
    for (i, message) in all.iter().enumerate() {
        let at = format!("messages[{i}]");
        let map = message.as_object().ok_or_else(|| format!("`{at}` must be an object"))?;
        let role = match message["role"].as_str() {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            _ => {
                let role = shortened(&message["role"]);
                return Err(format!("`{at}.role` is {role}: system, user or assistant was expected"));
            }
        };
        let plain = |k: &str, v: &Value| ["role", "content", "name", "refusal"].contains(&k) || v.is_null();
        if let Some((key, _)) = map.iter().find(|(k, v)| !plain(k, v)) {
            return Err(format!("`{at}.{key}` is not supported here"));
        }
        turns.push(Turn::new(role, &content(&message["content"], &at)?));
    }
    let ends = turns.last().is_some_and(|t| t.role == Role::User);
    if ends { Ok(turns) } else { Err("`messages` must end with a turn of the user".into()) }
}

fn content(value: &Value, at: &str) -> Result<String, String> {
    if let Some(text) = value.as_str() {
        return Ok(text.into());
    }
    let parts = value.as_array().ok_or_else(|| format!("`{at}.content` must be a text"))?;
    let text = |part: &Value| match part["type"].as_str() {
        Some("text") => part["text"].as_str().map(String::from),
        _ => None,
    };
    let texts: Option<Vec<String>> = parts.iter().map(text).collect();
    Ok(texts.ok_or_else(|| format!("`{at}.content` has a part that is no text"))?.join("\n"))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A reply in the making: what all its parts have in common.
pub(super) struct Form<'a> {
    pub kind: Kind,
    pub id: &'a str,
    pub model: &'a str,
    pub created: u64,
}

impl Form<'_> {
    fn whole(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    /// The whole reply.
    pub fn reply(&self, text: &str, finish: &str, usage: (usize, usize)) -> Value {
        let mut value = match self.kind {
            Kind::Chat => self.whole(
                "chat.completion",
                json!([{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null}, "logprobs": null, "finish_reason": finish}]),
            ),
            Kind::Text => self.whole(
                "text_completion",
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]),
            ),
        };
        value["usage"] = counts(usage);
        value
    }

    /// A piece of it; `first` names the role, `finish` ends it.
    pub fn piece(&self, text: &str, first: bool, finish: Option<&str>) -> Value {
        match self.kind {
            Kind::Chat => {
                let mut delta = Map::new();
                if first {
                    delta.insert("role".into(), json!("assistant"));
                }
                if first || !text.is_empty() {
                    delta.insert("content".into(), json!(text));
                }
                self.whole(
                    "chat.completion.chunk",
                    json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]),
                )
            }
            Kind::Text => self.whole(
                "text_completion",
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]),
            ),
        }
    }

    /// The event that counts tokens.
    pub fn usage(&self, usage: (usize, usize)) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut value = self.whole(object, json!([]));
        value["usage"] = counts(usage);
        value
    }
}

fn counts((prompt, reply): (usize, usize)) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply})
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chat(body: Value) -> Result<Asked, Refusal> {
        parse(Kind::Chat, body.to_string().as_bytes(), &AnswerOptions::default())
    }

    #[test]
    fn what_a_request_asks_for_is_done_or_refused_by_name() {
        let messages = json!([{"role": "developer", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]);
        let asked = chat(json!({"model": "m", "messages": messages, "max_tokens": 5, "temperature": 0.5, "stop": "x", "seed": -1,
            "stream": true, "stream_options": {"include_usage": true}, "n": 1, "user": "me", "tools": null, "logprobs": false}))
        .unwrap();
        assert_eq!(asked.options.max_new_tokens, Some(5));
        assert!(asked.stream && asked.usage && asked.seeded && asked.stops == ["x"]);
        let Input::Turns(turns) = &asked.input else { panic!() };
        assert_eq!((turns[0].role, turns[1].content.as_str()), (Role::System, "q"));
        for (key, value) in [
            ("n", json!(2)),
            ("tools", json!([{"type": "function"}])),
            ("logprobs", json!(true)),
            ("response_format", json!({"type": "json_object"})),
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(1.5)),
            ("stop", json!([1])),
            ("stream", json!("yes")),
            ("stream_options", json!({"other": 1})),
            ("no_such_field", json!(1)),
            ("prompt", json!("x")),
            ("messages", json!([])),
            ("messages", json!("q")),
            ("messages", json!([{"role": "tool", "content": "x"}])),
            ("messages", json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])),
            ("messages", json!([{"role": "user", "content": [{"type": "image_url"}]}])),
            ("messages", json!([{"role": "user", "content": "x", "tool_calls": [1]}])),
        ] {
            let mut body = json!({"model": "m", "messages": messages});
            body[key] = value.clone();
            let refused = chat(body).unwrap_err();
            assert!(refused.status == 400 && refused.message.contains(key), "{key} {value}: {refused:?}");
        }
        assert_eq!(chat(json!({"model": "m"})).unwrap_err().code, "missing_field");
        assert_eq!(chat(json!([1])).unwrap_err().code, "invalid_json");
    }

    proptest! {
        #[test]
        fn any_body_is_a_request_or_refused(body in "\\PC{0,100}") {
            let _ = parse(Kind::Chat, body.as_bytes(), &AnswerOptions::default());
            let _ = parse(Kind::Text, format!("{{\"prompt\": {body:?}}}").as_bytes(), &AnswerOptions::default());
        }
    }
}
