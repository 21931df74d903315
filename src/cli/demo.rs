//! `statehouse demo`: a cluster in a temporary directory, the example model, a stream of events, a
//! node that is killed in the middle of it, and what came of it.

mod nodes;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use indicatif::ProgressBar;
use nodes::Nodes;
use statehouse_client::{Client, Config as ClientConfig, v1};

use super::output::print_state;
use super::replay::{UNLISTED_DEFAULT, ensure_collection, print_outcome, progress_bar};
use super::text::show_count;
use crate::replay::generate::{Generated, Shape, generate};
use crate::replay::{Events, Map, Options, Outcome, run as replay, write_report};

/// The example model, so that the binary alone can show it.
const MODEL_TOML: &str = include_str!("../../examples/bank/model.toml");
const MODEL_ONNX: &[u8] = include_bytes!("../../examples/bank/model.onnx");
const MAP: &str = include_str!("../../examples/bank/map.toml");

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Replay this file of bank transactions instead of a made-up stream.
    #[arg(long)]
    events: Option<PathBuf>,
    /// How the columns of --events become requests; the example's map if not given.
    #[arg(long, requires = "events")]
    map: Option<PathBuf>,
    /// Events of the made-up stream.
    #[arg(long, default_value_t = 50_000)]
    count: u64,
    /// Accounts of the made-up stream.
    #[arg(long, default_value_t = 600)]
    accounts: u64,
    /// Anomalies planted in the made-up stream.
    #[arg(long, default_value_t = 20)]
    anomalies: u64,
    /// Repeats a made-up stream.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Nodes; with three or more, one of them is killed halfway.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Events under way at a time.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Where the page with plots goes.
    #[arg(long, default_value = "statehouse-demo.html")]
    report: PathBuf,
}

/// How long an event may take, a change of leaders included.
const CALL_WAIT_MAX: Duration = Duration::from_secs(30);

/// How often the progress is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The exponent of the made-up stream's Zipf distribution.
const ZIPF: f64 = 0.9;

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.accounts > 0, "a stream needs accounts");
    if let Some(events) = &args.events {
        ensure!(events.exists(), "{} does not exist", events.display());
    }
    let map = match &args.map {
        Some(path) => Map::read(path)?,
        None => Map::parse(MAP).context("the example's map")?,
    };
    let dir = tempfile::Builder::new().prefix("statehouse-demo-").tempdir()?;
    ensure!(args.nodes > 0, "a cluster needs nodes");
    let started = std::time::Instant::now();
    let mut nodes = Nodes::form(dir.path(), args.nodes).await?;
    println!(
        "cluster    {} nodes with all replicas in {:.1} s, scoring on {}",
        args.nodes,
        started.elapsed().as_secs_f64(),
        nodes.device()
    );
    show(&args, &map, &mut nodes).await
}

