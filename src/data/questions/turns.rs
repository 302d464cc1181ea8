//! A row's conversation, from any of the shapes in which people write them.
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::shapes::is_empty;
use crate::data::{
    conversation::{Role, Turn},
    tally::Tally,
};

/// Fields of a turn that would change what is learnt.
const REFUSED: [(&[&str], &str); 7] = [
    (&["train_detail", "training_detail"], "parts of an answer cannot be trained on yet"),
    (
        &["tool_calls", "tool_call_id", "function_call", "tool_plan", "tool_responses", "tools", "functions"],
        "tool calls cannot be trained on yet",
    ),
    (
        &["reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks"],
        "reasoning apart from the answer cannot be trained on yet",
    ),
    (&["audio", "audios", "image", "images", "video", "videos"], "only text can be trained on"),
    (&["refusal"], "a refusal apart from the answer cannot be trained on yet"),
    (&["documents"], "documents apart from the question are not given to the template"),
    (
        &["label", "loss_mask", "mask", "masked", "trainable"],
        "it may say what is to be learnt, and is not known: `weight`, `train`, `training` and `loss` are",
    ),
];

/// Fields of a turn that are read here.
const READ: [&str; 9] = ["role", "from", "content", "value", "text", "weight", "train", "training", "loss"];

/// Where a row has its conversation.
pub(super) const PLACES: [&str; 3] = ["messages", "conversations", "conversation"];

/// The row's list of turns, taken out of its columns, with the names of these: `messages` and the like, or a `prompt` of turns and what is said to it. Another
/// conversation beside it must be the same.
pub(super) fn conversation(
    object: &mut Map<String, Value>,
    tally: &mut Tally,
    place: &str,
) -> Result<Option<(String, Value)>> {
    let is_there = |object: &Map<String, Value>, key: &str| object.get(key).is_some_and(|v| !v.is_null());
    if let Some(key) = PLACES.iter().find(|key| is_there(object, key)) {
        let list = object.remove(*key).unwrap_or_default();
        for other in PLACES.iter().filter(|other| is_there(object, other)) {
            let turns = |list: &Value| of_list(list, &mut tally.clone(), place).ok();
            ensure!(
                turns(&list) == turns(&object[*other]),
                "`{key}` and `{other}` say different things: leave one of them out"
            );
        }
        return Ok(Some((format!("`{key}`"), list)));
    }
    let turns = |v: &Value| v.as_array().is_some_and(|list| list.first().is_some_and(Value::is_object));
    let Some(key) = ["prompt", "input", "inputs"].into_iter().find(|k| object.get(*k).is_some_and(turns))
    else {
        return Ok(None);
    };
    let Some(Value::Array(mut list)) = object.remove(key) else { return Ok(None) };
    let said = ["completion", "output", "response", "answer"].into_iter().find(|k| is_there(object, k));
    match said.and_then(|k| object.remove(k)) {
        None => {}
        Some(Value::Array(more)) => list.extend(more),
        Some(said) => list.push(json!({"role": "assistant", "content": text(&said)?})),
    }
    Ok(Some((format!("`{key}` and `{}`", said.unwrap_or("completion")), list.into())))
}

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

pub(super) fn of_value(value: &Value, tally: &mut Tally, place: &str) -> Result<Turn> {
    let turn = value.as_object().context("it is not an object with role and content")?;
    for (keys, what) in REFUSED {
        if let Some(key) = keys.iter().find(|key| turn.get(**key).is_some_and(|v| !is_empty(v))) {
            bail!("`{key}`: {what}");
        }
    }
    let known = |key: &str| READ.contains(&key) || REFUSED.iter().any(|(keys, _)| keys.contains(&key));
    for key in turn.keys().filter(|k| !known(k) && !turn[*k].is_null()) {
        tally.note(&format!("field `{key}` of a turn left out"), place);
    }
    let named = |key: &str| -> Result<Option<Role>> {
        let Some(value) = turn.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let name = value.as_str().with_context(|| format!("its role is {value}, a name was expected"))?;
        role(name).map(Some)
    };
    let (role, from) = (named("role")?, named("from")?);
    ensure!(role.is_none() || from.is_none() || role == from, "its `role` and `from` differ");
    let role = role.or(from).context("it has neither `role` nor `from`")?;
    let said: Vec<&Value> = ["content", "value", "text"]
        .iter()
        .filter_map(|key| turn.get(*key).filter(|v| !v.is_null()))
        .collect();
    let first = said.first().context("it has no content")?;
    ensure!(said.iter().all(|v| v == first), "two of its `content`, `value` and `text` differ");
    Ok(Turn { role, content: content(first)?, weight: weight(turn)? })
}

/// Who a name of the field's formats means.
fn role(name: &str) -> Result<Role> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "system" | "developer" => Role::System,
        "user" | "human" | "prompter" => Role::User,
        "assistant" | "chatbot" | "gpt" | "chatgpt" | "model" | "bot" | "bard" | "bing" => Role::Assistant,
        "tool" | "function" | "function_call" | "observation" | "ipython" | "function-call"
        | "function_response" | "tool_call" | "tool_response" => {
            bail!("a turn of `{name}`: tool calls cannot be trained on yet")
        }
        _ => bail!("a turn of `{name}`: system, user and assistant are known"),
    })
}

/// A text, or the parts of one.
pub(super) fn content(value: &Value) -> Result<String> {
    let Some(parts) = value.as_array() else { return text(value).context("its content") };
    let parts: Vec<String> = parts
        .iter()
        .map(|part| {
            let kind = part["type"].as_str().unwrap_or("text");
            ensure!(
                kind == "text" || kind == "input_text" || kind == "output_text",
                "a part of type `{kind}`: only text can be trained on"
            );
            let own = ["type", "text", "cache_control", "annotations", "logprobs"];
            let other = part
                .as_object()
                .into_iter()
                .flatten()
                .find(|(k, v)| !own.contains(&k.as_str()) && !is_empty(v));
            ensure!(
                other.is_none(),
                "a part with `{}`: only text can be trained on",
                other.map_or("", |o| o.0)
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
