//! `statehouse bench`: loads a node, or a peer of it, and measures.

mod large;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::json;

use super::output::print_json;
use super::{text, with_scheme};
use crate::bench::{
    self, Figures, Kind, Lane, Mix, Pace, Payload, Plan, Target, Workload, drive, print_figures,
};

/// What `bench` takes.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// What to measure, and how to speak to it.
    #[arg(long, value_enum, default_value = "pipelined")]
    target: Target,
    /// The address of the node or peer; of several with commas between, connections take turns.
    #[arg(
        long,
        env = "STATEHOUSE_ENDPOINT",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7070"
    )]
    endpoint: Vec<String>,
    /// Prepare with this node instead: a peer that scores as a node does knows no collections.
    #[arg(long)]
    setup_endpoint: Option<String>,
    /// Kinds of calls by weight, of: get, put, peek, step, batch-get, batch-put.
    #[arg(long, default_value = "get")]
    mix: Mix,
    /// Bytes of a state.
    #[arg(long, value_parser = text::bytes, default_value = "1KiB")]
    state_bytes: u64,
    /// How many keys there are.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Exponent of the keys' Zipf distribution; 0 is uniform.
    #[arg(long, default_value_t = 0.99)]
    zipf: f64,
    /// Keys in one batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// The model that peek and step score with.
    #[arg(long, default_value = "bank-gru")]
    model: String,
    /// Put a state under every key first.
    #[arg(long)]
    load: bool,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Calls under way at most, over all connections.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Calls per second, due at fixed times; none: as fast as answers come.
    #[arg(long, conflicts_with = "sweep")]
    rate: Option<f64>,
    /// Rates to try one after the other, such as 1000,5000,20000.
    #[arg(long, value_delimiter = ',')]
    sweep: Vec<f64>,
    /// Time that counts.
    #[arg(long, value_parser = text::duration, default_value = "10s")]
    duration: Duration,
    /// Time before that.
    #[arg(long, value_parser = text::duration, default_value = "2s")]
    warmup: Duration,
    /// Repeats keys and payloads.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Refuse if more than this share of the machine is busy before the start.
    #[arg(long)]
    busy_max: Option<f64>,
    /// Serve a bare tonic echo at this address instead, to compare with.
    #[arg(long, exclusive = true)]
    serve_echo: Option<SocketAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Loads of other kinds.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Large states: one part of what is measured on them.
    Large(large::Args),
}

/// How long the machine is watched before a comparison.
const BUSY_WINDOW: Duration = Duration::from_secs(2);

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Other::Large(args)) = args.other {
        return large::run(args).await;
    }
    if let Some(address) = args.serve_echo {
        return bench::serve_echo(address).await;
    }
    ensure!(args.connections > 0, "--connections is above 0");
    ensure!(args.in_flight >= args.connections, "--in-flight is at least --connections");
    if let Some(max) = args.busy_max {
        let busy = bench::busy_share(BUSY_WINDOW).await?;
        if busy > max {
            bail!("the machine is {:.0} % busy, more than {:.0} %", busy * 100.0, max * 100.0);
        }
    }
    let payload = prepare(&args).await?;
    let paces: Vec<Pace> = match (&args.rate, &args.sweep[..]) {
        (Some(rate), _) => vec![Pace::Open(*rate)],
        (None, []) => vec![Pace::Closed],
        (None, rates) => rates.iter().map(|rate| Pace::Open(*rate)).collect(),
    };
    for pace in paces {
        let figures = measure(&args, pace, &payload).await?;
        print(&args, pace, &figures);
        if figures.answers == 0 {
            bail!("no call was answered: {}", figures.first_error.unwrap_or_default());
        }
    }
    Ok(())
}

/// The payload; with a node, also its collection and, if asked for, its states.
async fn prepare(args: &Args) -> anyhow::Result<Payload> {
    let (bytes, seed) = (args.state_bytes as usize, args.seed);
    match args.target {
        Target::Echo | Target::EchoStream => bench::prepare(None, None, bytes, seed).await,
        Target::Redis | Target::RedisReplicated | Target::Etcd => {
            let payload = bench::prepare(None, None, bytes, seed).await?;
            if args.load {
                let endpoint = match args.target {
                    Target::Etcd => with_scheme(&args.endpoint[0]),
                    _ => args.endpoint[0].clone(),
                };
                bench::load_peer(args.target, &endpoint, &payload, args.keys).await?;
            }
            Ok(payload)
        }
        Target::Unary | Target::Pipelined | Target::Client | Target::ClientIds => {
            let node = args.setup_endpoint.as_ref().unwrap_or(&args.endpoint[0]);
            let client = bench::connect(&with_scheme(node)).await?;
            let scores = args.mix.has(&[Kind::Peek, Kind::Step]);
            let model = scores.then_some(args.model.as_str());
            let payload = bench::prepare(Some(&client), model, bytes, seed).await?;
            if args.load {
                bench::load(&client, &payload, args.keys).await?;
            }
            Ok(payload)
        }
    }
}

async fn measure(args: &Args, pace: Pace, payload: &Payload) -> anyhow::Result<Figures> {
    let in_flight = args.in_flight.div_ceil(args.connections);
    let mut lanes = Vec::new();
    for at in 0..args.connections {
        let endpoint = &args.endpoint[at % args.endpoint.len()];
        let endpoint = match args.target {
            Target::Redis | Target::RedisReplicated => endpoint.clone(),
            _ => with_scheme(endpoint),
        };
        let lane = Lane::connect(args.target, &endpoint, in_flight, payload.clone()).await?;
        let seed = args.seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
        lanes.push((lane, Workload::new(args.mix.clone(), args.keys, args.zipf, args.batch, seed)));
    }
    let plan = Plan { pace, in_flight, warmup: args.warmup, duration: args.duration };
    drive(lanes, plan).await
}

fn print(args: &Args, pace: Pace, figures: &Figures) {
    let rate = match pace {
        Pace::Closed => None,
        Pace::Open(rate) => Some(rate),
    };
    let target = clap::ValueEnum::to_possible_value(&args.target);
    let target = target.map_or_else(String::new, |value| value.get_name().to_owned());
    if !args.json {
        let at = rate.map_or_else(String::new, |rate| format!(" at {rate}/s"));
        print_figures(&format!("{target} {}{at}", args.mix), figures);
        return;
    }
    let mut out = figures.json();
    out["target"] = target.into();
    out["mix"] = args.mix.to_string().into();
    out["rate"] = json!(rate);
    out["state_bytes"] = args.state_bytes.into();
    out["keys"] = args.keys.into();
    out["zipf"] = args.zipf.into();
    out["batch"] = args.batch.into();
    out["connections"] = args.connections.into();
    out["in_flight"] = args.in_flight.into();
    out["machine"] = bench::describe();
    print_json(&out);
}
