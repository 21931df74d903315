//! All kinds of calls on states of all sizes, by several clients of a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use futures::future::try_join_all;
use serde_json::{Value as Json, json};
use statehouse_client::v1::batch_put_response::item::Result as PutResult;
use statehouse_client::v1::edit::{Append, Edit, WriteRange};
use statehouse_client::v1::{self, pipeline_response::Result as Answer};
use statehouse_client::{Client, Error, WriteError};

use super::Options;
use super::content::{Contents, Noise, VALUE};
use super::plan::{self, Call, Class, Draws, Id, KINDS, Kind, RANGE_BYTES};
use super::tally::{Tally, pressure};
use crate::bench::{COLLECTION, setup};

/// Bytes that an append adds.
const APPENDED_BYTES: usize = 1 << 10;

/// What all workers share.
struct Work {
    classes: Vec<Class>,
    contents: Contents,
    inputs: Vec<v1::NamedTensor>,
    model: String,
}

impl Work {
    async fn new(options: &Options) -> anyhow::Result<Self> {
        let client = setup::connect(&options.endpoint).await?;
        // States are made here: what the model keeps and takes is all that is asked for.
        let least = plan::classes(options.total_bytes)[0].bytes as usize;
        let model = options.model.as_str();
        let payload = setup::prepare(Some(&client), Some(model), least, options.seed).await?;
        let is_model = |field: &v1::Field| field.name != VALUE;
        let model_fields = payload.fields.into_iter().filter(is_model).collect();
        Ok(Work {
            classes: plan::classes(options.total_bytes),
            contents: Contents { noise: Noise::new(options.seed), model_fields },
            inputs: payload.inputs,
            model: payload.model,
        })
    }

    fn bytes_of(&self, id: Id) -> u64 {
        self.classes[usize::from(id.class)].bytes
    }

    fn value_bytes(&self, id: Id) -> u64 {
        self.contents.value_bytes(self.bytes_of(id))
    }

    fn put(&self, id: Id, salt: u64) -> v1::PutRequest {
        self.contents.put(id.key(), self.bytes_of(id), salt)
    }
}

