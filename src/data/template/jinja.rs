//! Jinja as transformers sets it up for chat templates (`transformers.utils.chat_template_utils`).
use std::collections::BTreeMap;

use anyhow::{Result, anyhow, ensure};
use minijinja::{
    Environment, Error, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind},
};
use serde_json::json;

use crate::data::{conversation::Turn, tokenizer::Tokenizer};

/// Around what `{% generation %}` encloses; private-use characters that no text has.
const OPEN: &str = "\u{f8f0}\u{f8f1}";
const CLOSE: &str = "\u{f8f1}\u{f8f0}";

/// The longest template that is read, bytes.
const LONGEST: usize = 1 << 20;

/// A parsed chat template.
pub(super) struct Jinja {
    env: Environment<'static>,
    /// It says itself which part of a conversation the model writes.
    pub marks_answers: bool,
}

/// A rendered conversation.
pub(super) struct Rendered {
    pub text: String,
    /// What `{% generation %}` enclosed: byte ranges of `text`.
    pub generated: Vec<std::ops::Range<usize>>,
}

impl Jinja {
    pub fn new(source: &str) -> Result<Jinja> {
        ensure!(
            source.len() <= LONGEST,
            "the chat template has {} bytes; up to {LONGEST} are read",
            source.len()
        );
        let (marked, marks_answers) = with_marks(source);
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| anyhow!("{e:#}"))?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |text: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        env.add_function("strftime_now", |format: String| super::date::strftime(&format));
        env.add_filter("tojson", tojson);
        env.set_fuel(Some(5_000_000));
        env.add_template_owned("chat", marked)
            .map_err(|e| anyhow!("the chat template does not parse: {e:#}"))?;
        Ok(Jinja { env, marks_answers })
    }

    /// The text of a conversation, with what asks the model to answer if `generation_prompt`.
    pub fn render(&self, tok: &Tokenizer, turns: &[Turn], generation_prompt: bool) -> Result<Rendered> {
        let messages: Vec<serde_json::Value> =
            turns.iter().map(|t| json!({"role": t.role.name(), "content": t.content})).collect();
        let mut values: BTreeMap<String, Value> = BTreeMap::from([
            ("messages".into(), Value::from(Serde(messages))),
            ("add_generation_prompt".into(), generation_prompt.into()),
            ("tools".into(), ().into()),
            ("documents".into(), ().into()),
        ]);
        values.extend(tok.special_texts().into_iter().map(|(key, text)| (key, text.into())));
        let template = self.env.get_template("chat").map_err(|e| anyhow!("{e:#}"))?;
        let text = template
            .render(Value::from(values))
            .map_err(|e| anyhow!("the chat template cannot be rendered: {e:#}"))?;
        Ok(without_marks(&text))
    }
}

/// `{% generation %}` and `{% endgeneration %}` as marks in the text; whitespace control stays as written.
fn with_marks(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at);
        out.push_str(before);
        let Some(length) = block.find("%}").map(|n| n + 2) else { break };
        let (block, after) = block.split_at(length);
        rest = after;
        let inner = &block[2..block.len() - 2];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let mark = match word {
            "generation" => OPEN,
            "endgeneration" => CLOSE,
            _ => {
                out.push_str(block);
                continue;
            }
        };
        found = true;
        let control = |c: Option<char>| c.filter(|c| "-+".contains(*c)).map(String::from).unwrap_or_default();
        let (left, right) = (control(inner.chars().next()), control(inner.chars().last()));
        out.push_str(&format!("{{%{left} if true %}}{{{{ '{mark}' }}}}{{% endif {right}%}}"));
    }
    out.push_str(rest);
    (out, found)
}

/// The text without marks, and where they stood.
fn without_marks(marked: &str) -> Rendered {
    let (mut text, mut generated, mut rest, mut open) =
        (String::with_capacity(marked.len()), vec![], marked, None);
    while let Some(at) = rest.find(OPEN).into_iter().chain(rest.find(CLOSE)).min() {
        text.push_str(&rest[..at]);
        if rest[at..].starts_with(OPEN) {
            open = Some(text.len());
        } else if let Some(start) = open.take() {
            generated.push(start..text.len());
        }
        rest = &rest[at + OPEN.len()..];
    }
    text.push_str(rest);
    Rendered { text, generated }
}

