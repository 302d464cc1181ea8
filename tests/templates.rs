//! Conversations tokenised as transformers' apply_chat_template does: six kinds of tokenizers, twenty templates (scripts/golden_templates.py).
use std::path::Path;

use sdrrl::data::{
    conversation::{Prompt, Role, Turn},
    template::{ChatTemplate, TrainOn},
    tokenizer::Tokenizer,
};
use serde_json::{Value, json};

const DIR: &str = "tests/golden/templates";

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{DIR}/golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn turns(value: &Value) -> Vec<Turn> {
    let role = |name: &str| serde_json::from_value::<Role>(json!(name)).unwrap();
    let turn = |t: &Value| Turn::new(role(t[0].as_str().unwrap()), t[1].as_str().unwrap());
    value.as_array().unwrap().iter().map(turn).collect()
}

/// A model's folder with this tokenizer and what tokenizer_config.json says besides the usual.
fn folder(tokenizer: &str, config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(format!("{DIR}/{tokenizer}.json"), dir.path().join("tokenizer.json")).unwrap();
    let mut all = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    std::fs::write(dir.path().join("tokenizer_config.json"), all.to_string()).unwrap();
    dir
}

fn load(dir: &Path) -> (Tokenizer, ChatTemplate) {
    let tok = Tokenizer::load(dir).unwrap();
    let template = ChatTemplate::load("auto", &tok).unwrap();
    (tok, template)
}

