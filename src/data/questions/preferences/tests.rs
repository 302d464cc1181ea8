use proptest::prelude::*;
use serde_json::json;

use super::*;

fn of(value: Value) -> Result<(Option<Judged>, Tally)> {
    let Value::Object(object) = value else { panic!("an object") };
    let mut tally = Tally::default();
    let one = if object.contains_key("label") { label } else { pair };
    one(object, &mut tally, "f:1").map(|judged| (judged, tally))
}

/// The roles and texts of the prompt, and the replies.
fn shown(judged: &Judged) -> String {
    let turns = judged.prompt.iter().map(|t| format!("{}:{}", t.role.name(), t.content));
    let replies: Vec<&str> = judged.replies.iter().map(|(_, reply)| reply.as_str()).collect();
    format!("{} | {}", turns.collect::<Vec<_>>().join(" "), replies.join(" | "))
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn every_shape_of_a_pair_is_read() {
    let (q, a, b) = (turn("user", "Q"), turn("assistant", "A"), turn("assistant", "B"));
    let earlier = [turn("system", "S"), turn("user", "P"), turn("assistant", "O"), q.clone()];
    let with = |last: &Value| [&earlier[..], std::slice::from_ref(last)].concat();
    let long = "system:S user:P assistant:O user:Q | A | B";
    for (value, wanted) in [
        (json!({"prompt": "Q", "chosen": "A", "rejected": "B"}), "user:Q | A | B"),
        (json!({"prompt": [q], "chosen": [a], "rejected": [b]}), "user:Q | A | B"),
        (json!({"prompt": [q], "chosen": "A", "rejected": b}), "user:Q | A | B"),
        (json!({"prompt": earlier, "chosen": [a], "rejected": [b]}), long),
        (json!({"chosen": with(&a), "rejected": with(&b)}), long),
        (json!({"prompt": earlier, "chosen": with(&a), "rejected": with(&b)}), long),
        // UltraFeedback.
        (
            json!({"prompt": "Q", "prompt_id": "7", "messages": [q, a], "chosen": [q, a], "rejected": [q, b], "score_chosen": 8.0}),
            "user:Q | A | B",
        ),
        // Alpaca's, and a row of this program.
        (
            json!({"system": "S", "instruction": "Q", "history": [["P", "O"]], "chosen": "A", "rejected": "B"}),
            long,
        ),
        (json!({"prompt": "Q", "turns": earlier[..3], "chosen": "A", "rejected": "B"}), long),
        // Orca's, and LLaMA-Factory's.
        (json!({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"}), "system:S user:Q | A | B"),
        (
            json!({"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}),
            "user:Q | A | B",
        ),
    ] {
        let (pair, tally) = of(value.clone()).unwrap();
        assert_eq!(shown(&pair.unwrap()), wanted, "{value}");
        assert!(tally.is_whole(), "{tally}");
    }
    let pair =
        of(json!({"prompt": "Q", "input": "I", "chosen": "A", "rejected": "B", "id": 3, "language": "es"}));
    let pair = pair.unwrap().0.unwrap();
    assert_eq!((pair.input.as_str(), pair.id.as_str(), pair.language.as_str()), ("I", "3", "es"));
    let [chosen, rejected] = &pair.examples()[..] else { panic!("two") };
    assert_eq!(
        (chosen.pair.as_str(), chosen.output.as_str(), chosen.instruction.as_str()),
        ("chosen", "A", "Q")
    );
    assert_eq!((rejected.pair.as_str(), rejected.output.as_str()), ("rejected", "B"));
}

#[test]
fn a_reply_with_a_label_is_read_and_a_pair_gives_two() {
    let (q, a) = (turn("user", "Q"), turn("assistant", "A"));
    for (value, wanted) in [
        (json!({"prompt": "Q", "completion": "A", "label": true}), (DESIRABLE, "user:Q | A")),
        (json!({"prompt": [q], "completion": [a], "label": false}), (UNDESIRABLE, "user:Q | A")),
        (json!({"prompt": [q], "completion": [q, a], "label": false}), (UNDESIRABLE, "user:Q | A")),
    ] {
        let judged = of(value.clone()).unwrap().0.unwrap();
        assert_eq!((judged.replies[0].0, shown(&judged).as_str()), wanted, "{value}");
    }
    for (value, what) in [
        (json!({"prompt": "Q", "completion": "A", "label": 1}), "true or false"),
        (json!({"prompt": "Q", "completion": "A", "label": true, "history": "P"}), "`history` is not"),
        (json!({"prompt": "Q", "label": true}), "no `completion`"),
        (json!({"completion": "A", "label": true}), "no prompt"),
    ] {
        let error = format!("{:#}", of(value.clone()).unwrap_err());
        assert!(error.contains(what), "{value}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.jsonl");
    let rows = [
        json!({"prompt": "Q", "chosen": "A", "rejected": "B"}),
        json!({"prompt": "R", "completion": "C", "label": false}),
        json!({"prompt": "R", "completion": " ", "label": true}),
    ];
    std::fs::write(&path, rows.map(|r| format!("{r}\n")).concat()).unwrap();
    let (judged, tally) = read(&path, Rows::Labels, OnBadRow::Fail).unwrap();
    let examples = judged.into_iter().flat_map(Judged::examples);
    let kinds: Vec<(String, String)> = examples.map(|e| (e.pair, e.output)).collect();
    let wanted = [(DESIRABLE, "A"), (UNDESIRABLE, "B"), (UNDESIRABLE, "C")];
    assert_eq!(kinds, wanted.map(|(k, o)| (k.to_string(), o.to_string())));
    assert_eq!((tally.read, tally.kept, tally.dropped()), (4, 3, 1));
    assert!(tally.to_string().contains("pair taken as two rows"), "{tally}");
    let error = format!("{:#}", read(&path, Rows::Pairs, OnBadRow::Fail).unwrap_err());
    assert!(error.contains("p.jsonl:2"), "{error}");
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let (q, a, b) = (turn("user", "Q"), turn("assistant", "A"), turn("assistant", "B"));
    for (value, what) in [
        (json!({"prompt": "Q", "chosen": "A"}), "no `rejected`"),
        (json!({"prompt": "Q", "output": "A"}), "no `chosen`"),
        (json!({"chosen": "A", "rejected": "B"}), "no prompt"),
        (
            json!({"history": [["P", "O"]], "chosen": [q, a], "rejected": [q, b]}),
            "`history` or `turns` beside a conversation",
        ),
        (json!({"prompt": " ", "chosen": "A", "rejected": "B"}), "prompt is empty"),
        (json!({"prompt": 1e99, "chosen": "A", "rejected": "B"}), "`prompt`"),
        (json!({"prompt": "Q", "chosen": true, "rejected": "B"}), "`chosen`"),
        (json!({"prompt": "Q", "chosen": [q], "rejected": [b]}), "none of the assistant"),
        (json!({"prompt": [a], "chosen": "A", "rejected": "B"}), "ends with a turn of the assistant"),
        (json!({"prompt": "R", "chosen": [q, a], "rejected": [q, b]}), "different things"),
        (json!({"prompt": "Q", "question": "R", "chosen": "A", "rejected": "B"}), "`prompt` and `question`"),
        (json!({"chosen": [q, a], "rejected": [turn("user", "R"), b]}), "before their last turn"),
        (json!({"chosen": [q, a, q, a], "rejected": [q, b, q, a]}), "before their last turn"),
        (json!({"prompt": "Q", "messages": [q, b], "chosen": "A", "rejected": "B"}), "another conversation"),
        (json!({"prompt": "Q", "chosen": "A", "rejected": "B", "images": ["a.png"]}), "`images`"),
        (json!({"prompt": "Q", "chosen": "A", "rejected": "B", "tools": [{"name": "w"}]}), "`tools`"),
        (
            json!({"prompt": "Q", "chosen": "A", "rejected": "B", "rejected_response": "C"}),
            "`rejected_response`",
        ),
        (
            json!({"prompt": "Q", "chosen": [{"role": "assistant", "content": "A", "weight": 0.5}], "rejected": "B"}),
            "weight",
        ),
    ] {
        let error = format!("{:#}", of(value.clone()).unwrap_err());
        assert!(error.contains(what), "{value}: {error}");
    }
}

#[test]
fn equal_and_empty_replies_are_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.jsonl");
    let rows = [
        json!({"prompt": "Q", "chosen": "A", "rejected": "B"}),
        json!({"prompt": "Q", "chosen": "A", "rejected": " A"}),
        json!({"prompt": "Q", "chosen": "A", "rejected": ""}),
        json!({"prompt": "Q", "chosen": "C", "rejected": "D"}),
    ];
    std::fs::write(&path, rows.map(|r| format!("{r}\n")).concat()).unwrap();
    let (pairs, tally) = read(&path, Rows::Pairs, OnBadRow::Fail).unwrap();
    assert_eq!(pairs.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["p-1", "p-4"]);
    assert_eq!((tally.read, tally.kept), (4, 2));
    let reasons: Vec<_> = tally.reasons().collect();
    assert_eq!(reasons, [("an empty reply", 1), ("identical chosen and rejected", 1)]);
}

proptest! {
    #[test]
    fn any_values_give_a_row_or_an_error(texts in proptest::collection::vec("\\PC{0,20}", 4)) {
        let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        let [prompt, first, second, label] = [0, 1, 2, 3].map(|i| value(&texts[i]));
        let _ = of(json!({"prompt": prompt, "chosen": first, "rejected": second}));
        let _ = of(json!({"prompt": prompt, "completion": [first, {"role": "assistant", "content": second}], "label": label}));
    }
}
