//! `docs/recipes.md` and `docs/tasks.md` are made from the settings' own code: every key with its type, its default and its documentation.
use std::{collections::BTreeMap, fmt::Write, fs};

use sdrrl::recipe::{
    Recipe,
    ablate::Ablations,
    aliases::ALIASES,
    description::{BUILT_IN, NamedDescription},
    eval::EvalTask,
};
use syn::{Attribute, Expr, Fields, Item, Lit, Meta};
use toml::Value;

use crate::{
    cli::{fails, ok},
    common::source::files,
};

/// A struct of settings, or the values of a choice.
enum Known {
    Struct(Vec<Key>),
    Choice(Vec<(String, String)>),
}

struct Key {
    name: String,
    kind: String,
    what: String,
}

fn docs(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|a| match &a.meta {
        Meta::NameValue(m) if m.path.is_ident("doc") => match &m.value {
            Expr::Lit(l) => match &l.lit {
                Lit::Str(s) => Some(s.value().trim().to_string()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// The value of `key = "..."` in an attribute such as serde or value.
fn named(attributes: &[Attribute], owner: &str, key: &str) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|a| a.path().is_ident(owner)) {
        let _ = attribute.parse_nested_meta(|meta| {
            let value = meta.value().and_then(|v| v.parse::<syn::LitStr>());
            if let (true, Ok(text)) = (meta.path.is_ident(key), value) {
                found = Some(text.value());
            }
            Ok(())
        });
    }
    found
}

fn kebab(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('-');
        }
        out.extend(c.to_lowercase());
    }
    out.replace('_', "-")
}

/// A type by the last names of its path, `Option<PathBuf>` as `PathBuf`.
fn kind(ty: &syn::Type) -> String {
    let syn::Type::Path(path) = ty else { return String::new() };
    let last = path.path.segments.last().unwrap();
    let inner = match &last.arguments {
        syn::PathArguments::AngleBracketed(a) => a
            .args
            .iter()
            .filter_map(|a| match a {
                syn::GenericArgument::Type(t) => Some(kind(t)),
                _ => None,
            })
            .next_back(),
        _ => None,
    };
    match (last.ident.to_string().as_str(), inner) {
        ("Option", Some(inner)) => inner,
        ("Vec", Some(inner)) => format!("list of {inner}"),
        ("BTreeMap", Some(inner)) => format!("table of {inner}"),
        (name, _) => name.to_string(),
    }
}

fn known() -> BTreeMap<String, Known> {
    let mut all = BTreeMap::new();
    for file in files("src", &["rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        for item in syn::parse_file(&text).unwrap().items {
            match item {
                Item::Struct(s) if file.starts_with("src/recipe") => {
                    let Fields::Named(fields) = s.fields else { continue };
                    let keys = fields.named.into_iter().map(|f| Key {
                        name: named(&f.attrs, "serde", "rename")
                            .unwrap_or_else(|| kebab(&f.ident.unwrap().to_string())),
                        kind: kind(&f.ty),
                        what: docs(&f.attrs),
                    });
                    all.insert(s.ident.to_string(), Known::Struct(keys.collect()));
                }
                Item::Enum(e) => {
                    let values = e.variants.iter().filter(|v| matches!(v.fields, Fields::Unit)).map(|v| {
                        let name =
                            named(&v.attrs, "serde", "rename").unwrap_or_else(|| kebab(&v.ident.to_string()));
                        (name, docs(&v.attrs))
                    });
                    all.insert(e.ident.to_string(), Known::Choice(values.collect()));
                }
                _ => {}
            }
        }
    }
    all
}

fn shown_kind(kind: &str, known: &BTreeMap<String, Known>) -> String {
    if let Some(inner) = kind.strip_prefix("list of ") {
        return format!("list of {}", shown_kind(inner, known));
    }
    if let Some(inner) = kind.strip_prefix("table of ") {
        return format!("table of {}", shown_kind(inner, known));
    }
    match (kind, known.get(kind)) {
        ("String" | "MetricName", _) => "text".into(),
        ("PathBuf", _) => "path".into(),
        ("NamedDescription", _) => "name, path or table".into(),
        ("bool", _) => "true or false".into(),
        ("usize" | "u64" | "u32", _) => "whole number".into(),
        ("f64" | "f32", _) => "number".into(),
        (_, Some(Known::Choice(values))) => {
            values.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        }
        (other, _) => other.to_string(),
    }
}

fn table(out: &mut String, name: &str, defaults: Option<&Value>, known: &BTreeMap<String, Known>) {
    let Some(Known::Struct(keys)) = known.get(name) else { panic!("{name} is no struct of settings") };
    let _ = writeln!(out, "\n| key | value | default | what |\n|---|---|---|---|");
    for key in keys.iter().filter(|k| !matches!(known.get(&k.kind), Some(Known::Struct(_)))) {
        let default = defaults.and_then(|d| d.get(&key.name)).map(|v| format!("`{v}`").replace('\n', "\\n"));
        let kind = shown_kind(&key.kind, known);
        let _ = writeln!(out, "| `{}` | {kind} | {} | {} |", key.name, default.unwrap_or_default(), key.what);
    }
    for key in keys {
        let inner = key.kind.trim_start_matches("list of ");
        let Some(Known::Choice(values)) = known.get(inner) else { continue };
        if values.iter().all(|(_, what)| what.is_empty()) {
            continue;
        }
        let _ = writeln!(out, "\n`{}`:\n", key.name);
        for (name, what) in values {
            let _ = writeln!(out, "- `{name}`: {what}");
        }
    }
}

fn recipes(known: &BTreeMap<String, Known>) -> String {
    let text = "name = \"\"\nwork = \"\"\nmodel = \"\"\nquestions = [\"q\"]\ntarget-languages = [\"es\"]\n";
    let recipe: Recipe = toml::from_str(text).unwrap();
    let mut defaults = Value::try_from(&recipe).unwrap();
    for given in ["name", "work", "model", "questions", "target-languages"] {
        defaults.as_table_mut().unwrap().remove(given);
    }
    let mut out = String::from(
        "# Recipes\n\nMade from `src/recipe/`; a test holds it against the code. `sdrrl run recipes/NAME.toml` runs a recipe, `--check` only looks for mistakes and says about how long it will take, `--dry-run` \
         prints what would be made, `--set section.key=value` changes a key. Keys without a default may be left out, but for `name`, `work`, `model` and the questions (or \
         examples) with `target-languages`. Each section's keys are options of the command of that name, too: `lr` in `[train]` is `sdrrl train --lr`.\n\n## At the top\n",
    );
    table(&mut out, "Recipe", Some(&defaults), known);
    let Some(Known::Struct(keys)) = known.get("Recipe") else { panic!() };
    for key in keys.iter().filter(|k| matches!(known.get(&k.kind), Some(Known::Struct(_)))) {
        let _ = writeln!(out, "\n## [{}]", key.name);
        table(&mut out, &key.kind, defaults.get(&key.name), known);
    }
    out.push_str("\nThe keys of `[[eval.tasks]]` are in [tasks.md](tasks.md).\n\n## Other names\n\nUnderscores are taken for hyphens, and these names for ours:\n\n");
    for (other, ours) in ALIASES {
        let _ = writeln!(out, "- `{other}`: `{ours}`");
    }
    out
}

fn tasks(known: &BTreeMap<String, Known>) -> String {
    let text = "name = \"\"\nkind = \"qa\"\nlanguage = \"\"\nfile = \"\"\n";
    let mut defaults = Value::try_from(toml::from_str::<EvalTask>(text).unwrap()).unwrap();
    for given in ["name", "kind", "language", "file"] {
        defaults.as_table_mut().unwrap().remove(given);
    }
    let mut out = String::from(
        "# Tasks\n\nMade from `src/recipe/eval.rs`; a test holds it against the code. A task stands in a recipe as `[[eval.tasks]]`, or in a file of its own as `[[tasks]]` for \
         `sdrrl eval --tasks`. `name`, `file`, one of `language` and `languages`, and one of `kind` and `description` are needed.\n",
    );
    table(&mut out, "EvalTask", Some(&defaults), known);
    out.push_str("\n## `scorers.METRIC`\n");
    table(&mut out, "ScorerModel", None, known);
    out.push_str(DESCRIPTIONS);
    for (name, _) in BUILT_IN {
        let _ = writeln!(out, "- `{name}`: {}", NamedDescription::open(name).unwrap().0.about);
    }
    out.push_str(OWN_DESCRIPTION);
    let mut defaults = Value::try_from(&*NamedDescription::open("arc").unwrap().0).unwrap();
    let all = defaults.as_table_mut().unwrap();
    all.retain(|key, _| ["prompt", "first", "delimiter", "separator", "which-match"].contains(&key));
    all.insert("prompt".into(), "".into());
    table(&mut out, "TaskDescription", Some(&defaults), known);
    out
}

/// What stands before the list of built-in descriptions.
const DESCRIPTIONS: &str = r#"
## Descriptions

With `description` a task is data: which columns its rows have, how they are asked, what is right. Files are as the hub exports them (JSON Lines, a JSON array, Parquet; gzip or
Zstandard). Columns of other names are given by `columns`, rows are chosen by `only`:

```toml
[[tasks]]
name = "nli"
description = "xnli"
language = "es"
file = "xnli.es.parquet"
columns = ["premise=sentence1", "hypothesis=sentence2"]
```

A right answer may be a number (`1`, `1.0`, `"1"`), a letter, a label, a choice's text, or a list of one of them; a label that fits decides. Fractions, hidden labels (-1, null),
several right answers, and what else could be read in two ways are refused, with the row's place. Prompts and log-likelihoods are lm-eval's (0.4.13); with `--template plain` nothing is put around a prompt whose reply
is generated.

Built in are:

"#;

/// What stands before the keys of a description.
const OWN_DESCRIPTION: &str = r#"
A description of your own is a file (`description = "my.toml"`, relative to the current folder) or a table in the task. It may begin with another one:

```toml
extends = "include"
preamble = "Las siguientes preguntas son de biología.

"
```
"#;

#[test]
fn the_reference_is_what_the_code_says() {
    let known = known();
    for (name, text) in [("recipes.md", recipes(&known)), ("tasks.md", tasks(&known))] {
        let page = format!("docs/{name}");
        if fs::read_to_string(&page).unwrap_or_default() != text {
            let new = format!("target/{name}");
            fs::write(&new, &text).unwrap();
            panic!("{page} is not what the code says: cp {new} {page}");
        }
        // Nothing that can be set is without a word.
        for row in text.lines().filter(|l| l.starts_with("| `")) {
            assert!(!row.ends_with("|  |"), "{page}: {row}");
        }
    }
    let Value::Table(recipe) = Value::try_from(
        toml::from_str::<Recipe>(
            "name = \"n\"\nwork = \"w\"\nmodel = \"m\"\nquestions = [\"q\"]\ntarget-languages = [\"es\"]\n",
        )
        .unwrap(),
    )
    .unwrap() else {
        panic!()
    };
    let page = fs::read_to_string("docs/recipes.md").unwrap();
    for (section, value) in &recipe {
        let keys: Vec<&String> = value.as_table().map_or(vec![section], |t| t.keys().collect());
        keys.iter()
            .filter(|k| **k != "tasks")
            .for_each(|key| assert!(page.contains(&format!("| `{key}` |")), "{section}.{key}"));
    }
}

#[test]
fn help_has_pages_commands_and_completions() {
    for (topic, part) in [
        ("tasks", "| `kind` |"),
        ("recipe", "## [train]"),
        ("formats", "ShareGPT"),
        ("train", "--lora-rank"),
        ("serve", "--queue"),
    ] {
        assert!(ok(&["help", topic]).contains(part), "{topic}");
    }
    assert!(ok(&["help"]).contains("serve"));
    fails(&["help", "recpie"], &["there is no help on `recpie`", "did you mean `recipe`"]);
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(&["completions", shell]);
        assert!(script.contains("lora-rank") && script.contains("code-switch"), "{shell}");
    }
}

#[test]
fn every_recipe_of_the_repository_is_read_and_the_papers_are_short() {
    let mut read = 0;
    for path in fs::read_dir("recipes").unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&path).unwrap();
        if text.contains("[[arms]]") {
            let arms = Ablations::read(&path, &[]).unwrap().resolve(&path).unwrap();
            assert!(arms.len() > 1, "{}", path.display());
        } else {
            Recipe::read(&path, &[]).unwrap();
        }
        read += 1;
        if path.file_stem().unwrap().to_string_lossy().starts_with("paper-") {
            assert!(text.lines().count() < 80, "{}", path.display());
        }
    }
    assert!(read >= 8, "{read}");
    // One task for each language and direction.
    let paper = Recipe::read("recipes/paper-llama2-7b.toml".as_ref(), &[]).unwrap();
    let names: Vec<&str> = paper.eval.tasks.iter().map(|t| t.name.as_str()).collect();
    assert!(
        names.contains(&"flores-sl-en") && names.contains(&"flores-en-sl") && names.len() > 50,
        "{names:?}"
    );
}
