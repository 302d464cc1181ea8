//! Conversations as callers write them.
use anyhow::Result;

use crate::{
    data::conversation::{Prompt, Role, Turn},
    error::Error,
};

/// Turns of a system prompt, a user and the model.
///
/// ```
/// use sdrrl::Conversation;
/// let example = Conversation::from("What is the pet of Palal?").answered("A turtle.").asked("And of Meron?");
/// assert_eq!(example.turns().len(), 3);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    turns: Vec<Turn>,
}

impl Conversation {
    /// Puts a system prompt at the beginning.
    pub fn with_system(mut self, text: &str) -> Conversation {
        self.turns.insert(0, Turn::new(Role::System, text));
        self
    }

    /// Adds a message from the user.
    pub fn asked(mut self, text: &str) -> Conversation {
        self.turns.push(Turn::new(Role::User, text));
        self
    }

    /// Adds an answer from the model.
    pub fn answered(mut self, text: &str) -> Conversation {
        self.turns.push(Turn::new(Role::Assistant, text));
        self
    }

    /// All turns, in order.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// The conversation as a prompt, which must end with a message from the user.
    ///
    /// # Errors
    /// [`Error::BadInput`] if it ends otherwise; `place` identifies the conversation in the message.
    pub(super) fn prompt(&self, place: &str) -> Result<Prompt<'_>> {
        let message = || format!("{place}: a conversation to be answered ends with a turn of the user");
        Ok(Prompt::of_turns(&self.turns).ok_or_else(|| Error::bad_input(place, message()))?)
    }
}

impl From<&str> for Conversation {
    /// A conversation of one question.
    fn from(question: &str) -> Conversation {
        Conversation::default().asked(question)
    }
}

impl From<String> for Conversation {
    /// A conversation of one question.
    fn from(question: String) -> Conversation {
        Conversation::default().asked(&question)
    }
}

impl From<Vec<Turn>> for Conversation {
    /// A conversation of these turns.
    fn from(turns: Vec<Turn>) -> Conversation {
        Conversation { turns }
    }
}