#[test]
fn ids_equal_transformers() {
    let golden = golden();
    let (mut compared, mut last_alone) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let dir =
            folder(case["tokenizer"].as_str().unwrap(), json!({"chat_template": golden["templates"][name]}));
        let (tok, template) = load(dir.path());
        let all = turns(&golden["conversations"][case["conversation"].as_str().unwrap()]);
        let (answer, before) = all.split_last().unwrap();
        let (question, earlier) = before.split_last().unwrap();
        let prompt = Prompt { system: None, earlier, instruction: &question.content, input: "" };
        let what = format!("{} {name} {}", case["tokenizer"], case["conversation"]);
        assert_eq!(template.encode_prompt(&tok, &prompt).unwrap(), ids(&case["prompt"]), "{what}");
        let encoded = template.encode(&tok, &prompt, &answer.content, TrainOn::All).or_else(|e| {
            assert!(format!("{e:#}").contains("--train-on last"), "{what}: {e:#}");
            last_alone += 1;
            template.encode(&tok, &prompt, &answer.content, TrainOn::Last)
        });
        let encoded = encoded.unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let whole = ids(&case["whole"]);
        assert_eq!(encoded.tokens[..whole.len()], whole, "{what}");
        // Where the template ends no answer, the end token is put behind it.
        let added = &encoded.tokens[whole.len()..];
        assert!(added.is_empty() || added == [tok.eos()[0]], "{what}: {added:?}");
        let learnt: Vec<u32> = (encoded.answer_start..encoded.tokens.len())
            .filter(|&i| encoded.weights[i] > 0.0)
            .map(|i| encoded.tokens[i])
            .collect();
        assert!(tok.eos().contains(learnt.last().unwrap()) || added.is_empty(), "{what}");
        let text = tok.decode(&learnt).unwrap();
        let wanted =
            if name == "tojson" { json!(answer.content).to_string() } else { answer.content.clone() };
        // The unigram tokenizer has no line breaks and not every letter.
        let whole_text = case["tokenizer"] != "unigram";
        assert!(!whole_text || text.contains(wanted.trim()), "{what}: {text:?} does not hold {wanted:?}");
        assert!(learnt.len() >= 2, "{what}: {learnt:?}");
        if case["mask"].is_array() {
            let mask = ids(&case["mask"]);
            for (i, weight) in encoded.weights.iter().take(mask.len()).enumerate() {
                assert!(*weight == 0.0 || mask[i] == 1, "{what}: token {i} is learnt, but masked");
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 360);
    assert!((1..20).contains(&last_alone), "{last_alone}");
}

#[test]
fn every_answer_of_a_conversation_is_learnt_with_its_weight() {
    let golden = golden();
    let dir = folder(
        "byte-level",
        json!({"chat_template": golden["templates"]["chatml"], "eos_token": "<|im_end|>"}),
    );
    let (tok, template) = load(dir.path());
    let mut all = turns(&golden["conversations"]["turns"]);
    all[1].weight = 0.5;
    let (answer, before) = all.split_last().unwrap();
    let (question, earlier) = before.split_last().unwrap();
    let prompt = Prompt { system: None, earlier, instruction: &question.content, input: "" };
    let learnt = |on: TrainOn| -> Vec<(f32, String)> {
        let e = template.encode(&tok, &prompt, &answer.content, on).unwrap();
        let mut out: Vec<(f32, Vec<u32>)> = vec![];
        for i in 1..e.tokens.len() {
            if e.weights[i] == 0.0 {
                continue;
            }
            if e.weights[i - 1] == 0.0 {
                out.push((e.weights[i], vec![]));
            }
            out.last_mut().unwrap().1.push(e.tokens[i]);
        }
        assert!(out.iter().all(|(_, ids)| tok.eos().contains(ids.last().unwrap())));
        out.into_iter().map(|(w, ids)| (w, tok.decode(&ids).unwrap())).collect()
    };
    let text = |t: &Turn| t.content.clone();
    assert_eq!(learnt(TrainOn::All), [(0.5, text(&all[1])), (1.0, text(&all[3])), (1.0, text(&all[5]))]);
    assert_eq!(learnt(TrainOn::Last), [(1.0, text(&all[5]))]);
}

#[test]
fn generated_ids_are_learnt_as_they_are() {
    let golden = golden();
    for (tokenizer, name) in
        [("byte-level", "chatml"), ("spm-legacy", "inst"), ("spm-legacy", "think-stripped")]
    {
        let dir = folder(tokenizer, json!({"chat_template": golden["templates"][name], "eos_token": "</s>"}));
        let (tok, template) = load(dir.path());
        let prompt = Prompt::new(None, "Hello", "");
        let own = [301, 300, 302];
        let e = template.encode_generated(&tok, &prompt, &own).unwrap();
        let before = template.encode_prompt(&tok, &prompt).unwrap();
        assert_eq!(e.tokens[..e.answer_start], before);
        assert_eq!(e.tokens[e.answer_start..e.tokens.len() - 1], own);
        assert!(tok.eos().contains(e.tokens.last().unwrap()));
        assert!(e.weights[e.answer_start..].iter().all(|w| *w == 1.0));
    }
}

#[test]
fn a_begin_token_is_put_only_where_it_is_asked_for() {
    let dir = folder("llama-3", json!({"chat_template": golden()["templates"]["chatml"]}));
    let (tok, template) = load(dir.path());
    assert!(tok.adds_bos());
    let prompt = Prompt::new(None, "Hello", "");
    let without = template.encode_prompt(&tok, &prompt).unwrap();
    assert_ne!(without.first(), tok.bos().as_ref());
    let with = ChatTemplate::load("auto+bos", &tok).unwrap().encode_prompt(&tok, &prompt).unwrap();
    assert_eq!((with.first(), &with[1..]), (tok.bos().as_ref(), &without[..]));
}

#[test]
fn stored_cutting_and_padding_are_left_out() {
    let dir = folder("byte-level", json!({"chat_template": golden()["templates"]["chatml"]}));
    let path = dir.path().join("tokenizer.json");
    let want = Tokenizer::load(dir.path()).unwrap().encode("What is the capital of France?", false).unwrap();
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    value["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "<pad>"});
    std::fs::write(&path, value.to_string()).unwrap();
    assert_eq!(
        Tokenizer::load(dir.path()).unwrap().encode("What is the capital of France?", false).unwrap(),
        want
    );
}

#[test]
fn special_tokens_count_wherever_they_are_declared() {
    let token = "<|extra|>";
    let object = json!({"content": token, "special": true, "lstrip": false, "rstrip": false, "normalized": false, "single_word": false});
    let plain = Tokenizer::load(folder("byte-level", json!({})).path()).unwrap();
    let next = plain.vocab_size() as u32;
    for (file, content) in [
        ("tokenizer_config.json", json!({"added_tokens_decoder": {next.to_string(): object}})),
        ("tokenizer_config.json", json!({"additional_special_tokens": [token]})),
        ("tokenizer_config.json", json!({"sep_token": object})),
        ("tokenizer_config.json", json!({"model_specific_special_tokens": {"image_token": token}})),
        ("special_tokens_map.json", json!({"mask_token": token})),
        ("special_tokens_map.json", json!({"additional_special_tokens": [object]})),
        ("added_tokens.json", json!({token: next})),
    ] {
        let dir = folder("byte-level", json!({}));
        std::fs::write(dir.path().join(file), content.to_string()).unwrap();
        let tok = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(
            tok.encode_with_special(&format!("a{token}")).unwrap().last(),
            Some(&next),
            "{file}: {content}"
        );
    }
}

/// Whether a token of added_tokens.json is looked for in the text or in the normalised text: ids by transformers 5.24.
#[test]
fn tokens_of_the_older_file_are_found_as_transformers_finds_them() {
    let (token, text) = ("<extra>", "<extra> a <extra>b <extra> <extra> c</s>");
    let normalised = [547, 319, 295, 547, 296, 547, 547, 319, 297, 2];
    let as_written = [547, 319, 319, 399, 547, 319, 296, 319, 547, 319, 319, 547, 319, 319, 297, 2];
    for (config, map, want) in [
        (json!({}), json!({}), &normalised[..]),
        (json!({}), json!({"additional_special_tokens": [token]}), &normalised[..]),
        (json!({"mask_token": token}), json!({}), &as_written[..]),
        (json!({}), json!({"mask_token": token}), &as_written[..]),
        (json!({"additional_special_tokens": [token]}), json!({}), &as_written[..]),
        (json!({"extra_special_tokens": [token]}), json!({}), &as_written[..]),
    ] {
        let dir = folder("spm-legacy", config.clone());
        std::fs::write(dir.path().join("added_tokens.json"), json!({token: 547}).to_string()).unwrap();
        std::fs::write(dir.path().join("special_tokens_map.json"), map.to_string()).unwrap();
        let tok = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tok.encode_with_special(text).unwrap(), want, "{config} {map}");
    }
    let split = folder("byte-level", json!({"split_special_tokens": true}));
    let error = format!("{:#}", Tokenizer::load(split.path()).err().unwrap());
    assert!(error.contains("split_special_tokens"), "{error}");
}

#[test]
fn template_files_win_and_lists_are_asked_for_a_name() {
    let load = |config: Value, files: &[(&str, &str)], name: &str| {
        let dir = folder("byte-level", config);
        for (file, text) in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let tok = Tokenizer::load(dir.path()).unwrap();
        let template = ChatTemplate::load(name, &tok).map_err(|e| format!("{e:#}"))?;
        Ok::<_, String>(
            tok.decode(&template.encode_prompt(&tok, &Prompt::new(None, "Q", "")).unwrap()).unwrap(),
        )
    };
    let file = [("chat_template.jinja", "file")];
    assert_eq!(load(json!({"chat_template": null}), &file, "auto").unwrap(), "file");
    assert_eq!(load(json!({"chat_template": "config"}), &file, "auto").unwrap(), "file");
    assert_eq!(load(json!({"chat_template": "config"}), &[], "auto").unwrap(), "config");
    let list =
        json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]});
    let error = load(list.clone(), &[], "auto").unwrap_err();
    assert!(error.contains("rag, tool_use") && error.contains("auto:rag"), "{error}");
    assert_eq!(load(list, &[], "auto:tool_use").unwrap(), "t");
    let more = [("chat_template.jinja", "file"), ("additional_chat_templates/rag.jinja", "more")];
    assert_eq!(load(json!({}), &more, "auto").unwrap(), "file");
    assert_eq!(load(json!({}), &more, "auto:rag").unwrap(), "more");
}

