//! Two small charts as SVG: lines over time, and bars. Pure.

use std::fmt::Write as _;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 34.0;

/// Points of a line at most; more are thinned by their maximum, so that peaks stay.
const POINTS_MAX: usize = 450;

/// Horizontal grid lines above the axis.
const GRID: usize = 4;

/// One line of a chart.
pub struct Line {
    /// In the legend.
    pub name: &'static str,
    /// As CSS has it.
    pub colour: &'static str,
    /// One per step of the x axis; `None`: there is nothing to draw, the line has a gap.
    pub points: Vec<Option<f64>>,
}

/// A moment that is worth a look: a labelled line across the chart.
pub struct Mark {
    /// In the unit of the x axis.
    pub x: f64,
    /// What happened.
    pub label: String,
}

/// Lines over a common x axis that starts at 0.
pub struct Lines {
    /// Of the x axis.
    pub x_unit: &'static str,
    /// Of the y axis.
    pub y_unit: &'static str,
    /// From one point to the next.
    pub x_step: f64,
    /// What is drawn.
    pub lines: Vec<Line>,
    /// What is marked.
    pub marks: Vec<Mark>,
}

/// Labelled bars.
pub struct Bars<'a> {
    /// Of the y axis.
    pub unit: &'static str,
    /// Label and height.
    pub bars: &'a [(String, f64)],
    /// As CSS has it.
    pub colour: &'static str,
}

impl Lines {
    /// The chart.
    pub fn svg(&self) -> String {
        let longest = self.lines.iter().map(|line| line.points.len()).max().unwrap_or(0);
        let top =
            nice_above(self.lines.iter().flat_map(|line| line.points.iter().flatten().copied()));
        let mut out = frame(top, self.y_unit);
        let thin = longest.div_ceil(POINTS_MAX).max(1);
        let x_max = (longest.max(2) - 1) as f64;
        let x_of = |step: f64| LEFT + (step / x_max).min(1.0) * (WIDTH - LEFT - RIGHT);
        for mark in &self.marks {
            write_mark(&mut out, x_of(mark.x / self.x_step), &mark.label);
        }
        for (at, line) in self.lines.iter().enumerate() {
            let points = line.points.chunks(thin).enumerate().map(|(chunk, points)| {
                let value = points.iter().flatten().copied().reduce(f64::max)?;
                Some((x_of((chunk * thin) as f64), y_of(value, top)))
            });
            write_line(&mut out, line.colour, &points.collect::<Vec<_>>());
            let _ = write!(
                out,
                "<text x=\"{}\" y=\"{}\" fill=\"{}\" font-size=\"13\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT - 70.0 * at as f64,
                TOP - 6.0,
                line.colour,
                line.name,
            );
        }
        for quarter in 0..=4 {
            let part = f64::from(quarter) / 4.0;
            let x = LEFT + part * (WIDTH - LEFT - RIGHT);
            let value = show(part * x_max * self.x_step);
            label(&mut out, x, HEIGHT - 12.0, "middle", &format!("{value} {}", self.x_unit));
        }
        out.push_str("</svg>");
        out
    }
}

impl Bars<'_> {
    /// The chart.
    pub fn svg(&self) -> String {
        let top = nice_above(self.bars.iter().map(|(_, value)| *value));
        let mut out = frame(top, self.unit);
        let slot = (WIDTH - LEFT - RIGHT) / self.bars.len().max(1) as f64;
        for (at, (name, value)) in self.bars.iter().enumerate() {
            let (x, y) = (LEFT + slot * at as f64, y_of(*value, top));
            let _ = write!(
                out,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                x + slot * 0.15,
                slot * 0.7,
                HEIGHT - BOTTOM - y,
                self.colour,
            );
            label(&mut out, x + slot / 2.0, HEIGHT - 12.0, "middle", name);
        }
        out.push_str("</svg>");
        out
    }
}

