//! Translations by `--prompt`, and a judge: numbers become scores, and whatever else it says gives none.
use std::process::Output;

use serde_json::Value;

use super::{
    Work, rows,
    server::{Reply, Server, answers, said},
    succeeds,
};
use crate::{
    cli::{failed, ok},
    common::program,
};

/// `command --input INPUT --out OUT` with engine `openai`.
fn stage(work: &Work, command: &str, (input, out): (&str, &str), url: &str, more: &[&str]) -> Output {
    let mut line = program();
    line.arg(command).arg("--input").arg(work.at(input)).arg("--out").arg(work.at(out));
    line.args([
        "--engine",
        "openai",
        "--remote-model",
        "m",
        "--target-languages",
        "es,de",
        "--endpoint",
        url,
    ]);
    line.args(more).output().unwrap()
}

/// Six rows, answered in `out` and translated in `t`.
fn translated() -> Work {
    let work = Work::new(6);
    succeeds(&work.generate(&Server::start(answers).url(), &[]));
    let echo = |n, asked: &super::server::Asked| {
        Reply::Json(said(n, &format!("\"{}\"\nA note.", asked.question().replace("What", "Qué"))))
    };
    let prompt = ["--prompt", "{source}>{target}: {text}"];
    succeeds(&stage(&work, "translate", ("out", "t"), &Server::start(echo).url(), &prompt));
    work
}

fn at<'a>(row: &'a Value, path: &str) -> &'a Value {
    row.pointer(path).unwrap_or(&Value::Null)
}

#[test]
fn sentences_are_asked_for_by_the_prompt_and_the_first_line_is_taken() {
    let rows = rows(&translated().at("t"));
    assert_eq!(at(&rows[1], "/translations/es/instruction"), "English>Spanish: Qué is number 1?");
    assert_eq!(at(&rows[5], "/translations/de/instruction"), "English>German: Qué is number 5?");
    assert_eq!(at(&rows[5], "/translations/de/engine"), "openai m");
}

#[test]
fn translations_that_did_not_end_are_counted() {
    let work = translated();
    let cut = Server::start(|n, _| {
        let mut reply = said(n, "Un pueblo");
        reply["choices"][0]["finish_reason"] = if n % 2 == 0 { "length".into() } else { "stop".into() };
        Reply::Json(reply)
    });
    let shown = succeeds(&stage(&work, "translate", ("out", "cut"), &cut.url(), &[]));
    let half = cut.chats().len().div_ceil(2);
    assert!(shown.contains(&format!("ended otherwise than by \"stop\": {half} \"length\"")), "{shown}");
}

#[test]
fn a_judge_gives_scores_and_what_is_no_number_gives_none() {
    let work = translated();
    let judge = Server::start(|n, asked| {
        let question = asked.question();
        let is = |number: &str| question.contains(number);
        let unsure = if is("number 2?") { "I cannot say." } else { "**90**" };
        Reply::Json(said(n, if is("number 3?") { "72.5/100" } else { unsure }))
    });
    let shown = succeeds(&stage(&work, "score", ("t", "s"), &judge.url(), &[]));
    assert!(shown.contains("answers hold no score") && shown.contains("I cannot say"), "{shown}");
    let scored = rows(&work.at("s"));
    let side = |i: usize, side: &str| at(&scored[i], &format!("/scores/es/sides/{side}")).as_f64();
    let questions = [0, 3, 2].map(|i| side(i, "instruction"));
    assert_eq!((questions, side(2, "answer")), ([Some(0.9), Some(0.725), None], Some(0.9)));
    assert!(at(&scored[2], "/scores/es/sentences/instruction").is_null());
    // Requests are sent by several threads, in any order.
    let asked: Vec<String> = judge.chats().iter().map(|chat| chat.question()).collect();
    for target in ["Spanish", "German"] {
        let named = format!("from English into {target}");
        assert!(asked.iter().any(|q| q.contains(&named) && q.contains("0 to 100")), "{target}: {asked:?}");
    }
    // A side without a score is not used.
    let path = |name: &str| work.at(name).to_string_lossy().into_owned();
    ok(&["filter", "--input", &path("s"), "--out", &path("f"), "--target-languages", "es"]);
    let reasons = at(&rows(&work.at("f"))[2], "/verdicts/es/reasons").to_string();
    assert!(reasons.contains("instruction has no score"), "{reasons}");
    let five = Server::start(|n, _| Reply::Json(said(n, "4 out of 5")));
    succeeds(&stage(&work, "score", ("t", "five"), &five.url(), &["--out-of", "5"]));
    assert_eq!(at(&rows(&work.at("five"))[0], "/scores/es/sides/instruction"), 0.8);
}

/// Nothing but words is a mistake, and no row stays.
#[test]
fn a_judge_without_numbers_is_refused() {
    let work = translated();
    let words = Server::start(|n, _| Reply::Json(said(n, "Good.")));
    let out = stage(&work, "score", ("t", "s"), &words.url(), &[]);
    failed(&out, &["score"], &["holds one number from 0 to 100", "Good.", "no score of this run is kept"]);
    assert!(rows(&work.at("s")).is_empty());
    assert!(words.chats().len() < 50, "it is noticed early");
}
