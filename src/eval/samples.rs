//! Sample files in lm-eval's layout (0.4.13, `evaluator.py` and `evaluation_tracker.py`), one line per row, so that its tools read them.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    measure::Measure,
    sample::Sample,
    tasks::{Ask, Item},
};
use crate::data::row_shard::RowSet;
use crate::pipeline::work_dir::SAMPLES;
use crate::{data::files::write_atomic, recipe::eval::EvalTask};

/// `samples_TASK_sdrrl.jsonl`: where lm-eval has the date, which differs between equal runs.
pub fn path(out: &Path, task: &EvalTask) -> PathBuf {
    out.join(format!("samples_{}_sdrrl.jsonl", task.name))
}

/// Writes the task's rows with what each contributes to every measure.
pub fn write(
    out: &Path,
    task: &EvalTask,
    items: &[Item],
    samples: &[Sample],
    measures: &[Measure],
) -> Result<()> {
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
    write_atomic(&path(out, task), text.as_bytes())
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

/// The samples of a finished task.
pub fn read_samples(dir: &Path, task: &EvalTask) -> Result<Vec<Sample>> {
    let path = dir.join(&task.name).join(SAMPLES);
    let set = RowSet::open(&path)
        .with_context(|| format!("task {} has no samples: run `eval` first", task.name))?;
    set.iter().collect()
}
