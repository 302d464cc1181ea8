use super::*;
use proptest::prelude::*;
use serde_json::json;

pub(super) fn source(value: Value) -> Result<(Source, Tally)> {
    let mut tally = Tally::default();
    parse(value.as_object().cloned().unwrap_or_default(), &mut tally, "f:1").map(|s| (s, tally))
}

pub(super) fn shown(row: &Source) -> String {
    let turns: Vec<String> = row.turns.iter().map(|t| format!("{}:{}", t.role.name(), t.content)).collect();
    turns.join("|")
}

#[test]
fn every_format_is_read_whole() {
    for (value, turns) in [
        (json!({"instruction": "Q", "output": "A"}), "user:Q|assistant:A"),
        (json!({"question": "Q", "answer": "A"}), "user:Q|assistant:A"),
        (json!({"prompt": "Q", "completion": "A"}), "user:Q|assistant:A"),
        (json!({"query": "Q", "response": 42}), "user:Q|assistant:42"),
        (
            json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"},
                {"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]}),
            "system:S|user:Q|assistant:A|user:R|assistant:B",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}),
            "system:S|user:Q|assistant:A",
        ),
        (
            json!({"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}),
            "user:Q|assistant:A",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}),
            "user:Q|assistant:A",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "R"}]},
                {"role": "assistant", "content": "A"}]}),
            "user:Q\nR|assistant:A",
        ),
        (
            json!({"instruction": "R", "output": "B", "history": [["Q", "A"]], "system": "S"}),
            "system:S|user:Q|assistant:A|user:R|assistant:B",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "Q"}, {"from": "human", "value": "R"}, {"from": "gpt", "value": "A"}]}),
            "user:Q|user:R|assistant:A",
        ),
    ] {
        assert_eq!(shown(&source(value.clone()).unwrap().0), turns, "{value}");
    }
    let dolly = source(json!({"instruction": "When?", "context": "In 2000.", "response": "2000"})).unwrap().0;
    assert_eq!((dolly.input.as_str(), shown(&dolly).as_str()), ("In 2000.", "user:When?|assistant:2000"));
}

#[test]
fn what_is_not_to_be_learnt_is_said_in_any_of_the_fields_ways() {
    for (field, weight) in [
        (json!({}), 1.0),
        (json!({"weight": 0}), 0.0),
        (json!({"weight": 0.5}), 0.5),
        (json!({"weight": true, "train": null}), 1.0),
        (json!({"train": false}), 0.0),
        (json!({"training": false}), 0.0),
        (json!({"loss": false}), 0.0),
        (json!({"loss": 0.25, "weight": 2}), 0.5),
    ] {
        let mut answer = json!({"role": "assistant", "content": "A"});
        answer.as_object_mut().unwrap().extend(field.as_object().cloned().unwrap());
        let (row, tally) = source(json!({"messages": [{"role": "user", "content": "Q"}, answer]})).unwrap();
        assert_eq!((row.turns[1].weight, tally.is_whole()), (weight, true), "{field}");
    }
    for field in
        [json!({"weight": "heavy"}), json!({"loss": -1}), json!({"train_detail": [{"begin_offset": 0}]})]
    {
        let mut answer = json!({"role": "assistant", "content": "A"});
        answer.as_object_mut().unwrap().extend(field.as_object().cloned().unwrap());
        let row = json!({"messages": [{"role": "user", "content": "Q"}, answer]});
        assert!(source(row).is_err(), "{field}");
    }
}

/// Shapes of other programs that are no rows of ours, and values whose meaning would be guessed: each is named.
#[test]
fn what_is_not_understood_is_refused_by_its_name() {
    for (value, said) in [
        (json!({"contents": [{"role": "user", "parts": [{"text": "Q"}]}]}), "none of"),
        (json!({"text": "Just a text."}), "none of"),
        (json!({"data": [{"instruction": "Q"}]}), "none of"),
        (json!({"custom_id": "1", "body": {"messages": []}}), "none of"),
        (json!({"instruction": "Q", "output": ["A"]}), "a list"),
        (json!({"question": "Q", "answers": {"text": ["A"]}, "answer": {"text": "A"}}), "an object"),
        (json!({"instruction": "Q", "output": true}), "true"),
        (json!({"instruction": "Q", "output": 123456789012345678901234567890.0}), "put it in quotes"),
        (json!({"instruction": 1e-9, "output": "A"}), "put it in quotes"),
        (json!({"messages": ["Q", "A"]}), "not an object"),
        (json!({"messages": [{"role": "narrator", "content": "Q"}]}), "narrator"),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}]}]}),
            "thinking",
        ),
        (json!({"conversations": "[{\"from\": \"human\"}]"}), "not a list"),
        (json!({"segments": [{"label": true, "text": "Q"}]}), "Axolotl"),
        (json!({"message_id": "1", "parent_id": null, "role": "prompter", "text": "Q"}), "OASST"),
        (json!({"items": [{"from": "human", "value": "Q"}]}), "call `items`"),
        (json!({"conversation": [{"human": "Q", "assistant": "A"}]}), "neither `role`"),
        (json!({"instruction": "Q", "output": "A", "history": [{"q": "a"}]}), "history"),
    ] {
        let error =
            format!("{:#}", source(value.clone()).err().unwrap_or_else(|| panic!("{value} was taken")));
        assert!(error.contains(said), "{value}: {error}");
    }
    assert_eq!(shown(&source(json!({"instruction": 7, "output": 8.25})).unwrap().0), "user:7|assistant:8.25");
}

