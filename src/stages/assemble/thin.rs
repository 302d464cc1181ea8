//! Fewer training examples: caps by pair type and language, and shares of pair types. What is left out is counted by reason.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use crate::{
    data::{languages, random::RowRandom, record::Example},
    error::Error,
    recipe::assemble::{AssembleSettings, PairType, Variant},
    report::out::note,
};

/// What a cap or a share is about.
#[derive(Clone, Debug, PartialEq)]
enum About {
    Pair(String),
    /// The answer's language.
    Language(String),
}

impl About {
    fn has(&self, e: &Example) -> bool {
        match self {
            About::Pair(pair) => e.pair == *pair,
            About::Language(language) => languages::same_language(&e.answer_language, language),
        }
    }
}

/// The caps and shares of the settings.
pub(super) struct Thinning {
    caps: Vec<(String, About, usize)>,
    shares: Vec<(String, f64)>,
    seed: u64,
}

fn is_pair(name: &str) -> bool {
    name == "parallel" || PairType::ALL.iter().any(|pair| pair.name() == name)
}

/// `NAME=NUMBER`.
fn parsed<'a>(key: &str, text: &'a str) -> Result<(&'a str, f64)> {
    let message = || format!("{key}: `{text}` is no NAME=NUMBER, such as S>S=500");
    let (name, number) =
        text.rsplit_once('=').with_context(message).map_err(|e| Error::setting(key, e.to_string()))?;
    let number = number.trim().parse::<f64>().ok().filter(|x| *x >= 0.0 && x.is_finite());
    let number = number.with_context(message).map_err(|e| Error::setting(key, e.to_string()))?;
    Ok((name.trim(), number))
}

