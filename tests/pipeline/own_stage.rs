//! A stage that is no part of the program: one file against the public interface gets identity, locks, restarts and cleaning from `stage::run`.
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use sdrrl::pipeline::{
    identity::{Identity, Inputs},
    manifest::Counts,
    stage::{Made, Open, Ran, Stage, run},
};
use serde::Serialize;

/// Lines of a text file in upper case, a file for each.
struct Shout {
    input: PathBuf,
    out: PathBuf,
    settings: Settings,
    /// Lines written, and the line before which the work fails.
    written: Cell<usize>,
    fails_at: Option<usize>,
}

#[derive(Serialize)]
struct Settings {
    ending: String,
}

impl Stage for Shout {
    const NAME: &'static str = "shout";
    const FILES: &'static [&'static str] = &["line-*.txt"];

    fn out(&self) -> &Path {
        &self.out
    }
    fn identity(&self) -> Result<Identity> {
        Identity::of(&self.settings)
    }
    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new().file("input", &self.input))
    }
    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let text = fs::read_to_string(&self.input)?;
        for (i, line) in text.lines().enumerate() {
            let name = format!("line-{i}.txt");
            if open.path(&name).exists() {
                continue;
            }
            ensure!(self.fails_at != Some(i), "line {i} is too loud");
            open.write(&name, format!("{}{}", line.to_uppercase(), self.settings.ending).as_bytes())?;
            self.written.set(self.written.get() + 1);
        }
        Ok(Made::new(())?.counting(Counts::all(text.lines().count())))
    }
}

fn shout(dir: &Path, ending: &str, fails_at: Option<usize>) -> (Result<Ran>, usize) {
    let (input, out) = (dir.join("in.txt"), dir.join("out"));
    let settings = Settings { ending: ending.into() };
    let mut stage = Shout { input, out, settings, written: Cell::new(0), fails_at };
    let ran = run(&mut stage);
    (ran, stage.written.get())
}

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir.join("out")).unwrap().flatten().map(|e| e.file_name());
    let mut all: Vec<String> = names.map(|n| n.to_string_lossy().into_owned()).collect();
    all.retain(|n| n.starts_with("line-"));
    all.sort();
    all.iter().map(|n| fs::read_to_string(dir.join("out").join(n)).unwrap()).collect()
}

#[test]
fn a_stage_in_one_file_has_what_every_stage_has() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("in.txt"), "one\ntwo\nthree\n").unwrap();
    // It ends early, goes on from there, and is then finished.
    let (ended, written) = shout(dir, "!", Some(2));
    assert!(format!("{:#}", ended.unwrap_err()).contains("line 2 is too loud") && written == 2);
    let (ran, written) = shout(dir, "!", None);
    assert!(ran.unwrap() == Ran::Made && written == 1);
    assert_eq!(files(dir), ["ONE!", "TWO!", "THREE!"]);
    assert!(matches!(shout(dir, "!", None), (Ok(Ran::Unchanged), 0)));
    // Other settings, ended early, and the first ones again: nothing of the others is left.
    assert!(shout(dir, "?", Some(1)).0.is_err());
    let (ran, written) = shout(dir, "!", None);
    assert!(ran.unwrap() == Ran::Made && written == 3);
    assert_eq!(files(dir), ["ONE!", "TWO!", "THREE!"]);
    // Another input with fewer lines: the third file goes.
    fs::write(dir.join("in.txt"), "four\nfive\n").unwrap();
    assert_eq!(shout(dir, "!", None).0.unwrap(), Ran::Made);
    assert_eq!(files(dir), ["FOUR!", "FIVE!"]);
}
