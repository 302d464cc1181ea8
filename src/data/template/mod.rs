//! Chat templates: the model's own Jinja, or one of the field's by name. A conversation is rendered and tokenised as a whole, as
//! `apply_chat_template(..., tokenize=True)` of transformers does, and the tokens of the answers are found in it by their place.
mod date;
mod exported;
pub(super) mod jinja;
mod named;
mod tojson;

use std::{ops::Range, path::Path};

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};

use self::{
    jinja::{Jinja, Rendered},
    named::Named,
};
use super::{
    conversation::{Prompt, Role, Turn},
    tokenizer::{PlacedToken, Tokenizer},
};

/// The names of the built-in templates.
pub const NAMES: [&str; 7] =
    ["auto", "alpaca", "alpaca-llamafactory", "llama2", "chatml", "seallm-v2", "plain"];

/// Stands for an answer where only its place matters.
const PLACEHOLDER: &str = "\u{f8f2}";

enum Kind {
    Jinja(Box<Jinja>),
    Named(Named),
}

/// Writes the begin token.
const BEGIN: &str = "{{ bos_token }}";

/// How a question becomes a prompt, and an answer its continuation.
pub struct ChatTemplate {
    kind: Kind,
    name: String,
    /// Of a Jinja template: its text.
    source: Option<String>,
    /// The begin token is put first where the template does not write it.
    add_bos: bool,
}

/// Which answers of a conversation are learnt.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum TrainOn {
    /// Every turn of the assistant.
    #[default]
    All,
    /// The last one.
    Last,
}

/// A tokenised conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The ids of the whole conversation; the last answer has an end token, whether the template writes one or not.
    pub tokens: Vec<u32>,
    /// The weight of learning each: that of its turn inside an answer and its end token, 0 elsewhere.
    pub weights: Vec<f32>,
    /// Where the last answer begins.
    pub answer_start: usize,
}

impl Encoded {
    /// Without what stands behind the last token that is learnt, which nothing is learnt from.
    pub fn without_tail(mut self) -> Encoded {
        let end = self.weights.iter().rposition(|w| *w != 0.0).map_or(self.tokens.len(), |i| i + 1);
        self.tokens.truncate(end);
        self.weights.truncate(end);
        self
    }
}

impl ChatTemplate {
    /// The template called `name`: one of [`NAMES`], the path of a .jinja file, or `auto:NAME` for one of several that the model has. With
    /// `+bos` behind the name the begin token stands first even if the template does not write it.
    pub fn load(name: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let (plain, add_bos) = name.strip_suffix("+bos").map_or((name, false), |n| (n, true));
        let own = plain.strip_prefix("auto:").or((plain == "auto").then_some(""));
        let mut source = None;
        let kind = if let Some(which) = own {
            let text = source.insert(own_template(tokenizer, which)?);
            Kind::Jinja(Box::new(Jinja::new(text)?))
        } else if let Some(named) = Named::by_name(plain) {
            Kind::Named(named)
        } else if plain.ends_with(".jinja") {
            let text = crate::data::json::read_text(Path::new(plain))
                .at(plain, || format!("read template {plain}"))?;
            let text = source.insert(text);
            Kind::Jinja(Box::new(Jinja::new(text).with_context(|| format!("template {plain}"))?))
        } else {
            let message =
                format!("template `{plain}` is not known: {} or the path of a .jinja file", NAMES.join(", "));
            bail!(Error::setting("template", message))
        };
        ensure!(!add_bos || tokenizer.bos().is_some(), "template {name}: the tokenizer has no begin token");
        Ok(ChatTemplate { kind, name: name.into(), source, add_bos })
    }

    /// Jinja with which other programs render the same conversations, the begin token included where this template puts it. Errors if none can.
    pub fn to_jinja(&self, tok: &Tokenizer) -> Result<String> {
        let named = match &self.kind {
            Kind::Jinja(jinja) => {
                let text = self.source.clone().unwrap_or_default();
                let question = [Turn::new(Role::User, PLACEHOLDER)];
                let rendered = self.named_error(only(jinja.render(tok, &[(&question, true)])))?.text;
                let writes_it = !self.add_bos || rendered.starts_with(&special_pair(tok).0);
                return Ok(if writes_it { text } else { format!("{BEGIN}{text}") });
            }
            Kind::Named(named) => named,
        };
        let begins = tok.bos().is_some() && (self.add_bos || tok.adds_bos() || named.begins());
        let text = format!("{}{}", if begins { BEGIN } else { "" }, exported::jinja(*named));
        let kind = Kind::Jinja(Box::new(Jinja::new(&text)?));
        let other = ChatTemplate { kind, name: self.name.clone(), source: None, add_bos: false };
        let probe = Prompt::new(None, "What is it?", "");
        ensure!(
            other.encode_prompt(tok, &probe)? == self.encode_prompt(tok, &probe)?,
            "no Jinja text gives the ids of template {} with this tokenizer, which writes a word's start only at the very beginning",
            self.name
        );
        Ok(text)
    }

