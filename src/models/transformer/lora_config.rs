//! Which linears have an adapter, and of which rank and alpha: PEFT's rules (peft 0.21, `check_target_module_exists` and `get_pattern_key`).
use anyhow::{Context, Result, ensure};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::{ids::LinearId, spec::Spec};

/// A set of modules, as PEFT writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Those whose path is one of these or ends with a dot and one of these.
    Named(Vec<String>),
    /// Those whose whole path this regular expression matches.
    Matching(String),
}

impl From<Vec<String>> for Modules {
    fn from(names: Vec<String>) -> Modules {
        Modules::Named(names)
    }
}

impl Modules {
    fn is_empty(&self) -> bool {
        match self {
            Modules::Named(names) => names.is_empty(),
            Modules::Matching(pattern) => pattern.is_empty(),
        }
    }
}

/// What is adapted, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// R, where no entry of `rank_pattern` says otherwise.
    pub r: usize,
    /// The update is scaled by alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub alpha: f64,
    /// The adapted modules.
    pub target_modules: Modules,
    /// Not these of them.
    pub exclude_modules: Modules,
    /// In these layers alone; only with named modules, and not for those named by their whole path.
    pub layers_to_transform: Option<Vec<i64>>,
    /// Regular expressions of the path in front of the layer's number; none: any.
    pub layers_pattern: Vec<String>,
    /// Regular expressions of the end of a module's path, and the rank of what they match: the first counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    /// alpha / sqrt(r).
    pub use_rslora: bool,
    /// Learn each output row's magnitude apart from its direction.
    pub use_dora: bool,
    /// The share of an adapter's inputs that is dropped in training, from 0 to below 1.
    pub dropout: f64,
}

/// The names of all linears of a layer that may have an adapter.
pub fn all_linears() -> Vec<String> {
    LinearId::ADAPTABLE.iter().map(|id| id.module().to_string()).collect()
}

impl Default for LoraConfig {
    fn default() -> LoraConfig {
        LoraConfig {
            r: 8,
            alpha: 16.0,
            target_modules: Modules::Named(all_linears()),
            exclude_modules: Modules::Named(vec![]),
            layers_to_transform: None,
            layers_pattern: vec![],
            rank_pattern: vec![],
            alpha_pattern: vec![],
            use_rslora: false,
            use_dora: false,
            dropout: 0.0,
        }
    }
}

impl LoraConfig {
    /// The same for a model of `spec`: all linears are those that its checkpoints have.
    pub fn meant_for(mut self, spec: &Spec) -> LoraConfig {
        if self.target_modules == Modules::Named(all_linears()) {
            self.target_modules = Modules::Named(spec.module_names());
        }
        self
    }

    /// Factor on B A for rank `r` and numerator `alpha`.
    pub fn scale(&self, r: usize, alpha: f64) -> f32 {
        (alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }) as f32
    }

    /// Whether training can drop that share of the inputs: an error that names it if not.
    pub fn check_dropout(&self) -> Result<()> {
        let rate = self.dropout;
        ensure!((0.0..1.0).contains(&rate), "lora_dropout is {rate}: from 0 to below 1 was expected");
        Ok(())
    }

    /// The rules made ready. Errors name the field whose regular expression cannot be read.
    pub fn selection(&self) -> Result<Selection<'_>> {
        ensure!(self.r > 0, "the LoRA rank (r) must be at least 1");
        let layers = match (&self.layers_to_transform, &self.layers_pattern[..]) {
            (None, _) => vec![],
            (Some(_), []) => vec![compile(r".*?\.[^.]*\.(?P<idx>\d+)\.", "", "").context("layers_pattern")?],
            (Some(_), patterns) => {
                let one = |p: &String| compile(p, r"(?:^|.*?\.)", r"\.(?P<idx>\d+)\.");
                patterns.iter().map(one).collect::<Result<_>>().context("layers_pattern")?
            }
        };
        if let Some((pattern, _)) = self.rank_pattern.iter().find(|(_, r)| *r == 0) {
            anyhow::bail!("rank_pattern gives {pattern} the rank 0: at least 1 was expected");
        }
        let ends = |patterns: Vec<&String>| -> Result<Vec<Regex>> {
            patterns.into_iter().map(|p| compile(p, r"(.*\.)?(", r")\z")).collect()
        };
        Ok(Selection {
            config: self,
            targets: Compiled::new(&self.target_modules).context("target_modules")?,
            excluded: Compiled::new(&self.exclude_modules).context("exclude_modules")?,
            layers,
            ranks: ends(self.rank_pattern.iter().map(|(p, _)| p).collect()).context("rank_pattern")?,
            alphas: ends(self.alpha_pattern.iter().map(|(p, _)| p).collect()).context("alpha_pattern")?,
        })
    }
}

