//! Standard output and standard error that nobody reads, that are full, or that are not there.
use std::{fs, process::Stdio};

use super::{QUESTIONS, manifest, output, start, wait_for};
use crate::{cli::text, common::program};

/// Nobody reads on: a printing command ends quietly, work goes on. A full disk instead: a named error, at the end of the work.
#[test]
fn output_that_cannot_be_written_is_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    fs::write(at("hyp.txt"), "a b c d\n").unwrap();
    let hyp = at("hyp.txt");
    let (rows_file, out) = (QUESTIONS.to_string(), at("p"));
    let printing: [Vec<&str>; 3] = [
        vec!["doctor"],
        vec!["inspect", &rows_file, "-n", "500"],
        vec!["metric", "--reference", &hyp, "-i", &hyp],
    ];
    let pairs = "assets/quickstart/world/parallel.en-es.tsv";
    let work = ["parallel", "--out", &out, "--file", pairs, "--limit", "20", "--target-languages", "es"];
    let closed = |args: &[&str]| {
        let mut child = start(args);
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let full = |args: &[&str]| {
        let device = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        program().args(args).stdout(device).output().unwrap()
    };
    for args in &printing {
        let fine = output(args);
        assert!(fine.status.success(), "{args:?}: {}", text(&fine.stderr));
        let end = closed(args);
        assert!(end.status.success() && end.stderr.is_empty(), "{args:?}: {}", text(&end.stderr));
        let end = full(args);
        let message = text(&end.stderr);
        assert_eq!(end.status.code(), Some(1), "{message}");
        assert!(message.contains("write standard output") && !message.contains("panicked"), "{message}");
    }
    let end = closed(&work);
    assert!(end.status.success() && text(&end.stderr).contains("the work goes on"), "{}", text(&end.stderr));
    let made = manifest(&dir.path().join("p"));
    assert_eq!(made["rows"], 20);
    fs::remove_dir_all(&out).unwrap();
    let end = full(&work);
    assert!(
        end.status.code() == Some(1) && text(&end.stderr).contains("the work is done"),
        "{}",
        text(&end.stderr)
    );
    assert_eq!(manifest(&dir.path().join("p"))["rows"], 20);
}

/// Outputs that are not there at all, and help that nobody reads.
#[test]
fn closed_outputs_and_unread_help_are_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("p");
    let own = program().get_program().to_string_lossy().into_owned();
    let work = format!(
        "parallel --out '{}' --file assets/quickstart/world/parallel.en-es.tsv --limit 20 --target-languages es",
        out.display()
    );
    for closed in
        [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>/dev/full | true", ">&- 2>/dev/full"]
    {
        let script = format!("'{own}' {work} {closed}");
        let end = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(
            end.status.success() && !text(&end.stderr).contains("panicked"),
            "{closed}: {}",
            text(&end.stderr)
        );
        wait_for("the result", || out.join("manifest.json").exists());
        assert_eq!(manifest(&out)["rows"], 20, "{closed}");
        wait_for("its end", || fs::remove_dir_all(&out).is_ok());
    }
    for args in
        [&["--help"][..], &["--version"], &["train", "--help"], &["eval", "--help"], &["no-such-command"]]
    {
        for device in ["/dev/full", "/dev/null"] {
            let open = || fs::OpenOptions::new().write(true).open(device).unwrap();
            let end = program().args(args).stdout(open()).stderr(Stdio::piped()).output().unwrap();
            assert!(!text(&end.stderr).contains("panicked"), "{args:?}: {}", text(&end.stderr));
            let end = program().args(args).stdout(open()).stderr(open()).status().unwrap();
            assert!(end.code().is_some_and(|code| code < 100), "{args:?}: {end}");
        }
    }
}
