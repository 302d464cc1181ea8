//! Programs that behave, and programs that do not.
use std::{path::Path, time::Instant};

use super::*;

fn lines(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|s| s.to_string()).collect()
}

fn process(command: &str, protocol: Protocol) -> LineProcess {
    LineProcess::new(command, protocol, Duration::from_secs(2))
}

fn ask(command: &str, protocol: Protocol, texts: &[&str]) -> Result<Vec<String>> {
    process(command, protocol).ask(&lines(texts))
}

#[track_caller]
fn refused(command: &str, protocol: Protocol, what: &str) {
    let begun = Instant::now();
    let error = format!("{:#}", ask(command, protocol, &["first", "second", "third"]).unwrap_err());
    assert!(error.contains(what) && error.contains(command), "{command}: {error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{command}: {:?}", begun.elapsed());
}

#[test]
fn every_protocol_maps_lines_to_lines() {
    let texts = ["one", "two words", "", "a\nb"];
    let expected = ["one", "two words", "", "a b"];
    assert_eq!(ask("cat", Protocol::Lines, &texts).unwrap(), expected);
    assert_eq!(ask("cat", Protocol::Nul, &texts).unwrap(), expected);
    assert_eq!(ask("tr a-z A-Z", Protocol::Batch, &["ab", "c"]).unwrap(), ["AB", "C"]);
}

#[test]
fn apertium_sees_its_reserved_characters_escaped() {
    let texts = ["a [b] <c> ^d$ {e} f/g \\ @h", "", "x.", "\\"];
    assert_eq!(ask("cat", Protocol::Apertium, &texts).unwrap(), texts);
    assert_eq!(Protocol::Apertium.encode("a/b"), "a\\/b.[]");
}

/// Apertium's pipelines keep the last records until others follow.
#[test]
fn records_that_apertium_holds_back_are_pushed_out() {
    let late = "bash -c 'a=; b=; while IFS= read -r -d \"\" x; do [ -n \"$a\" ] && printf \"%s\\0\" \"$a\"; a=$b; b=$x; done'";
    let mut p = LineProcess::new(late, Protocol::Apertium, Duration::from_secs(5));
    for round in 0..3 {
        let texts: Vec<String> = (0..4).map(|i| format!("line {round} {i}")).collect();
        assert_eq!(p.ask(&texts).unwrap(), texts);
    }
    p.finish().unwrap();
    // A record that is lost must not shift the others.
    let lossy = "bash -c 'while IFS= read -r -d \"\" x; do case $x in lost*) ;; *) printf \"%s\\0\" \"$x\";; esac; done'";
    let texts = lines(&["a", "lost", "b"]);
    let error = LineProcess::new(lossy, Protocol::Apertium, Duration::from_secs(5)).ask(&texts).unwrap_err();
    assert!(error.to_string().contains("gave no reply to one of 7 lines"), "{error}");
}

#[test]
fn one_process_serves_many_batches() {
    let mut p = process("while read x; do echo $$; done", Protocol::Lines);
    let first = p.ask(&["x".into()]).unwrap();
    assert_eq!(p.ask(&lines(&["y", "z"])).unwrap(), [first[0].clone(), first[0].clone()]);
    p.finish().unwrap();
}

#[test]
fn more_lines_than_a_pipe_holds_do_not_block() {
    let texts: Vec<String> = (0..20_000).map(|i| format!("line number {i} with some words")).collect();
    let mut p = LineProcess::new("cat", Protocol::Lines, Duration::from_secs(10));
    assert_eq!(p.ask(&texts).unwrap(), texts);
}

/// Programs that are odd but give a line per line.
#[test]
fn odd_programs_that_are_right_are_not_refused() {
    for program in [
        "while IFS= read -r x; do printf '%s\\r\\n' \"$x\"; done",
        "while IFS= read -r x; do printf '%s' \"$x\"; sleep 0.02; echo; done",
        "while IFS= read -r x; do echo \"$x\"; head -c 50000 /dev/zero | tr '\\0' e >&2; done",
        "echo Loading >&2; cat",
    ] {
        assert_eq!(ask(program, Protocol::Lines, &["a", "", "b c"]).unwrap(), ["a", "", "b c"], "{program}");
    }
    // Always the same, always something else: nothing is known, so nothing is refused.
    assert_eq!(ask("while read x; do echo; done", Protocol::Lines, &["a", "b"]).unwrap(), ["", ""]);
    let random = "bash -c 'while read x; do echo ${RANDOM}x$RANDOM; done'";
    assert_eq!(ask(random, Protocol::Lines, &["a", "b"]).unwrap().len(), 2);
}

/// Numbers come through, or not; one surplus line or several; at the start, in the middle, at the end; quick or slow: no reply gets to another line.
#[test]
fn a_line_too_many_is_seen_wherever_it_is() {
    let say = ["\"T:$x\"", "\"${#x} $(echo \"$x\" | cksum | tr 0-9 a-j)\"", "same", "\"$RANDOM\""];
    let extra = [
        "echo Loading model...; while IFS= read -r x; do SAY; done",
        "echo; echo; while IFS= read -r x; do SAY; done",
        "echo a; echo a; echo b; while IFS= read -r x; do SAY; sleep 0.03; done",
        "i=0; while IFS= read -r x; do i=$((i+1)); [ $i = 4 ] && echo surplus; SAY; done",
        "i=0; while IFS= read -r x; do i=$((i+1)); SAY; [ $i = 4 ] && { echo x; echo y; }; done",
        "i=0; while IFS= read -r x; do i=$((i+1)); SAY; [ $i = 5 ] && echo; sleep 0.02; done",
    ];
    for say in say {
        for extra in extra {
            let program = extra.replace("SAY", &format!("echo {say}"));
            let program = format!("bash -c '{program}'");
            refused(&program, Protocol::Lines, "gave ");
        }
    }
}

