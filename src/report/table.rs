//! Tables for the terminal, Markdown and HTML.
use std::io::IsTerminal;

use super::{escape::escape, out::shown};

/// Cells under a header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Column names.
    pub header: Vec<String>,
    /// Rows; missing cells are empty.
    pub rows: Vec<Vec<Cell>>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Aligned left.
    Text(String),
    /// A text that is right or wrong, such as a reply.
    Judged {
        /// The text.
        text: String,
        /// Whether it is right.
        right: bool,
    },
    /// A number and its decimals, aligned right; what could not be measured is NaN.
    Number(f64, usize),
    /// A difference with its interval (NaN: there is none); coloured when the interval excludes zero.
    Delta {
        /// The difference.
        value: f64,
        /// Of all three numbers.
        decimals: usize,
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
        /// Whether a rise is good.
        better_is_higher: bool,
    },
    /// Nothing.
    Empty,
}

/// What a difference means.
#[derive(Clone, Copy, PartialEq)]
enum Tone {
    Plain,
    Good,
    Bad,
}

impl Cell {
    fn text(&self) -> String {
        match self {
            // What a model wrote must neither break the table nor steer the terminal.
            Cell::Text(s) => plain(s),
            // A sign beside the colour, for whoever sees no difference between the two.
            Cell::Judged { text, right } => format!("{} {}", sign(*right), plain(text)),
            Cell::Number(x, _) if x.is_nan() => "not checked".into(),
            Cell::Number(x, decimals) => format!("{x:.decimals$}"),
            Cell::Delta { value, .. } if value.is_nan() => "not checked".into(),
            Cell::Delta { value, decimals, low, high, .. } if low.is_nan() || high.is_nan() => {
                format!("{value:+.decimals$}")
            }
            Cell::Delta { value, decimals, low, high, .. } => {
                format!("{value:+.decimals$} ({low:+.decimals$} .. {high:+.decimals$})")
            }
            Cell::Empty => String::new(),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Cell::Number(..) | Cell::Delta { .. })
    }

    fn tone(&self) -> Tone {
        match self {
            Cell::Delta { low, high, better_is_higher, .. } if *low > 0.0 || *high < 0.0 => {
                if (*low > 0.0) == *better_is_higher { Tone::Good } else { Tone::Bad }
            }
            Cell::Judged { right: true, .. } => Tone::Good,
            Cell::Judged { right: false, .. } => Tone::Bad,
            _ => Tone::Plain,
        }
    }
}

fn sign(right: bool) -> &'static str {
    if right { "✓" } else { "✗" }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether standard output takes colours: a terminal, and NO_COLOR is not set.
pub fn use_colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

impl Table {
    /// An empty table.
    pub fn new(header: &[&str]) -> Table {
        Table { header: header.iter().map(|s| s.to_string()).collect(), rows: vec![] }
    }

