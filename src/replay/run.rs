//! Sends events as steps, pipelined, in order per key, and measures.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::{Client, Error, v1};
use statehouse_inference::{DType, Tensor};

use super::{Event, Events, Map};
use crate::dtype;

/// How to replay.
#[derive(Debug, Clone)]
pub struct Options {
    /// Steps under way at a time.
    pub in_flight: usize,
    /// Peek instead of step: the states stay.
    pub peek: bool,
    /// Names this run: the same name again steps no event twice, as long as the node remembers
    /// its request ids.
    pub run_id: String,
    /// Most surprising events to keep.
    pub top: usize,
    /// First events of a key that are not listed: everything about a new key is surprising.
    pub unlisted: u32,
    /// Stop after so many events.
    pub limit: Option<u64>,
}

/// An event and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Surprise {
    /// What the model said; higher is more surprising.
    pub score: f64,
    /// Its line in the file.
    pub line: u64,
    /// Whose it was.
    pub key: String,
    /// The columns that the map shows.
    pub label: String,
}

impl Eq for Surprise {}

impl PartialOrd for Surprise {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Surprise {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.line.cmp(&self.line))
    }
}

/// What happened in one slice of the run's time.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    /// Events answered.
    pub events: u64,
    /// Microseconds, at the 50th and 99th percentile.
    pub p50_us: u64,
    /// Microseconds.
    pub p99_us: u64,
}

/// What a replay came to.
pub struct Outcome {
    /// Events answered.
    pub events: u64,
    /// Of those, answers to request ids that had been seen.
    pub repeated: u64,
    /// From the first send to the last answer.
    pub elapsed: Duration,
    /// Microseconds from send to answer.
    pub latency: Histogram<u64>,
    /// How many events ran in batches of so many rows.
    pub batch_rows: Histogram<u64>,
    /// Latency over time.
    pub slices: Vec<Slice>,
    /// How long a slice is.
    pub slice: Duration,
    /// When the first slice began.
    pub started: Instant,
    /// What happened during the run that is worth a mark in its charts, and when, from its start.
    pub moments: Vec<(Duration, String)>,
    /// What the model said on average; NaN if it said nothing finite.
    pub score_mean: f64,
    /// Most surprising first.
    pub surprises: Vec<Surprise>,
}

/// Length of a slice.
const SLICE: Duration = Duration::from_millis(250);

/// Latencies above this are counted as this, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

struct Meter {
    outcome: Outcome,
    slice_latency: Histogram<u64>,
    top: usize,
    score_sum: f64,
    scores: u64,
    surprises: BinaryHeap<Reverse<Surprise>>,
}

/// Replays all events. Fails at the first event that can't be read or scored, by its line.
pub async fn run(
    client: &Client,
    map: &Map,
    mut events: Events,
    options: &Options,
    progress: &ProgressBar,
) -> anyhow::Result<Outcome> {
    events.fit(map, &declared(client, map).await?)?;
    let mut meter = Meter::new(options)?;
    let mut under_way = FuturesUnordered::new();
    let mut more = true;
    let mut sent = 0;
    let mut seen = HashMap::<String, u32>::new();
    while more || !under_way.is_empty() {
        if more && under_way.len() < options.in_flight {
            let wanted = options.limit.is_none_or(|limit| sent < limit);
            let Some(event) = wanted.then(|| events.read()).transpose()?.flatten() else {
                more = false;
                continue;
            };
            sent += 1;
            let Event { line, key, inputs, label } = event;
            // Counted in the order of the events: answers come in another one each time.
            let of_key = seen.entry(key.clone()).or_default();
            *of_key = of_key.saturating_add(1);
            let listed = *of_key > options.unlisted;
            let call = Call::Score(request(map, options, line, &key, inputs));
            let at = Instant::now();
            let answer = client.send(call).await.map_err(|error| at_line(line, error))?;
            under_way.push(async move { (at, line, key, label, listed, answer.await) });
            continue;
        }
        let Some((at, line, key, label, listed, answer)) = under_way.next().await else { continue };
        let Answer::Score(scored) = answer.map_err(|error| at_line(line, error))? else {
            return Err(at_line(line, Error::Unexpected("not the answer of a score")));
        };
        let score = score_of(map, &scored).unwrap_or(f64::NAN);
        let surprise = Surprise { score, line, key, label };
        meter.record(at.elapsed(), &scored, score, listed.then_some(surprise));
        progress.inc(1);
    }
    Ok(meter.finish())
}

fn request(
    map: &Map,
    options: &Options,
    line: u64,
    key: &str,
    inputs: Vec<v1::NamedTensor>,
) -> v1::ScoreRequest {
    let (mode, request_id) = if options.peek {
        (v1::ScoreMode::Peek, String::new())
    } else {
        (v1::ScoreMode::Step, format!("{}-{line}", options.run_id))
    };
    v1::ScoreRequest {
        model: map.model.clone(),
        model_version: 0,
        collection: map.collection.clone(),
        key: key.to_owned().into(),
        inputs,
        mode: mode as i32,
        request_id: request_id.into(),
        ..Default::default()
    }
}