impl Thinning {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`Error::Setting`]: names that are neither a pair type nor a known language, numbers that mean nothing, a name that occurs twice, shares of pair types
    /// that are not made.
    pub fn of(s: &AssembleSettings) -> Result<Thinning> {
        let (mut caps, mut shares, mut seen) = (vec![], vec![], BTreeSet::new());
        for text in &s.caps {
            let (name, number) = parsed("assemble.caps", text)?;
            ensure!(
                number.fract() == 0.0,
                Error::setting(
                    "assemble.caps",
                    format!("assemble.caps: {text}: a whole number was expected")
                )
            );
            let about = match is_pair(name) {
                true => About::Pair(name.into()),
                false => About::Language(languages::code(name).with_context(|| {
                    format!("assemble.caps: `{name}` is neither a pair type nor a language")
                })?),
            };
            ensure!(
                seen.insert(format!("{about:?}")),
                Error::setting("assemble.caps", format!("assemble.caps has {name} twice"))
            );
            caps.push((format!("beyond the cap of {name}"), about, number as usize));
        }
        seen.clear();
        for text in &s.mix {
            let (name, share) = parsed("assemble.mix", text)?;
            let known = format!("assemble.mix: `{name}` is no pair type");
            ensure!(is_pair(name), Error::setting("assemble.mix", known));
            ensure!(
                seen.insert(name.to_string()),
                Error::setting("assemble.mix", format!("assemble.mix has {name} twice"))
            );
            let made = match name {
                "parallel" => s.use_parallel,
                _ => s.pairs.iter().any(|pair| pair.name() == name),
            };
            let unmade = format!("assemble.mix: {name} is left out by assemble.pairs or use-parallel");
            ensure!(made || share == 0.0, Error::setting("assemble.mix", unmade));
            shares.push((name.to_string(), share));
        }
        let any = shares.is_empty() || shares.iter().any(|(_, share)| *share > 0.0);
        ensure!(any, Error::setting("assemble.mix", "assemble.mix: every share is 0"));
        // The baselines have one type of examples, which is none of these.
        if !matches!(s.variant, Variant::Sdrrl | Variant::Gold) {
            shares.clear();
        }
        Ok(Thinning { caps, shares, seed: s.seed })
    }

    /// Leaves out training examples; the others keep their order. How many went, by reason.
    ///
    /// # Errors
    /// A share of a pair type that has no example; nothing that is left.
    pub fn thin(&self, examples: &mut Vec<Example>) -> Result<BTreeMap<String, usize>> {
        let mut left_out = BTreeMap::new();
        for (reason, about, most) in &self.caps {
            if !examples.iter().any(|e| e.split == "train" && about.has(e)) {
                note!("assemble: no training example was {reason}: there are none of it");
            }
            self.keep(examples, &|e| about.has(e), *most, reason, &mut left_out);
        }
        let count = |pair: &str| examples.iter().filter(|e| e.split == "train" && e.pair == pair).count();
        let mut unit = f64::INFINITY;
        for (pair, share) in self.shares.iter().filter(|(_, share)| *share > 0.0) {
            let n = count(pair);
            let none = || format!("assemble.mix: there is no training example of {pair}");
            ensure!(n > 0, Error::setting("assemble.mix", none()));
            unit = unit.min(n as f64 / share);
        }
        for (pair, share) in &self.shares {
            // A product that is a whole number but for its rounding is that number.
            let most = if *share > 0.0 { (unit * share + 1e-9).floor().max(1.0) as usize } else { 0 };
            self.keep(
                examples,
                &|e| e.pair == *pair,
                most,
                &format!("beyond the share of {pair}"),
                &mut left_out,
            );
        }
        let none =
            "assemble.caps and assemble.mix leave no training example: raise or leave out some of them";
        let any = left_out.is_empty() || examples.iter().any(|e| e.split == "train");
        ensure!(any, Error::setting("assemble.caps", none));
        Ok(left_out)
    }

    /// At most `most` of the training examples that `has` picks, those that draw the lowest numbers.
    fn keep(
        &self,
        examples: &mut Vec<Example>,
        has: &dyn Fn(&Example) -> bool,
        most: usize,
        reason: &str,
        left_out: &mut BTreeMap<String, usize>,
    ) {
        let mut drawn: Vec<(f64, usize)> = examples
            .iter()
            .enumerate()
            .filter(|(_, e)| e.split == "train" && has(e))
            .map(|(i, e)| (RowRandom::new(self.seed, "thin", &e.id).uniform(), i))
            .collect();
        if drawn.len() <= most {
            return;
        }
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let out: BTreeSet<usize> = drawn[most..].iter().map(|d| d.1).collect();
        *left_out.entry(reason.into()).or_default() += out.len();
        let mut i = 0;
        examples.retain(|_| {
            i += 1;
            !out.contains(&(i - 1))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Vec<Example> {
        let of = |pair: &str, language: &str, n: usize, split: &str| -> Vec<Example> {
            let one = |i: usize| Example {
                id: format!("{i}/{pair}/{split}"),
                pair: pair.into(),
                split: split.into(),
                answer_language: language.into(),
                ..Example::default()
            };
            (0..n).map(one).collect()
        };
        [
            of("S>S", "en", 40, "train"),
            of("T>T", "es", 30, "train"),
            of("T>S", "en", 20, "train"),
            of("S>S", "en", 9, "validation"),
        ]
        .concat()
    }

    fn thinned(caps: &[&str], mix: &[&str]) -> Result<(Vec<usize>, BTreeMap<String, usize>, Vec<Example>)> {
        let own = |all: &[&str]| all.iter().map(|s| s.to_string()).collect();
        let settings = AssembleSettings { caps: own(caps), mix: own(mix), ..AssembleSettings::default() };
        let mut all = examples();
        let left_out = Thinning::of(&settings)?.thin(&mut all)?;
        let count =
            |pair: &str, split: &str| all.iter().filter(|e| e.pair == pair && e.split == split).count();
        let counts = vec![
            count("S>S", "train"),
            count("T>T", "train"),
            count("T>S", "train"),
            count("S>S", "validation"),
        ];
        Ok((counts, left_out, all))
    }

    #[test]
    fn caps_and_shares_thin_what_is_trained_and_are_counted() {
        assert_eq!(thinned(&[], &[]).unwrap().0, [40, 30, 20, 9]);
        let (counts, left_out, kept) = thinned(&["S>S=10", "spanish=25"], &[]).unwrap();
        assert_eq!(counts, [10, 25, 20, 9]);
        assert_eq!(left_out.values().copied().collect::<Vec<_>>(), [30, 5]);
        // A lower cap keeps a part of what a higher one keeps, in the same order.
        let ids = |all: &[Example]| all.iter().map(|e| e.id.clone()).collect::<Vec<_>>();
        let fewer = ids(&thinned(&["S>S=4", "spanish=25"], &[]).unwrap().2);
        let mut kept = ids(&kept);
        kept.retain(|id| fewer.contains(id));
        assert_eq!(kept, fewer);
        assert_eq!(thinned(&["en=30"], &[]).unwrap().0.iter().take(3).sum::<usize>(), 60);
        assert_eq!(thinned(&[], &["S>S=1", "T>T=2"]).unwrap().0, [15, 30, 20, 9]);
        assert_eq!(thinned(&[], &["S>S=0.5", "T>T=0.1", "T>S=0"]).unwrap().0, [40, 8, 0, 9]);
        assert_eq!(thinned(&["S>S=10"], &["S>S=1", "T>T=1"]).unwrap().0, [10, 10, 20, 9]);
    }

    #[test]
    fn shares_of_pair_types_are_nothing_to_the_baselines() {
        let settings =
            |variant| AssembleSettings { variant, mix: vec!["S>S=1".into()], ..Default::default() };
        let sft = |n: usize| Example {
            id: n.to_string(),
            pair: "sft".into(),
            split: "train".into(),
            ..Example::default()
        };
        let mut examples: Vec<Example> = (0..9).map(sft).collect();
        let left_out = Thinning::of(&settings(Variant::Sft)).unwrap().thin(&mut examples).unwrap();
        assert!(left_out.is_empty() && examples.len() == 9);
        assert!(Thinning::of(&settings(Variant::Gold)).unwrap().thin(&mut examples).is_err());
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (caps, mix, part) in [
            (&["S>S"][..], &[][..], "`S>S` is no NAME=NUMBER"),
            (&["S>S=-1"], &[], "`S>S=-1` is no NAME=NUMBER"),
            (&["S>S=1.5"], &[], "a whole number"),
            (&["X>S=1"], &[], "`X>S` is neither a pair type nor a language"),
            (&["S>S=1", "S>S=2"], &[], "has S>S twice"),
            (&["es=1", "Spanish=2"], &[], "has Spanish twice"),
            (&[], &["CT>T=1"], "CT>T is left out by assemble.pairs"),
            (&[], &["es=1"], "`es` is no pair type"),
            (&[], &["S>S=0"], "every share is 0"),
            (&[], &["S>T=1"], "no training example of S>T"),
            (&["en=0", "es=0"], &[], "leave no training example"),
        ] {
            let error = format!("{:#}", thinned(caps, mix).unwrap_err());
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}
