//! Solved questions before each row, for kinds that have replies.
use serde_json::{Value, json};

use crate::evaluation::{MKQA, Place, articles, task};

fn prompts(place: &Place, samples: &str) -> Vec<String> {
    place.rows(samples).iter().map(|s| s["prompt"].as_str().unwrap().to_string()).collect()
}

#[test]
fn solved_questions_stand_before_each_row_and_none_before_itself() {
    let place = Place::new("");
    let qa = place.write(
        "qa.jsonl",
        "{\"question\": \"q0\", \"answers\": [\" \", \"a0\"]}\n{\"question\": \"q1\", \"answers\": [\"\"]}\n\
         {\"question\": \"q2\", \"answers\": [\"a2\", \"x\"]}\n{\"question\": \"q3\", \"answers\": [\"a3\"]}\n",
    );
    let (source, target) = (place.write("s", "one\ntwo\n"), place.write("t", "uno\ndos\n"));
    let (dev, dev_target) = (place.write("ds", "two\ntwo\nthree\n"), place.write("dt", "dos\ndos\ntres\n"));
    let short = "max-new-tokens = 4\nfew-shot = ";
    let lines = format!(
        "{short}1\nprompt = \"{{source}} to {{target}}: {{text}}\"\nreference = {target:?}\n\
         few-shot-file = {dev:?}\nfew-shot-reference = {dev_target:?}"
    );
    place.write(
        "tasks.toml",
        &(task("qa", "qa", "es", &qa, &format!("{short}2"))
            + &task("to", "translation", "es", &source, &lines)
            + &task("mkqa", "mkqa", "es", MKQA, &format!("{short}1\nlimit = 2"))),
    );
    place.eval("out");
    assert_eq!(
        prompts(&place, "out/qa/samples.jsonl"),
        [
            "q2\na2\n\nq3\na3\n\nq0",
            "q0\na0\n\nq2\na2\n\nq1",
            "q0\na0\n\nq3\na3\n\nq2",
            "q0\na0\n\nq2\na2\n\nq3"
        ]
    );
    // A question of the file of solved ones that is asked is not shown before itself either.
    let expected = [("two\ndos", "one"), ("three\ntres", "two")]
        .map(|(shot, line)| format!("English to Spanish: {shot}\n\nEnglish to Spanish: {line}"));
    assert_eq!(prompts(&place, "out/to/samples.jsonl"), expected);
    let mkqa = prompts(&place, "out/mkqa/samples.jsonl");
    let (first, last) = mkqa[0].split_once("\n\n").unwrap();
    assert!(mkqa[1].starts_with(&format!("{last}\n")) && first.lines().count() == 3, "{mkqa:?}");
    assert_eq!(place.results("out")["n-shot"], json!({"qa": 2, "to": 1, "mkqa": 1}));
    // A reply ends where the next question would begin.
    for name in ["qa", "to", "mkqa"] {
        let samples = place.rows(&format!("out/{name}/samples.jsonl"));
        assert!(samples.iter().all(|s| !s["response"].as_str().unwrap().contains("\n\n")), "{samples:?}");
    }
}

/// Of an article that is too long, so much is cut that the solved ones stay whole.
#[test]
fn an_article_is_cut_behind_whole_solved_ones() {
    let place = Place::new("");
    let file = articles(&place, 5);
    let whole = "max-new-tokens = 16\nfew-shot = 1\nprompt = \"{text}\"";
    place.write("tasks.toml", &task("xlsum", "summary", "es", &file, whole));
    let shown = place.eval("out");
    assert!(shown.contains("1 of 5 articles were cut"), "{shown}");
    let samples = place.rows("out/xlsum/samples.jsonl");
    let text = |sample: &Value| sample["prompt"].as_str().unwrap().to_string();
    let one = "El panadero está en la ciudad con un perro. ";
    let shot = format!("{one}\nEl panadero está en la ciudad.\n\n");
    let cut = text(&samples[4]);
    assert!(cut.starts_with(&shot) && cut.matches("perro").count() > 10, "{cut}");
    assert_eq!(text(&samples[1]), format!("{shot}{}", one.repeat(2)));
    assert!(text(&samples[0]).starts_with(&format!("{}\n", one.repeat(2))), "{samples:?}");
}

#[test]
fn solved_questions_that_do_not_fit_are_refused_by_name() {
    let place = Place::new("");
    let qa = place.write("qa.jsonl", "{\"question\": \"q\", \"answers\": [\"a\"]}\n");
    let lines = place.write("lines", "one\n");
    let reference = format!("reference = {lines:?}\nfew-shot = 1\n");
    for (kind, file, more, parts) in [
        (
            "qa",
            &qa,
            "few-shot = 1".to_string(),
            &["few-shot is 1", "qa.jsonl has 1 rows with an answer", "before itself"][..],
        ),
        ("qa", &qa, format!("few-shot-file = {qa:?}"), &["task t", "`few-shot-file` without `few-shot`"]),
        ("perplexity", &lines, "few-shot = 1".into(), &["`few-shot` is not for kind perplexity"]),
        ("alignment", &lines, reference.clone(), &["`few-shot` is not for kind alignment"]),
        (
            "translation",
            &lines,
            format!("{reference}few-shot-file = {lines:?}"),
            &["`few-shot-reference`", "needed there"],
        ),
        ("qa", &qa, format!("few-shot = 1\nfew-shot-reference = {lines:?}"), &["only there"]),
        ("qa", &qa, "few-shot = 1\nfew-shot-file = \"no-such-file\"".into(), &["no-such-file"]),
    ] {
        place.write("tasks.toml", &task("t", kind, "es", file, &more));
        place.refused(parts);
    }
}
