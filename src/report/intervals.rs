//! Plots of values with intervals: a dot and its whisker a row, curves with whiskers, points of a plane. Any data gives a picture.
use super::{
    axes::{Axes, drawn, number, range, ticks},
    escape::escape,
    plots::COLOURS,
};

/// A row of a [`forest`].
#[derive(Clone, Debug)]
pub struct Estimate {
    /// At its left.
    pub name: String,
    /// The dot.
    pub value: f64,
    /// The whisker's ends.
    pub interval: (f64, f64),
}

/// A curve; each point is x, y and the ends of its whisker (equal ends: none is drawn).
#[derive(Clone, Debug)]
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// x, y, (low, high).
    pub points: Vec<(f64, f64, (f64, f64))>,
}

/// A labelled level that everything is read against.
#[derive(Clone, Debug)]
pub struct Level {
    /// Where.
    pub at: f64,
    /// Its label.
    pub name: String,
}

const WIDTH: f64 = 760.0;
const ROW: f64 = 22.0;
const DASHES: [&str; 3] = ["", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\""];

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" fill=\"#222\"><title>{0}</title><rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"600\">{0}</text>",
        escape(title)
    )
}

fn text(x: f64, y: f64, anchor: &str, size: f64, colour: &str, words: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\">{}</text>",
        escape(words)
    )
}

fn clipped(name: &str, most: usize) -> String {
    if name.chars().count() <= most {
        return name.into();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// One row an estimate, on a common axis, with dashed levels.
pub fn forest(title: &str, x_label: &str, rows: &[Estimate], levels: &[Level]) -> String {
    const LEFT: f64 = 250.0;
    const RIGHT: f64 = 62.0;
    let top = 40.0 + 17.0 * levels.len() as f64;
    let bottom = top + ROW * rows.len().max(1) as f64 + 6.0;
    let values = rows.iter().flat_map(|r| [r.value, r.interval.0, r.interval.1]);
    let (low, high) = range(values.chain(levels.iter().map(|l| l.at)).filter(|x| drawn(*x)));
    let room = (high - low) * 0.04;
    let axes = Axes {
        x: (low - room, high + room),
        y: (0.0, 1.0),
        left: LEFT,
        right: WIDTH - RIGHT,
        top,
        bottom,
        log: false,
    };
    let mut out = open(title, bottom + 46.0);
    for t in ticks(axes.x) {
        let x = axes.px(t);
        out +=
            &format!("<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#e4e7eb\"/>");
        out += &text(x, bottom + 16.0, "middle", 11.0, "#555", &number(t));
    }
    out += &text((LEFT + WIDTH - RIGHT) / 2.0, bottom + 36.0, "middle", 12.0, "#222", x_label);
    for (i, level) in levels.iter().enumerate().filter(|(_, l)| drawn(l.at)) {
        let (x, y) = (axes.px(level.at), 40.0 + 17.0 * i as f64);
        let colour = COLOURS[(i + 1) % COLOURS.len()];
        out += &format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom}\" stroke=\"{colour}\" stroke-width=\"1.3\" stroke-dasharray=\"5 4\"/>",
            y + 2.0
        );
        let right = x > (LEFT + WIDTH - RIGHT) / 2.0;
        let (anchor, dx) = if right { ("end", -5.0) } else { ("start", 5.0) };
        out += &text(x + dx, y + 8.0, anchor, 11.0, colour, &format!("{}: {}", level.name, number(level.at)));
    }
    for (i, row) in rows.iter().enumerate() {
        let y = top + ROW * (i as f64 + 0.5) + 3.0;
        out += &text(LEFT - 10.0, y + 4.0, "end", 12.0, "#222", &clipped(&row.name, 38));
        if !drawn(row.value) {
            continue;
        }
        let (a, b) = row.interval;
        if drawn(a) && drawn(b) && a != b {
            let (a, b) = (axes.px(a), axes.px(b));
            out += &format!(
                "<path d=\"M{a:.1},{y:.1}H{b:.1}M{a:.1},{0:.1}v8M{b:.1},{0:.1}v8\" stroke=\"#444\" stroke-width=\"1.2\" fill=\"none\"/>",
                y - 4.0
            );
        }
        let x = axes.px(row.value);
        out += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{}\"/>", COLOURS[0]);
        out += &text(WIDTH - RIGHT + 8.0, y + 4.0, "start", 11.0, "#222", &number(row.value));
    }
    out + "</svg>"
}

