//! The model card (README.md) of what was trained: what it is of, how it was made, of which data, how well it learnt.
use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    models::transformer::lora::{LoraConfig, Modules},
    recipe::{
        objective::Objective,
        train::{Method, TrainSettings},
    },
    train::trainer::TrainOutcome,
};

/// What a card tells of.
pub(super) struct Card<'a> {
    /// Hub name or absolute path of the base.
    pub base: &'a str,
    /// Whether it is a hub name.
    pub on_hub: bool,
    /// The adapter's settings; none where all weights were trained.
    pub adapter: Option<&'a LoraConfig>,
    /// How it was trained.
    pub settings: &'a TrainSettings,
    /// The manifest's summary of `pack`, if the shards have one.
    pub data: Option<&'a Value>,
    /// The peak learning rate.
    pub lr: f64,
    /// What came of it.
    pub outcome: &'a TrainOutcome,
}

impl Card<'_> {
    /// The card as Markdown with the hub's metadata in front. No clock, no machine: equal trainings give equal cards.
    pub fn text(&self) -> String {
        let mut out = self.metadata();
        let what = match (self.adapter, self.settings.method) {
            (Some(_), _) => "Adapter of",
            (None, Method::Scratch) => "A model with the configuration of",
            (None, _) => "Fine-tuned",
        };
        let _ = write!(out, "\n# {what} {}\n\nMade by sdrrl {}.\n\n", self.base, env!("CARGO_PKG_VERSION"));
        let _ = writeln!(out, "| | |\n|---|---|");
        for (name, value) in [
            ("base", format!("`{}`", self.base)),
            ("method", self.method()),
            ("trained", self.trained()),
            ("languages", self.languages().join(", ")),
            (
                "licence",
                "not known to the program that wrote this: those of the base and of the data apply".into(),
            ),
        ] {
            let value = if value.is_empty() { "not known".into() } else { value };
            let _ = writeln!(out, "| {name} | {value} |");
        }
        self.write_data(&mut out);
        self.write_training(&mut out);
        out
    }

    fn metadata(&self) -> String {
        let library = if self.adapter.is_some() { "peft" } else { "transformers" };
        let mut out =
            format!("---\nlibrary_name: {library}\npipeline_tag: text-generation\nlicense: unknown\n");
        if self.on_hub && self.settings.method != Method::Scratch {
            let _ = writeln!(out, "base_model: {}", self.base);
        }
        let languages = self.languages();
        if !languages.is_empty() {
            let _ = writeln!(out, "language:\n- {}", languages.join("\n- "));
        }
        out + "tags:\n- sdrrl\n" + if self.adapter.is_some() { "- lora\n---\n" } else { "---\n" }
    }

    /// Codes of the answers' languages, as far as the data tells.
    fn languages(&self) -> Vec<&str> {
        let map = self.data.and_then(|d| d["languages"].as_object());
        let code =
            |name: &&str| (2..=3).contains(&name.len()) && name.chars().all(|c| c.is_ascii_lowercase());
        map.into_iter().flatten().map(|(name, _)| name.as_str()).filter(code).collect()
    }

    /// (pair type, documents) of the training data.
    fn pairs(&self) -> Vec<(&str, u64)> {
        let map = self.data.and_then(|d| d["train"]["pairs"].as_object());
        map.into_iter().flatten().map(|(name, n)| (name.as_str(), n.as_u64().unwrap_or(0))).collect()
    }

    fn method(&self) -> String {
        if self.settings.objective != Objective::Sft {
            let how = self.settings.preference().map(|p| format!(", {p}"));
            let drawn = self.settings.rollouts().map(|r| {
                let clip = r.clip.map_or("none".into(), |clip| format!("{clip}"));
                format!(", temperature {}, up to {} tokens, clip {clip}", r.temperature, r.max_new_tokens)
            });
            let stored = self.settings.stored_teacher().map(|t| {
                let text = if t.text > 0.0 {
                    format!(", cross-entropy of the text {}", t.text)
                } else {
                    String::new()
                };
                format!(", the {} likeliest tokens{text}", t.k)
            });
            let how = how.or(drawn).or(stored).unwrap_or_default();
            return format!("{}{how}", self.settings.objective.in_words());
        }
        let pairs = self.pairs();
        if self.data.is_some_and(|d| d["gold"] == true) {
            return "supervised fine-tuning on given answers, in the pair types of SDRRL ([arXiv 2402.12204](https://arxiv.org/abs/2402.12204))".into();
        }
        if pairs.iter().any(|(name, _)| name.contains('>')) {
            return "self-distillation from resource-rich languages (SDRRL, [arXiv 2402.12204](https://arxiv.org/abs/2402.12204))".into();
        }
        match pairs[..] {
            [] => String::new(),
            [("translate-then-sft", _), ..] => "supervised fine-tuning on translated answers".into(),
            _ => "supervised fine-tuning on given answers".into(),
        }
    }

    fn trained(&self) -> String {
        self.adapter.map_or_else(|| "all weights".into(), in_words)
    }

    fn write_data(&self, out: &mut String) {
        let Some(data) = self.data else { return };
        let _ = writeln!(
            out,
            "\n## Data\n\n| part | documents | tokens | tokens that are learnt | documents by kind |\n|---|---|---|---|---|"
        );
        for part in ["train", "validation", "source"] {
            let of = &data[part];
            let Some(documents) = of["documents"].as_u64() else { continue };
            let pairs = of["pairs"].as_object().into_iter().flatten();
            let pairs: Vec<String> =
                pairs.map(|(name, n)| format!("{} {n}", name.replace('|', "\\|"))).collect();
            let (tokens, learnt) = (&of["tokens"], &of["trained-tokens"]);
            let _ = writeln!(out, "| {part} | {documents} | {tokens} | {learnt} | {} |", pairs.join(", "));
        }
    }

    fn write_training(&self, out: &mut String) {
        let (s, o) = (self.settings, self.outcome);
        let _ = writeln!(out, "\n## Training\n");
        let lr = self.lr;
        let steps = if o.steps == 1 { "step" } else { "steps" };
        let usual = s.optimizer.is_usual();
        let optimizer = if usual { String::new() } else { format!("optimizer {}, ", s.optimizer.name()) };
        let _ = writeln!(
            out,
            "{} {steps} of up to {} {}, {optimizer}learning rate {lr:?}, seed {}. Loss of the last step: {:.4}.",
            o.steps,
            s.batch_documents.unwrap_or(128),
            s.objective.rows().units(),
            s.seed,
            o.train_loss
        );
        if let Some(a) = s.aligning() {
            let layer = a.layer.map_or("in its middle".into(), |layer| format!("behind layer {layer}"));
            let _ = writeln!(
                out,
                "Beside the task, mean hidden states of parallel sentences were aligned {layer} ([arXiv 2502.14830](https://arxiv.org/abs/2502.14830)): {} pairs a step, temperature {}, weight {}.",
                a.batch, a.temperature, a.weight
            );
        }
        if let Some((loss, step)) = o.best {
            let _ = writeln!(
                out,
                "Best loss on held-out rows: {loss:.4} after step {step}, which is what stands here."
            );
        }
    }
}