#[test]
fn a_leading_answer_is_noted_and_answers_nothing() {
    let (row, tally) =
        source(json!({"conversations": [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Q"},
        {"from": "gpt", "value": "A"}]}))
        .unwrap();
    assert_eq!(shown(&row), "user:Q|assistant:A");
    assert!(tally.to_string().contains("1 x turn of the assistant before any question"), "{tally}");
}

#[test]
fn the_users_columns_stay_apart() {
    let (row, _) = source(
        json!({"id": 7, "instruction": "Q", "output": "x", "answer": "y", "origin": "wiki", "scores": [1, 2],
        "translations": 3, "language": "python"}),
    )
    .unwrap();
    assert_eq!(shown(&row), "user:Q|assistant:x");
    let row = row.into_row().unwrap();
    let text = serde_json::to_string(&row).unwrap();
    let again: Row = serde_json::from_str(&text).unwrap();
    assert_eq!(again, row, "{text}");
    for key in ["answer", "origin", "scores", "translations", "language"] {
        assert!(row.columns.contains_key(key), "{key}");
    }
    assert_eq!(source(json!({"instruction": "Q", "language": "EN"})).unwrap().0.language, "en");
}

#[test]
fn rows_of_this_program_keep_their_earlier_turns() {
    let (u, a) = (
        json!({"role": "user", "content": "Q"}),
        json!({"role": "assistant", "content": "A", "weight": 0.5}),
    );
    let read = |value: Value| source(value).unwrap().0;
    let row = read(json!({"messages": [{"role": "system", "content": "S"}, u, a, u, a]})).into_row().unwrap();
    let again = read(serde_json::to_value(&row).unwrap()).into_row().unwrap();
    assert_eq!((&again.turns, again.instruction), (&row.turns, row.instruction));
    assert_eq!(row.turns.len(), 3);
    // A column of the same name that is something else stays the user's.
    assert!(read(json!({"instruction": "Q", "turns": 3})).columns.contains_key("turns"));
}

#[test]
fn what_cannot_be_learnt_is_refused_by_name() {
    for (value, what) in [
        (json!({"output": "A"}), "instruction"),
        (json!({"instruction": [3]}), "`instruction`: a list"),
        (json!({"instruction": true}), "true"),
        (json!({"instruction": " "}), "empty"),
        (json!({"messages": []}), "no turn of the user"),
        (json!({"messages": "Q"}), "not a list"),
        (json!({"prompt": "Q", "chosen": "A", "rejected": "B"}), "preference"),
        (json!({"prompt": "Q", "completion": "A", "label": true}), "preference"),
        (json!({"messages": [{"role": "user", "content": "Q"}], "tools": [{"name": "w"}]}), "`tools`"),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": null, "tool_calls": [{}]}]}),
            "tool calls",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "tool", "content": "sunny"}]}),
            "tool calls",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
            "image_url",
        ),
        (json!({"messages": [{"role": "narrator", "content": "Q"}]}), "narrator"),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": -1}]}),
            "weight",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning_content": "r"}]}),
            "reasoning",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}]}),
            "follow each other",
        ),
        (json!({"instruction": "Q", "history": [["a"]]}), "`history`"),
    ] {
        let error = format!("{:#}", source(value.clone()).unwrap_err());
        assert!(error.contains(what), "{value}: {error}");
    }
}

