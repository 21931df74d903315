//! `statehouse score`: one event, next to its state.

use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use statehouse_client::{Client, v1};

use super::output::{print_json, show_tensor, tensor_json};
use super::{Remote, field, text};

/// What `score` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, or MODEL:VERSION.
    model: String,
    /// The collection that holds the state.
    collection: String,
    /// Whose state.
    key: String,
    /// NAME=VALUE or NAME:TYPE=VALUE: JSON numbers or @file.npy, one row each.
    inputs: Vec<String>,
    /// Also write the model's new state back, and answer after the commit.
    #[arg(long)]
    step: bool,
    /// An idempotency key for --step: the same id steps once.
    #[arg(long, requires = "step")]
    request_id: Option<String>,
    /// An output to answer. Repeat for more; none: all.
    #[arg(long = "output")]
    outputs: Vec<String>,
    /// Take the state from any replica that lags by no more, such as 100ms; none: the newest.
    #[arg(long, value_parser = text::duration, conflicts_with = "step")]
    max_lag: Option<Duration>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (model, version) = super::model::name_and_version(&args.model)?;
    let mode = if args.step { v1::ScoreMode::Step } else { v1::ScoreMode::Peek };
    let client = args.remote.connect().await?;
    let names = match args.inputs.iter().any(|text| field::is_ambiguous(text)) {
        true => input_names(&client, &model, version).await,
        false => Vec::new(),
    };
    let inputs = args.inputs.iter().map(|text| field::parse_input(text, &names));
    let request = v1::ScoreRequest {
        model,
        model_version: version,
        collection: args.collection,
        key: args.key.into_bytes().into(),
        inputs: inputs.collect::<anyhow::Result<_>>()?,
        mode: mode as i32,
        request_id: args.request_id.unwrap_or_default().into(),
        outputs: args.outputs,
        ..freshness(args.max_lag)
    };
    let scored = client.score(request).await?;
    super::state::warn(scored.size_warning);
    if args.remote.json {
        print_json(&score_json(&scored));
    } else {
        print_score(&scored);
    }
    Ok(())
}

/// The names of a model's inputs; none if nobody knows, which the score itself will tell.
async fn input_names(client: &Client, model: &str, version: u64) -> Vec<String> {
    let Ok(found) = client.describe_model(model).await else { return Vec::new() };
    let wanted = if version == 0 { found.active_version } else { version };
    let inputs = found.versions.into_iter().filter(|one| one.version == wanted);
    inputs.flat_map(|one| one.inputs).map(|input| input.name).collect()
}

/// A request that says only how fresh the state must be.
fn freshness(max_lag: Option<Duration>) -> v1::ScoreRequest {
    let Some(max_lag) = max_lag else { return v1::ScoreRequest::default() };
    let (consistency, max_lag_ms) = super::state::bounded(max_lag);
    v1::ScoreRequest { consistency, max_lag_ms, ..Default::default() }
}

fn score_json(scored: &v1::ScoreResponse) -> Json {
    let outputs: Map<String, Json> = scored
        .outputs
        .iter()
        .map(|output| {
            let tensor = output.tensor.as_ref().map_or(Json::Null, tensor_json);
            (output.name.clone(), tensor)
        })
        .collect();
    json!({
        "outputs": outputs,
        "state_version": scored.state_version,
        "model_version": scored.model_version,
        "from_initial_state": scored.from_initial_state,
        "repeated": scored.repeated_request,
        "lag_ms": scored.lag_ms,
    })
}

fn print_score(scored: &v1::ScoreResponse) {
    for output in &scored.outputs {
        let shown = output.tensor.as_ref().map_or_else(String::new, show_tensor);
        println!("{}  {shown}", output.name);
    }
    let from = if scored.from_initial_state { ", from the initial state" } else { "" };
    println!(
        "state version {}, model version {}{from}",
        scored.state_version, scored.model_version
    );
}
