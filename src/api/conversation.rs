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
    /// With a system prompt before everything.
    pub fn with_system(mut self, text: &str) -> Conversation {
        self.turns.insert(0, Turn::new(Role::System, text));
        self
    }

    /// The user goes on.
    pub fn asked(mut self, text: &str) -> Conversation {
        self.turns.push(Turn::new(Role::User, text));
        self
    }

    /// The model has answered.
    pub fn answered(mut self, text: &str) -> Conversation {
        self.turns.push(Turn::new(Role::Assistant, text));
        self
    }

    /// Every turn.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// As a prompt, whose last turn is the user's.
    ///
    /// # Errors
    /// [`Error::BadInput`] where it ends otherwise; `place` says which it is.
    pub(super) fn prompt(&self, place: &str) -> Result<Prompt<'_>> {
        let message = || format!("{place}: a conversation to be answered ends with a turn of the user");
        Ok(Prompt::of_turns(&self.turns).ok_or_else(|| Error::bad_input(place, message()))?)
    }
}

impl From<&str> for Conversation {
    /// One question.
    fn from(question: &str) -> Conversation {
        Conversation::default().asked(question)
    }
}

impl From<String> for Conversation {
    /// One question.
    fn from(question: String) -> Conversation {
        Conversation::default().asked(&question)
    }
}

impl From<Vec<Turn>> for Conversation {
    /// These turns.
    fn from(turns: Vec<Turn>) -> Conversation {
        Conversation { turns }
    }
}
