//! Other names of settings: those that transformers, PEFT and trl use. One table for the command line, recipes and `--set`.
use anyhow::{Result, bail};
use toml::{Table, Value};

use crate::error::Error;

/// (alias, our name), both with hyphens; underscores count as hyphens everywhere.
pub const ALIASES: &[(&str, &str)] = &[
    ("adam-beta1", "beta1"),
    ("adam-beta2", "beta2"),
    ("adam-epsilon", "eps"),
    ("early-stopping-patience", "patience"),
    ("eval-steps", "eval-every"),
    ("learning-rate", "lr"),
    ("lora-r", "lora-rank"),
    ("lora-target-modules", "lora-targets"),
    ("lr-scheduler-type", "schedule"),
    ("max-grad-norm", "clip"),
    ("max-seq-length", "max-length"),
    ("num-epochs", "epochs"),
    ("num-train-epochs", "epochs"),
    ("optim", "optimizer"),
    ("output-dir", "out"),
    ("save-steps", "checkpoint-every"),
    ("save-total-limit", "keep-checkpoints"),
    ("target-modules", "lora-targets"),
    ("use-dora", "dora"),
    ("use-rslora", "rslora"),
];

/// Our name of a setting.
pub fn canonical(name: &str) -> String {
    let name = name.replace('_', "-");
    ALIASES.iter().find(|(other, _)| *other == name).map_or(name, |(_, ours)| ours.to_string())
}

/// Gives every key of a recipe our name; whether any had another.
///
/// # Errors
/// A setting that is given under two names.
pub fn rename_keys(table: &mut Table) -> Result<bool> {
    let mut renamed = false;
    let keys: Vec<String> = table.keys().cloned().collect();
    for key in keys {
        let ours = canonical(&key);
        if ours != key {
            if table.contains_key(&ours) {
                let message = format!("`{key}` and `{ours}` are the same setting: give one of them");
                bail!(Error::setting(&ours, message));
            }
            if let Some(value) = table.remove(&key) {
                table.insert(ours.clone(), value);
            }
            renamed = true;
        }
        if let Some(value) = table.get_mut(&ours) {
            renamed |= rename_inside(value)?;
        }
    }
    Ok(renamed)
}

fn rename_inside(value: &mut Value) -> Result<bool> {
    match value {
        Value::Table(table) => rename_keys(table),
        Value::Array(values) => values.iter_mut().try_fold(false, |any, v| Ok(rename_inside(v)? | any)),
        _ => Ok(false),
    }
}

/// The words of a command line with our names of options. Options that the command knows stay as they are, and so does everything after `--`.
pub fn rename_options(words: Vec<String>, command: &clap::Command) -> Vec<String> {
    let sub = words.iter().skip(1).find_map(|word| command.find_subcommand(word));
    let Some(sub) = sub else { return words };
    let knows = |name: &str| {
        let all = sub.get_arguments().chain(command.get_arguments());
        all.filter_map(|a| a.get_long()).any(|long| long == name)
    };
    let mut plain = true;
    let rename = |word: String| {
        plain &= word != "--";
        let Some(option) = word.strip_prefix("--").filter(|_| plain) else { return word };
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        // As transformers' trainer has it: a type by a flag of its own.
        if ["bf16", "fp16"].contains(&name) && !knows(name) && matches!(value, None | Some("true" | "True")) {
            return format!("--dtype={name}");
        }
        let ours = canonical(name);
        if knows(name) || !knows(&ours) {
            return word;
        }
        value.map_or(format!("--{ours}"), |value| format!("--{ours}={value}"))
    };
    words.into_iter().map(rename).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_field_become_ours_and_none_stands_twice() {
        let mut table: Table = toml::from_str(
            "a_b = 1\n[train]\nlearning_rate = 1\nlora-r = 4\n[[eval.tasks]]\nmax_new_tokens = 3\n",
        )
        .unwrap();
        assert!(rename_keys(&mut table).unwrap());
        let wanted: Table =
            toml::from_str("a-b = 1\n[train]\nlr = 1\nlora-rank = 4\n[[eval.tasks]]\nmax-new-tokens = 3\n")
                .unwrap();
        assert_eq!(table, wanted);
        assert!(!rename_keys(&mut table).unwrap());
        let mut twice: Table = toml::from_str("[train]\nlr = 1\nlearning-rate = 2\n").unwrap();
        let error = rename_keys(&mut twice).unwrap_err().to_string();
        assert!(error.contains("`learning-rate` and `lr`"), "{error}");
        let sorted: Vec<_> = ALIASES.iter().map(|(other, _)| other).collect();
        assert!(sorted.is_sorted());
    }

    #[test]
    fn options_of_the_field_become_ours_where_the_command_has_them() {
        let option = |name: &'static str| clap::Arg::new(name).long(name);
        let train = clap::Command::new("train").args(["lr", "lora-rank", "dtype", "system"].map(option));
        let command = clap::Command::new("x").subcommand(train);
        let renamed = |line: &str| {
            let words = line.split(' ').map(String::from).collect();
            rename_options(words, &command).join(" ")
        };
        for (line, wanted) in [
            ("x train --learning-rate 1 --lora_r=4", "x train --lr 1 --lora-rank=4"),
            ("x train --bf16 --lora_rank 3", "x train --dtype=bf16 --lora-rank 3"),
            ("x train --fp16", "x train --dtype=fp16"),
            ("x train --num-epochs 3 --no_such=1", "x train --num-epochs 3 --no_such=1"),
            ("x train --system a_b -- --learning-rate", "x train --system a_b -- --learning-rate"),
            ("x other --learning-rate 1", "x other --learning-rate 1"),
        ] {
            assert_eq!(renamed(line), wanted);
        }
    }
}