/// The first number of the output that the map names, or of the first one.
fn score_of(map: &Map, scored: &v1::ScoreResponse) -> Option<f64> {
    let wanted =
        |output: &&v1::NamedTensor| map.score.as_ref().is_none_or(|name| *name == output.name);
    let tensor = scored.outputs.iter().find(wanted)?.tensor.as_ref()?;
    first_number(tensor)
}

/// The first element of a tensor of any type.
fn first_number(tensor: &v1::Tensor) -> Option<f64> {
    let dtype = dtype::to_inference(dtype::from_proto(tensor.dtype)?);
    let first = tensor.data.get(..dtype.size_bytes())?;
    if dtype == DType::F32 {
        // As few digits as it has.
        return f32::from_le_bytes(first.try_into().ok()?).to_string().parse().ok();
    }
    let first = Tensor::new(dtype, Vec::new(), Bytes::copy_from_slice(first)).ok()?;
    first.to_f64().first().copied()
}

/// The inputs that the model declares.
async fn declared(client: &Client, map: &Map) -> anyhow::Result<Vec<v1::TensorSpec>> {
    let found = client.describe_model(&map.model).await?;
    let active = found.versions.into_iter().find(|found_version| {
        found_version.version == found.active_version && found_version.loaded
    });
    let active = active.with_context(|| format!("model {:?} has no active version", map.model))?;
    Ok(active.inputs)
}

fn at_line(line: u64, error: Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("line {line}"))
}

impl Meter {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let started = Instant::now();
        let outcome = Outcome {
            events: 0,
            repeated: 0,
            elapsed: Duration::ZERO,
            latency: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
            batch_rows: Histogram::new(3)?,
            slices: Vec::new(),
            slice: SLICE,
            started,
            moments: Vec::new(),
            score_mean: f64::NAN,
            surprises: Vec::new(),
        };
        let slice_latency = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?;
        Ok(Meter {
            outcome,
            slice_latency,
            top: options.top,
            score_sum: 0.0,
            scores: 0,
            surprises: BinaryHeap::new(),
        })
    }

    fn record(
        &mut self,
        latency: Duration,
        scored: &v1::ScoreResponse,
        score: f64,
        listed: Option<Surprise>,
    ) {
        let us = (latency.as_micros() as u64).clamp(1, LATENCY_US_MAX);
        self.close_slices();
        self.outcome.events += 1;
        self.outcome.repeated += u64::from(scored.repeated_request);
        self.outcome.latency.saturating_record(us);
        self.slice_latency.saturating_record(us);
        if scored.batch_rows > 0 {
            self.outcome.batch_rows.saturating_record(scored.batch_rows.into());
        }
        if !score.is_finite() {
            return;
        }
        self.score_sum += score;
        self.scores += 1;
        let Some(surprise) = listed.filter(|_| self.top > 0) else { return };
        self.surprises.push(Reverse(surprise));
        if self.surprises.len() > self.top {
            self.surprises.pop();
        }
    }

    fn close_slices(&mut self) {
        let due = (self.outcome.started.elapsed().as_millis() / SLICE.as_millis()) as usize;
        while self.outcome.slices.len() < due {
            self.close_slice();
        }
    }

    fn close_slice(&mut self) {
        let latency = &self.slice_latency;
        self.outcome.slices.push(Slice {
            events: latency.len(),
            p50_us: latency.value_at_quantile(0.5),
            p99_us: latency.value_at_quantile(0.99),
        });
        self.slice_latency.reset();
    }

    fn finish(mut self) -> Outcome {
        self.outcome.elapsed = self.outcome.started.elapsed();
        self.outcome.score_mean = self.score_sum / self.scores as f64;
        self.close_slices();
        if self.outcome.slices.is_empty() {
            // All of it took less than a slice.
            self.close_slice();
        }
        self.outcome.surprises =
            self.surprises.into_sorted_vec().into_iter().map(|Reverse(found)| found).collect();
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_that_took_less_than_a_slice_has_one() {
        let options = Options {
            in_flight: 1,
            peek: false,
            run_id: String::new(),
            top: 0,
            unlisted: 0,
            limit: None,
        };
        let mut meter = Meter::new(&options).unwrap();
        meter.record(Duration::from_millis(2), &v1::ScoreResponse::default(), 1.0, None);
        let slices = meter.finish().slices;
        assert_eq!(slices.iter().map(|slice| slice.events).sum::<u64>(), 1, "it is in a chart");
    }

    #[test]
    fn a_score_of_any_type_is_read() {
        let tensor = |dtype: v1::DataType, data: &[u8]| v1::Tensor {
            dtype: dtype as i32,
            shape: vec![1],
            data: Bytes::copy_from_slice(data),
        };
        let read = |dtype, data: &[u8]| first_number(&tensor(dtype, data));
        assert_eq!(read(v1::DataType::I64, &(-3_i64).to_le_bytes()), Some(-3.0));
        assert_eq!(read(v1::DataType::F64, &2.5_f64.to_le_bytes()), Some(2.5));
        assert_eq!(read(v1::DataType::F32, &0.1_f32.to_le_bytes()), Some(0.1), "as it is written");
        assert_eq!(read(v1::DataType::I64, &[0; 4]), None);
    }
}
