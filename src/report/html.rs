//! One self-contained HTML file: no script, nothing loaded from elsewhere, the same bytes for the same content.
use super::{escape::escape, table::Table};

/// A report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// Under it.
    pub subtitle: String,
    /// Names and values under that: when, where and how it was made.
    pub facts: Vec<(String, String)>,
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
  figure svg [fill='#0072b2'] { fill: #4ea3e0 } figure svg [stroke='#0072b2'] { stroke: #4ea3e0 }
  figure svg [fill='#d55e00'] { fill: #f08a3c } figure svg [stroke='#d55e00'] { stroke: #f08a3c }
  figure svg [fill='#555555'] { fill: #a9b4c2 } figure svg [stroke='#555555'] { stroke: #a9b4c2 }
  figure svg [fill='#009e73'] { fill: #2fc79b } figure svg [stroke='#009e73'] { stroke: #2fc79b }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif }
main { max-width: 75rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
.subtitle { color: var(--soft); margin: 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: .6rem 0; font-size: .93rem; background: var(--card); overflow-wrap: break-word }
th, td { text-align: left; padding: .38rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600; vertical-align: bottom }
.number { text-align: right; font-variant-numeric: tabular-nums }
td.number { white-space: nowrap }
.good { color: var(--good); font-weight: 600 }
.bad { color: var(--bad); font-weight: 600 }
p { max-width: 48rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: 1.1rem; margin: 1.1rem 0 }
figure { margin: 0; padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; fill: var(--ink) }
figure svg [fill='#fff'] { fill: var(--card) }
figure svg [fill='#222'] { fill: var(--ink) }
figure svg [fill='#555'] { fill: var(--soft) }
figure svg [stroke='#222'] { stroke: var(--ink) }
figure svg [stroke='#999'], figure svg [stroke='#444'], figure svg [stroke='#bbb'] { stroke: var(--soft) }
figure svg [stroke='#e4e7eb'] { stroke: var(--line) }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .5rem }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto; font-size: .86rem; white-space: pre-wrap }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .25rem 1.2rem; margin: .6rem 0 }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 40rem) {
  main { padding: 1.2rem .8rem 3rem }
  th, td { padding: .3rem .45rem }
  table { font-size: .84rem }
  td.words { min-width: 6.5rem }
}
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
        if !self.facts.is_empty() {
            out += &Block::Rows(self.facts.clone()).to_html();
        }
        for section in &self.sections {
            out += &format!("<h2>{}</h2>\n", escape(&section.heading));
            // Pictures that follow each other stand side by side where there is room.
            for run in section.blocks.chunk_by(|a, b| a.is_picture() && b.is_picture()) {
                let html: String = run.iter().map(Block::to_html).collect();
                out += &if run[0].is_picture() {
                    format!("<div class=\"figures\">{html}</div>\n")
                } else {
                    html
                };
            }
        }
        out + "</main>\n</body>\n</html>\n"
    }
}

impl Block {
    fn is_picture(&self) -> bool {
        matches!(self, Block::Svg { .. })
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        plots::{Scale, Series, bars, histogram, line_plot},
        table::Cell,
    };

    /// Whatever a row, a model's name or a file's name says is shown, and is no part of the page; nothing is loaded from anywhere.
    #[test]
    fn every_text_is_escaped() {
        let bad = || "<script src='https://example.org'>&\"\u{202e}\0".to_string();
        let series = [Series { name: bad(), points: vec![(0.0, 1.0), (1.0, 2.0)] }];
        let mut table = Table::new(&[&bad()]);
        table.push(vec![Cell::Text(bad())]);
        table.push(vec![Cell::Judged { text: bad(), right: true }]);
        let picture = |svg: String| Block::Svg { svg, caption: bad() };
        let blocks = vec![
            Block::Paragraph(bad()),
            Block::Table(table),
            Block::Code(bad()),
            Block::Rows(vec![(bad(), bad())]),
            picture(line_plot(&bad(), &bad(), &bad(), Scale::Log, &series)),
            picture(histogram(&bad(), &bad(), &[(bad(), vec![1.0])], Some((1.0, bad())))),
            picture(bars(&bad(), &bad(), &[bad()], &[(bad(), vec![1.0])], None)),
        ];
        let section = Section { heading: bad(), blocks };
        let report =
            Report { title: bad(), subtitle: bad(), facts: vec![(bad(), bad())], sections: vec![section] };
        let page = report.to_html();
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\0'), "{page}");
        assert!(!page.contains("src=\"") && !page.contains("href=\"") && !page.contains("url("), "{page}");
        assert_eq!(page.matches("<div class=\"figures\">").count(), 1, "side by side");
    }
}
