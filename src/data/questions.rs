//! Question files as the field writes them: Alpaca, OpenAI messages, ShareGPT, TRL prompt/completion, or question/answer.
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::{
    record::{Origin, Row},
    row_shard::RowShard,
};

/// Reads the rows of a JSONL file; `language` is theirs. A row without an id gets the file's stem and its line.
pub fn read(path: &Path, language: &str) -> Result<Vec<Row>> {
    let shard = RowShard::open(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (0..shard.len())
        .map(|i| {
            let object: Map<String, Value> = shard.get(i)?;
            let mut row = parse(object).with_context(|| shard.place(i))?;
            if row.id.is_empty() {
                row.id = format!("{stem}-{}", i + 1);
            }
            if row.language.is_empty() {
                row.language = language.into();
            }
            row.origin = Some(Origin { file: file.clone(), line: i + 1 });
            Ok(row)
        })
        .collect()
}

/// One row of any of the formats; fields that none of them knows are carried through.
pub fn parse(mut object: Map<String, Value>) -> Result<Row> {
    let mut row = Row::default();
    if let Some(id) = object.remove("id") {
        row.id = id.as_str().map_or_else(|| id.to_string(), String::from);
    }
    row.language = take(&mut object, "language")?.unwrap_or_default();
    if let Some(turns) = object.remove("messages") {
        from_turns(&mut row, &turns, "role", "content")?;
    } else if let Some(turns) = object.remove("conversations") {
        from_turns(&mut row, &turns, "from", "value")?;
    } else {
        let question = first(&mut object, &["instruction", "question", "prompt"])?;
        row.instruction = question.context(
            "the row has none of `instruction`, `question`, `prompt`, `messages`, `conversations`",
        )?;
        row.input = take(&mut object, "input")?.unwrap_or_default();
        row.output = first(&mut object, &["output", "answer", "completion", "response"])?.unwrap_or_default();
    }
    if row.instruction.trim().is_empty() {
        bail!("the question is empty");
    }
    row.extra = object;
    Ok(row)
}

fn take(object: &mut Map<String, Value>, key: &str) -> Result<Option<String>> {
    match object.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => bail!("`{key}` is {other}, a text was expected"),
    }
}

fn first(object: &mut Map<String, Value>, keys: &[&str]) -> Result<Option<String>> {
    for key in keys {
        if let Some(text) = take(object, key)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The first question of a conversation and its answer.
fn from_turns(row: &mut Row, turns: &Value, role: &str, content: &str) -> Result<()> {
    let turns = turns.as_array().context("the conversation is no list")?;
    let find = |names: &[&str]| {
        let turn = turns.iter().find(|t| t[role].as_str().is_some_and(|r| names.contains(&r)))?;
        turn[content].as_str().map(String::from)
    };
    row.instruction = find(&["user", "human"]).context("the conversation has no turn of the user")?;
    row.output = find(&["assistant", "gpt"]).unwrap_or_default();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn row(value: Value) -> Result<Row> {
        parse(value.as_object().cloned().unwrap_or_default())
    }

    #[test]
    fn every_format_is_read() {
        for value in [
            json!({"instruction": "Q", "output": "A"}),
            json!({"question": "Q", "answer": "A"}),
            json!({"prompt": "Q", "completion": "A"}),
            json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}),
            json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}),
        ] {
            let row = row(value.clone()).unwrap();
            assert_eq!((row.instruction.as_str(), row.output.as_str()), ("Q", "A"), "{value}");
        }
        let kept = row(json!({"id": 7, "instruction": "Q", "topic": "x"})).unwrap();
        assert_eq!((kept.id.as_str(), &kept.extra["topic"]), ("7", &json!("x")));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (value, what) in [
            (json!({"output": "A"}), "instruction"),
            (json!({"instruction": 3}), "`instruction` is 3"),
            (json!({"instruction": " "}), "empty"),
            (json!({"messages": []}), "no turn"),
        ] {
            let error = format!("{:#}", row(value).unwrap_err());
            assert!(error.contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_json_gives_a_row_or_an_error(text in "\\PC{0,80}") {
            if let Ok(object) = serde_json::from_str(&text) {
                let _ = parse(object);
            }
        }
    }
}