/// Curves with whiskers, the legend at the right, dashed levels.
pub fn curves(title: &str, x_label: &str, y_label: &str, all: &[Curve], levels: &[Level]) -> String {
    let height = (110.0 + 18.0 * (all.len() + levels.len()) as f64).max(340.0);
    let points = || all.iter().flat_map(|c| c.points.iter().filter(sound));
    let x = range(points().map(|p| p.0));
    let ys = points().flat_map(|p| [p.1, p.2.0, p.2.1]).chain(levels.iter().map(|l| l.at));
    let y = range(ys.filter(|v| drawn(*v)));
    let (dx, dy) = ((x.1 - x.0) * 0.03, (y.1 - y.0) * 0.06);
    let axes = Axes {
        x: (x.0 - dx, x.1 + dx),
        y: (if y.0 >= 0.0 { (y.0 - dy).max(0.0) } else { y.0 - dy }, y.1 + dy),
        left: 66.0,
        right: WIDTH - 222.0,
        top: 42.0,
        bottom: height - 54.0,
        log: false,
    };
    let mut out = open(title, height);
    out += &grid(&axes, x_label, y_label);
    let mut legend_y = axes.top + 8.0;
    let mut legend = |stroke: String, name: &str| {
        let x = WIDTH - 208.0;
        let entry = format!(
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{legend_y:.1}\" y2=\"{legend_y:.1}\" {stroke}/>{}",
            x + 24.0,
            text(x + 30.0, legend_y + 4.0, "start", 11.5, "#222", &clipped(name, 29))
        );
        legend_y += 18.0;
        entry
    };
    for (i, level) in levels.iter().enumerate().filter(|(_, l)| drawn(l.at)) {
        let stroke =
            format!("stroke=\"{}\" stroke-width=\"1.3\" stroke-dasharray=\"5 4\"", ["#222", "#888"][i % 2]);
        let y = axes.py(level.at);
        out += &format!(
            "<line x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" {stroke}/>",
            axes.left, axes.right
        );
        out += &legend(stroke, &level.name);
    }
    for (i, curve) in all.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let stroke =
            format!("stroke=\"{colour}\" stroke-width=\"1.8\"{}", DASHES[i / COLOURS.len() % DASHES.len()]);
        out += &polyline(&axes, curve, &stroke, colour);
        out += &legend(stroke, &curve.name);
    }
    out + "</svg>"
}

fn sound(p: &&(f64, f64, (f64, f64))) -> bool {
    drawn(p.0) && drawn(p.1)
}

/// The line of a curve; a few points are shown as such, with their whiskers.
fn polyline(axes: &Axes, curve: &Curve, stroke: &str, colour: &str) -> String {
    let own: Vec<_> = curve.points.iter().filter(sound).collect();
    let path: Vec<String> = own.iter().map(|p| format!("{:.1},{:.1}", axes.px(p.0), axes.py(p.1))).collect();
    let mut out =
        format!("<polyline fill=\"none\" {stroke} stroke-linejoin=\"round\" points=\"{}\"/>", path.join(" "));
    for p in own.iter().filter(|_| own.len() <= 24) {
        let (x, y, (a, b)) = (axes.px(p.0), axes.py(p.1), p.2);
        out += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.8\" fill=\"{colour}\"/>");
        if drawn(a) && drawn(b) && a != b {
            let (a, b) = (axes.py(a), axes.py(b));
            out += &format!(
                "<path d=\"M{x:.1},{a:.1}V{b:.1}M{0:.1},{a:.1}h7M{0:.1},{b:.1}h7\" stroke=\"{colour}\" fill=\"none\"/>",
                x - 3.5
            );
        }
    }
    out
}

