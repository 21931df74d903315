//! `statehouse prefetch`: brings states into memory before they are asked for.

use anyhow::bail;
use bytes::Bytes;
use serde_json::{Value as Json, json};
use statehouse_client::v1;
use statehouse_client::v1::prefetch_response::item::Result as Outcome;

use super::output::print_json;
use super::state::{bounded, selector};
use super::{Remote, text};

/// Keys of one call.
const KEYS_PER_CALL: usize = 4_096;

/// What `prefetch` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The collection.
    collection: String,
    /// The keys.
    #[arg(required = true)]
    keys: Vec<String>,
    /// A field that will be read, or a part of it, as `get` takes it. Repeat for more; none: all.
    #[arg(long = "field")]
    fields: Vec<String>,
    /// For reads from any replica that lags by no more, such as 100ms; none: at the leaders.
    #[arg(long, value_parser = text::duration)]
    max_lag: Option<std::time::Duration>,
    #[command(flatten)]
    remote: Remote,
}

/// What became of all keys.
#[derive(Default)]
struct Tally {
    in_memory: u64,
    loaded: u64,
    partly: u64,
    no_state: u64,
    /// Keys, and why.
    failed: Vec<(String, v1::Error)>,
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let client = args.remote.connect().await?;
    let (consistency, max_lag_ms) = args.max_lag.map(bounded).unwrap_or_default();
    let fields: Vec<v1::FieldSelector> =
        args.fields.iter().map(|text| selector(text)).collect::<anyhow::Result<_>>()?;
    let mut tally = Tally::default();
    for keys in args.keys.chunks(KEYS_PER_CALL) {
        let request = v1::PrefetchRequest {
            collection: args.collection.clone(),
            keys: keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect(),
            fields: fields.clone(),
            consistency,
            max_lag_ms,
        };
        let answer = client.prefetch(request).await?;
        for (key, item) in keys.iter().zip(answer.items) {
            tally.add(key, item.result);
        }
    }
    if args.remote.json {
        print_json(&tally.json());
    } else {
        println!("{}", tally.line());
        for (key, error) in &tally.failed {
            println!("  {key}: {}: {}", error.reason, error.message);
        }
    }
    if !tally.failed.is_empty() {
        bail!("{} of {} keys were not prefetched", tally.failed.len(), args.keys.len());
    }
    Ok(())
}

impl Tally {
    fn add(&mut self, key: &str, outcome: Option<Outcome>) {
        let warmth = match outcome {
            Some(Outcome::Warmth(warmth)) => v1::Warmth::try_from(warmth).unwrap_or_default(),
            Some(Outcome::Error(error)) => return self.failed.push((key.to_owned(), error)),
            None => v1::Warmth::Unspecified,
        };
        match warmth {
            v1::Warmth::InMemory => self.in_memory += 1,
            v1::Warmth::Loaded => self.loaded += 1,
            v1::Warmth::Partly => self.partly += 1,
            v1::Warmth::NoState => self.no_state += 1,
            v1::Warmth::Unspecified => {
                let message = "an answer that this program does not know".to_owned();
                let error = v1::Error { message, ..Default::default() };
                self.failed.push((key.to_owned(), error));
            }
        }
    }

    fn line(&self) -> String {
        let Tally { in_memory, loaded, partly, no_state, failed } = self;
        let mut line = format!("{loaded} loaded, {in_memory} found in memory");
        for (count, what) in [
            (*partly, "but for large fields"),
            (*no_state, "without a state"),
            (failed.len() as u64, "failed"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        line
    }

    fn json(&self) -> Json {
        let failed: Vec<Json> = self
            .failed
            .iter()
            .map(|(key, error)| json!({ "key": key, "reason": error.reason }))
            .collect();
        json!({
            "in_memory": self.in_memory,
            "loaded": self.loaded,
            "partly": self.partly,
            "no_state": self.no_state,
            "failed": failed,
        })
    }
}
