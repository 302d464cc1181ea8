use proptest::prelude::*;
use serde_json::json;

use super::*;

fn description(text: &str) -> TaskDescription {
    toml::from_str(&format!("kind = \"multiple-choice\"\nanswer = \"a\"\n{text}")).unwrap()
}

#[test]
fn choices_have_the_shapes_of_data_sets() {
    let texts = |value: Value| -> Vec<(String, String)> {
        choices(&value).unwrap().into_iter().map(|c| (c.text, c.label.unwrap_or_default())).collect()
    };
    let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
    let plain = vec![pair("x", ""), pair("y", "")];
    let labelled = vec![pair("x", "A"), pair("y", "B")];
    assert_eq!(texts(json!(["x", "y"])), plain);
    assert_eq!(texts(json!([1, 2.5])), [pair("1", ""), pair("2.5", "")]);
    assert_eq!(texts(json!({"text": ["x", "y"], "label": ["A", "B"]})), labelled);
    assert_eq!(texts(json!({"text": ["x", "y"]})), plain);
    assert_eq!(texts(json!([{"text": "x", "label": "A"}, {"text": "y", "label": "B"}])), labelled);
    assert_eq!(texts(json!({"A": "x", "B": "y"})), labelled);
    assert_eq!(texts(json!("[\"x\", \"y\"]")), plain, "a list written as JSON");
    for (value, part) in [
        (json!("['x', 'y']"), "a Python list"),
        (json!("x, y"), "a text; a list"),
        (json!(null), "null; a list"),
        (json!(["x", null]), "choice 2 is null"),
        (json!([["x"], "y"]), "choice 1 is a list"),
        (json!([{"label": "A"}]), "choice 1 has no `text`"),
        (json!({"text": ["x", "y"], "label": ["A"]}), "1 labels for 2 texts"),
        (json!({"text": ["x"], "label": "A"}), "`label` is a text"),
        (json!({"A": ["x"]}), "its `A` is a list"),
    ] {
        let error = format!("{:#}", choices(&value).unwrap_err());
        assert!(error.contains(part), "{value}: {error}");
    }
}

#[test]
fn answers_are_numbers_letters_labels_or_texts() {
    let plain = choices(&json!(["w", "x", "y", "z"])).unwrap();
    let numbered = choices(&json!({"text": ["w", "x", "y"], "label": ["1", "2", "3"]})).unwrap();
    let numbers = choices(&json!(["1", "2", "3"])).unwrap();
    let nli = "choices = [\"a\", \"b\", \"c\"]\nlabels = [\"entailment\", \"neutral\", \"contradiction\"]";
    for (text, of, answer, index) in [
        ("", &plain, json!(2), 2),
        ("", &plain, json!(2.0), 2),
        ("", &plain, json!("2"), 2),
        ("", &plain, json!("2.0"), 2),
        ("", &plain, json!("B"), 1),
        ("", &plain, json!(" b "), 1),
        ("", &plain, json!("z"), 3),
        ("", &plain, json!(["C"]), 2),
        ("first = 1", &plain, json!(1), 0),
        ("first = 1", &plain, json!("4"), 3),
        ("", &numbered, json!("1"), 0),
        ("", &numbered, json!(3), 2),
        ("answer-is = \"number\"", &numbered, json!(1), 1),
        ("answer-is = \"number\"", &numbers, json!("1"), 1),
        ("answer-is = \"text\"", &numbers, json!("1"), 0),
        ("answer-is = \"label\"", &plain, json!("D"), 3),
        (nli, &numbers, json!("neutral"), 1),
        (nli, &numbers, json!("Contradiction"), 2),
        (nli, &numbers, json!(0), 0),
    ] {
        let found =
            right(&answer, of, &description(text)).unwrap_or_else(|e| panic!("{text} {answer}: {e:#}"));
        assert_eq!(found, index, "{text} {answer}");
    }
}

#[test]
fn answers_that_are_not_clear_are_refused_in_words() {
    let plain = choices(&json!(["w", "x", "y", "z"])).unwrap();
    let numbers = choices(&json!(["1", "2", "3"])).unwrap();
    let labelled = choices(&json!({"A": "x", "B": "y"})).unwrap();
    for (text, of, answer, part) in [
        ("", &plain, json!(0.5), "0.5: the number of a choice is a whole one"),
        ("", &plain, json!("0.5"), "0.5: the number of a choice is a whole one"),
        ("", &plain, json!(4), "4: the 4 choices have the numbers 0 to 3"),
        ("first = 1", &plain, json!(0), "0: the 4 choices have the numbers 1 to 4"),
        ("", &plain, json!(-1), "hidden"),
        ("", &plain, json!(null), "null"),
        ("", &plain, json!(true), "true or false"),
        ("", &plain, json!({"text": "w"}), "an object"),
        ("", &plain, json!([]), "an empty list"),
        ("", &plain, json!(["A", "B"]), "2 right answers"),
        ("", &plain, json!("E"), "names none of the 4 choices"),
        ("", &plain, json!(""), "names none"),
        (
            "",
            &numbers,
            json!("1"),
            "as a number that is choice 2, as a text choice 1: say which with `answer-is`",
        ),
        ("answer-is = \"letter\"", &plain, json!("w"), "names none"),
        ("answer-is = \"label\"", &labelled, json!("C"), "the labels are `A`, `B`"),
        ("answer-is = \"label\"", &labelled, json!(7), "7 is none of the labels `A`, `B`"),
    ] {
        let error = format!("{:#}", right(&answer, of, &description(text)).unwrap_err());
        assert!(error.contains(part), "{text} {answer}: {error}");
    }
}

proptest! {
    #[test]
    fn any_json_is_judged(text in "\\PC{0,60}", number in any::<f64>(), n in 2..6usize) {
        let options: Vec<Choice> =
            (0..n).map(|i| Choice { text: format!("t{i}"), label: (n > 3).then(|| letter(i)) }).collect();
        for value in [json!(text), json!(number), json!([text]), serde_json::from_str(&text).unwrap_or(json!(null))] {
            let _ = choices(&value);
            for more in ["", "first = 1", "answer-is = \"label\"", "answer-is = \"number\""] {
                if let Ok(found) = right(&value, &options, &description(more)) {
                    prop_assert!(found < n);
                }
            }
        }
    }
}