fn grid(axes: &Axes, x_label: &str, y_label: &str) -> String {
    let mut out = String::new();
    for t in ticks(axes.y) {
        let y = axes.py(t);
        out += &format!(
            "<line x1=\"{}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e4e7eb\"/>",
            axes.left, axes.right
        );
        out += &text(axes.left - 8.0, y + 4.0, "end", 11.0, "#555", &number(t));
    }
    for t in ticks(axes.x) {
        let x = axes.px(t);
        out += &format!(
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{0}\" y2=\"{1:.1}\" stroke=\"#999\"/>",
            axes.bottom,
            axes.bottom + 5.0
        );
        out += &text(x, axes.bottom + 18.0, "middle", 11.0, "#555", &number(t));
    }
    let middle = (axes.top + axes.bottom) / 2.0;
    out += &format!(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{2}\" y2=\"{2}\" stroke=\"#999\"/>\
         <text x=\"18\" y=\"{middle:.1}\" font-size=\"12\" text-anchor=\"middle\" transform=\"rotate(-90 18 {middle:.1})\">{3}</text>",
        axes.left,
        axes.right,
        axes.bottom,
        escape(y_label)
    );
    out + &text((axes.left + axes.right) / 2.0, axes.bottom + 38.0, "middle", 12.0, "#222", x_label)
}

/// Points of a plane in groups (x and y have no unit); `links` joins points of the first two groups by index.
pub fn scatter(title: &str, x_label: &str, y_label: &str, groups: &[Curve], links: bool) -> String {
    let all = || groups.iter().flat_map(|g| &g.points).filter(|p| drawn(p.0) && drawn(p.1));
    let (x, y) = (range(all().map(|p| p.0)), range(all().map(|p| p.1)));
    let (dx, dy) = ((x.1 - x.0) * 0.04, (y.1 - y.0) * 0.04);
    let axes = Axes {
        x: (x.0 - dx, x.1 + dx),
        y: (y.0 - dy, y.1 + dy),
        left: 66.0,
        right: WIDTH - 222.0,
        top: 42.0,
        bottom: 426.0,
        log: false,
    };
    let mut out = open(title, 480.0);
    out += &grid(&axes, x_label, y_label);
    if let (true, [a, b, ..]) = (links, groups) {
        for (p, q) in
            a.points.iter().zip(&b.points).filter(|(p, q)| [p.0, p.1, q.0, q.1].into_iter().all(drawn))
        {
            out += &format!(
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#bbb\" stroke-width=\"0.7\"/>",
                axes.px(p.0),
                axes.py(p.1),
                axes.px(q.0),
                axes.py(q.1)
            );
        }
    }
    for (i, group) in groups.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        for p in group.points.iter().filter(|p| drawn(p.0) && drawn(p.1)) {
            out += &format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\" fill-opacity=\"0.75\"/>",
                axes.px(p.0),
                axes.py(p.1)
            );
        }
        let y = axes.top + 8.0 + 18.0 * i as f64;
        out += &format!("<circle cx=\"{}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>", WIDTH - 200.0);
        out += &text(WIDTH - 190.0, y + 4.0, "start", 11.5, "#222", &clipped(&group.name, 29));
    }
    out + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"));
        for bad in ["NaN", "inf", "{"] {
            assert!(!svg.contains(bad), "{bad} in {svg}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    proptest! {
        #[test]
        fn any_numbers_give_a_picture(values in proptest::collection::vec(any::<f64>(), 0..20)) {
            let triples = || values.chunks(3).filter(|c| c.len() == 3);
            let rows: Vec<Estimate> =
                triples().map(|c| Estimate { name: "a < b".into(), value: c[0], interval: (c[1], c[2]) }).collect();
            let levels = vec![Level { at: values.first().copied().unwrap_or(1.0), name: "x & y".into() }];
            check(&forest("t", "x", &rows, &levels));
            let points: Vec<_> = triples().map(|c| (c[0], c[1], (c[1], c[2]))).collect();
            let groups = [Curve { name: "c".into(), points: points.clone() }, Curve { name: "d".into(), points }];
            check(&curves("t", "x", "y", &groups, &levels));
            check(&scatter("t", "x", "y", &groups, true));
        }
    }
}
