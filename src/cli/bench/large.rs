//! `statehouse bench large`: one part of what is measured on large states.

use std::time::Duration;

use serde_json::Value as Json;

use crate::bench::large::{Options, Part, measure};
use crate::cli::output::print_json;
use crate::cli::{text, with_scheme};

/// What `bench large` takes. `benches/peers/large.sh` runs all parts and their peers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[arg(value_enum)]
    part: Part,
    /// The address of the node or peer.
    #[arg(long, env = "STATEHOUSE_ENDPOINT", default_value = "http://127.0.0.1:7070")]
    endpoint: String,
    /// Bytes of all states together, of load and mixed.
    #[arg(long, value_parser = text::bytes, default_value = "1GiB")]
    total_bytes: u64,
    /// Bytes of a state, of the other parts.
    #[arg(long, value_parser = text::bytes, default_value = "64MiB")]
    state_bytes: u64,
    /// Calls, of parts that count them.
    #[arg(long, default_value_t = 16)]
    count: u64,
    /// Keys of states of one size.
    #[arg(long, default_value_t = 4)]
    keys: u64,
    /// Calls under way.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// No call begins after this time.
    #[arg(long, value_parser = text::duration, default_value = "10m")]
    duration: Duration,
    /// Exponent of the keys' Zipf distribution; 0 is uniform.
    #[arg(long, default_value_t = 0.99)]
    zipf: f64,
    /// The model that steps score with.
    #[arg(long, default_value = "bank-gru")]
    model: String,
    /// Repeats states, contents and calls.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.workers > 0 && args.keys > 0, "--workers and --keys are above 0");
    let is_peer = matches!(args.part, Part::PeerLoad | Part::PeerWhole);
    let options = Options {
        endpoint: if is_peer { args.endpoint } else { with_scheme(&args.endpoint) },
        total_bytes: args.total_bytes,
        state_bytes: args.state_bytes,
        count: args.count,
        keys: args.keys,
        workers: args.workers,
        duration: args.duration,
        zipf: args.zipf,
        model: args.model,
        seed: args.seed,
    };
    let mut out = measure(args.part, &options).await?;
    let rows = out["calls"].as_array().filter(|_| !args.json);
    if let Some(rows) = rows {
        rows.iter().for_each(print_row);
        for kind in ["pressure", "failures"] {
            for row in out[kind].as_array().into_iter().flatten() {
                println!("{kind}: {row}");
            }
        }
        return Ok(());
    }
    out["machine"] = crate::bench::describe();
    print_json(&out);
    Ok(())
}

fn print_row(row: &Json) {
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    println!(
        "{}: {} calls, {:.1}/s, {:.1} MB/s, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
        row["name"].as_str().unwrap_or_default(),
        row["answers"],
        number("per_second"),
        number("mb_per_second"),
        number("p50_ms"),
        number("p99_ms"),
        number("max_ms"),
    );
}