/// Writes all states.
pub async fn load(options: &Options) -> anyhow::Result<Json> {
    let work = Arc::new(Work::new(options).await?);
    let calls = Arc::new(plan::calls(&work.classes, options.seed));
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let workers = (0..options.workers).map(|_| {
        let (work, calls, next) = (work.clone(), calls.clone(), next.clone());
        let endpoint = options.endpoint.clone();
        tokio::spawn(async move {
            let client = setup::client(&endpoint, false).await?;
            let mut waits = 0u64;
            while let Some(ids) = calls.get(next.fetch_add(1, Relaxed)) {
                waits += write_all(&client, &work, ids).await?;
            }
            anyhow::Ok(waits)
        })
    });
    let mut waits = 0;
    for worker in try_join_all(workers).await? {
        waits += worker?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let bytes: u64 = work.classes.iter().map(|class| class.bytes * class.states).sum();
    let states: u64 = work.classes.iter().map(|class| class.states).sum();
    Ok(json!({
        "bytes": bytes, "states": states, "seconds": seconds, "pressure": waits,
        "mb_per_second": bytes as f64 / 1e6 / seconds,
    }))
}

/// Writes some states, again after back-pressure. Answers how often that was.
async fn write_all(client: &Client, work: &Work, ids: &[Id]) -> anyhow::Result<u64> {
    let mut waits = 0;
    if let [id] = ids
        && plan::is_streamed(*id)
    {
        loop {
            let (header, mut source) = work.contents.write(id.key(), work.bytes_of(*id), id.salt());
            match client.write(header, &mut source, |_| {}).await {
                Ok(_) => return Ok(waits),
                Err(WriteError::Refused(error)) => wait_out(&error, &mut waits).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let mut left = ids.to_vec();
    while !left.is_empty() {
        let puts = left.iter().map(|id| work.put(*id, id.salt())).collect();
        let items = match client.batch_put(v1::BatchPutRequest { puts }).await {
            Ok(answer) => answer.items,
            Err(error) => {
                wait_out(&error, &mut waits).await?;
                continue;
            }
        };
        let (mut again, mut refusal) = (Vec::new(), None);
        for (id, item) in left.into_iter().zip(items) {
            match item.result {
                Some(PutResult::Written(_)) => {}
                Some(PutResult::Error(error)) => {
                    again.push(id);
                    refusal = Some(Error::from(error));
                }
                None => bail!("a put without a result"),
            }
        }
        left = again;
        if let Some(error) = refusal {
            wait_out(&error, &mut waits).await?;
        }
    }
    Ok(waits)
}

async fn wait_out(error: &Error, waits: &mut u64) -> anyhow::Result<()> {
    let wait = pressure(error).ok_or_else(|| anyhow!("load: {error}"))?;
    *waits += 1;
    tokio::time::sleep(wait).await;
    Ok(())
}

/// Makes all kinds of calls until the time is over.
pub async fn run(options: &Options) -> anyhow::Result<Json> {
    let work = Arc::new(Work::new(options).await?);
    let started = Instant::now();
    let until = started + options.duration;
    let workers = (0..options.workers as u64).map(|worker| {
        let (work, endpoint) = (work.clone(), options.endpoint.clone());
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(worker);
        let mut draws = Draws::new(&work.classes, options.zipf, seed);
        tokio::spawn(async move {
            let client = setup::client(&endpoint, false).await?;
            let mut tally = Tally::default();
            while Instant::now() < until {
                let wait = make(&client, &work, draws.draw(), &mut tally).await;
                tokio::time::sleep(wait).await;
            }
            anyhow::Ok(tally)
        })
    });
    let mut tally = Tally::default();
    for worker in try_join_all(workers).await? {
        tally.add(worker?)?;
    }
    Ok(tally.json(started.elapsed()))
}

/// Makes one call; answers how long the node asks to wait.
async fn make(client: &Client, work: &Work, call: Call, tally: &mut Tally) -> Duration {
    let (name, since) = (KINDS[call.kind as usize].1, Instant::now());
    let (id, range) = (call.id, range_of(work, &call));
    let answer = match call.kind {
        Kind::Get => client.get(get(id, Vec::new())).await.map(|state| bytes_in(&state)),
        Kind::Range => client.get(get(id, vec![range])).await.map(|state| bytes_in(&state)),
        Kind::Read => read(client, get(id, Vec::new())).await,
        Kind::Put => client.put(work.put(id, call.salt)).await.map(|_| work.bytes_of(id)),
        Kind::WriteRange | Kind::Append => {
            let (edit, bytes) = edit_of(work, &call, range.offset.unwrap_or_default());
            client.patch(patch(id, edit)).await.map(|_| bytes)
        }
        Kind::Step => step(client, work, id).await,
        Kind::Write => {
            let (header, mut source) = work.contents.write(id.key(), work.bytes_of(id), call.salt);
            return match client.write(header, &mut source, |_| {}).await {
                Ok(_) => {
                    tally.answered(name, since, work.bytes_of(id));
                    Duration::ZERO
                }
                Err(error) => tally.write_refused(name, &error).unwrap_or_default(),
            };
        }
    };
    match answer {
        Ok(bytes) => {
            tally.answered(name, since, bytes);
            Duration::ZERO
        }
        Err(error) => tally.refused(name, &error).unwrap_or_default(),
    }
}

fn range_of(work: &Work, call: &Call) -> v1::FieldSelector {
    let places = work.value_bytes(call.id).saturating_sub(RANGE_BYTES) + 1;
    let (offset, length) = (Some(call.salt % places), Some(RANGE_BYTES));
    v1::FieldSelector { name: VALUE.to_owned(), offset, length, ..Default::default() }
}

fn get(id: Id, fields: Vec<v1::FieldSelector>) -> v1::GetRequest {
    let collection = COLLECTION.to_owned();
    v1::GetRequest { collection, key: id.key(), fields, ..Default::default() }
}

fn bytes_in(state: &v1::StoredState) -> u64 {
    let value = state.fields.iter().find(|field| field.name == VALUE);
    match value.and_then(|field| field.value.as_ref()) {
        Some(v1::field::Value::Bytes(bytes)) => bytes.len() as u64,
        Some(v1::field::Value::Tensor(_)) | None => 0,
    }
}

/// Reads a stream to its end.
pub(super) async fn read(client: &Client, request: v1::GetRequest) -> Result<u64, Error> {
    let (mut stream, mut bytes) = (client.open(request).await?, 0);
    while let Some(chunk) = stream.next_chunk().await? {
        bytes += chunk.data.len() as u64;
    }
    Ok(bytes)
}

fn edit_of(work: &Work, call: &Call, offset: u64) -> (Edit, u64) {
    let field = VALUE.to_owned();
    if call.kind == Kind::Append {
        let data = work.contents.noise.slice(call.salt, 0, APPENDED_BYTES);
        // As long as it was: its front makes room.
        let max_bytes = Some(work.value_bytes(call.id));
        return (Edit::Append(Append { field, data, max_bytes }), APPENDED_BYTES as u64);
    }
    let data = work.contents.noise.slice(call.salt, 0, RANGE_BYTES as usize);
    (Edit::WriteRange(WriteRange { field, offset, data }), RANGE_BYTES)
}

fn patch(id: Id, edit: Edit) -> v1::PatchRequest {
    let edits = vec![v1::Edit { edit: Some(edit) }];
    v1::PatchRequest { collection: COLLECTION.to_owned(), key: id.key(), edits, options: None }
}

async fn step(client: &Client, work: &Work, id: Id) -> Result<u64, Error> {
    let request = v1::ScoreRequest {
        model: work.model.clone(),
        collection: COLLECTION.to_owned(),
        key: id.key(),
        inputs: work.inputs.clone(),
        mode: v1::ScoreMode::Step as i32,
        ..Default::default()
    };
    match client.call(v1::pipeline_request::Call::Score(request)).await? {
        Answer::Score(_) => Ok(0),
        _ => Err(Error::Unexpected("not the answer of a score")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_place() {
        for (at, (kind, _, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }
}