/// Python's `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`: no HTML escapes, `", "` and `": "` between items.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let invalid = |text: String| Error::new(ErrorKind::InvalidOperation, text);
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(
                v.as_usize()
                    .filter(|n| *n <= 64)
                    .ok_or_else(|| invalid(format!("tojson: indent {v} is not a number up to 64")))?,
            ),
        }),
    };
    let separators = match kwargs.get::<Option<Vec<String>>>("separators")? {
        Some(list) => <[String; 2]>::try_from(list)
            .map_err(|l| invalid(format!("tojson: separators {l:?} are not two texts")))?,
        None if indent.is_some() => [",".into(), ": ".into()],
        None => [", ".into(), ": ".into()],
    };
    let style = Style {
        indent,
        separators,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct Style {
    indent: Option<String>,
    separators: [String; 2],
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 64 {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: more than 64 levels"));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(('[', ']'), items.len(), depth, out, |i, out| {
                    self.write(&items[i], depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(('{', '}'), keys.len(), depth, out, |i, out| {
                    self.text(&keys[i].to_string(), out);
                    out.push_str(&self.separators[1]);
                    self.write(&value.get_item(&keys[i])?, depth + 1, out)
                })?;
            }
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: {other} has no JSON form"),
                ));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (char, char),
        n: usize,
        depth: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.as_ref().filter(|_| n > 0) {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        for i in 0..n {
            if i > 0 {
                out.push_str(&self.separators[0]);
            }
            line(out, depth + 1);
            item(i, out)?;
        }
        line(out, depth);
        out.push(close);
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// A number as Python prints it: whole floats keep `.0`, exponents have a sign and two digits.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else { return value.to_string() };
    if x.is_nan() || x.is_infinite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    if x.fract() == 0.0 { format!("{x:.1}") } else { x.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, values: serde_json::Value) -> String {
        let jinja = Jinja::new(source).unwrap();
        let template = jinja.env.get_template("chat").unwrap();
        template.render(Value::from(Serde(values))).unwrap()
    }

    #[test]
    fn tojson_is_pythons() {
        let value =
            json!({"v": {"b": [1, 2.0, 1.5, 1e20, 1e-7, true, null, "é<\u{1}\"\\"], "a": {}, "c": []}});
        // json.dumps(v, ensure_ascii=False), with indent=2 and sort_keys, with ensure_ascii and separators: printed by Python 3.11.
        assert_eq!(
            rendered("{{ v|tojson }}", value.clone()),
            r#"{"b": [1, 2.0, 1.5, 1e+20, 1e-07, true, null, "é<\u0001\"\\"], "a": {}, "c": []}"#
        );
        assert_eq!(
            rendered("{{ v|tojson(indent=2, sort_keys=true) }}", json!({"v": {"b": [1], "a": {}}})),
            "{\n  \"a\": {},\n  \"b\": [\n    1\n  ]\n}"
        );
        assert_eq!(
            rendered("{{ v|tojson(ensure_ascii=true, separators=[',', ':']) }}", json!({"v": ["é😀", 1]})),
            r#"["\u00e9\ud83d\ude00",1]"#
        );
    }

    #[test]
    fn tojson_refuses_what_it_does_not_know() {
        for call in ["indent=1000000", "indent=-1", "separators=['a']", "colour=1"] {
            let jinja = Jinja::new(&format!("{{{{ 1|tojson({call}) }}}}")).unwrap();
            assert!(jinja.env.get_template("chat").unwrap().render(()).is_err(), "{call}");
        }
    }

    #[test]
    fn generation_blocks_are_found_and_leave_no_trace() {
        for (source, text, found) in [
            ("a{% generation %}b{% endgeneration %}c", "abc", 1..2),
            ("a {%- generation -%} b {%- endgeneration %} c", "ab c", 1..2),
            ("a\n{% generation %}\nb\n{% endgeneration %}\nc", "a\nb\nc", 2..4),
        ] {
            let (marked, marks) = with_marks(source);
            assert!(marks);
            let jinja = Jinja::new(source).unwrap();
            let out = without_marks(&jinja.env.get_template("chat").unwrap().render(()).unwrap());
            assert_eq!((out.text.as_str(), &out.generated[..]), (text, &[found][..]), "{marked}");
        }
    }
}