/// `before` + `pattern` + `after`, from the beginning of the text on. What Python's `re` reads otherwise is refused.
fn compile(pattern: &str, before: &str, after: &str) -> Result<Regex> {
    let foreign = ["[[", "&&", "--", "~~", "\\p", "\\P", "\\h", "\\H", "\\R", "\\K", "\\G", "\\X", "{,"];
    if let Some(found) = foreign.iter().find(|f| pattern.contains(*f)) {
        anyhow::bail!(
            "`{pattern}`: Python reads {found} in a regular expression otherwise: write it without"
        );
    }
    let readable = |e: fancy_regex::Error| anyhow::anyhow!("`{pattern}` is no regular expression: {e}");
    // By itself first, so that no bracket of it closes one of ours.
    Regex::new(pattern).map_err(readable)?;
    Regex::new(&format!(r"\A(?:{before}{pattern}{after})")).map_err(readable)
}

fn matches(regex: &Regex, module: &str) -> Result<bool> {
    regex.is_match(module).with_context(|| format!("match {} with {module}", regex.as_str()))
}

enum Compiled<'a> {
    Named(&'a [String]),
    Matching(Regex),
}

impl Compiled<'_> {
    fn new(modules: &Modules) -> Result<Compiled<'_>> {
        Ok(match modules {
            Modules::Named(names) => Compiled::Named(names),
            // An empty text is PEFT's way to say none.
            Modules::Matching(pattern) if pattern.is_empty() => Compiled::Named(&[]),
            Modules::Matching(pattern) => Compiled::Matching(compile(pattern, "(?:", r")\z")?),
        })
    }

    fn has(&self, module: &str) -> Result<bool> {
        match self {
            Compiled::Named(names) => Ok(names.iter().any(|name| is_called(module, name))),
            Compiled::Matching(regex) => matches(regex, module),
        }
    }
}

/// Whether `module` is `name` or ends with a dot and it.
pub(crate) fn is_called(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A [`LoraConfig`] whose regular expressions are compiled.
pub struct Selection<'a> {
    config: &'a LoraConfig,
    targets: Compiled<'a>,
    excluded: Compiled<'a>,
    /// Of `layers_pattern`; used with `layers_to_transform` alone.
    layers: Vec<Regex>,
    ranks: Vec<Regex>,
    alphas: Vec<Regex>,
}

