//! Files that change while they are read, and text that would steer a terminal.
use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use sdrrl::data::{
    gguf::Gguf,
    map::map_path,
    row_shard::RowShard,
    token_shard::{self, Document, TokenShard},
};
use serde_json::{Value, json};

use crate::common::program;

/// What [`read_while_it_shrinks`] reads, and where.
const KIND: &str = "SDRRL_TEST_SHRINKS";
const FOLDER: &str = "SDRRL_TEST_FOLDER";

fn shrink(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(0).unwrap();
}

/// The reading side of the next test, in a process of its own, since it ends it.
#[test]
#[ignore = "started by shrinking_files_end_with_their_name"]
fn read_while_it_shrinks() {
    let (kind, folder) = (std::env::var(KIND).unwrap(), std::env::var(FOLDER).unwrap());
    let path = Path::new(&folder).join(&kind);
    match kind.as_str() {
        "rows.jsonl" => {
            let shard = RowShard::open(&path).unwrap();
            shrink(&path);
            let _ = shard.get::<Value>(shard.len() - 1);
        }
        "t.tokens" => {
            let shard = TokenShard::open(&path).unwrap();
            shrink(&path);
            let _ = shard.document(shard.len() - 1);
        }
        "model.gguf" => {
            let file = Gguf::open(&path).unwrap();
            shrink(&path);
            assert_eq!(file.maps[0][file.maps[0].len() - 1], 0);
        }
        _ => {
            // Many mappings come and go; the one that breaks is named.
            let kept = map_path(&path).unwrap();
            let other = Path::new(&folder).join("rows.jsonl");
            (0..100).for_each(|_| drop(map_path(&other).unwrap()));
            let read = std::thread::spawn(move || {
                shrink(&path);
                kept.iter().map(|b| *b as u64).sum::<u64>()
            });
            let _ = read.join();
        }
    }
    panic!("the end of the file was read although it is not there");
}

#[test]
fn shrinking_files_end_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let big = Document { tokens: vec![1; 50_000], weights: vec![1.0; 50_000], note: "n".into() };
    for kind in ["rows.jsonl", "t.tokens", "model.gguf", "weights \u{1b}[31m.bin"] {
        let row = json!({"instruction": "Q".repeat(100)}).to_string() + "\n";
        fs::write(at("rows.jsonl"), row.repeat(5000)).unwrap();
        token_shard::write(&at("t.tokens"), &[big.clone(), big.clone()]).unwrap();
        fs::write(at("weights \u{1b}[31m.bin"), vec![1u8; 1 << 20]).unwrap();
        fs::copy("tests/golden/tokenizer/spm.gguf", at("model.gguf")).unwrap();
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "outside::read_while_it_shrinks", "--ignored", "--nocapture"])
            .env(KIND, kind)
            .env(FOLDER, dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{kind}: {said}");
        let name = kind.replace('\u{1b}', "\\u{1b}");
        assert!(
            said.contains(&format!("{name} became shorter while it was read")) && !said.contains('\u{1b}'),
            "{kind}: {said}"
        );
    }
}

/// Offsets and texts were checked when the shard was opened; what another program writes into it later cannot lead out of it.
#[test]
fn shards_that_are_written_into_stay_within_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.tokens");
    let one = |n: u32| Document { tokens: vec![n; 3], weights: vec![1.0; 3], note: format!("note {n}") };
    token_shard::write(&path, &[one(1), one(2)]).unwrap();
    let shard = TokenShard::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len() as usize;
    use std::io::Write;
    File::options().write(true).open(&path).unwrap().write_all(&vec![0xff; length]).unwrap();
    assert_eq!((shard.len(), shard.document_len(1)), (2, 3));
    assert_eq!(shard.document(1).tokens, [u32::MAX; 3]);
    let rows = dir.path().join("rows-00000.jsonl");
    let mut writer = sdrrl::data::row_shard::ShardWriter::open_or_resume(&rows, 1).unwrap().0;
    (0..3).for_each(|i| writer.push(&json!({"id": i})).unwrap());
    writer.finish().unwrap();
    let shard = RowShard::open(&rows).unwrap();
    assert!(shard.is_indexed());
    let index = rows.with_extension("idx");
    let length = fs::metadata(&index).unwrap().len() as usize;
    for fill in [0xffu8, 0x7f, 1, 0] {
        File::options().write(true).open(&index).unwrap().write_all(&vec![fill; length]).unwrap();
        for i in 0..3 {
            // A value or an error, and a place for the message.
            let _ = (shard.get::<Value>(i), shard.place(i));
        }
    }
}

/// What is in files reaches neither the terminal nor the messages as a command to it.
#[test]
fn files_do_not_steer_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let evil = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{8}";
    let mut row = json!({"id": evil, "instruction": evil, "output": "A", evil: {evil: [evil]}}).to_string();
    row.push('\n');
    fs::write(at("rows-00000.jsonl"), &row).unwrap();
    fs::write(at("bad.jsonl"), format!("{{\"{evil}\": 1}}\n")).unwrap();
    let model = at(&format!("model{evil}"));
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), json!({"model_type": evil}).to_string()).unwrap();
    let (shown, bad, model) = (at("rows-00000.jsonl"), at("bad.jsonl"), model);
    let run = |args: &[&str]| program().args(args).current_dir(dir.path()).output().unwrap();
    let (shown, bad, model) = (shown.to_str().unwrap(), bad.to_str().unwrap(), model.to_str().unwrap());
    for args in [
        vec!["inspect", shown],
        vec!["generate", "--model", model, "--prompts", shown, "--out", "o"],
        vec!["generate", "--model", model, "--prompts", bad, "--out", "o"],
        vec!["run", model],
        vec!["merge", "--model", model, "--adapter", model, "--out", "o"],
    ] {
        let out = run(&args);
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.is_empty(), "{args:?} said nothing");
        let steers = |c: char| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}';
        assert!(!said.contains(steers), "{args:?}: {said:?}");
    }
}