#[test]
fn the_date_is_fixed_and_tools_are_none() {
    let render = |template: &str| {
        let dir = folder("byte-level", json!({"chat_template": template}));
        let (tok, template) = self::load(dir.path());
        template.encode_prompt(&tok, &Prompt::new(None, "Q", "")).map(|ids| tok.decode(&ids).unwrap())
    };
    assert_eq!(
        render("{{ strftime_now('%d %B %Y %-d %b %y %j %H:%M') }}").unwrap(),
        "26 July 2024 26 Jul 24 208 00:00"
    );
    assert_eq!(
        render("{% if tools is none and documents is none and pad_token is undefined %}x{% endif %}")
            .unwrap(),
        "x"
    );
    assert!(render("{{ strftime_now('%Q') }}").is_err());
}

/// Both give a prompt and an answer the same ids, or none where the template has no place for what is asked.
fn assert_same_ids(kind: &str, name: &str, tok: &Tokenizer, own: &ChatTemplate, exported: &ChatTemplate) {
    let turn = Turn::new;
    let (first, second) = (turn(Role::User, "One?"), turn(Role::User, "Three?"));
    let earlier = [first, turn(Role::Assistant, "Two."), second, turn(Role::Assistant, "4")];
    let (system, none) = (Some("Be short."), None);
    let single = name.starts_with("plain") || name == "alpaca";
    for (system, earlier) in [(none, &[][..]), (system, &[]), (none, &earlier), (system, &earlier)] {
        let prompt = Prompt { system, earlier, instruction: "What is \"it\"?\nSay.", input: "" };
        let what = format!("{kind} {name} {system:?} {}", earlier.len());
        if single && (system.is_some() || !earlier.is_empty()) {
            assert!(own.encode_prompt(tok, &prompt).is_err(), "{what}");
            assert!(exported.encode_prompt(tok, &prompt).is_err(), "{what}");
            continue;
        }
        let ids = |t: &ChatTemplate| t.encode_prompt(tok, &prompt).unwrap();
        assert_eq!(ids(exported), ids(own), "{what}");
        // Question and answer of `plain` are tokenised apart.
        if !name.starts_with("plain") {
            let whole = |t: &ChatTemplate| t.encode(tok, &prompt, "An answer.", TrainOn::Last).unwrap();
            assert_eq!(whole(exported).without_tail().tokens, whole(own).without_tail().tokens, "{what}");
        }
    }
}

