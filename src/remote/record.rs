//! `remote.jsonl` in a stage's folder: who answered, and what it took, over all runs that worked there. It is no part of the folder's content; at the end
//! the manifest's summary has the same.
use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    data::files::{FileContext, write_error},
    error::Error,
};

/// A model as a server has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// As its answers name it.
    pub model: String,
    /// Its entry of `/v1/models`; null where the server has none.
    pub listed: Value,
}

/// What was asked and answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// Requests that were answered.
    pub answers: usize,
    /// Requests that were sent again.
    pub sent_again: usize,
    /// Tokens of the prompts, as the server counts them.
    pub prompt_tokens: usize,
    /// Tokens of the answers, as the server counts them.
    pub completion_tokens: usize,
}

impl Usage {
    /// With another's.
    pub fn add(&mut self, other: Usage) {
        self.answers += other.answers;
        self.sent_again += other.sent_again;
        // A server may count whatever it likes.
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
    }
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Served(Served),
    /// The name in an answer of another model.
    Refused(String),
    Usage(Usage),
}

/// What the answers of a folder have in common. Several processes may work in it: whoever writes the first line decides.
pub(super) struct Record {
    path: Option<PathBuf>,
    listed: Value,
    first: Mutex<Option<Served>>,
    /// What it took, where there is no file.
    unkept: Mutex<Usage>,
}

/// Facts about a model's weights in an entry of `/v1/models` (llama.cpp's `meta`). Its other fields say where and how it is served, which may change.
const FACTS: [&str; 4] = ["n_params", "n_vocab", "n_embd", "size"];

impl Record {
    /// Of the folder's file, which may not be there; without one nothing is kept.
    ///
    /// # Errors
    /// The entry `listed` is of another model than the answers that are there.
    pub fn open(path: Option<&Path>, listed: Value) -> Result<Record> {
        let first = path.map(read).transpose()?.and_then(first_served);
        if let (Some(first), Some(path)) = (&first, path) {
            let fact = |of: &Value, key: &str| of["meta"].get(key).cloned();
            let other = FACTS.iter().find(|key| {
                let (old, new) = (fact(&first.listed, key), fact(&listed, key));
                old.is_some() && new.is_some() && old != new
            });
            if let Some(key) = other {
                let (old, new) = (&first.listed["meta"][key], &listed["meta"][key]);
                let what = format!(
                    "a model whose {key} is {old}, and the endpoint has one of that name whose {key} is {new}"
                );
                bail!(other_model(path, &what));
            }
        }
        let path = path.map(Path::to_path_buf);
        Ok(Record { path, listed, first: Mutex::new(first), unkept: Mutex::default() })
    }

    /// Takes note of who gave an answer.
    ///
    /// # Errors
    /// It is another model than the one that gave the others.
    pub fn answered(&self, model: &str) -> Result<()> {
        let mut first = self.first.lock().unwrap_or_else(|e| e.into_inner());
        let served = match &*first {
            Some(served) => served,
            None => {
                let mut served = Served { model: model.to_string(), listed: self.listed.clone() };
                if let Some(path) = &self.path {
                    append(path, &Line::Served(served.clone()))?;
                    // Another process may have been first.
                    served = first_served(read(path)?).unwrap_or(served);
                }
                first.insert(served)
            }
        };
        if served.model == model {
            return Ok(());
        }
        let what = format!("answers of the model `{}`, and this one is of `{model}`", served.model);
        match &self.path {
            Some(path) => {
                append(path, &Line::Refused(model.to_string()))?;
                bail!(other_model(path, &what))
            }
            None => bail!(Error::bad_input(
                model,
                format!("the file has {what}: the server changed its model; nothing more is taken from it")
            )),
        }
    }

    /// Who answered; `None` where nobody has yet.
    pub fn served(&self) -> Option<Served> {
        self.first.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Adds to what it took.
    pub fn add(&self, usage: Usage) -> Result<()> {
        match &self.path {
            Some(path) => append(path, &Line::Usage(usage)),
            None => {
                self.unkept.lock().unwrap_or_else(|e| e.into_inner()).add(usage);
                Ok(())
            }
        }
    }

    /// What all runs took; without a file, this one.
    pub fn total(&self) -> Result<Usage> {
        let mut total = *self.unkept.lock().unwrap_or_else(|e| e.into_inner());
        for line in self.path.as_deref().map(read).transpose()?.into_iter().flatten() {
            if let Line::Usage(usage) = line {
                total.add(usage);
            }
        }
        Ok(total)
    }
}

fn other_model(path: &Path, what: &str) -> Error {
    let dir = path.parent().unwrap_or(path);
    let message = format!(
        "{} has {what}: rows of two models are not mixed. Serve the first one again, or choose another --out",
        dir.display()
    );
    Error::exists(dir, message)
}

fn first_served(lines: Vec<Line>) -> Option<Served> {
    lines.into_iter().find_map(|line| match line {
        Line::Served(served) => Some(served),
        _ => None,
    })
}

/// The lines that are there. A line that was cut off by a power cut counts as not written.
fn read(path: &Path) -> Result<Vec<Line>> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        text => text.reading(path)?,
    };
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// In one call, so that lines of several processes do not mix.
fn append(path: &Path, line: &Line) -> Result<()> {
    let text = format!("{}\n", serde_json::to_string(line)?);
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| write_error(path, e))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_model_stays_and_usage_adds_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("remote.jsonl");
        let entry =
            |n: usize, created: usize| json!({"id": "m", "created": created, "meta": {"n_params": n}});
        let (a, b) = (
            Record::open(Some(&path), entry(7, 1)).unwrap(),
            Record::open(Some(&path), entry(7, 2)).unwrap(),
        );
        a.answered("m-1").unwrap();
        // Another process, which had seen nobody.
        let error = format!("{:#}", b.answered("m-2").unwrap_err());
        assert!(error.contains("`m-1`") && error.contains("`m-2`") && error.contains("--out"), "{error}");
        let usage = Usage { answers: 1, sent_again: 2, prompt_tokens: 3, completion_tokens: 4 };
        a.add(usage).unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"usage\": {\"ans").unwrap();
        // Restarted elsewhere, with the same model.
        let c = Record::open(Some(&path), entry(7, 3)).unwrap();
        c.answered("m-1").unwrap();
        assert_eq!(c.served().unwrap().listed, entry(7, 1));
        assert_eq!(c.total().unwrap(), usage);
        let error = format!("{:#}", Record::open(Some(&path), entry(8, 3)).err().unwrap());
        assert!(error.contains("n_params is 7") && error.contains("is 8"), "{error}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("{\"refused\":\"m-2\"}"), "{text}");
    }
}
