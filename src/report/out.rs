//! Standard output, in one place: a reader that goes away, or a disk that is full, never ends the program with a panic.
//!
//! A command that only prints ([`Mode::PrintOnly`]) ends quietly once nobody reads on, as `sdrrl inspect ... | head -1` expects. A command that
//! works on files goes on and says so once on standard error. Where printing fails for another reason (a full disk), a printing command ends
//! with that error; work goes on, and [`result`] is the error at its end.
use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, ErrorKind, Write},
    sync::Mutex,
};

use anyhow::{Result, anyhow};

/// What a command is when its output cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is no command but another program that uses the crate: nothing is printed, and what would be goes to `tracing` (target `sdrrl`).
    Embedded,
    /// Its files count; the text on the screen is an extra.
    Work,
    /// It has no other result than what it prints.
    PrintOnly,
}

struct State {
    mode: Mode,
    /// Why nothing is printed any more.
    failed: Option<(ErrorKind, String)>,
    /// Standard output is for [`data`] alone.
    reserved: bool,
    /// Inside of [`silently`].
    silent: bool,
}

static STATE: Mutex<State> =
    Mutex::new(State { mode: Mode::Embedded, failed: None, reserved: false, silent: false });

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Says what the command is; before its first line.
pub fn set_mode(mode: Mode) {
    state().mode = mode;
}

/// From here on standard output holds nothing but [`data`], for another program to read: what else is said goes to standard error.
pub fn reserve_for_data() {
    let mut state = state();
    (state.mode, state.reserved) = (Mode::PrintOnly, true);
}

/// Does work that says nothing, since it will be done again and say it then.
pub fn silently<T>(work: impl FnOnce() -> T) -> T {
    state().silent = true;
    let done = work();
    state().silent = false;
    done
}

/// Does work that speaks, inside of [`silently`].
pub fn aloud<T>(work: impl FnOnce() -> T) -> T {
    let silent = std::mem::replace(&mut state().silent, false);
    let done = work();
    state().silent = silent;
    done
}

/// Whether anything is printed.
pub fn is_shown() -> bool {
    state().mode != Mode::Embedded
}

/// Text of files as it may be sent to a terminal: control characters, and those that change the direction of what follows, are written out
/// (`\u{1b}`). Line ends and tabs stay.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Whether a character does something to the terminal, or to the order in which others are shown (Unicode's explicit embeddings, overrides and
/// isolates). The marks that Arabic, Hebrew and Indic texts need are none of them.
pub(super) fn steers(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || turns(c)
}

/// U+202A to U+202E and U+2066 to U+2069.
pub(super) fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Prints `text` to standard output, [`shown`].
pub fn text(text: fmt::Arguments) {
    let mut whole = String::new();
    let _ = whole.write_fmt(text);
    raw(format_args!("{}", shown(&whole)));
}

/// Prints `text` as it is, colours included: what comes from files in it must be [`shown`].
pub fn raw(text: fmt::Arguments) {
    if state().reserved {
        return print_error(text);
    }
    data(text);
}

/// Prints the result of a command that has no other, as it is.
pub fn data(text: fmt::Arguments) {
    let mut state = state();
    if state.mode == Mode::Embedded {
        tracing::info!(target: "sdrrl", "{}", text.to_string().trim_end());
        return;
    }
    if state.failed.is_some() || state.silent {
        return;
    }
    let mut out = io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else { return };
    let closed = error.kind() == ErrorKind::BrokenPipe;
    if state.mode == Mode::PrintOnly {
        if !closed {
            print_error(format_args!("error: write standard output: {error}\n"));
        }
        // Nothing of this command is left to do, and nobody to tell.
        std::process::exit(if closed { 0 } else { 1 });
    }
    let why = if closed { "is closed".to_string() } else { format!("cannot be written ({error})") };
    print_error(format_args!("standard output {why}: the work goes on, the results are in its files\n"));
    state.failed = Some((error.kind(), error.to_string()));
}

/// Prints `text` to standard error, [`shown`]; that nobody reads it is no error.
pub fn warn(text: fmt::Arguments) {
    let mut whole = String::new();
    let _ = whole.write_fmt(text);
    raw_warn(format_args!("{}", shown(&whole)));
}

/// Prints `text` as it is to standard error; see [`raw`].
pub fn raw_warn(text: fmt::Arguments) {
    if !is_shown() {
        tracing::warn!(target: "sdrrl", "{}", text.to_string().trim_end());
        return;
    }
    if !state().silent {
        print_error(text);
    }
}

fn print_error(text: fmt::Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// The error of a printing that failed although somebody wanted to read it.
pub fn result() -> Result<()> {
    match &state().failed {
        Some((kind, why)) if *kind != ErrorKind::BrokenPipe => {
            Err(anyhow!("write standard output: {why}; the work is done, its results are in its files"))
        }
        _ => Ok(()),
    }
}

/// `println!` that never panics.
macro_rules! say {
    () => { $crate::report::out::text(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::report::out::text(format_args!("{}\n", format_args!($($arg)*))) };
}

/// `print!` that never panics.
macro_rules! say_text {
    ($($arg:tt)*) => { $crate::report::out::text(format_args!($($arg)*)) };
}

/// `eprintln!` that never panics.
macro_rules! note {
    () => { $crate::report::out::warn(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::report::out::warn(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use {note, say, say_text};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown() {
        for (text, wanted) in [
            ("plain ñ 日本 עברית\u{200f} हि\u{200d}\n\ttab", "plain ñ 日本 עברית\u{200f} हि\u{200d}\n\ttab"),
            ("\u{1b}[31mred\u{1b}[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("a\rb\u{8}c\u{7f}d\u{9b}e\0", "a\\u{d}b\\u{8}c\\u{7f}d\\u{9b}e\\u{0}"),
            ("\u{202e}gpj.exe\u{2066}\u{2069}", "\\u{202e}gpj.exe\\u{2066}\\u{2069}"),
        ] {
            assert_eq!(shown(text), wanted);
        }
    }
}
