//! Any program that reads `source TAB translation` lines and writes one number for each.
use anyhow::{Context, Result, ensure};

use super::Scorer;
use crate::data::line_process::LineProcess;

/// A program that scores.
pub struct CommandScorer {
    process: LineProcess,
}

impl CommandScorer {
    /// A scorer over `process`.
    pub fn new(process: LineProcess) -> CommandScorer {
        CommandScorer { process: process.with_sentinel(number_pair) }
    }
}

/// A pair by whose score it is known that scores stand where they belong: one of two looks better than the other.
fn number_pair(number: u32, second: bool) -> String {
    let translation = if second { "???".into() } else { number.to_string() };
    format!("{number}\t{translation}")
}

impl Scorer for CommandScorer {
    fn name(&self) -> String {
        format!("command {}", self.process.command())
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let flat = |s: &str| s.replace('\t', " ");
        let lines: Vec<String> = pairs.iter().map(|(a, b)| format!("{}\t{}", flat(a), flat(b))).collect();
        let replies = self.process.ask(&lines)?;
        replies.iter().zip(&lines).map(|(reply, line)| number(self.process.command(), reply, line)).collect()
    }

    fn finish(&mut self) -> Result<()> {
        self.process.finish()
    }
}

fn number(command: &str, reply: &str, line: &str) -> Result<f64> {
    let last = reply.split_whitespace().next_back().unwrap_or_default();
    let x: f64 = last
        .parse()
        .with_context(|| format!("`{command}` replied {reply:?} to {line:?}: a number was expected"))?;
    ensure!(x.is_finite(), "`{command}` replied {reply:?} to {line:?}: the number must be finite");
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::line_process::Protocol;
    use std::time::Duration;

    #[test]
    fn numbers_are_read_and_anything_else_is_named() {
        let process = |c| LineProcess::new(c, Protocol::Lines, Duration::from_secs(5));
        let pair = vec![("a".to_string(), "b".to_string())];
        let mut scorer = CommandScorer::new(process("while read x; do echo Score: 0.25; done"));
        assert_eq!(scorer.score(&pair).unwrap(), [0.25]);
        for bad in ["cat", "while read x; do echo NaN; done"] {
            let error = format!("{:#}", CommandScorer::new(process(bad)).score(&pair).unwrap_err());
            assert!(error.contains(bad) && error.contains("number"), "{error}");
        }
    }
}
