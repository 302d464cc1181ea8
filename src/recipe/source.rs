//! Reading a recipe's text: TOML with `--set key=value` on top, and errors that name the file, the line and the nearest known key.
use std::path::Path;

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{
    aliases::{canonical, rename_keys},
    ranges::check_table,
};
use crate::data::words::nearest;

/// Reads `path`, applies each override (`section.key=value`) in order, and checks the result against `T`.
pub fn read<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T> {
    let text = crate::data::json::read_text(path).at(path, || {
        format!("read recipe {}: give the path of a recipe, e.g. recipes/quickstart.toml", path.display())
    })?;
    parse(&text, &path.display().to_string(), overrides)
}

/// As [`read`], for text that came from `origin`.
pub fn parse<T: DeserializeOwned>(text: &str, origin: &str, overrides: &[String]) -> Result<T> {
    let read = |text: &str, origin: &str| toml::from_str(text).map_err(|e| explain(&e.to_string(), origin));
    let mut table: Table = toml::from_str(text).map_err(|e| explain(&e.to_string(), origin))?;
    let renamed = rename_keys(&mut table).with_context(|| format!("recipe {origin}"))?;
    if overrides.is_empty() && !renamed {
        // Only then do errors carry the line of the file.
        let value = read(text, origin)?;
        check_table(&table).with_context(|| format!("recipe {origin}"))?;
        return Ok(value);
    }
    for spec in overrides {
        apply(&mut table, spec)?;
    }
    let merged = match overrides {
        [] => origin.to_string(),
        all => format!("{origin} with {}", all.join(", ")),
    };
    let checked = check_table(&table);
    // First what is no number at all, or no key. As text again: each way for serde into the settings is half a second of compiling.
    let text = toml::to_string(&table).with_context(|| format!("recipe {origin}"))?;
    let value = toml::from_str(&text).map_err(|e: toml::de::Error| explain(e.message(), &merged))?;
    checked.with_context(|| format!("recipe {merged}"))?;
    Ok(value)
}

/// Settings as TOML; what is not set is left out.
pub fn text(settings: &impl Serialize) -> Result<String> {
    fn toml(value: serde_json::Value) -> Option<Value> {
        use serde_json::Value::*;
        Some(match value {
            Null => return None,
            Bool(b) => Value::Boolean(b),
            Number(n) => match n.as_i64() {
                Some(i) => Value::Integer(i),
                // 32 bits are widened in JSON: 0.1 would stand here with nine digits.
                None => n.as_f64().map(|x| match (x as f32).to_string().parse() {
                    Ok(short) if f64::from(x as f32) == x => Value::Float(short),
                    _ => Value::Float(x),
                })?,
            },
            String(s) => Value::String(s),
            Array(a) => Value::Array(a.into_iter().filter_map(toml).collect()),
            Object(o) => Value::Table(o.into_iter().filter_map(|(k, v)| Some((k, toml(v)?))).collect()),
        })
    }
    let value = serde_json::to_value(settings).context("write settings")?;
    toml::to_string(&toml(value)).context("write settings")
}

/// Sets `a.b.c=value` in `root`; the value is TOML (`0.8`, `true`, `["es"]`), anything else is taken as a string.
pub fn apply(root: &mut Table, spec: &str) -> Result<()> {
    let (path, raw) = spec.split_once('=').with_context(|| format!("--set {spec}: expected key=value"))?;
    let value = match toml::from_str::<Table>(&format!("v = {raw}")) {
        Ok(mut t) => t.remove("v").unwrap_or_else(|| Value::String(raw.into())),
        Err(_) => Value::String(raw.into()),
    };
    let mut keys: Vec<String> = path.trim().split('.').map(canonical).collect();
    ensure!(keys.iter().all(|k| !k.is_empty()), "--set {spec}: the key has an empty part");
    let last = keys.pop().with_context(|| format!("--set {spec}: no key"))?;
    let mut table = root;
    for key in keys {
        let entry = table.entry(&key).or_insert_with(|| Value::Table(Table::new()));
        match entry {
            Value::Table(t) => table = t,
            other => bail!("--set {spec}: {key} is a {}, not a section", other.type_str()),
        }
    }
    table.insert(last, value);
    Ok(())
}

/// Adds the file's name, and for an unknown key the nearest known one.
fn explain(message: &str, origin: &str) -> anyhow::Error {
    let hint = suggestion(message).map(|s| format!("\ndid you mean `{s}`?")).unwrap_or_default();
    Error::bad_input(origin, format!("recipe {origin}: {}{hint}", message.trim_end())).into()
}

/// From serde's "unknown field `x`, expected one of `a`, `b`": the known name nearest to `x`, if any is near.
fn suggestion(message: &str) -> Option<String> {
    let start = message.find("unknown field").or_else(|| message.find("unknown variant"))?;
    let mut quoted = message[start..].split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    nearest(unknown, quoted).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        tau: f64,
    }
    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Small {
        work: String,
        filter: Filter,
    }
    const TEXT: &str = "work = \"w\"\n[filter]\ntau = 0.8\n";

    #[test]
    fn overrides_replace_values_and_keep_types() {
        let set = ["filter.tau=0.7".to_string(), "work=a b".to_string()];
        let small: Small = parse(TEXT, "r.toml", &set).unwrap();
        assert_eq!(small, Small { work: "a b".into(), filter: Filter { tau: 0.7 } });
    }

    #[test]
    fn unknown_keys_name_file_line_and_the_nearest_known_key() {
        let error = parse::<Small>(&TEXT.replace("tau", "taw"), "r.toml", &[]).unwrap_err().to_string();
        for part in ["r.toml", "line 3", "taw", "did you mean `tau`?"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        let error = parse::<Small>(TEXT, "r.toml", &["filtre.tau=1".into()]).unwrap_err().to_string();
        assert!(error.contains("did you mean `filter`?"), "{error}");
    }

    #[test]
    fn settings_are_written_in_their_order_without_what_is_not_set() {
        #[derive(Serialize)]
        struct All {
            tau: f32,
            rate: f64,
            n: Option<u32>,
            languages: Vec<&'static str>,
            inner: std::collections::BTreeMap<&'static str, bool>,
        }
        let inner = [("on", true)].into();
        let all = All { tau: 0.1, rate: 2e-4, n: None, languages: vec!["es", "cs"], inner };
        let expected = "tau = 0.1\nrate = 0.0002\nlanguages = [\"es\", \"cs\"]\n\n[inner]\non = true\n";
        assert_eq!(text(&all).unwrap(), expected);
    }

    #[test]
    fn malformed_overrides_are_refused() {
        for spec in ["tau", ".=1", "work.x=1", "=3"] {
            assert!(parse::<Small>(TEXT, "r.toml", &[spec.to_string()]).is_err(), "{spec}");
        }
    }

    proptest! {
        #[test]
        fn any_text_and_override_give_a_value_or_an_error(text in "\\PC{0,80}", spec in "\\PC{0,30}") {
            let _ = parse::<Small>(&text, "r.toml", &[]);
            let _ = parse::<Small>(TEXT, "r.toml", &[spec]);
        }
    }
}
