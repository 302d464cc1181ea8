//! Jinja as transformers sets it up for chat templates (`transformers.utils.chat_template_utils`).
//!
//! A template comes with a model, so it is outside data, and Jinja is a language: one can ask for any amount of time and memory. So templates
//! are rendered by a child process with limits ([`contained`]), or in this process where the user says that they are trusted.
use anyhow::{Context, Result, anyhow, ensure};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Serde};
use serde_json::json;

use super::tojson::tojson;
use crate::data::{
    contained::{self, Ask, Limits, Pool},
    conversation::Turn,
    tokenizer::Tokenizer,
};

/// Around what `{% generation %}` encloses; private-use characters that no text has.
const OPEN: &str = "\u{f8f0}\u{f8f1}";
const CLOSE: &str = "\u{f8f1}\u{f8f0}";

/// The longest template that is read, bytes.
const LONGEST: usize = 1 << 20;
/// The longest text that a template may make of a conversation, bytes beyond eight times the conversation's own.
const LONGEST_TEXT: usize = 2 << 20;
/// The longest error with an excerpt of the template, bytes.
const LONGEST_ERROR: usize = 1500;
/// Steps of the machine behind the templates.
const STEPS: u64 = 5_000_000;
/// What a template may take in a child: memory, and time of the processor for each conversation.
pub(in crate::data) const LIMITS: Limits = Limits { memory: 256 << 20, seconds: 1.0 };
/// Conversations up to so many bytes are rendered with one request.
const TOGETHER: usize = 1 << 20;
/// Deep templates are parsed with a stack of this many bytes, of which only what they need is ever touched.
const STACK: usize = 512 << 20;

/// A parsed chat template.
pub(super) struct Jinja {
    engine: Engine,
    /// It says itself which part of a conversation the model writes.
    pub marks_answers: bool,
}

enum Engine {
    Here(Box<Local>),
    Apart(Pool),
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
        let engine = match contained::program()? {
            Some(program) => Engine::Apart(
                Pool::start(program, LIMITS, (Ask::Template, marked.into_bytes()))
                    .context("the chat template cannot be parsed")?,
            ),
            None => {
                let parse = move || Local::new(marked);
                let thread = std::thread::Builder::new().stack_size(STACK).spawn(parse);
                let parsed = thread.context("start a thread to parse the chat template")?.join();
                Engine::Here(Box::new(parsed.map_err(|_| anyhow!("the chat template cannot be parsed"))??))
            }
        };
        Ok(Jinja { engine, marks_answers })
    }

    /// The texts of conversations, each with what asks the model to answer if the second of its pair.
    pub fn render(&self, tok: &Tokenizer, conversations: &[(&[Turn], bool)]) -> Result<Vec<Rendered>> {
        let specials: serde_json::Map<String, serde_json::Value> =
            tok.special_texts().into_iter().map(|(key, text)| (key, text.into())).collect();
        let values = |&(turns, prompt): &(&[Turn], bool)| {
            let messages: Vec<serde_json::Value> =
                turns.iter().map(|t| json!({"role": t.role.name(), "content": t.content})).collect();
            let mut values = json!({"messages": messages, "add_generation_prompt": prompt, "tools": null, "documents": null});
            if let Some(map) = values.as_object_mut() {
                map.extend(specials.clone());
            }
            values
        };
        let wanted: Vec<serde_json::Value> = conversations.iter().map(values).collect();
        let size = |turns: &[Turn]| turns.iter().map(|t| t.content.len()).sum::<usize>();
        let together = conversations.iter().map(|(turns, _)| size(turns)).sum::<usize>() <= TOGETHER;
        let mut texts = vec![];
        for some in wanted.chunks(if together { wanted.len().max(1) } else { 1 }) {
            texts.extend(self.texts(some).context("the chat template cannot be rendered")?);
        }
        Ok(texts.iter().map(|text| without_marks(text)).collect())
    }

    fn texts(&self, values: &[serde_json::Value]) -> Result<Vec<String>> {
        match &self.engine {
            Engine::Here(local) => values.iter().map(|v| local.render(v)).collect(),
            Engine::Apart(pool) => {
                let reply = pool.ask(Ask::Render, &serde_json::to_vec(values)?)?;
                serde_json::from_slice(&reply).context("the answer of the process that renders it")
            }
        }
    }
}

/// A template in this process: bounded in steps, in depth and in the length of its text, not in memory.
pub(in crate::data) struct Local {
    env: Environment<'static>,
}

impl Local {
    /// Parses a template with marks.
    pub fn new(marked: String) -> Result<Local> {
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
        env.set_fuel(Some(STEPS));
        env.add_template_owned("chat", marked)
            .map_err(|e| anyhow!("the chat template does not parse: {}", brief(&e)))?;
        Ok(Local { env })
    }

    /// The text, with marks, for these variables.
    pub fn render(&self, values: &serde_json::Value) -> Result<String> {
        let template = self.env.get_template("chat").map_err(|e| anyhow!("{e:#}"))?;
        let mut out = Bounded { text: vec![], room: LONGEST_TEXT + 8 * content_bytes(values) };
        template.render_captured_to(Value::from(Serde(values)), &mut out).map_err(|e| match out.room {
            0 => anyhow!("it makes a text of more than {} bytes", out.text.len()),
            _ => anyhow!("{}", brief(&e)),
        })?;
        String::from_utf8(out.text).context("its text is not UTF-8")
    }
}

/// An error with the lines around it, as far as they can be read.
fn brief(error: &Error) -> String {
    let text = format!("{error:#}");
    if text.len() <= LONGEST_ERROR {
        return text;
    }
    let short = error.to_string();
    format!("{} ...", short.chars().take(LONGEST_ERROR).collect::<String>())
}

/// Bytes of all texts of the messages.
fn content_bytes(values: &serde_json::Value) -> usize {
    let messages = values["messages"].as_array();
    messages.into_iter().flatten().map(|m| m["content"].as_str().map_or(0, str::len)).sum()
}

/// A text that may not grow beyond its room; 0 says that it wanted to.
struct Bounded {
    text: Vec<u8>,
    room: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.room {
            self.room = 0;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` and `{% endgeneration %}` as marks in the text; whitespace control stays as written.
fn with_marks(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found) = (String::with_capacity(source.len()), source, false);
    while let Some(at) = rest.find("{%") {
        let (before, block) = rest.split_at(at);
        out.push_str(before);
        let Some(length) = block.get(2..).and_then(|inner| inner.find("%}")).map(|n| n + 4) else {
            rest = block;
            break;
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str, values: serde_json::Value) -> String {
        Local::new(with_marks(source).0).unwrap().render(&values).unwrap()
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
            let local = Local::new(format!("{{{{ 1|tojson({call}) }}}}")).unwrap();
            assert!(local.render(&json!({})).is_err(), "{call}");
        }
    }

    #[test]
    fn generation_blocks_are_found_and_leave_no_trace() {
        assert_eq!(with_marks("a{%}b{%"), ("a{%}b{%".into(), false));
        for (source, text, found) in [
            ("a{% generation %}b{% endgeneration %}c", "abc", 1..2),
            ("a {%- generation -%} b {%- endgeneration %} c", "ab c", 1..2),
            ("a\n{% generation %}\nb\n{% endgeneration %}\nc", "a\nb\nc", 2..4),
        ] {
            let (marked, marks) = with_marks(source);
            assert!(marks);
            let out = without_marks(&rendered(source, json!({})));
            assert_eq!((out.text.as_str(), &out.generated[..]), (text, &[found][..]), "{marked}");
        }
    }
}
