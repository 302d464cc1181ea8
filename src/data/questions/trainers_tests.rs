//! Rows in the shapes of trainers: axolotl, LLaMA-Factory, ms-swift, TRL, unsloth, OpenAI's and others'.
use serde_json::json;

use super::tests::{shown, source};

#[test]
fn rows_of_other_trainers_are_read_whole() {
    for (value, turns) in [
        (json!({"prompt": [{"role": "user", "content": "Q"}], "completion": "A"}), "user:Q|assistant:A"),
        (json!({"input": [{"role": "user", "content": "Q"}], "output": "A"}), "user:Q|assistant:A"),
        (json!({"input": "Q", "output": "A"}), "user:Q|assistant:A"),
        (json!({"instruction": "", "input": "Q", "output": "A"}), "user:Q|assistant:A"),
        (json!({"inputs": "Q", "targets": "A"}), "user:Q|assistant:A"),
        (
            json!({"messages": [{"role": "User", "content": "Q"}, {"role": "Chatbot", "content": "A"}], "images": [], "tools": "[]"}),
            "user:Q|assistant:A",
        ),
        (
            json!({"system": [{"text": "S"}], "messages": [{"role": "user", "content": [{"text": "Q", "image_url": null}]},
                {"role": "assistant", "content": "A", "from": "gpt", "value": "A"}]}),
            "system:S|user:Q|assistant:A",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
                "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": " "}),
            "user:Q|assistant:A",
        ),
    ] {
        assert_eq!(shown(&source(value.clone()).unwrap().0), turns, "{value}");
    }
}

/// What other trainers would learn in another way.
#[test]
fn columns_and_fields_of_other_trainers_are_refused_by_name() {
    for (value, what) in [
        (json!({"instruction": "Q", "output": "A", "images": ["a.png"]}), "`images`"),
        (json!({"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]}), "`image`"),
        (json!({"messages": [{"role": "user", "content": "Q"}], "rejected_response": "B"}), "preference"),
        (json!({"input": {"messages": []}, "preferred_output": [{"role": "assistant"}]}), "preference"),
        (json!({"instruction": "Q", "output": "A", "kto_tag": false}), "preference"),
        (json!({"messages": [{"role": "user", "content": "Q"}], "label": false}), "KTO"),
        (
            json!({"messages": [{"role": "user", "content": "Q"}], "chat_template_kwargs": {"enable_thinking": false}}),
            "chat_template_kwargs",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}], "conversations": [{"from": "human", "value": "R"}]}),
            "different things",
        ),
        (json!({"messages": [{"role": "user", "content": "Q", "value": "R"}]}), "differ"),
        (json!({"messages": [{"role": "user", "from": "gpt", "content": "Q"}]}), "differ"),
        (json!({"messages": [{"role": "user", "content": "Q", "images": ["a.png"]}]}), "`images`"),
        (
            json!({"messages": [{"role": "user", "content": "Q", "documents": [{"text": "T"}]}]}),
            "`documents`",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning": "r"}]}),
            "reasoning",
        ),
        (
            json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "loss_mask": 0}]}),
            "loss_mask",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"text": "Q", "image_url": "x"}]}]}),
            "`image_url`",
        ),
    ] {
        let error =
            format!("{:#}", source(value.clone()).err().unwrap_or_else(|| panic!("{value} was taken")));
        assert!(error.contains(what), "{value}: {error}");
    }
}

/// What might be meant and is not taken is printed.
#[test]
fn columns_that_say_something_else_are_noted() {
    for (value, noted) in [
        (json!({"instruction": "I", "question": "Q", "output": "A"}), "`question` beside `instruction`"),
        (
            json!({"instruction": "I", "input": "C", "context": "D", "output": "A"}),
            "`context` beside `input`",
        ),
        (json!({"instruction": "I", "output": "A", "response": "B"}), "`response` beside `output`"),
        (json!({"instruction": "I", "output": "A", "weight": 0.5}), "`weight` weighs nothing"),
    ] {
        let (row, tally) = source(value.clone()).unwrap();
        assert!(tally.to_string().contains(noted) && !row.columns.is_empty(), "{value}: {tally}");
    }
    let (_, tally) =
        source(json!({"instruction": "I", "prompt": "I", "input": "", "context": "", "output": "A"}))
            .unwrap();
    assert!(tally.is_whole(), "{tally}");
}
