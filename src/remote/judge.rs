//! A model as a judge of translations: what it is asked, and how a number is read from its answer.
//!
//! An answer must hold **one** number, from 0 to the best score; `/100` or `out of 100` behind it is no second one. Anything else (no number, several,
//! one out of range, an answer that did not end) gives no score: NaN, which is counted.
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use anyhow::{Result, ensure};
use regex::Regex;

use super::{Remote, Sampling, Ticket};
use crate::{
    data::{
        conversation::{Role, Turn},
        languages,
        placeholders::filled,
    },
    error::Error,
    qe::Scorer,
    recipe::score::ScoreSettings,
};

/// From so many answers on, none with a number is a mistake.
const TRIED: usize = 20;

/// What is wrong with a judge's settings; nothing is contacted.
///
/// # Errors
/// [`Error::Setting`].
pub fn check(s: &ScoreSettings) -> Result<()> {
    for part in ["{text}", "{translation}"] {
        let message = || format!("score.prompt has no {part}: a judge must see both texts");
        ensure!(s.prompt.contains(part), Error::setting("score.prompt", message()));
    }
    super::check(&s.remote)
}

/// A judge of translations from one language into another.
pub struct Judge {
    remote: Arc<Remote>,
    prompt: String,
    out_of: f64,
    sampling: Sampling,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    answers: usize,
    /// Of them, those without a score, and the first of these.
    without: usize,
    example: String,
}

impl Judge {
    /// A judge of translations from `source` into `target` (language codes).
    pub fn new(remote: Arc<Remote>, s: &ScoreSettings, source: &str, target: &str) -> Judge {
        let value = |name: &str| match name {
            "source" => Some(languages::name(source).to_string()),
            "target" => Some(languages::name(target).to_string()),
            "out-of" => Some(s.out_of.to_string()),
            _ => None,
        };
        let prompt = filled(&s.prompt, &value);
        let sampling = Sampling::greedy(s.max_new_tokens);
        Judge { remote, prompt, out_of: s.out_of, sampling, tally: Mutex::default() }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The judgements to come of (source, translation) pairs; `place` names them in messages.
    pub fn ask(&self, place: &dyn Fn(usize) -> String, pairs: &[(String, String)]) -> Vec<Ticket> {
        let one = |(i, (text, translation)): (usize, &(String, String))| {
            let value = |name: &str| match name {
                "text" => Some(text.clone()),
                "translation" => Some(translation.clone()),
                _ => None,
            };
            let prompt = filled(&self.prompt, &value);
            self.remote.ask(place(i), &[Turn::new(Role::User, &prompt)], &self.sampling)
        };
        pairs.iter().enumerate().map(one).collect()
    }

    /// The scores, from 0 to 1; NaN where an answer holds none.
    ///
    /// # Errors
    /// A request that failed; a judge that never answers with a number.
    pub fn read(&self, tickets: &[Ticket]) -> Result<Vec<f64>> {
        let one = |ticket: &Ticket| {
            let answer = ticket.wait().map_err(|e| e.error)?;
            let number = number(&answer.text, self.out_of).filter(|_| answer.finish == "stop");
            let mut tally = self.tally();
            tally.answers += 1;
            if number.is_none() {
                tally.without += 1;
                if tally.without == 1 {
                    tally.example = format!("{:?} (finish reason {:?})", answer.text, answer.finish);
                }
            }
            let hopeless = tally.answers == TRIED && tally.without == TRIED;
            ensure!(!hopeless, self.refusal(&tally));
            Ok(number.map_or(f64::NAN, |x| x / self.out_of))
        };
        tickets.iter().map(one).collect()
    }

    /// Answers without a score, in words; empty where there is none.
    pub fn report(&self) -> String {
        let Tally { answers, without, example } = &*self.tally();
        match without {
            0 => String::new(),
            _ => format!(
                "{without} of {answers} answers hold no score, and their sides have none; the first is {example}"
            ),
        }
    }

    /// An error if no answer so far holds a score.
    ///
    /// # Errors
    /// [`Error::BadInput`].
    pub fn check(&self) -> Result<()> {
        let tally = self.tally();
        ensure!(tally.answers == 0 || tally.without < tally.answers, self.refusal(&tally));
        Ok(())
    }

    fn refusal(&self, tally: &Tally) -> Error {
        let (answers, out_of, example) = (tally.answers, self.out_of, &tally.example);
        let message = format!(
            "none of the judge's {answers} answers holds one number from 0 to {out_of}; the first is {example}: change score.prompt, or the model"
        );
        Error::bad_input("score.prompt", message)
    }
}

impl Scorer for Judge {
    fn name(&self) -> String {
        self.remote.name()
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        self.read(&self.ask(&|i| format!("pair {}", i + 1), pairs))
    }

    fn finish(&mut self) -> Result<()> {
        self.check()
    }
}

/// The one number of an answer, from 0 to `out_of`.
fn number(answer: &str, out_of: f64) -> Option<f64> {
    static NUMBERS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[-+]?[0-9][0-9.,]*").ok());
    let mut found = None;
    for at in NUMBERS.as_ref()?.find_iter(answer) {
        let before = answer[..at.start()].trim_end();
        let digits = at.as_str().trim_end_matches(['.', ',']);
        let x: f64 = digits.parse().ok()?;
        let scale = found.is_some() && x == out_of && (before.ends_with('/') || before.ends_with("out of"));
        if scale {
            continue;
        }
        if found.is_some() || before.len() == at.start() && before.ends_with(char::is_alphanumeric) {
            return None;
        }
        found = Some(x);
    }
    found.filter(|x| (0.0..=out_of).contains(x))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_number_in_range_is_a_score_and_nothing_else_is() {
        for (answer, score) in [
            ("85", Some(85.0)),
            (" **85** ", Some(85.0)),
            ("Score: 85.", Some(85.0)),
            ("85/100", Some(85.0)),
            ("I would give it 72.5 out of 100.", Some(72.5)),
            ("100/100", Some(100.0)),
            ("100", Some(100.0)),
            ("0", Some(0.0)),
            ("85%", Some(85.0)),
            ("", None),
            ("excellent", None),
            ("101", None),
            ("-5", None),
            ("85 or 90", None),
            ("On a scale from 0 to 100: 85", None),
            ("85/10", None),
            ("8,5", None),
            ("1.2.3", None),
            ("v85", None),
            ("٨٥", None),
        ] {
            assert_eq!(number(answer, 100.0), score, "{answer:?}");
        }
        assert_eq!((number("4/5", 5.0), number("4", 5.0), number("40", 5.0)), (Some(4.0), Some(4.0), None));
    }

    proptest! {
        #[test]
        fn any_answer_is_a_score_in_range_or_none(answer in "\\PC{0,30}", rest in "[-0-9./, a]{0,12}") {
            for text in [answer, rest] {
                let score = number(&text, 100.0);
                prop_assert!(score.is_none_or(|x| (0.0..=100.0).contains(&x)), "{text:?}: {score:?}");
            }
        }
    }
}
