//! Conversations: turns of a system prompt, a user and the model.
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions that stand before everything.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As chat templates know it: `system`, `user`, `assistant`.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// Loss weight of an assistant turn's tokens; 0: context only.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f32,
}

impl Turn {
    /// A turn of weight 1.
    pub fn new(role: Role, content: &str) -> Turn {
        Turn { role, content: content.into(), weight: 1.0 }
    }
}

fn one() -> f32 {
    1.0
}

fn is_one(x: &f32) -> bool {
    *x == 1.0
}

/// What the model is asked: a system prompt, earlier turns, and the question with its context.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompt<'a> {
    /// Stands first, unless the earlier turns begin with a system prompt of their own.
    pub system: Option<&'a str>,
    /// The turns before the question.
    pub earlier: &'a [Turn],
    /// The question.
    pub instruction: &'a str,
    /// Its context; templates that know Alpaca's two-part form show it apart, the others below the question.
    pub input: &'a str,
}

impl<'a> Prompt<'a> {
    /// A question without earlier turns.
    pub fn new(system: Option<&'a str>, instruction: &'a str, input: &'a str) -> Prompt<'a> {
        Prompt { system, earlier: &[], instruction, input }
    }

    /// A conversation whose last turn is the user's; `None` where it ends otherwise.
    pub fn of_turns(turns: &'a [Turn]) -> Option<Prompt<'a>> {
        let (question, earlier) = turns.split_last().filter(|(turn, _)| turn.role == Role::User)?;
        Some(Prompt { system: None, earlier, instruction: &question.content, input: "" })
    }

    /// Question and context as one text.
    pub fn question(&self) -> String {
        if self.input.is_empty() {
            self.instruction.to_string()
        } else {
            format!("{}\n{}", self.instruction, self.input)
        }
    }

    /// Every turn, the question last. A system prompt of the conversation itself wins over `system`.
    pub fn turns(&self) -> Vec<Turn> {
        let own = self.earlier.first().is_some_and(|t| t.role == Role::System);
        let system = self.system.filter(|_| !own).map(|s| Turn::new(Role::System, s));
        let question = Turn::new(Role::User, &self.question());
        system.into_iter().chain(self.earlier.iter().cloned()).chain([question]).collect()
    }
}
