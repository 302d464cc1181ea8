//! How many texts have an alarm, and which.
use std::{collections::BTreeMap, fmt};

/// Counts of alarms, by name. Shown as `3 answers with an alarm (copied 1, truncated 2)`; an answer may have several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    answers: usize,
    by_name: BTreeMap<String, usize>,
}

impl Alarms {
    /// Takes note of an answer's alarms.
    pub fn count(&mut self, alarms: &[String]) {
        self.answers += usize::from(!alarms.is_empty());
        alarms.iter().for_each(|name| *self.by_name.entry(name.clone()).or_default() += 1);
    }
}

impl fmt::Display for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} answers with an alarm", self.answers)?;
        let names: Vec<String> = self.by_name.iter().map(|(name, n)| format!("{name} {n}")).collect();
        if names.is_empty() { Ok(()) } else { write!(f, " ({})", names.join(", ")) }
    }
}

#[test]
fn alarms_are_counted_by_name() {
    let mut alarms = Alarms::default();
    assert_eq!(alarms.to_string(), "0 answers with an alarm");
    let named = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    [named(&["truncated", "loop"]), named(&[]), named(&["truncated"])].iter().for_each(|a| alarms.count(a));
    assert_eq!(alarms.to_string(), "2 answers with an alarm (loop 1, truncated 2)");
}
