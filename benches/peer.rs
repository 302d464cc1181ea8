//! Interleaved runs of this program and its peers, each in a process of its own, so that peak memory is its own too.
use std::process::Command;

use serde_json::Value;

/// One contestant: its name and the command that runs it once and prints one JSON object on its last line.
pub struct Contestant {
    /// In the table.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Runs everyone in turn, `rounds` times; the medians of each numeric key. Each result also goes to standard error as it ends, for runs that are cut off.
pub fn interleave(contestants: &[Contestant], rounds: usize) -> Vec<Option<Value>> {
    let mut seen: Vec<Vec<Value>> = contestants.iter().map(|_| vec![]).collect();
    for round in 1..=rounds {
        for (contestant, results) in contestants.iter().zip(&mut seen) {
            if let Some(found) = once(contestant) {
                eprintln!("round {round}, {}: {found}", contestant.name);
                results.push(found);
            }
        }
    }
    seen.iter().map(|results| median(results)).collect()
}

fn once(contestant: &Contestant) -> Option<Value> {
    let out = Command::new(&contestant.command[0]).args(&contestant.command[1..]).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let found = text.lines().rev().find_map(|l| serde_json::from_str::<Value>(l).ok());
    if found.is_none() {
        let said = String::from_utf8_lossy(&out.stderr);
        // A panic's message stands below the place where it happened; Python's error is the last line.
        let panic = said.lines().skip_while(|l| !l.contains("panicked at")).nth(1);
        let last = panic.or_else(|| said.lines().rfind(|l| !l.trim().is_empty()));
        eprintln!("{}: no result: {}", contestant.name, last.unwrap_or("it said nothing"));
    }
    found
}

fn median(results: &[Value]) -> Option<Value> {
    let first = results.first()?.as_object()?;
    let of = |(key, value): (&String, &Value)| {
        let mut x: Vec<f64> = results.iter().filter_map(|r| r[key].as_f64()).collect();
        x.sort_by(f64::total_cmp);
        // What is no number is said by the first.
        (key.clone(), x.get(x.len() / 2).map_or_else(|| value.clone(), |&x| x.into()))
    };
    Some(Value::Object(first.iter().map(of).collect()))
}

/// Peak resident memory of this process, MiB.
pub fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)).and_then(|x| x.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// This program, run as a worker.
pub fn itself(arguments: &[&str]) -> Vec<String> {
    let own = std::env::current_exe().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    std::iter::once(own).chain(arguments.iter().map(|s| s.to_string())).collect()
}
