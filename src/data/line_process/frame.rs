//! Whether replies belong to the lines that they stand for.
//!
//! Before and after the lines of a chunk the program gets the same two lines of its own kind, each with a number that occurs nowhere else. Their replies
//! must come at their places: known by the number, which translators copy, or, where it does not come through, by being the same before and after and
//! different from each other. A reply too many or too few between them moves the second pair.
use anyhow::{Result, bail};

/// A line with a number, of the kind that the program reads; the first or the second of a pair, to which it should say different things.
pub type SentinelLine = fn(u32, second: bool) -> String;

/// The number alone: for programs that map text to text.
pub fn number_line(number: u32, _second: bool) -> String {
    number.to_string()
}

/// What the replies to sentinels show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every reply stands where it belongs.
    Matched,
    /// The program says the same to every sentinel, or something else each time: nothing is shown.
    Unknown,
}

/// The sentinels of one chunk.
pub(super) struct Frame {
    numbers: [String; 2],
    lines: [String; 2],
}

/// Lines of a frame on either side.
pub(super) const SIDE: usize = 2;

fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

impl Frame {
    /// A frame for `inputs`, in none of which its numbers occur.
    pub(super) fn around(inputs: &[String], line: SentinelLine) -> Frame {
        let taken: Vec<String> = inputs.iter().map(|i| digits(i)).filter(|d| d.len() >= 7).collect();
        // Of seven digits, ever different; the padding of Apertium is none of them.
        let mut free = (7_717_213u32..).step_by(16).filter(|n| {
            let n = n.to_string();
            !taken.iter().any(|d| d.contains(&n))
        });
        let mut next = || free.next().unwrap_or(7_717_213);
        let numbers = [next(), next()];
        Frame {
            numbers: numbers.map(|n| n.to_string()),
            lines: [line(numbers[0], false), line(numbers[1], true)],
        }
    }

    /// `inputs` with the sentinels around them.
    pub(super) fn with(&self, inputs: &[String]) -> Vec<String> {
        self.lines.iter().chain(inputs).chain(&self.lines).cloned().collect()
    }

    /// Compares the replies to [`Frame::with`]; an error if one of them stands where it does not belong.
    pub(super) fn judge(&self, command: &str, replies: &[String]) -> Result<Verdict> {
        let all = replies.len();
        let places = [[0, all - SIDE], [1, all - SIDE + 1]];
        let mut found = [[false; 2]; 2];
        for (i, reply) in replies.iter().enumerate() {
            let d = digits(reply);
            for (number, (places, found)) in self.numbers.iter().zip(places.iter().zip(&mut found)) {
                if !d.contains(number.as_str()) {
                    continue;
                }
                match places.iter().position(|place| *place == i) {
                    Some(side) => found[side] = true,
                    None => self.shifted(command, replies)?,
                }
            }
        }
        let (head, tail) = (&replies[..SIDE], &replies[all - SIDE..]);
        let sides = |side: usize| found.iter().any(|number| number[side]);
        if sides(0) != sides(1) {
            self.shifted(command, replies)?;
        }
        if sides(0) || (head == tail && head[0] != head[1]) {
            return Ok(Verdict::Matched);
        }
        Ok(Verdict::Unknown)
    }

    fn shifted(&self, command: &str, replies: &[String]) -> Result<()> {
        let banner = match &replies[0] {
            first if digits(first).contains(&self.numbers[0]) => String::new(),
            first => format!("; its first line was {}", quoted(first)),
        };
        bail!(
            "`{command}` gave a line too many or too few, so that replies stand at other lines{banner}; {ADVICE}"
        )
    }
}

/// What every message about lines and replies ends with.
pub(super) const ADVICE: &str = "nothing of this chunk is kept. A program must give one line per line and print everything else on standard error";

/// A line as messages show it.
pub(super) fn quoted(line: &str) -> String {
    let shown: String = line.chars().take(120).collect();
    if shown.len() < line.len() { format!("{shown:?}...") } else { format!("{shown:?}") }
}