    /// The ids of a prompt, ready for the answer.
    pub fn encode_prompt(&self, tok: &Tokenizer, prompt: &Prompt) -> Result<Vec<u32>> {
        let turns = prompt.turns();
        let text = match &self.kind {
            Kind::Jinja(jinja) => self.named_error(only(jinja.render(tok, &[(&turns, true)])))?.text,
            Kind::Named(named) => named.render(prompt, None, special_pair(tok).as_ref())?.text,
        };
        Ok(self.pieces(tok, &text, &turns)?.iter().map(|p| p.id).collect())
    }

    /// The ids of a conversation that ends with `answer`, and which of them are learnt.
    pub fn encode(&self, tok: &Tokenizer, prompt: &Prompt, answer: &str, on: TrainOn) -> Result<Encoded> {
        let mut turns = prompt.turns();
        turns.push(Turn::new(Role::Assistant, answer));
        if let Kind::Named(named) = &self.kind
            && named.is_apart()
        {
            return self.encode_apart(tok, prompt, answer);
        }
        let (text, answers) = match &self.kind {
            Kind::Jinja(jinja) => self.named_error(self.answers(jinja, tok, &turns, on))?,
            Kind::Named(named) => {
                let text = named.render(prompt, Some(answer), special_pair(tok).as_ref())?;
                (text.text, text.answers.into_iter().map(Some).collect())
            }
        };
        let pieces = self.pieces(tok, &text, &turns)?;
        let mut out = Encoded {
            tokens: pieces.iter().map(|p| p.id).collect(),
            weights: vec![0.0; pieces.len()],
            answer_start: pieces.len(),
        };
        let assistants = || turns.iter().filter(|t| t.role == Role::Assistant);
        let last = assistants().count().saturating_sub(1);
        for (i, (turn, range)) in assistants().zip(&answers).enumerate() {
            let Some(range) = range.as_ref().filter(|_| i == last || on == TrainOn::All) else { continue };
            let ended = learn(&pieces, range, turn.weight, tok.eos(), &mut out);
            if i == last && !ended {
                out.tokens.push(end_token(tok)?);
                out.weights.push(turn.weight);
            }
        }
        Ok(out)
    }

    /// The ids of a prompt with the answer's own ids, as they were generated, and the end token behind them: what the model itself would
    /// write. Earlier answers are context.
    pub fn encode_generated(&self, tok: &Tokenizer, prompt: &Prompt, answer: &[u32]) -> Result<Encoded> {
        let mut tokens = self.encode_prompt(tok, prompt)?;
        let answer_start = tokens.len();
        let model = self.encode(tok, prompt, PLACEHOLDER, TrainOn::Last)?.without_tail();
        let end = *model.tokens.last().filter(|id| tok.eos().contains(id)).unwrap_or(&end_token(tok)?);
        tokens.extend(answer);
        tokens.push(end);
        let weights = (0..tokens.len()).map(|i| if i < answer_start { 0.0 } else { 1.0 }).collect();
        Ok(Encoded { tokens, weights, answer_start })
    }

    fn encode_apart(&self, tok: &Tokenizer, prompt: &Prompt, answer: &str) -> Result<Encoded> {
        let mut tokens = self.encode_prompt(tok, prompt)?;
        let answer_start = tokens.len();
        tokens.extend(tok.encode(answer, false)?);
        tokens.push(end_token(tok)?);
        let weights = (0..tokens.len()).map(|i| if i < answer_start { 0.0 } else { 1.0 }).collect();
        Ok(Encoded { tokens, weights, answer_start })
    }

