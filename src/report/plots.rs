//! Plots as SVG text, written by hand: lines, histograms, bars. Any data gives a picture; what is not finite is left out.
pub use super::axes::Scale;
use super::{
    axes::{Axes, drawn, log_ticks, number, range, ticks},
    escape::escape,
};

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// x, y.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 54.0;
/// Okabe and Ito's colours, told apart by colour-blind readers too.
pub(super) const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555"];

/// The frame that the plots of this file share.
fn framed(x: (f64, f64), y: (f64, f64)) -> Axes {
    Axes { x, y, left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM, log: false }
}

/// Curves over a common axis, such as losses. On a logarithmic scale what is not above zero is left out.
pub fn line_plot(title: &str, x_label: &str, y_label: &str, scale: Scale, series: &[Series]) -> String {
    let log = scale == Scale::Log;
    let sound = |s: &Series| -> Vec<(f64, f64)> {
        s.points.iter().copied().filter(|p| drawn(p.0) && drawn(p.1) && (!log || p.1 > 0.0)).collect()
    };
    let lines: Vec<Vec<(f64, f64)>> = series.iter().map(sound).collect();
    let all: Vec<(f64, f64)> = lines.concat();
    let (low, high) = range(all.iter().map(|p| if log { p.1.log10() } else { p.1 }));
    let margin = 0.04 * (high - low);
    let y = match scale {
        Scale::Zero => (low.min(0.0), if high > 0.0 { high } else { 1.0 }),
        Scale::Range | Scale::Log => (low - margin, high + margin),
    };
    let axes = Axes { log, ..framed(range(all.iter().map(|p| p.0)), y) };
    let label = if log { format!("{y_label} (log scale)") } else { y_label.to_string() };
    let mut out = begin(title, x_label, &label, &axes, true);
    for (i, points) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<String> =
            thin(points).iter().map(|p| format!("{:.1},{:.1}", axes.px(p.0), axes.py(p.1))).collect();
        out += &format!(
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" stroke-linejoin=\"round\" points=\"{}\"/>",
            path.join(" ")
        );
        // A few points are shown as such.
        for p in points.iter().filter(|_| points.len() <= 24) {
            out += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.8\" fill=\"{colour}\"/>",
                axes.px(p.0),
                axes.py(p.1)
            );
        }
    }
    legend(&mut out, series.iter().map(|s| s.name.as_str()));
    out + "</svg>"
}

/// Shares of values in 40 bins, one outline a group; `mark` is a dashed line with its label (a threshold).
pub fn histogram(
    title: &str,
    x_label: &str,
    groups: &[(String, Vec<f64>)],
    mark: Option<(f64, String)>,
) -> String {
    const BINS: usize = 40;
    let sound: Vec<Vec<f64>> =
        groups.iter().map(|(_, v)| v.iter().copied().filter(|x| drawn(*x)).collect()).collect();
    let at = mark.as_ref().map(|m| m.0).filter(|x| drawn(*x));
    let x = range(sound.iter().flatten().copied().chain(at));
    let share = |values: &[f64]| -> Vec<f64> {
        let mut bins = vec![0.0; BINS];
        for v in values {
            let i = (((v - x.0) / (x.1 - x.0)) * BINS as f64) as usize;
            bins[i.min(BINS - 1)] += 100.0 / values.len() as f64;
        }
        bins
    };
    let all: Vec<Vec<f64>> = sound.iter().map(|v| share(v)).collect();
    let top = all.iter().flatten().copied().fold(0.0, f64::max);
    let axes = framed(x, (0.0, if top > 0.0 { top * 1.08 } else { 1.0 }));
    let mut out = begin(title, x_label, "share of translations (%)", &axes, true);
    for (i, bins) in all.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let edge = |b: usize| x.0 + (x.1 - x.0) * b as f64 / BINS as f64;
        let mut path = format!("M{:.1},{:.1}", axes.px(x.0), axes.py(0.0));
        for (b, y) in bins.iter().enumerate() {
            path += &format!("V{:.1}H{:.1}", axes.py(*y), axes.px(edge(b + 1)));
        }
        path += &format!("V{:.1}Z", axes.py(0.0));
        out += &format!(
            "<path d=\"{path}\" fill=\"{colour}\" fill-opacity=\"0.22\" stroke=\"{colour}\" stroke-width=\"1.4\"/>"
        );
    }
    if let Some((at, label)) = at.zip(mark.map(|m| m.1)) {
        let px = axes.px(at);
        let (anchor, dx) = if px > WIDTH * 0.7 { ("end", -6.0) } else { ("start", 6.0) };
        out += &format!(
            "<line x1=\"{px:.1}\" x2=\"{px:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"#222\" stroke-width=\"1.4\" stroke-dasharray=\"5 4\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"{anchor}\">{}</text>",
            HEIGHT - BOTTOM,
            px + dx,
            TOP + 12.0,
            escape(&label)
        );
    }
    legend(&mut out, groups.iter().map(|g| g.0.as_str()));
    out + "</svg>"
}

