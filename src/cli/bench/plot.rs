//! Results as a picture: horizontal bars by workload, one colour a file. Plain SVG without scripts or fonts of its own, legible on
//! light and dark pages.

use std::fmt::Write as _;

use super::results::ResultFile;
use super::stats::{median, sorted};

/// Colours of the files, in between light and dark.
const COLOURS: [&str; 8] = ["#4a86d8", "#dd7f34", "#3f9f6f", "#b465c4", "#c4a021", "#d05a6e", "#4aa5b5", "#8a8f98"];

const WIDTH: f64 = 960.0;
const LABELS: f64 = 330.0;
const BAR: f64 = 15.0;
const GAP: f64 = 12.0;
/// Room for the number behind the longest bar.
const VALUES: f64 = 80.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#222}.h{font-weight:bold;font-size:14px}.bg{fill:#fff}\
    .grid{stroke:#ccc}.spread{stroke:#222;stroke-width:1.5}\
    @media(prefers-color-scheme:dark){text{fill:#e8e8e8}.bg{fill:#181a1d}.grid{stroke:#4a4d52}.spread{stroke:#e8e8e8}}";

/// One bar: the median, and the smallest and largest run.
struct Bar {
    file: usize,
    value: f64,
    low: f64,
    high: f64,
}

/// Bars of one quantity, grouped by workload.
struct Panel {
    title: String,
    groups: Vec<(String, Vec<Bar>)>,
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // No control character may stand in XML.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The workloads and metrics of the first file; other files' bars where they have them.
fn panels(files: &[ResultFile]) -> Vec<Panel> {
    let Some(first) = files.first() else { return Vec::new() };
    let mut panels: Vec<Panel> = Vec::new();
    for w in &first.workloads {
        for m in &w.metrics {
            // Times of operations differ by orders of magnitude: they are drawn as speed by that of the first file.
            let relative = (first.kind == "kernels").then(|| median(m.samples.iter().copied()));
            let title = match relative {
                Some(_) => format!("speed relative to {}", first.label),
                None => format!("{}, {}", m.name, m.unit),
            };
            let bars = files.iter().enumerate().filter_map(|(file, f)| {
                let samples = &f.workload(&w.name)?.metric(m.name)?.samples;
                let scaled =
                    sorted(samples.iter().map(|&s| relative.map_or(s, |base| if s > 0.0 { base / s } else { 0.0 })));
                let (low, high) = (*scaled.first()?, *scaled.last()?);
                Some(Bar { file, value: median(scaled.iter().copied()), low, high })
            });
            let group = (w.name.clone(), bars.collect());
            match panels.iter_mut().find(|p| p.title == title) {
                Some(p) => p.groups.push(group),
                None => panels.push(Panel { title, groups: vec![group] }),
            }
        }
    }
    panels
}

/// A step of 1, 2 or 5 times a power of ten that cuts `span` in about four.
fn step(span: f64) -> f64 {
    let power = 10f64.powf((span / 4.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|s| s * 4.0 >= span).unwrap_or(power)
}

fn number(v: f64) -> String {
    let digits = if v >= 100.0 {
        0
    } else if v >= 10.0 {
        1
    } else {
        2
    };
    format!("{v:.digits$}")
}

fn draw(out: &mut String, panel: &Panel, mut y: f64) -> f64 {
    let top = panel.groups.iter().flat_map(|g| &g.1).map(|b| b.high).fold(0.0, f64::max);
    let top = if top > 0.0 { top } else { 1.0 };
    let x = |v: f64| LABELS + v / top * (WIDTH - LABELS - VALUES);
    let _ = writeln!(out, r#"<text class="h" x="16" y="{:.1}">{}</text>"#, y + 14.0, escape(&panel.title));
    y += 30.0;
    let rows: f64 = panel.groups.iter().map(|g| g.1.len() as f64 * BAR + GAP).sum();
    let step = step(top);
    let digits = (-step.log10().floor()).max(0.0) as usize;
    for i in 0..=(top / step) as u32 {
        let v = f64::from(i) * step;
        let (at, end) = (x(v), y + rows);
        let _ = writeln!(out, r#"<line class="grid" x1="{at:.1}" y1="{y:.1}" x2="{at:.1}" y2="{end:.1}"/>"#);
        let _ = writeln!(out, r#"<text x="{at:.1}" y="{:.1}" text-anchor="middle">{v:.digits$}</text>"#, end + 14.0);
    }
    for (name, bars) in &panel.groups {
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        let _ =
            writeln!(out, r#"<text x="{:.1}" y="{middle:.1}" text-anchor="end">{}</text>"#, LABELS - 8.0, escape(name));
        for b in bars {
            let colour = COLOURS[b.file % COLOURS.len()];
            let (height, centre) = (BAR - 3.0, y + BAR / 2.0);
            let _ = writeln!(
                out,
                r#"<rect x="{LABELS}" y="{:.1}" width="{:.1}" height="{height}" fill="{colour}"/>"#,
                y + 1.5,
                x(b.value) - LABELS
            );
            if b.high > b.low {
                let (low, high) = (x(b.low), x(b.high));
                let _ = writeln!(
                    out,
                    r#"<line class="spread" x1="{low:.1}" y1="{centre:.1}" x2="{high:.1}" y2="{centre:.1}"/>"#
                );
            }
            let _ =
                writeln!(out, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, x(b.high) + 6.0, centre + 4.0, number(b.value));
            y += BAR;
        }
        y += GAP;
    }
    y + 40.0
}

/// The picture of two or more results: medians as bars, the smallest and the largest run as a line on each.
pub(super) fn svg(files: &[ResultFile]) -> String {
    let mut body = String::new();
    let mut y = 16.0;
    for (i, f) in files.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let _ = writeln!(body, r#"<rect x="16" y="{y:.1}" width="12" height="12" fill="{colour}"/>"#);
        let text = escape(&format!("{} ({})", f.label, f.adapter));
        let _ = writeln!(body, r#"<text x="36" y="{:.1}">{text}</text>"#, y + 10.5);
        y += 20.0;
    }
    y += 16.0;
    for panel in panels(files) {
        y = draw(&mut body, &panel, y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" width=\"{WIDTH}\" height=\"{y:.0}\">\n\
         <style>{STYLE}</style>\n<rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::{Metric, Workload};
    use super::*;

    fn file(label: &str, samples: &[f64]) -> ResultFile {
        let metric = Metric { name: "decode", unit: "tokens/s", higher_is_better: true, samples: samples.to_vec() };
        ResultFile {
            label: label.into(),
            kind: "inference".into(),
            adapter: "card <1>".into(),
            workloads: vec![Workload { name: "m & n".into(), tokens: None, metrics: vec![metric] }],
        }
    }

    #[test]
    fn bars_are_in_proportion_and_text_is_escaped() {
        let text = svg(&[file("a", &[50.0, 50.0]), file("b", &[90.0, 100.0, 110.0])]);
        let widths: Vec<f64> = text
            .lines()
            .filter(|l| l.starts_with("<rect") && l.contains("height=\"12\"") && !l.contains("x=\"16\""))
            .map(|l| l.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 2, "{text}");
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        assert_eq!(text.matches("class=\"spread\"").count(), 1, "only one file's runs differ");
        assert!(text.contains("m &amp; n") && text.contains("card &lt;1&gt;") && text.contains("prefers-color-scheme"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(
            [step(4.0), step(7.0), step(100.0), step(0.9)].map(|s| (s * 1000.0).round()),
            [1000.0, 2000.0, 50_000.0, 500.0]
        );
    }
}