fn frame(top: f64, unit: &str) -> String {
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" xmlns=\"http://www.w3.org/2000/svg\" \
         font-family=\"system-ui, sans-serif\">"
    );
    for step in 0..=GRID {
        let value = top * step as f64 / GRID as f64;
        let y = y_of(value, top);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#e3e7ee\"/>",
            WIDTH - RIGHT,
        );
        label(&mut out, LEFT - 8.0, y + 4.0, "end", &show(value));
    }
    label(&mut out, LEFT, TOP - 6.0, "start", unit);
    out
}

/// Draws what lies between gaps; a point alone is a dot, since a line of it would be nothing.
fn write_line(out: &mut String, colour: &str, points: &[Option<(f64, f64)>]) {
    for run in points.split(Option::is_none) {
        let run: Vec<(f64, f64)> = run.iter().flatten().copied().collect();
        match run.as_slice() {
            [] => {}
            [(x, y)] => {
                let _ = write!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.6\" fill=\"{colour}\"/>"
                );
            }
            run => {
                let points = run.iter().map(|(x, y)| format!("{x:.1},{y:.1}"));
                let points = points.collect::<Vec<_>>().join(" ");
                let _ = write!(
                    out,
                    "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" \
                     points=\"{points}\"/>"
                );
            }
        }
    }
}

/// Draws a dashed line from top to bottom, its label on the side that has more room.
fn write_mark(out: &mut String, x: f64, text: &str) {
    let (from, to) = (TOP, HEIGHT - BOTTOM);
    let _ = write!(
        out,
        "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from}\" y2=\"{to}\" stroke=\"#1c2330\" \
         stroke-dasharray=\"4 3\"/>"
    );
    match x < WIDTH / 2.0 {
        true => label(out, x + 6.0, from + 12.0, "start", text),
        false => label(out, x - 6.0, from + 12.0, "end", text),
    }
}

fn label(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"12\" fill=\"#5b6575\" \
         text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn y_of(value: f64, top: f64) -> f64 {
    HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
}

/// The least of 1, 2, 5 times a power of ten that no value passes.
fn nice_above(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.fold(0.0, f64::max);
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|top| *top >= most).unwrap_or(most)
}

fn show(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.1}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else if value >= 10.0 || value == value.round() {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_values() {
        assert_eq!(nice_above([0.0].into_iter()), 1.0);
        assert_eq!(nice_above([3.2, 1.0].into_iter()), 5.0);
        assert_eq!(nice_above([100.0].into_iter()), 100.0);
        assert_eq!(nice_above([0.013].into_iter()), 0.02);
    }

    fn lines(points: Vec<Option<f64>>, marks: Vec<Mark>) -> String {
        let lines = vec![Line { name: "p99", colour: "red", points }];
        Lines { x_unit: "s", y_unit: "ms", x_step: 0.25, lines, marks }.svg()
    }

    #[test]
    fn where_nothing_was_measured_the_line_has_a_gap() {
        let points = vec![Some(1.0), Some(2.0), None, None, Some(1.0), None, Some(4.0), Some(4.0)];
        let chart = lines(points, vec![]);
        assert_eq!(chart.matches("<polyline").count(), 2, "{chart}");
        assert_eq!(chart.matches("<circle").count(), 1, "a point alone is seen too: {chart}");
        let ground = format!(",{:.1}", HEIGHT - BOTTOM);
        assert!(!chart.contains(&ground), "nothing is drawn as 0: {chart}");
    }

    #[test]
    fn a_moment_is_marked_where_it_was() {
        let label = "node 1 killed".to_owned();
        let chart = lines(vec![Some(1.0); 9], vec![Mark { x: 1.0, label }]);
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        assert!(chart.contains(&format!("<line x1=\"{middle:.1}\" x2=\"{middle:.1}\"")), "{chart}");
        assert!(chart.contains(">node 1 killed</text>"), "{chart}");
    }

    #[test]
    fn charts_of_nothing_are_whole() {
        let (lines, marks) = (vec![], vec![]);
        let lines = Lines { x_unit: "s", y_unit: "ms", x_step: 1.0, lines, marks }.svg();
        assert!(lines.ends_with("</svg>") && !lines.contains("NaN"));
        let bars = Bars { unit: "n", bars: &[], colour: "red" }.svg();
        assert!(bars.ends_with("</svg>") && !bars.contains("NaN"));
    }
}