    /// The whole conversation as text, and the place of each answer in it (`None` where it is not asked for): the blocks of
    /// `{% generation %}`, or what a prompt with the answer has more than the prompt.
    fn answers(
        &self,
        jinja: &Jinja,
        tok: &Tokenizer,
        turns: &[Turn],
        on: TrainOn,
    ) -> Result<(String, Vec<Option<Range<usize>>>)> {
        let places: Vec<usize> = (0..turns.len()).filter(|&i| turns[i].role == Role::Assistant).collect();
        let last = turns.len().saturating_sub(1);
        let is_wanted = |i: usize| i == last || (on == TrainOn::All && turns[i].weight != 0.0);
        let wanted: Vec<usize> =
            places.iter().copied().filter(|&i| !jinja.marks_answers && is_wanted(i)).collect();
        let shown: Vec<Vec<Turn>> = wanted
            .iter()
            .map(|&i| {
                let mut shown = turns[..i].to_vec();
                shown.push(Turn::new(Role::Assistant, PLACEHOLDER));
                shown
            })
            .collect();
        // The whole; then three for each answer: what asks for it, it with a mark in its place, it with nothing behind it.
        let mut conversations = vec![(turns, false)];
        for (&i, shown) in wanted.iter().zip(&shown) {
            conversations.extend([(&turns[..i], true), (&shown[..], false)]);
            if i + 1 < turns.len() {
                conversations.push((&turns[..=i], false));
            }
        }
        let mut rendered = jinja.render(tok, &conversations)?.into_iter();
        let mut next = || rendered.next().context("the template was rendered too seldom");
        let whole = next()?;
        if jinja.marks_answers {
            ensure!(
                whole.generated.len() == places.len(),
                "{} blocks of {{% generation %}} for {} answers",
                whole.generated.len(),
                places.len()
            );
            return Ok((whole.text, whole.generated.into_iter().map(Some).collect()));
        }
        let mut ranges = vec![];
        for &i in &places {
            if !wanted.contains(&i) {
                ranges.push(None);
                continue;
            }
            let prompt = next()?.text;
            let start = common(&prompt, &next()?.text);
            let end =
                if i + 1 == turns.len() { whole.text.len() } else { common(&next()?.text, &whole.text) };
            ensure!(
                whole.text.get(..start) == prompt.get(..start) && start < end,
                "the answer of turn {} cannot be told apart, since the template writes earlier turns differently once others follow: \
                 learn the last answer alone (--train-on last)",
                i + 1
            );
            ranges.push(Some(start..end));
        }
        Ok((whole.text, ranges))
    }

    fn pieces(&self, tok: &Tokenizer, text: &str, turns: &[Turn]) -> Result<Vec<PlacedToken>> {
        let contents: Vec<&str> = turns.iter().map(|t| t.content.as_str()).collect();
        let mut pieces = tok.encode_template(text, &contents)?;
        let wants_bos = match &self.kind {
            Kind::Jinja(_) => self.add_bos,
            Kind::Named(named) => self.add_bos || tok.adds_bos() || named.begins(),
        };
        if let Some(bos) = tok.bos().filter(|_| wants_bos) {
            if pieces.first().map(|p| p.id) != Some(bos) {
                pieces.insert(0, PlacedToken { id: bos, start: 0, end: 0 });
            }
            ensure!(
                pieces.get(1).map(|p| p.id) != Some(bos),
                "template {} writes the begin token twice",
                self.name
            );
        }
        Ok(pieces)
    }

    fn named_error<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("template {}", self.name))
    }
}

fn only(rendered: Result<Vec<Rendered>>) -> Result<Rendered> {
    rendered?.pop().context("the template was not rendered")
}

/// Gives `weight` to the tokens of an answer up to its first end token; whether there is one.
fn learn(pieces: &[PlacedToken], answer: &Range<usize>, weight: f32, eos: &[u32], out: &mut Encoded) -> bool {
    let inside = |p: &PlacedToken| {
        if p.start == p.end {
            answer.contains(&p.start)
        } else {
            p.start < answer.end && p.end > answer.start
        }
    };
    let Some(first) = pieces.iter().position(inside) else { return false };
    out.answer_start = first;
    for (i, piece) in pieces.iter().enumerate().skip(first).take_while(|(_, p)| inside(p)) {
        out.weights[i] = weight;
        if eos.contains(&piece.id) {
            return true;
        }
    }
    false
}

/// How many bytes two texts have in common from their beginning, whole characters.
fn common(a: &str, b: &str) -> usize {
    let mut n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(n) {
        n -= 1;
    }
    n
}

struct SpecialPair(String, String);

impl SpecialPair {
    fn as_ref(&self) -> (&str, &str) {
        (&self.0, &self.1)
    }
}

fn special_pair(tok: &Tokenizer) -> SpecialPair {
    let (bos, eos) = tok.bos_eos_text();
    SpecialPair(bos, eos)
}

fn end_token(tok: &Tokenizer) -> Result<u32> {
    let first = tok.eos().first().copied();
    first.context("the tokenizer has no end token: say `eos_token` in tokenizer_config.json")
}

/// The model's own template: the only one, the one called `which`, or of several the one called `default`.
fn own_template(tokenizer: &Tokenizer, which: &str) -> Result<String> {
    let value = &tokenizer.config()["chat_template"];
    let Some(list) = value.as_array() else {
        let text = value.as_str().with_context(|| {
            format!(
                "the model has no chat template of its own: choose one by name ({})",
                NAMES[1..].join(", ")
            )
        })?;
        ensure!(which.is_empty(), "the model has one chat template, without a name: use --template auto");
        return Ok(text.into());
    };
    let wanted = if which.is_empty() { "default" } else { which };
    let found = list.iter().find(|t| t["name"] == wanted).and_then(|t| t["template"].as_str());
    let names: Vec<&str> = list.iter().filter_map(|t| t["name"].as_str()).collect();
    found.map(String::from).with_context(|| {
        format!("the model has the chat templates {}, none called `{wanted}`: choose one, such as --template auto:{}",
            names.join(", "), names.first().unwrap_or(&"NAME"))
    })
}