#[test]
fn examples_end_with_an_answer_that_has_weight() {
    let turns = |list: Value| json!({"messages": list});
    let (u, a) = (json!({"role": "user", "content": "Q"}), json!({"role": "assistant", "content": "A"}));
    let silent = json!({"role": "assistant", "content": "A", "weight": 0});
    let empty = json!({"role": "assistant", "content": " "});
    for (value, kept, why) in [
        (turns(json!([u, a])), true, ""),
        (turns(json!([u, a, u])), true, "behind the last answer"),
        (turns(json!([u, silent, u, a])), true, ""),
        (turns(json!([u, empty, u, a])), true, "empty earlier answer"),
        (turns(json!([u])), false, "no answer"),
        (turns(json!([u, empty])), false, "empty answer"),
        (turns(json!([u, silent])), false, "weight 0"),
        (json!({"instruction": "Q", "output": ""}), false, "empty answer"),
        (json!({"instruction": "Q", "output": null}), false, "no answer"),
        (json!({"instruction": "Q"}), false, "no answer"),
    ] {
        let (source, mut tally) = source(value.clone()).unwrap();
        let example = source.into_example(&mut tally, "f:1").unwrap();
        assert_eq!(example.is_some(), kept, "{value}");
        assert!(tally.to_string().contains(why), "{value}: {tally}");
    }
}

/// The texts of a file's questions, or the error.
fn texts(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let (rows, _) = read(&path, "en", OnBadRow::Fail).map_err(|e| format!("{e:#}"))?;
    Ok(rows.into_iter().map(|r| r.turns[0].content.clone()).collect())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn containers_are_told_apart_by_their_content() {
    let lines: &[u8] = b"{\"instruction\": \"P\"}\n\n{\"instruction\": \"Q\"}\r\n";
    let array: &[u8] = b"\xef\xbb\xbf [\n {\"instruction\":\n \"P\"},\n {\"instruction\": \"Q\"}]\n";
    let zstd = zstd::encode_all(lines, 3).unwrap();
    for bytes in [lines, array, &gzip(lines), &gzip(array), &zstd] {
        for name in ["rows.jsonl", "rows.json", "rows"] {
            assert_eq!(texts(name, bytes).unwrap(), ["P", "Q"], "{name}");
        }
    }
    let two_members = [gzip(b"{\"instruction\": \"P\"}\n"), gzip(b"{\"instruction\": \"Q\"}\n")].concat();
    assert_eq!(texts("a.gz", &two_members).unwrap(), ["P", "Q"]);
    let two_frames = [zstd.clone(), zstd].concat();
    assert_eq!(texts("a.zst", &two_frames).unwrap(), ["P", "Q", "P", "Q"]);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read_with_every_usual_compression() {
    for compression in ["none", "snappy", "gzip", "zstd"] {
        let path = format!("tests/golden/rows/{compression}.parquet");
        let (rows, _) = read(Path::new(&path), "en", OnBadRow::Fail).unwrap();
        let all: Vec<String> = rows.iter().map(shown).collect();
        let want = |i: usize| format!("user:Question {i}?|assistant:Answer {i}.");
        assert_eq!(all, [want(0), want(1), want(2)], "{compression}");
        assert_eq!(rows[2].columns["number"], json!(3), "{compression}");
    }
}

#[test]
fn what_is_no_file_of_rows_is_named_with_the_remedy() {
    let half = gzip(&b"{\"instruction\": \"P\"}\n".repeat(50));
    for (bytes, what) in [
        (&b""[..], "empty"),
        (b" \n", "no rows"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b"PK\x03\x04..", "zip"),
        (b"BZh9..", "bzip2"),
        (b"ARROW1\0\0", "Arrow"),
        (b"instruction,output\nP,Q\n", "CSV"),
        (b"{\n \"instruction\": \"P\"\n}\n", "one JSON object over several lines"),
        (b"[{\"instruction\": \"P\"},", "JSON array"),
        (b"{\"instruction\": \"caf\xe9\"}\n", "Windows-1252"),
        (b"{\"instruction\": \"\\ud800\"}\n", "surrogate"),
        (b"[1, 2]\n", "list"),
        (&half[..half.len() / 2], "cut off"),
        (b"PAR1 and nothing else", "Parquet"),
    ] {
        let error = texts("rows.jsonl", bytes).unwrap_err();
        assert!(error.contains(what), "{what}: {error}");
    }
}

proptest! {
    #[test]
    fn any_json_gives_a_row_or_an_error(text in "\\PC{0,80}") {
        if let Ok(object) = serde_json::from_str(&text) {
            let _ = parse(object, &mut Tally::default(), "f:1");
        }
    }

    #[test]
    fn any_bytes_give_rows_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, bytes).unwrap();
        let _ = read(&path, "en", OnBadRow::Skip);
    }
}
