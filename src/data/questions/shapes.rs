//! Rows of other programs that would be learnt wrongly if they were read as something else, and what to do with them.
use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

/// Columns that change what is learnt, and what they are.
const REFUSED: [(&[&str], &str); 3] = [
    (&["tools", "functions"], "tool calls cannot be trained on yet"),
    (
        &["image", "images", "video", "videos", "audio", "audios"],
        "only text can be trained on: leave the column out where the conversation does not need it",
    ),
    (
        &["chat_template_kwargs"],
        "settings of the chat template for a row are not supported: leave the column out, or use a template file that has them",
    ),
];

/// Columns of preferences in shapes that are not read.
const PREFERENCES: [&str; 6] = [
    "kto_tag",
    "non_preferred_output",
    "preferred_output",
    "rejected_messages",
    "rejected_response",
    "rejected_responses",
];

/// What would be learnt wrongly if it were read as something else.
pub(super) fn refuse(object: &Map<String, Value>) -> Result<()> {
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    if has("chosen") && has("rejected") {
        bail!(
            "a preference row (`chosen`, `rejected`): `sdrrl train --objective dpo --data FILE` (or orpo, kto) learns from it; to learn one reply, name it `output`"
        );
    }
    let conversation = has("completion") || has("messages") || has("conversations");
    if conversation && object.get("label").is_some_and(Value::is_boolean) {
        bail!(
            "a preference row of KTO (a true/false `label`): `sdrrl train --objective kto --data FILE` learns from it, as `prompt`, `completion` and `label`; to learn the answers, \
             leave out the rows that are not to be learnt, and the column"
        );
    }
    refuse_preferences(object)?;
    refuse_parts(object)
}

/// Preferences in a shape that is not read.
pub(super) fn refuse_preferences(object: &Map<String, Value>) -> Result<()> {
    if let Some(key) = PREFERENCES.iter().find(|key| object.get(**key).is_some_and(|v| !is_empty(v))) {
        bail!(
            "`{key}`: preference rows of this shape are not read: call the prompt `prompt` and the replies `chosen` and `rejected` for `sdrrl train \
             --objective dpo` (or orpo, kto), or name the reply to learn `output`, and leave the other out"
        );
    }
    Ok(())
}

/// What no training takes.
pub(super) fn refuse_parts(object: &Map<String, Value>) -> Result<()> {
    for (keys, what) in REFUSED {
        let found = keys.iter().find(|key| object.get(**key).is_some_and(|v| !is_empty(v)));
        ensure!(found.is_none(), "`{}`: {what}", found.unwrap_or(&""));
    }
    Ok(())
}

/// Null, nothing, or a text that says that there is nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(s) => s.is_empty() || s == "[]" || s == "{}",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        _ => false,
    }
}

/// What a row is that has no question, by a column of it, and what to do.
pub(super) fn hint(object: &Map<String, Value>) -> String {
    const SHAPES: [(&str, &str); 12] = [
        ("message_id", "a message of a tree (OASST): join the messages of each path to one `messages`"),
        ("segments", "segments without a template (Axolotl): write the conversation as `messages`"),
        ("contents", "Google's shape: write `contents` as `messages`, with `content` for `parts`"),
        ("items", "an old ShareGPT export: call `items` `conversations`"),
        ("mapping", "an export of ChatGPT: write the path of its tree as `messages`"),
        ("body", "a request of a batch: its `body` is the row"),
        ("conversation_a", "two conversations to choose from: name the one to learn `messages`"),
        ("input_ids", "tokens already: a text is needed, which is tokenised with the model's template"),
        ("chat", "a conversation in one text: write it as `messages`"),
        ("text", "a text, in which question and answer are not told apart: write them as `messages`"),
        ("data", "a list in `data`: call it `messages`, each turn with `role` and `content`"),
        ("train", "several splits in one object: save each as rows"),
    ];
    let found = SHAPES.iter().find(|(key, _)| object.get(*key).is_some_and(|v| !v.is_null()));
    found.map_or(String::new(), |(_, what)| format!(": this is {what}"))
}
