//! A row's conversation, from any of the shapes in which people write them.
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::data::{
    conversation::{Role, Turn},
    tally::Tally,
};

/// Fields of a turn that would change what is learnt.
const REFUSED: [(&str, &str); 9] = [
    ("train_detail", "parts of an answer"),
    ("training_detail", "parts of an answer"),
    ("tool_calls", "tool calls"),
    ("tool_call_id", "tool calls"),
    ("function_call", "tool calls"),
    ("reasoning_content", "reasoning apart from the answer"),
    ("thinking", "reasoning apart from the answer"),
    ("audio", "audio"),
    ("refusal", "a refusal apart from the answer"),
];

/// Fields of a turn that are read here.
const READ: [&str; 9] = ["role", "from", "content", "value", "text", "weight", "train", "training", "loss"];

/// The turns of `messages`, `conversations` and the like. Leading turns of the assistant answer nothing: they are left out and noted.
pub(super) fn of_list(list: &Value, tally: &mut Tally, place: &str) -> Result<Vec<Turn>> {
    let list = list.as_array().context("the conversation is not a list of turns")?;
    let mut turns: Vec<Turn> = vec![];
    for (i, value) in list.iter().enumerate() {
        let turn = of_value(value, tally, place).with_context(|| format!("turn {}", i + 1))?;
        let asked = turns.iter().any(|t| t.role == Role::User);
        if turn.role == Role::Assistant && !asked {
            tally.note("turn of the assistant before any question left out", place);
            continue;
        }
        let previous = turns.last().map(|t| t.role);
        ensure!(
            turn.role != Role::Assistant || previous != Some(Role::Assistant),
            "turn {}: two turns of the assistant follow each other",
            i + 1
        );
        turns.push(turn);
    }
    ensure!(turns.iter().any(|t| t.role == Role::User), "the conversation has no turn of the user");
    Ok(turns)
}

fn of_value(value: &Value, tally: &mut Tally, place: &str) -> Result<Turn> {
    let turn = value.as_object().context("it is not an object with role and content")?;
    for (key, what) in REFUSED {
        let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v == "";
        if turn.get(key).is_some_and(|v| !empty(v)) {
            bail!("`{key}`: {what} cannot be trained on yet");
        }
    }
    for key in turn.keys().filter(|k| !READ.contains(&k.as_str()) && !turn[*k].is_null()) {
        if !REFUSED.iter().any(|(r, _)| r == key) {
            tally.note(&format!("field `{key}` of a turn left out"), place);
        }
    }
    let named = first(turn, &["role", "from"]).context("it has neither `role` nor `from`")?;
    let named = named.as_str().with_context(|| format!("its role is {named}, a name was expected"))?;
    let role = role(named)?;
    let said = first(turn, &["content", "value", "text"]).context("it has no content")?;
    Ok(Turn { role, content: content(said)?, weight: weight(turn)? })
}

fn first<'a>(map: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().find_map(|k| map.get(*k).filter(|v| !v.is_null()))
}

/// Who a name of the field's formats means.
fn role(name: &str) -> Result<Role> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" | "human" | "prompter" => Role::User,
        "assistant" | "gpt" | "chatgpt" | "model" | "bot" | "bard" | "bing" => Role::Assistant,
        "tool" | "function" | "function_call" | "observation" | "ipython" | "function-call"
        | "function_response" | "tool_call" | "tool_response" => {
            bail!("a turn of `{name}`: tool calls cannot be trained on yet")
        }
        _ => bail!("a turn of `{name}`: system, user and assistant are known"),
    })
}

/// A text, or the parts of one.
fn content(value: &Value) -> Result<String> {
    let Some(parts) = value.as_array() else { return text(value).context("its content") };
    let parts: Vec<String> = parts
        .iter()
        .map(|part| {
            let kind = part["type"].as_str().unwrap_or("text");
            ensure!(
                kind == "text" || kind == "input_text" || kind == "output_text",
                "a part of type `{kind}`: only text can be trained on"
            );
            text(if part.is_object() { &part["text"] } else { part }).context("a part of its content")
        })
        .collect::<Result<_>>()?;
    Ok(parts.join("\n"))
}

/// A text; a number is taken as its digits, unless they are more than a number keeps.
pub(super) fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) if n.is_f64() && n.to_string().contains('e') => {
            bail!("the number {n}, whose digits are not kept: put it in quotes")
        }
        Value::Number(n) => Ok(n.to_string()),
        Value::Null => bail!("null, a text was expected"),
        Value::Bool(b) => bail!("{b}, a text was expected"),
        Value::Array(_) => bail!("a list, a text was expected"),
        Value::Object(_) => bail!("an object, a text was expected"),
    }
}

/// `weight` (OpenAI's 0 or 1, or any share), `train` or `training` (Axolotl) or `loss` (ms-swift): a number, or yes or no.
fn weight(turn: &Map<String, Value>) -> Result<f32> {
    let mut weight = 1.0;
    for key in ["weight", "train", "training", "loss"] {
        let Some(value) = turn.get(key).filter(|v| !v.is_null()) else { continue };
        let own = value.as_bool().map(|b| if b { 1.0 } else { 0.0 }).or(value.as_f64());
        let own = own.filter(|w| w.is_finite() && *w >= 0.0);
        weight *= own.with_context(|| format!("its {key} is {value}, a number of 0 or more was expected"))?;
    }
    Ok(weight as f32)
}