/// The Jinja that an adapter's folder gets renders what the template renders, for every built-in name and every kind of tokenizer.
#[test]
fn a_built_in_template_as_jinja_gives_the_same_ids() {
    let golden = golden();
    let kinds: std::collections::BTreeSet<&str> =
        golden["cases"].as_array().unwrap().iter().filter_map(|c| c["tokenizer"].as_str()).collect();
    assert_eq!(kinds.len(), 6);
    let mut refused = vec![];
    for kind in kinds {
        let dir = folder(kind, json!({}));
        let tok = Tokenizer::load(dir.path()).unwrap();
        for name in sdrrl::data::template::NAMES[1..].iter().chain(&["chatml+bos", "plain+bos"]) {
            let own = ChatTemplate::load(name, &tok).unwrap();
            let Ok(text) = own.to_jinja(&tok) else {
                refused.push(format!("{kind} {name}"));
                continue;
            };
            let path = dir.path().join("exported.jinja");
            std::fs::write(&path, text).unwrap();
            let exported = ChatTemplate::load(path.to_str().unwrap(), &tok).unwrap();
            assert_same_ids(kind, name, &tok, &own, &exported);
        }
        // A model's own template is its text, with the begin token where that is asked for and missing.
        let text = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
        let dir = folder(kind, json!({"chat_template": text}));
        let tok = Tokenizer::load(dir.path()).unwrap();
        let of = |name: &str| ChatTemplate::load(name, &tok).unwrap().to_jinja(&tok).unwrap();
        assert_eq!((of("auto"), of("auto+bos")), (text.to_string(), format!("{{{{ bos_token }}}}{text}")));
    }
    // The question would have to be told from a text behind a begin token.
    assert_eq!(refused, ["spm-first plain+bos"]);
}

/// The splitting of text that transformers makes of the class's name, whatever tokenizer.json says (and tokenizer.json's own where it takes that).
#[test]
fn a_llama_tokenizer_splits_as_its_class_does() {
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{DIR}/classes.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 40);
    for case in cases {
        let dir = folder(case["tokenizer"].as_str().unwrap(), case["config"].clone());
        let config = json!({"model_type": case["model_type"]});
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let tok = Tokenizer::load(dir.path()).unwrap();
        for text in case["texts"].as_array().unwrap() {
            let got = tok.encode_with_special(text[0].as_str().unwrap()).unwrap();
            assert_eq!(got, ids(&text[1]), "{} {} {}", case["tokenizer"], case["config"], text[0]);
        }
        for shown in case["decoded"].as_array().unwrap() {
            let got = tok.decode(&ids(&shown[0])).unwrap();
            assert_eq!(got, shown[1].as_str().unwrap(), "{} {}", case["tokenizer"], case["config"]);
        }
    }
}
