//! How a program that maps lines to lines is talked to.
use serde::{Deserialize, Serialize};

/// The protocol for talking to the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// One line in, one line out; the program keeps running (it must flush after each line)
    #[default]
    Lines,
    /// Records end in NUL instead of a line break, and the program flushes at each NUL
    Nul,
    /// Apertium's stream format (`apertium -z -f none PAIR`): as `nul`, with its reserved characters escaped
    Apertium,
    /// The program is started for each batch, reads all lines and exits
    Batch,
}

impl Protocol {
    /// What ends a record, in both directions.
    pub(super) fn end(self) -> char {
        if matches!(self, Protocol::Nul | Protocol::Apertium) { '\0' } else { '\n' }
    }

    /// A line as the program wants it.
    pub(super) fn encode(self, line: &str) -> String {
        if self != Protocol::Apertium {
            return line.into();
        }
        let mut out = String::with_capacity(line.len() + 3);
        for c in line.chars() {
            if "[]{}^$/\\@<>".contains(c) {
                out.push('\\');
            }
            out.push(c);
        }
        // What Apertium's own deformatter puts behind a text, so that its last word is seen to end a sentence.
        out + SENTENCE_END
    }

    /// A line as the program gave it.
    pub(super) fn decode(self, reply: &str) -> String {
        if self != Protocol::Apertium {
            return reply.into();
        }
        let mut out = String::with_capacity(reply.len());
        let mut escaped = false;
        for c in reply.strip_suffix(SENTENCE_END).unwrap_or(reply).chars() {
            if c != '\\' || escaped {
                out.push(c);
            }
            escaped = c == '\\' && !escaped;
        }
        out
    }
}

const SENTENCE_END: &str = ".[]";