impl Selection<'_> {
    /// Whether the module at this path (`model.layers.0.self_attn.q_proj`) is adapted. Errors where a regular expression takes too long.
    pub fn has(&self, module: &str) -> Result<bool> {
        if !self.config.exclude_modules.is_empty() && self.excluded.has(module)? {
            return Ok(false);
        }
        let whole_path = matches!(&self.targets, Compiled::Named(names) if names.iter().any(|n| n == module));
        if whole_path || !self.targets.has(module)? {
            return Ok(whole_path);
        }
        match &self.config.layers_to_transform {
            Some(wanted) if !wanted.is_empty() => {
                Ok(self.layer(module)?.is_some_and(|l| wanted.contains(&l)))
            }
            _ => Ok(true),
        }
    }

    /// The number that the first matching pattern finds.
    fn layer(&self, module: &str) -> Result<Option<i64>> {
        for regex in &self.layers {
            let found = regex.captures(module).with_context(|| format!("match {}", regex.as_str()))?;
            if let Some(found) = found {
                return Ok(found.name("idx").and_then(|m| m.as_str().parse().ok()));
            }
        }
        Ok(None)
    }

    /// (rank, alpha) of the adapter of `module`.
    pub fn rank_alpha(&self, module: &str) -> Result<(usize, f64)> {
        let first = |regexes: &[Regex]| -> Result<Option<usize>> {
            for (i, regex) in regexes.iter().enumerate() {
                if matches(regex, module)? {
                    return Ok(Some(i));
                }
            }
            Ok(None)
        };
        let rank = first(&self.ranks)?.map_or(self.config.r, |i| self.config.rank_pattern[i].1);
        let alpha = first(&self.alphas)?.map_or(self.config.alpha, |i| self.config.alpha_pattern[i].1);
        Ok((rank, alpha))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";

    fn matching(pattern: &str) -> LoraConfig {
        LoraConfig { target_modules: Modules::Matching(pattern.into()), ..Default::default() }
    }

    /// Expected values by peft 0.21.2's functions.
    #[test]
    fn targets_are_matched_as_in_peft() {
        let named = |names: &[&str]| LoraConfig {
            target_modules: Modules::Named(names.iter().map(|n| n.to_string()).collect()),
            ..Default::default()
        };
        let of_layers = |wanted: &[i64], patterns: &[&str]| LoraConfig {
            layers_to_transform: Some(wanted.to_vec()),
            layers_pattern: patterns.iter().map(|p| p.to_string()).collect(),
            ..named(&["q_proj", "model.layers.0.mlp.up_proj"])
        };
        let without = |modules: Modules| LoraConfig { exclude_modules: modules, ..named(&["q_proj"]) };
        let cases: Vec<(LoraConfig, &str, bool)> = vec![
            (named(&["q_proj"]), Q0, true),
            (named(&["proj"]), Q0, false),
            (named(&["self_attn.q_proj"]), Q0, true),
            (named(&["1.self_attn.q_proj"]), Q1, true),
            (matching("q_proj"), Q0, false),
            (matching(r".*\.q_proj|.*\.v_proj"), Q1, true),
            (matching(r"model\.layers\.(?!0\.).*q_proj"), Q1, true),
            (matching(r"model\.layers\.(?!0\.).*q_proj"), Q0, false),
            (matching(r".*(?<=attn\.)q_proj"), Q0, true),
            (matching(r"model.layers.0.self_attn.q"), Q0, false),
            (of_layers(&[1], &[]), Q1, true),
            (of_layers(&[1], &[]), Q0, false),
            (of_layers(&[], &[]), Q0, true),
            (of_layers(&[1], &["layers"]), Q1, true),
            (of_layers(&[1], &["blocks", "lay.*"]), Q1, true),
            (of_layers(&[1], &["blocks"]), Q1, false),
            // A whole path counts whatever the layers.
            (of_layers(&[1], &[]), "model.layers.0.mlp.up_proj", true),
            (without(Modules::Matching(r".*\.1\..*".into())), Q1, false),
            (without(Modules::Matching(r".*\.1\..*".into())), Q0, true),
            (without(Modules::Named(vec!["self_attn.q_proj".into()])), Q0, false),
            (without(Modules::Matching(String::new())), Q0, true),
        ];
        for (config, module, expected) in cases {
            assert_eq!(config.selection().unwrap().has(module).unwrap(), expected, "{config:?} {module}");
        }
    }

    #[test]
    fn the_first_matching_pattern_gives_rank_and_alpha() {
        let ranks = [("^model.layers.1.*", 2), ("q_proj", 4), (r"1\.self_attn\..*", 6), ("attn.q_proj", 7)];
        let config = LoraConfig {
            rank_pattern: ranks.iter().map(|(p, r)| (p.to_string(), *r)).collect(),
            alpha_pattern: vec![(r"layers\.1\..*q_proj".into(), 128.0), ("k_proj|v_proj".into(), 3.0)],
            ..Default::default()
        };
        let selection = config.selection().unwrap();
        let of = |module: &str| selection.rank_alpha(module).unwrap();
        assert_eq!(of(Q1), (2, 128.0));
        assert_eq!(of(Q0), (4, 16.0));
        assert_eq!(of("model.layers.0.self_attn.v_proj"), (8, 3.0));
        // The end of a name is no name.
        assert_eq!(of("model.layers.0.self_attn.xq_proj"), (8, 16.0));
    }

    #[test]
    fn patterns_that_cannot_be_read_are_named_with_their_field() {
        let error = |config: &LoraConfig| format!("{:#}", config.selection().err().unwrap());
        for pattern in ["(", "a)|(b", r"[[:alpha:]]", r"\p{L}", "*"] {
            let said = error(&matching(pattern));
            assert!(said.contains("target_modules") && said.contains(pattern), "{said}");
        }
        let ranks = LoraConfig { rank_pattern: vec![("q(".into(), 3)], ..Default::default() };
        assert!(error(&ranks).contains("rank_pattern"));
        let zero = LoraConfig { rank_pattern: vec![("q".into(), 0)], ..Default::default() };
        assert!(error(&zero).contains("rank 0"));
        // Nested repetition ends with an error, not in hours.
        let slow = matching(r"(?:(?=a)a|(?!b)a)*c");
        let found = slow.selection().unwrap().has(&"a".repeat(60));
        assert!(found.is_err(), "{found:?}");
    }
}
