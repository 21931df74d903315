//! `statehouse replay`: steps through a file of events and says what it found.

use std::path::PathBuf;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use statehouse_client::{Client, v1};

use super::Remote;
use super::output::print_json;
use super::text::{show_count, show_us};
use crate::replay::{Events, Map, Options, Outcome, run as replay, write_report};

/// First events of a key that are not listed, unless told otherwise.
pub const UNLISTED_DEFAULT: u32 = 10;

/// What `replay` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A CSV file with a header, gzipped if its name ends in .gz.
    #[arg(long)]
    events: PathBuf,
    /// How its columns become requests.
    #[arg(long)]
    map: PathBuf,
    /// Write a page with plots here.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Score without stepping the states.
    #[arg(long)]
    peek: bool,
    /// Names the run: the same name again steps no event twice while the node remembers it.
    #[arg(long)]
    run_id: Option<String>,
    /// Events under way at a time.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Most surprising events to show.
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// First events of a key that are not listed: everything about a new key is surprising.
    #[arg(long, default_value_t = UNLISTED_DEFAULT)]
    unlisted: u32,
    /// Stop after so many events.
    #[arg(long)]
    limit: Option<u64>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let map = Map::read(&args.map)?;
    let events = Events::open(&args.events, &map)?;
    let client = args.remote.connect().await?;
    ensure_collection(&client, &map).await?;
    let options = Options {
        in_flight: args.in_flight.max(1),
        peek: args.peek,
        run_id: args.run_id.unwrap_or_else(|| format!("replay-{:016x}", rand::random::<u64>())),
        top: args.top,
        unlisted: args.unlisted,
        limit: args.limit,
    };
    let progress = progress_bar(args.limit);
    let outcome = replay(&client, &map, events, &options, &progress).await;
    progress.finish_and_clear();
    let outcome = outcome.with_context(|| args.events.display().to_string())?;
    if let Some(path) = &args.report {
        write_report(path, &args.events.display().to_string(), &map, &outcome)?;
    }
    if args.remote.json {
        print_json(&outcome_json(&outcome));
    } else {
        print_outcome(&outcome);
        if let Some(path) = &args.report {
            println!("report     {}", path.display());
        }
    }
    Ok(())
}

/// Creates the map's collection if it is not there; one with other settings is as good.
pub async fn ensure_collection(client: &Client, map: &Map) -> anyhow::Result<()> {
    let request = v1::CreateCollectionRequest {
        name: map.collection.clone(),
        settings: None,
        if_not_exists: false,
    };
    match client.create_collection(request).await {
        Ok(_) => Ok(()),
        Err(error) if error.reason() == Some("COLLECTION_EXISTS") => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A bar if the number of events is known, else a running count.
pub fn progress_bar(events: Option<u64>) -> ProgressBar {
    let (bar, template) = match events {
        Some(events) => (
            ProgressBar::new(events),
            "{bar:32} {human_pos}/{human_len} events, {per_sec}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} events, {per_sec}"),
    };
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    bar.with_style(style)
}

/// Prints figures and the most surprising events for people.
pub fn print_outcome(outcome: &Outcome) {
    let seconds = outcome.elapsed.as_secs_f64().max(1e-9);
    let at = |quantile| show_us(outcome.latency.value_at_quantile(quantile));
    println!(
        "events     {} in {:.2} s, {}/s",
        show_count(outcome.events),
        seconds,
        show_count((outcome.events as f64 / seconds) as u64)
    );
    if outcome.repeated > 0 {
        println!("repeated   {} had been stepped before", show_count(outcome.repeated));
    }
    println!(
        "latency    p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        show_us(outcome.latency.max())
    );
    println!("batches    {:.1} rows on average for an event", outcome.batch_rows.mean());
    println!("score      {:.2} on average", outcome.score_mean);
    if !outcome.surprises.is_empty() {
        println!("most surprising events:");
    }
    for found in &outcome.surprises {
        println!(
            "  {:>8.2}  {:<10}  line {:<7}  {}",
            found.score, found.key, found.line, found.label
        );
    }
}

fn outcome_json(outcome: &Outcome) -> serde_json::Value {
    let at = |quantile| outcome.latency.value_at_quantile(quantile);
    json!({
        "events": outcome.events,
        "repeated": outcome.repeated,
        "seconds": outcome.elapsed.as_secs_f64(),
        "events_per_second": outcome.events as f64 / outcome.elapsed.as_secs_f64().max(1e-9),
        "latency_us": {
            "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99_9": at(0.999),
            "max": outcome.latency.max(),
        },
        "batch_rows_mean": outcome.batch_rows.mean(),
        "score_mean": outcome.score_mean,
        "surprises": outcome.surprises.iter().map(|found| json!({
            "score": found.score, "key": found.key, "line": found.line, "event": found.label,
        })).collect::<Vec<_>>(),
    })
}
