//! Panels of a dashboard drawn as SVG, from what their queries found: for people who have no Grafana at hand.

use std::fmt::Write as _;

use serde_json::Value;

use super::prometheus::Found;

/// A panel, and what it is to show under which name.
pub(crate) struct Panel<'a> {
    /// As the dashboard has it.
    pub(crate) panel: &'a Value,
    /// In cells: x, y, width, height.
    pub(crate) place: [u64; 4],
    pub(crate) series: Vec<(String, Found)>,
}

const CELL: [f64; 2] = [50.0, 26.0];
const GAP: f64 = 3.0;
const COLOURS: &[&str] = &[
    "#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#fade2a",
    "#ca95e5", "#96d98d",
];

/// The whole dashboard.
pub(crate) fn draw(panels: &[Panel<'_>]) -> String {
    let bottom = panels.iter().map(|panel| panel.place[1] + panel.place[3]).max().unwrap_or(0);
    let (width, height) = (24.0 * CELL[0], bottom as f64 * CELL[1]);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\" fill=\"#ccccdc\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#111217\"/>\n"
    );
    for panel in panels {
        let [x, y, w, h] = panel.place.map(|cells| cells as f64);
        let frame = Frame {
            x: x * CELL[0] + GAP,
            y: y * CELL[1] + GAP,
            w: w * CELL[0] - 2.0 * GAP,
            h: h * CELL[1] - 2.0 * GAP,
        };
        panel.draw(&mut svg, &frame);
    }
    svg + "</svg>\n"
}

struct Frame {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

fn put(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, "<text x=\"{x:.0}\" y=\"{y:.0}\"{attributes}>{text}</text>").unwrap();
}

fn fill(svg: &mut String, frame: &Frame, colour: &str) {
    let Frame { x, y, w, h } = frame;
    writeln!(
        svg,
        "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{w:.1}\" height=\"{h:.0}\" fill=\"{colour}\"/>"
    )
    .unwrap();
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, frame: &Frame) {
        let title = self.panel["title"].as_str().unwrap();
        if self.panel["type"] == "row" {
            put(
                svg,
                frame.x + 4.0,
                frame.y + 15.0,
                " font-size=\"14\" font-weight=\"bold\"",
                title,
            );
            return;
        }
        fill(svg, frame, "#181b1f");
        match self.panel["type"].as_str().unwrap() {
            "stat" => self.stat(svg, frame),
            "table" => self.table(svg, frame),
            "state-timeline" => self.timeline(svg, frame),
            _ => self.lines(svg, frame),
        }
        put(svg, frame.x + 6.0, frame.y + 14.0, " font-size=\"11\" font-weight=\"bold\"", title);
    }

    fn defaults(&self) -> &Value {
        &self.panel["fieldConfig"]["defaults"]
    }

    fn told(&self, value: f64) -> String {
        let mapping = &self.defaults()["mappings"][0]["options"][value.to_string()]["text"];
        mapping
            .as_str()
            .map_or_else(|| told(value, self.defaults()["unit"].as_str()), str::to_owned)
    }

    fn colour(&self, value: f64) -> &'static str {
        let steps = self.defaults()["thresholds"]["steps"].as_array().unwrap();
        let step =
            steps.iter().rfind(|step| step["value"].as_f64().is_none_or(|from| value >= from));
        match step.and_then(|step| step["color"].as_str()) {
            Some("red") => "#c4162a",
            Some("orange") => "#e0751a",
            _ => "#37872d",
        }
    }

    fn stat(&self, svg: &mut String, frame: &Frame) {
        let w = frame.w / self.series.len().max(1) as f64;
        for (index, (name, found)) in self.series.iter().enumerate() {
            let value = found.values.last().unwrap().1;
            let part = Frame { x: frame.x + index as f64 * w, w: w - 1.0, ..*frame };
            fill(svg, &part, self.colour(value));
            let (x, y) = (part.x + part.w / 2.0, part.y + part.h / 2.0 + 14.0);
            let middle = " text-anchor=\"middle\" fill=\"#fff\"";
            put(svg, x, y, &format!("{middle} font-size=\"24\""), &self.told(value));
            put(svg, x, part.y + part.h - 8.0, middle, name);
        }
    }

    fn table(&self, svg: &mut String, frame: &Frame) {
        let hidden = &self.panel["transformations"][0]["options"]["excludeByName"];
        for (index, (_, found)) in self.series.iter().enumerate() {
            let y = frame.y + 32.0 + index as f64 * 14.0;
            if y > frame.y + frame.h - 2.0 {
                return;
            }
            let shown = found.labels.iter().filter(|(name, _)| hidden[name].is_null());
            let cells: Vec<String> = shown.map(|(name, value)| format!("{name} {value}")).collect();
            let mut text = cells.join("   ");
            text.truncate(9 * usize::try_from(self.place[2]).unwrap());
            put(svg, frame.x + 6.0, y, "", &text);
        }
    }

    fn timeline(&self, svg: &mut String, frame: &Frame) {
        let row = (frame.h - 24.0) / self.series.len().max(1) as f64;
        for (index, (name, found)) in self.series.iter().enumerate() {
            let y = frame.y + 20.0 + index as f64 * row;
            let w = (frame.w - 130.0) / found.values.len() as f64;
            put(svg, frame.x + 6.0, y + row / 2.0 + 3.0, "", name);
            let mut at = 0;
            for part in found.values.chunk_by(|a, b| a.1.total_cmp(&b.1).is_eq()) {
                let x = frame.x + 124.0 + at as f64 * w;
                let part_frame = Frame { x, y: y + 2.0, w: w * part.len() as f64, h: row - 4.0 };
                fill(svg, &part_frame, self.colour(part[0].1));
                at += part.len();
            }
        }
    }

    fn lines(&self, svg: &mut String, frame: &Frame) {
        let is_stacked = self.defaults()["custom"]["stacking"]["mode"] == "normal";
        let points = || self.series.iter().flat_map(|(_, found)| &found.values);
        let from = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let to = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
        let mut below = std::collections::BTreeMap::<u64, f64>::new();
        let mut lines = Vec::new();
        for (_, found) in &self.series {
            let mut line = Vec::new();
            for (time, value) in found.values.iter().filter(|(_, value)| value.is_finite()) {
                let under = below.entry(time.to_bits()).or_default();
                let top = if is_stacked { *under + value } else { *value };
                *under = top;
                line.push((*time, top));
            }
            lines.push(line);
        }
        let top = lines.iter().flatten().map(|point| point.1).fold(0.0, f64::max);
        let top = if top > 0.0 { top } else { 1.0 };
        let plot =
            Frame { x: frame.x + 52.0, y: frame.y + 22.0, w: frame.w - 60.0, h: frame.h - 56.0 };
        for share in [0.0, 0.5, 1.0] {
            let y = plot.y + plot.h * (1.0 - share);
            let (x, end) = (plot.x, plot.x + plot.w);
            writeln!(svg, "<path d=\"M{x:.0} {y:.0}H{end:.0}\" stroke=\"#2f3237\"/>").unwrap();
            put(svg, x - 4.0, y + 3.0, " text-anchor=\"end\"", &self.told(top * share));
        }
        for (index, line) in lines.iter().enumerate() {
            let mut path = String::new();
            for (time, value) in line {
                let x = plot.x + plot.w * (time - from) / (to - from).max(1e-9);
                let y = plot.y + plot.h * (1.0 - value / top);
                let command = if path.is_empty() { 'M' } else { 'L' };
                write!(path, "{command}{x:.0} {y:.0}").unwrap();
            }
            let colour = COLOURS[index % COLOURS.len()];
            writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\"/>").unwrap();
        }
        self.legend(svg, frame);
    }

    /// The names of the lines, in two rows; those that find no room are left out.
    fn legend(&self, svg: &mut String, frame: &Frame) {
        let (mut x, mut y) = (frame.x + 8.0, frame.y + frame.h - 18.0);
        for (index, (name, _)) in self.series.iter().enumerate() {
            let w = 18.0 + 5.9 * name.chars().count() as f64;
            if x + w > frame.x + frame.w {
                (x, y) = (frame.x + 8.0, y + 13.0);
            }
            if y > frame.y + frame.h {
                return;
            }
            let mark = Frame { x, y: y - 4.0, w: 8.0, h: 2.0 };
            fill(svg, &mark, COLOURS[index % COLOURS.len()]);
            put(svg, x + 11.0, y, "", name);
            x += w;
        }
    }
}

