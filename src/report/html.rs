//! One self-contained HTML file: no script, nothing loaded from elsewhere, the same bytes for the same content.
use super::{escape::escape, table::Table};

/// A report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// Under it.
    pub subtitle: String,
    /// In order.
    pub sections: Vec<Section>,
}

/// A headed part.
#[derive(Clone, Debug)]
pub struct Section {
    /// Heading.
    pub heading: String,
    /// In order.
    pub blocks: Vec<Block>,
}

/// A piece of content.
#[derive(Clone, Debug)]
pub enum Block {
    /// Text.
    Paragraph(String),
    /// A table.
    Table(Table),
    /// A picture.
    Svg {
        /// From `report::plots`.
        svg: String,
        /// Below it.
        caption: String,
    },
    /// Preformatted text.
    Code(String),
    /// Names and values.
    Rows(Vec<(String, String)>),
}

const STYLE: &str = "
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --back: #fbfbfc; --card: #ffffff; --good: #14763c; --bad: #b3261e; --accent: #2f6fb5 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b3; --line: #313945; --back: #14181e; --card: #1b2129; --good: #5fd08c; --bad: #ff8f86; --accent: #7db4f0 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
.subtitle { color: var(--soft); margin: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0; font-size: .93rem; background: var(--card) }
th, td { text-align: left; padding: .38rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600; white-space: nowrap }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.good { color: var(--good); font-weight: 600 }
.bad { color: var(--bad); font-weight: 600 }
figure { margin: 1.1rem 0; padding: .9rem; background: #fff; border: 1px solid var(--line); border-radius: 8px; overflow-x: auto }
figure svg { display: block; max-width: 100%; height: auto }
figcaption { color: #5b6675; font-size: .88rem; margin-top: .5rem }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .86rem; white-space: pre-wrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .6rem 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
";

impl Report {
    /// The whole file.
    pub fn to_html(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>{0}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n<p class=\"subtitle\">{1}</p>\n",
            escape(&self.title),
            escape(&self.subtitle)
        );
        for section in &self.sections {
            out += &format!("<h2>{}</h2>\n", escape(&section.heading));
            section.blocks.iter().for_each(|b| out += &b.to_html());
        }
        out + "</main>\n</body>\n</html>\n"
    }
}

impl Block {
    fn to_html(&self) -> String {
        match self {
            Block::Paragraph(text) => format!("<p>{}</p>\n", escape(text)),
            Block::Table(table) => table.to_html() + "\n",
            Block::Svg { svg, caption } => {
                format!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", escape(caption))
            }
            Block::Code(text) => format!("<pre>{}</pre>\n", escape(text)),
            Block::Rows(rows) => {
                let row = |(k, v): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(k), escape(v));
                format!("<dl>{}</dl>\n", rows.iter().map(row).collect::<String>())
            }
        }
    }
}