/// Bars side by side in each group, their values above them, whiskers for intervals (`errors[series][group]` = low, high).
pub fn bars(
    title: &str,
    y_label: &str,
    groups: &[String],
    series: &[(String, Vec<f64>)],
    errors: Option<&[Vec<(f64, f64)>]>,
) -> String {
    let ends = |i: usize, g: usize| errors.and_then(|e| e.get(i)?.get(g)).copied();
    let values = series.iter().flat_map(|s| s.1.iter().copied());
    let highs = errors.into_iter().flatten().flatten().flat_map(|e| [e.0, e.1]);
    let all: Vec<f64> = values.chain(highs).chain([0.0]).filter(|x| drawn(*x)).collect();
    let (low, high) = all.iter().fold((0.0f64, 0.0f64), |(a, b), x| (a.min(*x), b.max(*x)));
    let high = if high > low { high } else { low + 1.0 };
    let axes = framed((0.0, groups.len().max(1) as f64), (low * 1.1, high + 0.12 * (high - low)));
    let mut out = begin(title, "", y_label, &axes, false);
    let slot = axes.px(1.0) - axes.px(0.0);
    let width = (slot * 0.76 / series.len().max(1) as f64).min(64.0);
    for (g, name) in groups.iter().enumerate() {
        let middle = axes.px(g as f64 + 0.5);
        let from = middle - width * series.len() as f64 / 2.0;
        for (i, (_, values)) in series.iter().enumerate() {
            let Some(value) = values.get(g).copied().filter(|v| drawn(*v)) else { continue };
            let ends = ends(i, g).filter(|e| drawn(e.0) && drawn(e.1));
            out += &bar(&axes, (from + width * i as f64, width), value, ends, COLOURS[i % COLOURS.len()]);
        }
        let room = (slot / 6.4) as usize;
        let short: String = if name.chars().count() > room {
            name.chars().take(room.saturating_sub(1)).chain(['…']).collect()
        } else {
            name.clone()
        };
        out += &format!(
            "<text x=\"{middle:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM + 18.0,
            escape(&short)
        );
    }
    legend(&mut out, series.iter().map(|s| s.0.as_str()));
    out + "</svg>"
}

/// One bar at `x` of a `width`, its value above it and its whisker.
fn bar(axes: &Axes, (x, width): (f64, f64), value: f64, ends: Option<(f64, f64)>, colour: &str) -> String {
    let (y, zero) = (axes.py(value.max(0.0)), axes.py(0.0));
    let height = (axes.py(value.min(0.0)) - y).max(0.5);
    let mut out = format!(
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\" rx=\"1.5\"/>",
        x + 1.0,
        y.min(zero),
        width - 2.0
    );
    let mut label_y = y - 5.0;
    if let Some((a, b)) = ends {
        let (centre, a, b) = (x + width / 2.0, axes.py(a), axes.py(b));
        label_y = label_y.min(b - 5.0);
        out += &format!(
            "<path d=\"M{centre:.1},{a:.1}V{b:.1}M{0:.1},{a:.1}h8M{0:.1},{b:.1}h8\" stroke=\"#222\" fill=\"none\"/>",
            centre - 4.0
        );
    }
    let size = (width * 0.34).clamp(8.0, 12.0);
    out + &format!(
        "<text x=\"{:.1}\" y=\"{label_y:.1}\" font-size=\"{size:.1}\" text-anchor=\"middle\">{}</text>",
        x + width / 2.0,
        number(value)
    )
}

