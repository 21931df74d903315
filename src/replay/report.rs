//! A replay as one HTML page: figures, latency over time, batch sizes, surprising events.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::{Map, Outcome, Slice};
use crate::cli::text::{show_count, show_us};
use crate::svg::{Bars, Line, Lines, Mark};

/// Bars of the batch-size chart at most: powers of two up to 2^12.
const BATCH_BUCKETS: u32 = 13;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; color: #1c2330; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.sub { color: #5b6575 } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e7ee }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.tiles { display: flex; gap: 1rem; flex-wrap: wrap; margin: 1rem 0 }
.tile { border: 1px solid #e3e7ee; border-radius: 8px; padding: .6rem 1rem; min-width: 8rem }
.tile b { display: block; font-size: 1.3rem } svg { width: 100%; height: auto }
";

/// Writes the page.
pub fn write_report(path: &Path, source: &str, map: &Map, outcome: &Outcome) -> anyhow::Result<()> {
    let page = page(source, map, outcome)?;
    std::fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

fn page(source: &str, map: &Map, outcome: &Outcome) -> anyhow::Result<String> {
    let mut out = String::new();
    let title = format!("Replay of {}", escape(source));
    write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style><h1>{title}</h1><p class=\"sub\">model {}, collection {}</p>",
        escape(&map.model),
        escape(&map.collection),
    )?;
    tiles(&mut out, outcome)?;
    out.push_str("<h2>Latency over time</h2>");
    out.push_str(&latency_chart(outcome));
    out.push_str("<h2>Throughput over time</h2>");
    out.push_str(&throughput_chart(outcome));
    out.push_str("<h2>Events by batch size</h2>");
    out.push_str(&batch_chart(outcome));
    surprises(&mut out, outcome)?;
    out.push_str("</html>\n");
    Ok(out)
}

fn tiles(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let seconds = outcome.elapsed.as_secs_f64().max(1e-9);
    let at = |quantile| show_us(outcome.latency.value_at_quantile(quantile));
    let tiles = [
        ("events", show_count(outcome.events)),
        ("events/s", show_count((outcome.events as f64 / seconds) as u64)),
        ("p50", at(0.5)),
        ("p99", at(0.99)),
        ("p99.9", at(0.999)),
        ("mean batch", format!("{:.1} rows", outcome.batch_rows.mean())),
    ];
    out.push_str("<div class=\"tiles\">");
    for (name, value) in tiles {
        write!(out, "<div class=\"tile\"><b>{value}</b>{name}</div>")?;
    }
    out.push_str("</div>");
    Ok(())
}

fn latency_chart(outcome: &Outcome) -> String {
    // Of a slice in which nothing was answered there is no latency.
    let points = |us: fn(&Slice) -> u64| {
        let ms = |slice: &Slice| (slice.events > 0).then(|| us(slice) as f64 / 1e3);
        outcome.slices.iter().map(ms).collect()
    };
    Lines {
        x_unit: "s",
        y_unit: "ms",
        x_step: outcome.slice.as_secs_f64(),
        lines: vec![
            Line { name: "p99", colour: "#d1495b", points: points(|slice| slice.p99_us) },
            Line { name: "p50", colour: "#2e6f95", points: points(|slice| slice.p50_us) },
        ],
        marks: marks(outcome),
    }
    .svg()
}

fn throughput_chart(outcome: &Outcome) -> String {
    let seconds = outcome.slice.as_secs_f64();
    let points = outcome.slices.iter().map(|slice| Some(slice.events as f64 / seconds)).collect();
    Lines {
        x_unit: "s",
        y_unit: "events/s",
        x_step: seconds,
        lines: vec![Line { name: "events/s", colour: "#3a7d44", points }],
        marks: marks(outcome),
    }
    .svg()
}

fn marks(outcome: &Outcome) -> Vec<Mark> {
    let mark =
        |(at, label): &(Duration, String)| Mark { x: at.as_secs_f64(), label: escape(label) };
    outcome.moments.iter().map(mark).collect()
}

fn batch_chart(outcome: &Outcome) -> String {
    let bars = (0..BATCH_BUCKETS)
        .map(|power| {
            let (low, high) = (1u64 << power, (2u64 << power) - 1);
            let label = if low == high { low.to_string() } else { format!("{low}-{high}") };
            (label, outcome.batch_rows.count_between(low, high) as f64)
        })
        .collect::<Vec<_>>();
    let used = bars.iter().rposition(|(_, count)| *count > 0.0).map_or(1, |last| last + 1);
    Bars { unit: "events", bars: &bars[..used], colour: "#2e6f95" }.svg()
}

fn surprises(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    out.push_str(
        "<h2>Most surprising events</h2><table><tr><th class=\"n\">score</th>\
         <th>key</th><th class=\"n\">line</th><th>event</th></tr>",
    );
    for found in &outcome.surprises {
        write!(
            out,
            "<tr><td class=\"n\">{:.2}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            found.score,
            escape(&found.key),
            found.line,
            escape(&found.label),
        )?;
    }
    out.push_str("</table>");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hdrhistogram::Histogram;

    use super::*;

    #[test]
    fn a_page_has_a_gap_where_nothing_was_answered_and_marks_what_happened() {
        let slice = |events| Slice { events, p50_us: 100 * events, p99_us: 900 * events };
        let outcome = Outcome {
            events: 30,
            repeated: 0,
            elapsed: Duration::from_secs(1),
            latency: Histogram::new(3).unwrap(),
            batch_rows: Histogram::new(3).unwrap(),
            slices: [10, 10, 0, 0, 5, 5].map(slice).to_vec(),
            slice: Duration::from_millis(250),
            started: Instant::now(),
            moments: vec![(Duration::from_millis(500), "node <1> killed".to_owned())],
            score_mean: f64::NAN,
            surprises: Vec::new(),
        };
        let chart = latency_chart(&outcome);
        assert_eq!(chart.matches("<polyline").count(), 4, "of each line two parts: {chart}");
        for chart in [chart, throughput_chart(&outcome)] {
            assert!(chart.contains(">node &lt;1&gt; killed</text>"), "{chart}");
        }
        assert_eq!(throughput_chart(&outcome).matches("<polyline").count(), 1, "0 is a number");
    }
}
