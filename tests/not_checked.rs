//! What could not be checked is null in results.json and "not checked" for people, wherever it is read: no identifier knows Igbo.
use std::{fs, path::Path};

use serde_json::Value;

use crate::cli::ok;

const TASK: &str = "{name = \"qa\", kind = \"qa\", language = \"ibo_Latn\", file = \"assets/quickstart/world/test.es.jsonl\", limit = 6, max-new-tokens = 8}";

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn tables_and_comparisons_say_that_a_rate_was_not_checked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().to_string();
    fs::write(at("tasks.toml"), format!("tasks = [{TASK}]\n")).unwrap();
    let eval = |out: &str, more: &[&str]| {
        let out = at(out);
        let all = ["eval", "--model", "assets/quickstart/model", "--tasks", &at("tasks.toml"), "--out", &out];
        ok(&[&all[..], more].concat())
    };
    let shown = eval("a", &[]);
    let line = |text: &str| text.lines().find(|l| l.contains("off target")).unwrap().to_string();
    assert!(line(&shown).contains("not checked"), "{shown}");
    let results = json(&dir.path().join("a/results.json"));
    assert!(results["results"]["qa"]["off_target,none"].is_null(), "{results:#}");
    assert!(results["results"]["qa"]["exact_match,none"].is_number());
    assert!(results["configs"]["qa"]["signature"]["off_target"].as_str().unwrap().contains("not-checked"));
    let a = at("a");
    let compared = eval("b", &["--compare", &a]);
    assert!(line(&compared).contains("not checked") && !compared.contains("NaN"), "{compared}");
}

#[test]
fn reports_of_runs_and_ablations_say_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let set = [
        "generate.limit=80".to_string(),
        "train.max-steps=4".into(),
        "train.eval-every=4".into(),
        "eval.bootstrap-samples=20".into(),
        "eval.while-training=2".into(),
        format!("eval.tasks=[{TASK}]"),
    ];
    let quoted: Vec<String> = set.iter().map(|s| format!("{s:?}")).collect();
    let text = format!(
        "name = \"n\"\nwork = {:?}\nrecipe = \"recipes/quickstart.toml\"\nset = [{}]\n[[arms]]\nname = \"full\"\n[[arms]]\nname = \"none\"\nset = [\"assemble.use-parallel=false\"]\n",
        at("ablate").to_string_lossy(),
        quoted.join(", ")
    );
    fs::write(at("a.toml"), text).unwrap();
    ok(&["ablate", &at("a.toml").to_string_lossy()]);
    let mut run = vec!["run".to_string(), "recipes/quickstart.toml".into()];
    for one in set.iter().cloned().chain([format!("work={:?}", at("run").to_string_lossy())]) {
        run.extend(["--set".to_string(), one]);
    }
    let shown = ok(&run.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(shown.contains("not checked"), "{shown}");
    for folder in ["ablate", "run"] {
        let page = fs::read_to_string(at(folder).join("report.html")).unwrap();
        // An ablation's page has a task's first metric only.
        assert!(page.contains("not checked") || folder == "ablate", "{folder}");
        // Neither a number that is none, nor 0 in its place.
        assert!(!page.contains("NaN") && !page.contains(">null<"), "{folder}");
        assert!(!json(&at(folder).join("results.json")).to_string().contains("NaN"), "{folder}");
    }
}