/// A number as people read it.
fn told(value: f64, unit: Option<&str>) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let (size, name) = steps.iter().rfind(|(size, _)| value >= *size).unwrap_or(&steps[0]);
        let number = value / size;
        if number >= 100.0 {
            format!("{number:.0} {name}")
        } else {
            format!("{} {name}", short(number))
        }
    };
    match unit {
        _ if value == 0.0 => "0".to_owned(),
        Some("s") => scaled(&[
            (1e-6, "µs"),
            (1e-3, "ms"),
            (1.0, "s"),
            (60.0, "min"),
            (3600.0, "h"),
            (86_400.0, "d"),
            (31_557_600.0, "y"),
        ]),
        Some("bytes") => {
            scaled(&[(1.0, "B"), (1024.0, "KiB"), (1_048_576.0, "MiB"), (1_073_741_824.0, "GiB")])
        }
        Some("percentunit") => format!("{} %", short(value * 100.0)),
        Some("reqps") => format!("{}/s", short(value)),
        _ => short(value),
    }
}

/// Three digits of it that matter.
fn short(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else if value >= 0.01 {
        format!("{value:.2}")
    } else if value >= 1e-4 {
        format!("{value:.4}")
    } else {
        format!("{value:.1e}")
    }
}

#[test]
fn numbers_are_told_as_people_read_them() {
    let told = |value, unit| told(value, Some(unit));
    assert_eq!((&*told(0.0025, "s"), &*told(86_400.0, "s")), ("2.50 ms", "1 d"));
    assert_eq!((&*told(1536.0, "bytes"), &*told(0.5, "percentunit")), ("1.50 KiB", "50 %"));
    assert_eq!((&*told(0.0, "s"), &*told(12.34, "reqps")), ("0", "12.3/s"));
}