/// At most about 600 points: of each stretch of a longer line its lowest and its highest, so that no peak is lost.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 600 {
        return points.to_vec();
    }
    let ends = |part: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let by = |i: &usize, j: &usize| part[*i].1.total_cmp(&part[*j].1);
        let (low, high) = ((0..part.len()).min_by(by), (0..part.len()).max_by(by));
        let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
        vec![part[low.min(high)], part[low.max(high)]]
    };
    points.chunks(points.len().div_ceil(300)).flat_map(ends).collect()
}

fn begin(title: &str, x_label: &str, y_label: &str, axes: &Axes, x_ticks: bool) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" fill=\"#222\"><title>{0}</title><rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"600\">{0}</text>",
        escape(title)
    );
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for t in if axes.log { log_ticks(axes.y) } else { ticks(axes.y) } {
        let y = axes.py(t);
        out += &format!(
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e4e7eb\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"#555\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            number(t)
        );
    }
    for t in ticks(axes.x).into_iter().filter(|_| x_ticks) {
        let x = axes.px(t);
        out += &format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{:.1}\" stroke=\"#999\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"11\" fill=\"#555\" text-anchor=\"middle\">{}</text>",
            bottom + 5.0,
            bottom + 18.0,
            number(t)
        );
    }
    let middle = (TOP + bottom) / 2.0;
    out + &format!(
        "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\" stroke=\"#999\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"middle\">{}</text>\
         <text x=\"16\" y=\"{middle:.1}\" font-size=\"12\" text-anchor=\"middle\" transform=\"rotate(-90 16 {middle:.1})\">{}</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 12.0,
        escape(x_label),
        escape(y_label)
    )
}

/// Coloured squares with names, in one row under the title.
fn legend<'a>(out: &mut String, names: impl Iterator<Item = &'a str>) {
    let mut x = LEFT;
    for (i, name) in names.enumerate() {
        *out += &format!(
            "<rect x=\"{x:.1}\" y=\"34\" width=\"11\" height=\"11\" rx=\"2\" fill=\"{}\"/><text x=\"{:.1}\" y=\"44\" font-size=\"12\">{}</text>",
            COLOURS[i % COLOURS.len()],
            x + 16.0,
            escape(name)
        );
        x += 34.0 + 6.8 * name.chars().count() as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every tag is closed, and no number went wrong.
    fn check(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"));
        for bad in ["NaN", "inf", "{"] {
            assert!(!svg.contains(bad), "{bad} in {svg}");
        }
        let opened = svg.matches("<text").count();
        assert_eq!(opened, svg.matches("</text>").count());
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn odd_data_gives_a_picture() {
        for values in
            [vec![], vec![1.0], vec![2.0; 5], vec![f64::NAN, f64::INFINITY, 1.0], vec![0.0, 1e308, -1e308]]
        {
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(i, y)| (i as f64, *y)).collect();
            for scale in [Scale::Zero, Scale::Range, Scale::Log] {
                let series = [Series { name: "s".into(), points: Vec::clone(&points) }];
                check(&line_plot("a < b", "x & y", "\"z\"", scale, &series));
            }
            check(&histogram("t", "x", &[("g".into(), values.clone())], Some((0.8, "tau".into()))));
            check(&bars(
                "t",
                "y",
                &["g".into(), "h".into()],
                &[("s".into(), values)],
                Some(&[vec![(0.0, 2.0)]]),
            ));
        }
    }

    proptest! {
        #[test]
        fn any_numbers_give_a_picture(values in proptest::collection::vec(any::<f64>(), 0..20)) {
            let points = values.chunks(2).filter(|c| c.len() == 2).map(|c| (c[0], c[1])).collect();
            let series = [Series { name: "s".into(), points }];
            for scale in [Scale::Zero, Scale::Range, Scale::Log] {
                check(&line_plot("t", "x", "y", scale, &series));
            }
            check(&histogram("t", "x", &[("g".into(), values.clone())], Some((values.first().copied().unwrap_or(0.0), "m".into()))));
            check(&bars("t", "y", &["g".into()], &[("s".into(), values)], None));
        }
    }
}
