//! Progress of anything longer than a second: a bar with rate and ETA on a terminal, plain lines otherwise.
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::out::{is_shown, note, shown};

/// Not on a terminal, a line at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One bar. Nothing is shown for work that ends within a second.
pub struct Progress {
    label: String,
    total: usize,
    done: usize,
    /// Found finished at the start: not part of the rate.
    skipped: usize,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar over `total` units.
    pub fn new(label: &str, total: usize) -> Progress {
        let now = Instant::now();
        let label = shown(label).into_owned();
        Progress { label, total, done: 0, skipped: 0, started: now, last_line: now, bar: None }
    }

    /// `n` units were found done.
    pub fn skip(&mut self, n: usize) {
        self.skipped += n;
        self.advance(n);
    }

    /// `n` more units are done.
    pub fn advance(&mut self, n: usize) {
        self.done += n;
        if self.started.elapsed() < Duration::from_secs(1) {
            return;
        }
        if is_shown() && std::io::stderr().is_terminal() {
            self.draw();
        } else if self.last_line.elapsed() > LINE_EVERY {
            self.last_line = Instant::now();
            note!("{}", self.line());
        }
    }

    /// The bar is removed; the caller prints what came of it.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Units a second since the start.
    pub fn rate(&self) -> f64 {
        (self.done - self.skipped.min(self.done)) as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn line(&self) -> String {
        let pace = self.pace().map_or(String::new(), |pace| format!(", {pace}"));
        format!("{}: {}/{}{pace}", self.label, self.done, self.total)
    }

    /// Rate and time that is left, once something was done.
    fn pace(&self) -> Option<String> {
        let (rate, left) = (self.rate(), self.total.saturating_sub(self.done) as f64);
        (rate > 0.0).then(|| format!("{rate:.1}/s, {} left", duration(left / rate)))
    }

    fn draw(&mut self) {
        let pace = self.pace();
        let bar = self.bar.get_or_insert_with(|| {
            let bar =
                ProgressBar::with_draw_target(Some(self.total as u64), ProgressDrawTarget::stderr_with_hz(5));
            let plain = std::env::var_os("NO_COLOR").is_some();
            let bar_key = if plain { "{bar:30}" } else { "{bar:30.cyan/blue}" };
            let style =
                ProgressStyle::with_template(&format!("{{prefix:14}} {bar_key} {{pos}}/{{len}} {{msg}}"));
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(self.label.clone())
        });
        bar.set_position(self.done as u64);
        bar.set_message(pace.unwrap_or_default());
    }
}

/// `42s`, `3m10s`, `2h05m`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e8) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// `about 3 to 6 min`, `about 20 s to 2 min`: a range of seconds, widened to whole numbers.
pub fn span([low, high]: [f64; 2]) -> String {
    let unit = |x: f64| match x {
        x if x < 100.0 => (1.0, "s"),
        x if x < 6000.0 => (60.0, "min"),
        _ => (3600.0, "h"),
    };
    let ((small, low_unit), (large, high_unit)) = (unit(low), unit(high));
    let (least, most) = ((low / small).floor(), (high / large).ceil());
    match (low_unit == high_unit, least < 1.0) {
        _ if high < 1.0 => "under 1 s".into(),
        (_, true) => format!("up to {most:.0} {high_unit}"),
        (true, _) => format!("about {least:.0} to {most:.0} {high_unit}"),
        (false, _) => format!("about {least:.0} {low_unit} to {most:.0} {high_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_left_until_something_was_done() {
        let mut progress = Progress::new("x", 5);
        progress.skip(2);
        assert_eq!(progress.line(), "x: 2/5");
        progress.advance(1);
        assert!(progress.line().starts_with("x: 3/5, ") && progress.line().ends_with(" left"));
    }

    #[test]
    fn ranges_read_as_people_say_them() {
        let all = [[0.1, 0.9], [0.2, 4.1], [2.5, 61.0], [20.0, 150.0], [100.0, 340.0]].map(span);
        let said = ["under 1 s", "up to 5 s", "about 2 to 61 s", "about 20 s to 3 min", "about 1 to 6 min"];
        assert_eq!(all, said);
    }
}