/// What could not be seen in the first chunk is seen in the next, or when the program ends.
#[test]
fn what_is_said_late_is_seen_later() {
    let late = "bash -c 'i=0; while IFS= read -r x; do i=$((i+1)); echo \"$x\"; [ $i = 5 ] && (sleep 0.4; echo late) & done; wait'";
    let mut p = process(late, Protocol::Lines);
    assert_eq!(p.ask(&lines(&["one"])).unwrap(), ["one"]);
    std::thread::sleep(Duration::from_millis(900));
    let error = format!("{:#}", p.ask(&lines(&["two"])).unwrap_err());
    assert!(error.contains("before it got one") && error.contains("late"), "{error}");
    // Of a program whose replies cannot be told apart, any line at the end may be a row's.
    let same = "bash -c 'while read x; do echo same; done; echo same'";
    let mut p = process(same, Protocol::Lines);
    p.ask(&lines(&["one", "two"])).unwrap();
    assert!(p.finish().unwrap_err().to_string().contains("more lines than it got"));
    // Replies that were matched are not thrown away for a farewell.
    let mut p = process("bash -c 'cat; echo bye'", Protocol::Lines);
    p.ask(&lines(&["one", "two"])).unwrap();
    p.finish().unwrap();
}

#[test]
fn death_silence_and_wrong_counts_are_named() {
    for (command, protocol, what) in [
        ("head -n 1", Protocol::Lines, "ended"),
        ("echo sorry >&2; exit 3", Protocol::Lines, "sorry"),
        ("sleep 60", Protocol::Lines, "within 2 s"),
        ("sed p", Protocol::Batch, "too many or too few"),
        ("sed '$p'", Protocol::Batch, "gave more lines than it got"),
        ("sed 1d", Protocol::Batch, "after 6 of 7"),
        ("sed -u 4d", Protocol::Lines, "no reply to line 7 of 7"),
        ("echo banner; sed 4d", Protocol::Batch, "too many or too few"),
        ("no-such-program-here", Protocol::Lines, "not found"),
        ("iconv -f UTF-8 -t LATIN1; printf 'caf\\351\\n'", Protocol::Batch, "not UTF-8"),
        // Closes its output and reads on; replies without reading.
        ("exec >&-; cat >/dev/null; sleep 60", Protocol::Lines, "closed its output"),
        ("yes", Protocol::Lines, "gave "),
        // Ends, and leaves a child that holds the pipes.
        ("sleep 60 & head -n 2", Protocol::Lines, "ended"),
    ] {
        refused(command, protocol, what);
    }
}

#[test]
fn a_program_that_never_stops_talking_fills_no_memory() {
    let resident = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = resident();
    refused("cat /dev/zero", Protocol::Lines, "a line of more than 4 MiB");
    refused("cat /dev/zero", Protocol::Nul, "gave ");
    refused("tr '\\0' x </dev/zero", Protocol::Batch, "a line of more than 4 MiB");
    refused(
        "bash -c 'while :; do head -c 3000000 /dev/zero | tr \"\\0\" x; echo; done'",
        Protocol::Lines,
        "gave ",
    );
    let grown = (resident() - before.min(resident())) >> 10;
    assert!(grown < 256, "{grown} MiB");
}

fn lives(pid: &str) -> bool {
    // A zombie that nobody has reaped yet lives no more.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[test]
fn children_of_the_program_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pids");
    let command = format!(
        "sh -c 'sleep 300 & echo $! >> {0}; sleep 300 & echo $! >> {0}; cat >/dev/null; wait'; cat",
        note.display()
    );
    let read = || std::fs::read_to_string(&note).unwrap_or_default();
    let mut p = LineProcess::new(&command, Protocol::Lines, Duration::from_millis(700));
    assert!(p.ask(&lines(&["a"])).is_err());
    let pids = read();
    assert_eq!(pids.lines().count(), 2, "{pids}");
    for pid in pids.lines() {
        let begun = Instant::now();
        while lives(pid) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!lives(pid), "{pid}");
    }
}

#[test]
fn the_environment_is_a_chosen_one() {
    // HOME and PATH come through; what the test runner has besides does not.
    let show = |names: &[&str]| {
        let p =
            process("env | cut -d= -f1 | sort | tr '\\n' ' ' | sed 's/$/\\n/' >&2; exit 3", Protocol::Batch);
        format!("{:#}", p.with_environment(&lines(names)).ask(&lines(&["x"])).unwrap_err())
    };
    let (plain, named) = (show(&[]), show(&["CARGO*"]));
    assert!(plain.contains("PATH") && !plain.contains("CARGO"), "{plain}");
    let any = std::env::vars().any(|(name, _)| name.starts_with("CARGO"));
    assert_eq!(named.contains("CARGO"), any, "{named}");
}

#[test]
fn a_version_is_what_the_command_prints() {
    let of = |command: &str| output_of(command, &[], Duration::from_secs(2));
    assert_eq!(of("echo 1.2; echo; echo x").unwrap(), "1.2\n\nx");
    for (command, what) in [
        ("echo no >&2; exit 4", "no"),
        ("sleep 60", "did not end"),
        ("cat /dev/zero", "more than 4 MiB"),
        ("yes", "more than 64 KiB"),
    ] {
        let error = format!("{:#}", of(command).unwrap_err());
        assert!(error.contains(what), "{command}: {error}");
    }
    assert!(Path::new("/proc").exists());
}
