//! Sample files in lm-eval's layout (0.4.13, `evaluator.py` and `evaluation_tracker.py`), one line per row, so that its tools read them.
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    measure::Measure,
    sample::Sample,
    tasks::{Ask, Item},
};
use crate::{data::json::read_text, recipe::eval::EvalTask};

/// The names of all tasks.
pub const FILES: &str = "samples_*_sdrrl.jsonl";

/// `samples_TASK_sdrrl.jsonl`: where lm-eval has the date, which differs between equal runs.
pub fn file_name(task: &EvalTask) -> String {
    FILES.replace('*', &task.name)
}

/// The task's rows with what each contributes to every measure, a line each.
pub fn rows(task: &EvalTask, items: &[Item], samples: &[Sample], measures: &[Measure]) -> Result<String> {
    let mut text = String::new();
    for (i, (item, sample)) in items.iter().zip(samples).enumerate() {
        let mut row = row(task, item, sample)?;
        let names: Vec<&str> = measures.iter().map(|m| m.about.key).collect();
        row.insert("metrics".into(), json!(names));
        let target = row["target"].as_str().unwrap_or_default().to_string();
        row.insert("doc_hash".into(), sha256(&serde_json::to_string_pretty(&item.doc)?).into());
        row.insert("prompt_hash".into(), sha256(&sample.prompt).into());
        row.insert("target_hash".into(), sha256(&target).into());
        for m in measures {
            row.insert(m.about.key.to_string(), m.of_row(i, sample)?);
        }
        text += &serde_json::to_string(&row)?;
        text.push('\n');
    }
    Ok(text)
}

/// The fields that do not depend on the metrics.
fn row(task: &EvalTask, item: &Item, sample: &Sample) -> Result<Map<String, Value>> {
    let target = match &item.ask {
        // The index of the right choice, whose letter the sample has.
        Ask::Choose(_) | Ask::Letter(_) => {
            let letter = sample.targets.first().and_then(|t| t.chars().next());
            letter.map_or(String::new(), |l| (u32::from(l).saturating_sub(u32::from('A'))).to_string())
        }
        Ask::Score => sample.prompt.clone(),
        Ask::Reply | Ask::Align if sample.targets.len() == 1 => sample.targets.concat(),
        Ask::Reply | Ask::Align => serde_json::to_string(&sample.targets)?,
    };
    let arguments: Vec<Vec<Value>> = match &item.ask {
        Ask::Choose(continuations) => {
            continuations.iter().map(|c| vec![json!(sample.prompt), json!(c)]).collect()
        }
        Ask::Score => vec![vec![json!(sample.prompt)]],
        Ask::Align => vec![vec![json!(sample.prompt), json!(sample.targets.first())]],
        Ask::Reply | Ask::Letter(_) => {
            let settings = json!({"until": [], "max_gen_toks": task.reply_tokens(), "do_sample": false});
            vec![vec![json!(sample.prompt), settings]]
        }
    };
    let named = |prefix: &str, values: Vec<Value>| -> Value {
        Value::Object(values.into_iter().enumerate().map(|(i, v)| (format!("{prefix}_{i}"), v)).collect())
    };
    let arguments = named("gen_args", arguments.into_iter().map(|a| named("arg", a)).collect());
    let (replies, filtered): (Vec<Value>, Vec<Value>) = match &item.ask {
        Ask::Choose(_) => {
            let greedy = |i: usize| if sample.greedy.get(i) == Some(&true) { "True" } else { "False" };
            let each = sample.log_likelihoods.iter().enumerate();
            each.map(|(i, x)| json!([format!("{x:?}"), greedy(i)])).map(|v| (json!([v]), v)).unzip()
        }
        Ask::Score => {
            // lm-eval's is the second.
            let sum = format!("{:?}", sample.log_likelihoods.last().copied().unwrap_or(0.0));
            (vec![json!([sum])], vec![json!(sum)])
        }
        Ask::Align => (vec![], vec![]),
        Ask::Reply | Ask::Letter(_) => {
            let whole = sample.reply.as_ref().unwrap_or(&sample.response);
            (vec![json!([whole])], vec![json!(sample.response)])
        }
    };
    let fields = [
        ("doc_id", json!(sample.doc_id)),
        ("doc", item.doc.clone()),
        ("target", json!(target)),
        ("arguments", arguments),
        ("resps", json!(replies)),
        ("filtered_resps", json!(filtered)),
        ("filter", json!("none")),
    ];
    Ok(fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// Of each sample whether its reply is right, by the first metric that gives every row 0 or 1; `None` where no metric does, or nothing was measured.
pub fn right_or_wrong(dir: &Path, task: &EvalTask) -> Option<Vec<bool>> {
    let text = read_text(&dir.join(file_name(task))).ok()?;
    let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    let judged = |metric: &Value| -> Option<Vec<bool>> {
        let of_row = |row: &Value| match row[metric.as_str()?].as_f64()? {
            0.0 => Some(false),
            1.0 => Some(true),
            _ => None,
        };
        rows.iter().map(of_row).collect()
    };
    rows.first()?["metrics"].as_array()?.iter().find_map(judged)
}
