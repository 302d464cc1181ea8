//! What people write wrong, and recipes: checked before anything is contacted.
use std::fs;

use serde_json::json;

use super::{
    Work, rows,
    server::{Reply, Server, answers, said, said_by},
    succeeds,
};
use crate::{
    cli::{failed, text},
    common::program,
};

/// The variable that holds the key.
const VARIABLE: &str = "REMOTE_TEST_KEY";

#[test]
fn what_people_write_wrong_is_named_before_anything_is_asked() {
    let server = Server::start(answers);
    let work = Work::new(2);
    let url = server.url();
    let with_user = url.replace("http://", "http://me:hunter2@");
    let many = [
        (with_user.as_str(), vec![], vec!["a user or a password", "api-key-env"]),
        ("127.0.0.1:8000", vec![], vec!["neither with http://"]),
        ("http://127.0.0.1:99999/v1", vec![], vec!["port"]),
        ("http://ex ample/v1", vec![], vec!["no URL"]),
        ("http://höst/v1", vec![], vec!["xn--"]),
        (&url, vec!["--api-key-env", "NO_SUCH_VARIABLE"], vec!["NO_SUCH_VARIABLE is not set"]),
        (&url, vec!["--api-key-env", VARIABLE], vec![VARIABLE, "visible ASCII"]),
        (&url, vec!["--extra-body", "[1]"], vec!["extra-body is no JSON object"]),
        (&url, vec!["--extra-body", "{\"model\": \"x\"}"], vec!["`model`", "other settings"]),
        (&url, vec!["--samples", "3"], vec!["at temperature 0"]),
        (&url, vec!["--repetition-penalty", "1.1"], vec!["repetition-penalty", "extra-body"]),
        (&url, vec!["--model", "assets/quickstart/model"], vec!["remote-model", "leave one out"]),
        (&url, vec!["--retries", "1000"], vec!["--retries is 1000"]),
    ];
    for (url, more, parts) in many {
        let out = work.command(url, &more).env(VARIABLE, "two words").output().unwrap();
        failed(&out, &[url], &parts);
        assert!(
            !text(&out.stderr).contains("hunter2") && !work.at("out/rows-00000.jsonl").exists(),
            "{}",
            text(&out.stderr)
        );
    }
    assert_eq!(server.connections(), 0);
}

/// A server without TLS answers a greeting of TLS in plain text.
#[test]
#[cfg(feature = "https")]
fn an_https_address_of_an_http_server_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert!(std::io::Read::read(&mut stream, &mut [0; 1024]).unwrap() > 0);
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        }
    });
    let work = Work::new(2);
    let out = work.command(&url, &["--retries", "0"]).output().unwrap();
    failed(&out, &[&url], &["speaks no TLS", "http://"]);
}

#[test]
fn engines_prompts_and_names_that_do_not_go_together_are_named() {
    let server = Server::start(answers);
    let (work, url) = (Work::new(2), server.url());
    let local = ["generate", "--model", "assets/quickstart/model", "--endpoint", &url, "--prompt", "x"];
    failed(&program().args(local).output().unwrap(), &local, &["engine `openai`"]);
    // No endpoint is not no model.
    let nowhere = ["generate", "--engine", "openai", "--remote-model", "m", "--prompt", "x"];
    failed(&program().args(nowhere).output().unwrap(), &nowhere, &["endpoint is not set"]);
    let judge = [
        "score",
        "--engine",
        "openai",
        "--endpoint",
        &url,
        "--remote-model",
        "m",
        "--target-languages",
        "es",
        "--input",
        "x",
        "--out",
        "y",
        "--prompt",
        "{text}",
    ];
    failed(&program().args(judge).output().unwrap(), &judge, &["score.prompt has no {translation}"]);
    assert_eq!(server.connections(), 0);
    // The name, once the server is asked for its list; and one that is not there at all.
    let out = program()
        .args(["generate", "--engine", "openai", "--endpoint", &url, "--remote-model", "mm", "--prompt", "x"])
        .output()
        .unwrap();
    failed(&out, &["mm"], &["remote-model `mm` is none of its 1 models (`m`)"]);
    assert_eq!(server.asked().len(), 1);
    let gone =
        format!("http://{}/v1", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    failed(
        &work.generate(&gone, &["--retries", "1"]),
        &["gone"],
        &["ask", "for the models", "2 tries", "proxies of the environment are not used"],
    );
}

/// A recipe's check contacts nothing; the stages do, each with the endpoint of its own or the one at the top.
#[test]
fn recipes_have_one_endpoint_for_all_stages_or_one_for_each() {
    let work = Work::new(6);
    let work = &work;
    let recipe = |top: &str, own: &str| {
        let text = format!(
            "name = \"r\"\nwork = {:?}\nmodel = \"assets/quickstart/model\"\nquestions = [{:?}]\ntarget-languages = [\"es\"]\nvariants = [\"sdrrl\"]\n\
             [remote]\nendpoint = \"{top}\"\nremote-model = \"m\"\nretries = 0\n\
             [generate]\nengine = \"openai\"\n[translate]\nengine = \"openai\"\nprompt = \"In {{target}}: {{text}}\"\n[score]\nengine = \"openai\"\n\
             [score.remote]\nendpoint = \"{own}\"\nremote-model = \"j\"\n\
             [code-switch]\ndictionary = \"assets/quickstart/world/words.en-es.txt\"\n[filter]\nignore-alarms = [\"copied\", \"wrong-language\"]\n[train]\nmax-steps = 1\n",
            work.at("work"),
            work.at("questions.jsonl")
        );
        fs::write(work.at("r.toml"), text).unwrap();
        move |more: &[&str]| program().arg("run").arg(work.at("r.toml")).args(more).output().unwrap()
    };
    let server = Server::start(|n, asked| match asked.question().strip_prefix("In Spanish: ") {
        Some(text) => Reply::Json(said(n, &format!("Es {text}"))),
        None => answers(n, asked),
    });
    let judge =
        Server::with_models(json!({"data": [{"id": "j"}]}), |n, _| Reply::Json(said_by(n, "j", "95")));
    let run = recipe(&server.url(), &judge.url());
    succeeds(&run(&["--check"]));
    succeeds(&run(&["--dry-run"]));
    assert_eq!((server.connections(), judge.connections()), (0, 0));
    let shown = succeeds(&run(&[]));
    for part in ["generate: 6 rows", "6 answers", "translate: 6 rows", "score: 6 rows"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let scored = rows(&work.at("work/score"));
    assert_eq!(
        (&scored[5]["answer"]["model"], &scored[5]["scores"]["es"]["sides"]["answer"]),
        (&json!("m"), &json!(0.95))
    );
    // At another address nothing is done again.
    let (one, two) = (Server::trap(), Server::trap());
    let shown = succeeds(&recipe(&one.url(), &two.url())(&[]));
    assert!(shown.contains("generate: unchanged") && shown.contains("score: unchanged"), "{shown}");
    let wrong = recipe("http://a:b@c/v1", &two.url());
    failed(&wrong(&["--check"]), &["check"], &["generate", "translate", "a user or a password"]);
    let unset = recipe(&one.url(), "ftp://x");
    failed(&unset(&["--check"]), &["check"], &["score", "neither with http://"]);
    assert_eq!((one.connections(), two.connections()), (0, 0));
}