    /// Adds a row.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    fn is_number(&self, column: usize) -> bool {
        self.rows.iter().filter_map(|r| r.get(column)).any(Cell::is_number)
    }

    /// Columns aligned by display width, with a rule under the header.
    pub fn to_text(&self, colour: bool) -> String {
        let own = |text: &str| shown(text).into_owned();
        let header: Vec<String> = self.header.iter().map(|h| own(h)).collect();
        let cells: Vec<Vec<String>> =
            self.rows.iter().map(|r| r.iter().map(|c| own(&c.text())).collect()).collect();
        let columns = header.len();
        let width = |c: usize| {
            let own = cells.iter().filter_map(|r| r.get(c)).map(|s| display_width(s)).max().unwrap_or(0);
            own.max(display_width(&header[c]))
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        let mut line = |texts: &[String], tones: &[Tone]| {
            let mut text = String::new();
            for (c, width) in widths.iter().enumerate() {
                let cell = texts.get(c).map_or("", String::as_str);
                let pad = " ".repeat(width - display_width(cell).min(*width));
                let shown = match tones.get(c) {
                    Some(Tone::Good) if colour => format!("\x1b[32m{cell}\x1b[0m"),
                    Some(Tone::Bad) if colour => format!("\x1b[31m{cell}\x1b[0m"),
                    _ => cell.to_string(),
                };
                text.push_str(&if self.is_number(c) { pad + &shown } else { shown + &pad });
                text.push_str("  ");
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&header, &[]);
        line(&widths.iter().map(|w| "─".repeat(*w)).collect::<Vec<_>>(), &[]);
        for (texts, row) in cells.iter().zip(&self.rows) {
            line(texts, &row.iter().map(Cell::tone).collect::<Vec<_>>());
        }
        out
    }

    /// An HTML table.
    pub fn to_html(&self) -> String {
        let mut out = String::from("<div class=\"scroll\"><table><thead><tr>");
        for (c, name) in self.header.iter().enumerate() {
            let class = if self.is_number(c) { " class=\"number\"" } else { "" };
            out += &format!("<th{class}>{}</th>", escape(name));
        }
        out += "</tr></thead><tbody>\n";
        for row in &self.rows {
            out += "<tr>";
            for c in 0..self.header.len() {
                let cell = row.get(c).unwrap_or(&Cell::Empty);
                let tone = match cell.tone() {
                    Tone::Plain => "",
                    Tone::Good => " good",
                    Tone::Bad => " bad",
                };
                out += &match cell {
                    // Of a long text the sign alone is coloured.
                    Cell::Judged { text, right } => format!(
                        "<td class=\"words\"><span class=\"{}\">{}</span> {}</td>",
                        tone.trim(),
                        sign(*right),
                        escape(&plain(text))
                    ),
                    Cell::Text(text) if text.chars().count() > 20 => {
                        format!("<td class=\"words\">{}</td>", escape(&cell.text()))
                    }
                    _ if self.is_number(c) => {
                        format!("<td class=\"number{tone}\">{}</td>", escape(&cell.text()))
                    }
                    _ => format!("<td>{}</td>", escape(&cell.text())),
                };
            }
            out += "</tr>\n";
        }
        out + "</tbody></table></div>"
    }
}

/// Columns that a text takes on a terminal: East Asian wide characters two, combining marks none.
fn display_width(text: &str) -> usize {
    let of = |c: char| match c as u32 {
        0x300..=0x36F | 0x200B..=0x200F | 0xE31 | 0xE34..=0xE3A | 0xE47..=0xE4E => 0,
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0x1F300..=0x1F9FF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    };
    text.chars().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut t = Table::new(&["task", "after", "difference"]);
        let delta = |value, low, high, better_is_higher| Cell::Delta {
            value,
            decimals: 1,
            low,
            high,
            better_is_higher,
        };
        t.push(vec![Cell::Text("日本|x".into()), Cell::Number(1.25, 1), delta(2.0, 1.0, 3.0, true)]);
        t.push(vec![Cell::Text("<b>".into()), Cell::Number(100.0, 1), delta(2.0, 1.0, 3.0, false)]);
        t.push(vec![Cell::Text("s".into()), Cell::Empty, delta(0.5, -1.0, 2.0, true)]);
        t.push(vec![Cell::Text("n".into()), Cell::Empty, delta(7.5, f64::NAN, f64::NAN, true)]);
        t
    }

    #[test]
    fn columns_are_aligned_by_display_width() {
        let text = table().to_text(false);
        let widths: Vec<usize> = text.lines().map(display_width).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{text}");
        assert!(!text.contains("\x1b[32m") && table().to_text(true).contains("\x1b[32m+2.0"), "{text}");
        assert!(table().to_text(true).contains("\x1b[31m+2.0"), "a rise of what should fall is bad");
        assert!(
            text.contains(" +7.5\n") && table().to_text(true).contains(" +7.5\n"),
            "no interval, no verdict"
        );
    }

    #[test]
    fn other_formats_escape_what_they_must() {
        let mut table = table();
        table.push(vec![Cell::Judged { text: "<i>".into(), right: false }]);
        let html = table.to_html();
        assert!(
            html.contains("<span class=\"bad\">✗</span> &lt;i&gt;")
                && html.contains("&lt;b&gt;")
                && html.contains("number good")
                && html.contains("number bad"),
            "{html}"
        );
    }
}
