//! States of one size, written and read as streams, some at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::Value as Json;
use statehouse_client::{Client, v1};

use super::content::{Contents, Noise};
use super::tally::Tally;
use super::{Options, mixed};
use crate::bench::{COLLECTION, setup};

/// The key of a state of a size.
pub fn key(state_bytes: u64, rank: u64) -> Bytes {
    format!("of-{state_bytes}-{rank:07}").into()
}

/// A get of such a state, or of parts.
pub fn get(state_bytes: u64, rank: u64, fields: Vec<v1::FieldSelector>) -> v1::GetRequest {
    let (collection, key) = (COLLECTION.to_owned(), key(state_bytes, rank));
    v1::GetRequest { collection, key, fields, ..Default::default() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Write,
    Read,
}

/// Writes `count` states to `keys` keys.
pub async fn write(options: &Options) -> anyhow::Result<Json> {
    stream(options, |_| Way::Write, options.count).await
}

/// Reads `count` states of `keys` keys.
pub async fn read(options: &Options) -> anyhow::Result<Json> {
    stream(options, |_| Way::Read, options.count).await
}

/// Half of the workers write, half read, until the time is over.
pub async fn churn(options: &Options) -> anyhow::Result<Json> {
    let way = |worker| if worker % 2 == 0 { Way::Write } else { Way::Read };
    stream(options, way, u64::MAX).await
}

async fn stream(options: &Options, way: impl Fn(usize) -> Way, count: u64) -> anyhow::Result<Json> {
    let contents = Contents { noise: Noise::new(options.seed), model_fields: Vec::new() };
    setup::connect(&options.endpoint).await?;
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let until = started + options.duration;
    let workers = (0..options.workers).map(|worker| {
        let (way, next, contents) = (way(worker), next.clone(), contents.clone());
        let Options { endpoint, state_bytes, keys, .. } = options.clone();
        tokio::spawn(async move {
            let client = setup::client(&endpoint, false).await?;
            let mut tally = Tally::default();
            while Instant::now() < until {
                let number = next.fetch_add(1, Relaxed);
                if number >= count {
                    break;
                }
                let rank = number % keys.max(1);
                let numbers = (state_bytes, rank, number);
                match way {
                    Way::Write => one_write(&client, &contents, numbers, &mut tally).await,
                    Way::Read => one_read(&client, (state_bytes, rank), &mut tally).await,
                }
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

async fn one_write(
    client: &Client,
    contents: &Contents,
    (state_bytes, rank, salt): (u64, u64, u64),
    tally: &mut Tally,
) {
    // Of each state other bytes.
    let salt = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (header, mut source) = contents.write(key(state_bytes, rank), state_bytes, salt);
    let since = Instant::now();
    match client.write(header, &mut source, |_| {}).await {
        Ok(_) => tally.answered("write", since, state_bytes),
        Err(error) => {
            if let Some(wait) = tally.write_refused("write", &error) {
                tokio::time::sleep(wait).await;
            }
        }
    }
}

async fn one_read(client: &Client, (state_bytes, rank): (u64, u64), tally: &mut Tally) {
    let since = Instant::now();
    match mixed::read(client, get(state_bytes, rank, Vec::new())).await {
        Ok(bytes) => tally.answered("read", since, bytes),
        Err(error) => {
            if let Some(wait) = tally.refused("read", &error) {
                tokio::time::sleep(wait).await;
            }
        }
    }
}
