//! The text of a reply as its tokens come: what is sure already, and never a piece of a character.
use anyhow::Result;

use crate::data::tokenizer::Tokenizer;

/// Pieces that together are the trimmed text of all tokens, cut off before the first stop text.
pub struct TextStream {
    ids: Vec<u32>,
    /// Tokens from here on are decoded together, so that a token that joins its neighbour does so.
    window: usize,
    /// Tokens before this one are in `text`.
    read: usize,
    text: String,
    /// Bytes of `text` that were handed out.
    sent: usize,
    stops: Vec<String>,
    stopped: bool,
}

impl TextStream {
    /// Nothing yet; the text ends before the first of `stops`.
    pub fn new(stops: Vec<String>) -> TextStream {
        let stops = stops.into_iter().filter(|s| !s.is_empty()).collect();
        TextStream { ids: vec![], window: 0, read: 0, text: String::new(), sent: 0, stops, stopped: false }
    }

    /// Whether a stop text was met: nothing more will come.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The text that one more token makes sure of; often empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        self.ids.push(token);
        let before = tokenizer.decode(&self.ids[self.window..self.read])?;
        let now = tokenizer.decode(&self.ids[self.window..])?;
        // A character whose bytes are not all there is decoded as U+FFFD.
        match now.strip_prefix(&before) {
            Some(more) if !more.is_empty() && !now.ends_with('\u{fffd}') => {
                self.text.push_str(more);
                (self.window, self.read) = (self.read, self.ids.len());
            }
            _ => {}
        }
        Ok(self.sure(false))
    }

    /// The rest, once no token follows.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        if !self.stopped {
            let whole = tokenizer.decode(&self.ids)?;
            if let Some(rest) = whole.strip_prefix(self.text.as_str()) {
                self.text.push_str(rest);
            }
        }
        Ok(self.sure(true))
    }

    /// What of `text` may be handed out: no space at either end, and no beginning of a stop text while more may come.
    fn sure(&mut self, last: bool) -> String {
        if !self.stopped
            && let Some(at) = self.stops.iter().filter_map(|s| self.text.find(s.as_str())).min()
        {
            self.text.truncate(at);
            self.stopped = true;
        }
        let start = self.text.len() - self.text.trim_start().len();
        self.sent = self.sent.max(start);
        let mut end = self.text.trim_end().len();
        if !last && !self.stopped {
            let begun = |stop: &String| {
                let lengths = (1..stop.len()).rev().filter(|&n| stop.is_char_boundary(n));
                lengths.into_iter().find(|&n| self.text.ends_with(&stop[..n])).unwrap_or(0)
            };
            end = end.min(self.text.len() - self.stops.iter().map(begun).max().unwrap_or(0));
            end = self.text[..end].trim_end().len();
        }
        let piece = self.text.get(self.sent..end).unwrap_or_default().to_string();
        self.sent += piece.len();
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Tokenizer;

    fn pieces(ids: &[u32], tokenizer: &Tokenizer, stops: &[&str]) -> Vec<String> {
        let mut stream = TextStream::new(stops.iter().map(|s| s.to_string()).collect());
        let mut all = vec![];
        for &id in ids {
            all.push(stream.push(tokenizer, id).unwrap());
            if stream.is_stopped() {
                break;
            }
        }
        all.push(stream.finish(tokenizer).unwrap());
        all
    }

    #[test]
    fn the_pieces_are_the_trimmed_text_and_stop_texts_never_show() {
        let tokenizer = Tokenizer::load("assets/quickstart/model".as_ref()).unwrap();
        for text in [
            "The pet of Polol is a turtle.",
            "  spaces before and behind  \n",
            "señor, 日本語, 🙂 and ½",
            "a\n\nb\n",
            "",
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            let whole = tokenizer.decode(&ids).unwrap();
            let all = pieces(&ids, &tokenizer, &[]);
            assert_eq!(all.concat(), whole.trim(), "{text:?}");
            assert!(all.iter().all(|p| !p.contains('\u{fffd}')) || whole.contains('\u{fffd}'), "{all:?}");
            for stop in ["e", "pet of", "and", "\n\n", " is a tu"] {
                let wanted = whole.split(stop).next().unwrap().trim();
                assert_eq!(pieces(&ids, &tokenizer, &[stop, "never"]).concat(), wanted, "{text:?} {stop:?}");
            }
        }
    }
}