async fn show(args: &Args, map: &Map, nodes: &mut Nodes) -> anyhow::Result<()> {
    let timeout = Some(CALL_WAIT_MAX);
    let config = ClientConfig { timeout, ..ClientConfig::any_of(nodes.endpoints()) };
    let client = Client::connect(config).await?;
    let files = vec![
        ("model.toml".to_owned(), Bytes::from_static(MODEL_TOML.as_bytes())),
        ("model.onnx".to_owned(), Bytes::from_static(MODEL_ONNX)),
    ];
    let pushed = client.push_model(files, true).await?;
    let name = pushed.model.unwrap_or_default().name;
    println!("model      {name}:{} pushed, {} bytes of ONNX", pushed.version, MODEL_ONNX.len());
    ensure_collection(&client, map).await?;
    let (source, made, events) = open(args, map)?;
    let count = made.as_ref().map(|_| args.count);
    println!("events     {source}");
    let options = Options {
        in_flight: args.in_flight.max(1),
        peek: false,
        run_id: "demo".to_owned(),
        // Twice the anomalies, to see how many of them are there.
        top: made.as_ref().map_or(10, |made| (made.anomalies.len() * 2).max(10)),
        unlisted: UNLISTED_DEFAULT,
        limit: None,
    };
    let progress: ProgressBar = progress_bar(count);
    let victim = async {
        if args.nodes < 3 {
            return Ok(None);
        }
        while progress.position() < args.count / 2 {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let at = std::time::Instant::now();
        nodes.kill_first().await.map(|node| Some((node, at)))
    };
    let (outcome, killed) = {
        let replayed = replay(&client, map, events, &options, &progress);
        tokio::pin!(replayed, victim);
        tokio::select! {
            // A short stream may end before.
            outcome = &mut replayed => (outcome, None),
            killed = &mut victim => (replayed.await, killed?),
        }
    };
    progress.finish_and_clear();
    let mut outcome = outcome.context(source.clone())?;
    if let Some((node, at)) = killed {
        let after = at.saturating_duration_since(outcome.started);
        outcome.moments.push((after, format!("node {node} killed")));
        println!("killed     node {node}, with -9, after {} events", show_count(args.count / 2));
        let (_, _, events) = open(args, map)?;
        nothing_lost(&client, map, (events, &options), &outcome).await?;
    }
    write_report(&args.report, &source, map, &outcome)?;
    let found = made.map(|made| found(&made, &outcome));
    outcome.surprises.truncate(10);
    print_outcome(&outcome);
    if let Some((found, planted, among)) = found {
        println!(
            "anomalies  {found} of {planted} planted are among the {among} most surprising of {}",
            show_count(outcome.events)
        );
    }
    show_account(&client, map, &outcome).await?;
    println!("report     {}", args.report.display());
    Ok(())
}

/// Asks every event again under the request id that it had: what was acknowledged is stored, so
/// all are answered as repeats, and none is stepped a second time.
async fn nothing_lost(
    client: &Client,
    map: &Map,
    (events, options): (Events, &Options),
    first: &Outcome,
) -> anyhow::Result<()> {
    let progress = progress_bar(Some(first.events));
    let again = replay(client, map, events, options, &progress).await;
    progress.finish_and_clear();
    let again = again.context("ask every event again")?;
    ensure!(
        again.repeated == first.events && again.events == first.events,
        "{} of {} acknowledged events are there",
        again.repeated,
        first.events
    );
    let events = show_count(first.events);
    println!("lost       nothing: all {events} events asked again are answered as repeats");
    Ok(())
}

/// The events, where they come from, and what was planted in them.
fn open(args: &Args, map: &Map) -> anyhow::Result<(String, Option<Generated>, Events)> {
    if let Some(path) = &args.events {
        return Ok((path.display().to_string(), None, Events::open(path, map)?));
    }
    let shape = Shape {
        events: args.count,
        accounts: args.accounts,
        zipf: ZIPF,
        anomalies: args.anomalies,
        seed: args.seed,
    };
    let made = generate(&shape);
    let source = format!(
        "{} made-up transactions of {} accounts, {} anomalies planted, seed {}",
        show_count(args.count),
        show_count(args.accounts),
        made.anomalies.len(),
        args.seed
    );
    let events = Events::new(Box::new(std::io::Cursor::new(made.csv.clone())), map)?;
    Ok((source, Some(made), events))
}

fn found(made: &Generated, outcome: &Outcome) -> (usize, usize, usize) {
    let planted: HashSet<u64> = made.anomalies.iter().copied().collect();
    let found = outcome.surprises.iter().filter(|event| planted.contains(&event.line)).count();
    (found, planted.len(), outcome.surprises.len())
}

/// What is kept of the account with the most surprising event.
async fn show_account(client: &Client, map: &Map, outcome: &Outcome) -> anyhow::Result<()> {
    let Some(first) = outcome.surprises.first() else { return Ok(()) };
    let request = v1::GetRequest {
        collection: map.collection.clone(),
        key: first.key.clone().into_bytes().into(),
        ..Default::default()
    };
    print!("state      of account {}: ", first.key);
    print_state(&client.get(request).await?);
    Ok(())
}
