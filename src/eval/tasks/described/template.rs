//! The templates of a description: Jinja over a row's columns, as lm-eval renders them.
use anyhow::{Context, Result, anyhow};
use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value as Jinja,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde_json::{Map, Value, json};

use crate::{
    data::languages,
    recipe::{description::TaskDescription, eval::EvalTask},
};

/// Steps of a template for a row.
const STEPS: u64 = 1_000_000;
/// The longest error, bytes.
const LONGEST_ERROR: usize = 600;

/// The parsed templates of a description, by name.
pub struct Templates {
    env: Environment<'static>,
    /// What they see beside a row's columns.
    own: Map<String, Value>,
}

impl Templates {
    /// Parses those of `description`, for the languages of `task`.
    ///
    /// # Errors
    /// A template that does not parse; words that the language has none of.
    pub fn new(task: &EvalTask, description: &TaskDescription) -> Result<Templates> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        env.set_syntax(syntax.map_err(|e| anyhow!("{e:#}"))?);
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(STEPS));
        // lm-eval would write None, or the list as Python has it.
        env.set_formatter(|out, state, value| {
            let odd = match value.kind() {
                ValueKind::None => "null",
                ValueKind::Map => "an object",
                ValueKind::Seq => "a list",
                _ => return minijinja::escape_formatter(out, state, value),
            };
            Err(Error::new(ErrorKind::InvalidOperation, format!("what it writes is {odd}, not a text")))
        });
        let mut templates = Templates { env, own: own_variables(task, description)? };
        templates.add("prompt", &description.prompt)?;
        templates.add("target", &description.target)?;
        templates.add("shown", description.shown.as_ref().unwrap_or(&description.target))?;
        templates.add("preamble", &description.preamble)?;
        templates.add("extract", description.extract.as_deref().unwrap_or_default())?;
        for (kind, texts) in [("choice", &description.choices), ("until", &description.until)] {
            for (i, text) in texts.iter().enumerate() {
                templates.add(&format!("{kind} {}", i + 1), text)?;
            }
        }
        Ok(templates)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let added = self.env.add_template_owned(name.to_string(), text.to_string());
        added.map_err(|e| anyhow!("the template `{name}` does not parse: {}", brief(&e)))
    }

    /// The text of the template `name` for a row.
    ///
    /// # Errors
    /// A column that the row has not, by name; a template that fails or takes too many steps.
    pub fn render(&self, name: &str, row: &Map<String, Value>) -> Result<String> {
        let template = self.env.get_template(name).map_err(|e| anyhow!("{}", brief(&e)))?;
        let mut values = self.own.clone();
        let row: Map<String, Value> = row.iter().map(|(key, value)| (key.clone(), whole(value))).collect();
        values.insert("row".into(), Value::Object(row.clone()));
        values.extend(row.clone());
        template.render(Jinja::from(Serde(&values))).map_err(|e| {
            let mut missing: Vec<String> = template
                .undeclared_variables(false)
                .into_iter()
                .filter(|column| !values.contains_key(column))
                .collect();
            missing.sort();
            match (e.kind(), &missing[..]) {
                (ErrorKind::UndefinedError, [_, ..]) => missing_columns(&missing, &row),
                _ => anyhow!("the template `{name}`: {}", brief(&e)),
            }
        })
    }
}

/// A column as templates see it: whole numbers that an export has made fractions of (18.0) are whole again.
fn whole(value: &Value) -> Value {
    match value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15) {
        Some(x) if value.is_f64() => (x as i64).into(),
        _ => value.clone(),
    }
}

/// What to do where columns are not there.
pub fn missing_columns(missing: &[String], row: &Map<String, Value>) -> anyhow::Error {
    let quoted = |names: &mut dyn Iterator<Item = &String>| {
        names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    anyhow!(
        "there is no column {}; the row has {}: say which is which with `columns = [\"{}=...\"]`",
        quoted(&mut missing.iter()),
        quoted(&mut row.keys()),
        missing.first().map(String::as_str).unwrap_or_default()
    )
}

fn own_variables(task: &EvalTask, description: &TaskDescription) -> Result<Map<String, Value>> {
    let about = |name: &str| -> Result<Value> {
        let code = languages::code(name)?;
        let nllb = languages::written(name).map(|w| match w.script {
            Some(script) => format!("{}_{script}", &w.language.nllb[..3]),
            None => w.language.nllb.to_string(),
        });
        Ok(json!({"name": languages::name(name), "code": code, "nllb": nllb}))
    };
    let mut own = Map::new();
    own.insert("to".into(), about(&task.language)?);
    own.insert("from".into(), about(&task.source_language)?);
    if !description.words.is_empty() {
        let language = languages::code(&task.language)?;
        let same = |known: &&String| languages::code(known).is_ok_and(|code| code == language);
        let near = |known: &&String| languages::same_language(known, &task.language);
        let known = || description.words.keys();
        let found = known().find(same).or_else(|| known().find(near)).with_context(|| {
            let all: Vec<&str> = known().map(String::as_str).collect();
            format!(
                "description {} has no words of {}, but of {}: a file of your own may have them (`words.{}`)",
                description.name,
                languages::name(&task.language),
                all.join(", "),
                task.language
            )
        })?;
        own.insert("words".into(), json!(description.words[found]));
    }
    Ok(own)
}

fn brief(e: &Error) -> String {
    let text = match e.kind() {
        ErrorKind::OutOfFuel => "it takes too many steps".to_string(),
        _ => e.to_string(),
    };
    let end = text.char_indices().map(|(i, _)| i).find(|i| *i >= LONGEST_ERROR).unwrap_or(text.len());
    text[..end].to_string()
}