/// An adapter's kind, rank, alpha and modules.
pub(in crate::stages) fn in_words(c: &LoraConfig) -> String {
    let kind = match (c.use_dora, c.use_rslora) {
        (true, true) => "DoRA and rsLoRA",
        (true, false) => "DoRA",
        (false, true) => "rsLoRA",
        (false, false) => "LoRA",
    };
    let modules = match &c.target_modules {
        Modules::Named(names) => names.join(", "),
        Modules::Matching(pattern) => format!("`{pattern}`").replace('|', "\\|"),
    };
    let others = !c.rank_pattern.is_empty() || !c.alpha_pattern.is_empty();
    let others = if others { " (some modules have others: see adapter_config.json)" } else { "" };
    let dropout = if c.dropout > 0.0 { format!(" and dropout {}", c.dropout) } else { String::new() };
    format!("{kind} of rank {} with alpha {}{dropout}{others} on {modules}", c.r, c.alpha)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_card_tells_method_languages_counts_and_losses() {
        let data = json!({
            "languages": {"en": 3, "es": 4, "unknown": 1},
            "train": {"documents": 7, "tokens": 90, "trained-tokens": 40, "pairs": {"S>S": 3, "CS>T": 4}},
            "validation": {"documents": 2, "tokens": 20, "trained-tokens": 9, "pairs": {"S>S": 2}}
        });
        let outcome = TrainOutcome {
            steps: 12,
            train_loss: 1.5,
            best: Some((1.25, 8)),
            start: Some(2.0),
            warning: None,
            ranks: vec![],
            budgets: vec![(0, 64)],
            finished: true,
        };
        let (settings, lora) = (TrainSettings::default(), LoraConfig::default());
        let mut card = Card {
            base: "org/name",
            on_hub: true,
            adapter: Some(&lora),
            settings: &settings,
            data: Some(&data),
            lr: 1e-4,
            outcome: &outcome,
        };
        let text = card.text();
        for part in [
            "---\nlibrary_name: peft\n",
            "license: unknown\n",
            "base_model: org/name\n",
            "language:\n- en\n- es\n",
            "2402.12204",
            "LoRA of rank 8 with alpha 16 on q_proj",
            "| train | 7 | 90 | 40 | S>S 3, CS>T 4 |",
            "| validation | 2 |",
            "12 steps of up to 128 documents, learning rate 0.0001,",
            "1.2500 after step 8",
            "| licence | not known",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let aligned = TrainSettings { alignment_weight: Some(0.5), ..TrainSettings::default() };
        card.settings = &aligned;
        assert!(card.text().contains("in its middle ([arXiv 2502.14830]") && !text.contains("2502.14830"));
        card.settings = &settings;
        // A path is no name of the hub.
        card.on_hub = false;
        card.base = "/models/name";
        let text = card.text();
        assert!(!text.contains("base_model:") && text.contains("`/models/name`"), "{text}");
        card.data = None;
        assert!(card.text().contains("| languages | not known |"));
        let dpo = TrainSettings { objective: Objective::Dpo, ..TrainSettings::default() };
        card.settings = &dpo;
        assert!(card.text().contains("| method | direct preference optimization (DPO,"));
        card.adapter = None;
        assert!(card.text().contains("library_name: transformers") && card.text().contains("all weights"));
    }
}
