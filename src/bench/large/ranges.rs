//! 4 KiB out of large states and of states of 1 MiB, at places never read before and again at the
//! same ones; and whole states to their last byte. One call at a time.

use std::time::Instant;

use anyhow::ensure;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value as Json;
use statehouse_client::{Client, v1};

use super::content::VALUE;
use super::plan::RANGE_BYTES;
use super::streams::get;
use super::tally::Tally;
use super::{Options, mixed};
use crate::bench::setup;

/// What the disk gives at once: of two places within one, the second is not cold.
const CHUNK_BYTES: u64 = 256 << 10;

/// The size beside which large states are measured, and how many bytes of such states there are
/// for each byte of large ones.
const BESIDE_BYTES: u64 = 1 << 20;

/// Reads `count` places of `keys` states, and as many of the same number of bytes in states of
/// 1 MiB.
pub async fn ranges(options: &Options) -> anyhow::Result<Json> {
    let client = setup::client(&options.endpoint, false).await?;
    let beside_keys = options.keys * options.state_bytes / BESIDE_BYTES;
    let large = places(options.keys, options.state_bytes, options);
    let beside = places(beside_keys, BESIDE_BYTES, options);
    ensure!(large.len() as u64 >= options.count, "fewer chunks than reads: more --keys");
    let started = Instant::now();
    let mut tally = Tally::default();
    for (large, beside) in large.iter().zip(&beside).take(options.count as usize) {
        if started.elapsed() > options.duration {
            break;
        }
        read_range(&client, options.state_bytes, *large, "large_cold", &mut tally).await;
        read_range(&client, options.state_bytes, *large, "large_hot", &mut tally).await;
        read_range(&client, BESIDE_BYTES, *beside, "beside_cold", &mut tally).await;
        read_range(&client, BESIDE_BYTES, *beside, "beside_hot", &mut tally).await;
    }
    Ok(tally.json(started.elapsed()))
}

/// States and offsets, one in each chunk, in random order.
fn places(keys: u64, state_bytes: u64, options: &Options) -> Vec<(u64, u64)> {
    let mut random = SmallRng::seed_from_u64(options.seed);
    let mut places = Vec::new();
    for rank in 0..keys {
        for chunk in 0..state_bytes / CHUNK_BYTES {
            let within = random.random_range(0..CHUNK_BYTES / RANGE_BYTES) * RANGE_BYTES;
            places.push((rank, chunk * CHUNK_BYTES + within));
        }
    }
    places.shuffle(&mut random);
    places
}

async fn read_range(
    client: &Client,
    state_bytes: u64,
    (rank, offset): (u64, u64),
    name: &'static str,
    tally: &mut Tally,
) {
    let (offset, length) = (Some(offset), Some(RANGE_BYTES));
    let field = v1::FieldSelector { name: VALUE.to_owned(), offset, length, ..Default::default() };
    let since = Instant::now();
    match client.get(get(state_bytes, rank, vec![field])).await {
        Ok(_) => tally.answered(name, since, RANGE_BYTES),
        Err(error) => _ = tally.refused(name, &error),
    }
}

/// Reads whole states, as a stream, and 4 KiB of each.
pub async fn whole(options: &Options) -> anyhow::Result<Json> {
    let client = setup::client(&options.endpoint, false).await?;
    let started = Instant::now();
    let mut tally = Tally::default();
    for number in 0..options.count {
        if started.elapsed() > options.duration {
            break;
        }
        let rank = number % options.keys;
        let since = Instant::now();
        match mixed::read(&client, get(options.state_bytes, rank, Vec::new())).await {
            Ok(bytes) => tally.answered("whole", since, bytes),
            Err(error) => _ = tally.refused("whole", &error),
        }
        let place = (rank, options.state_bytes / 2);
        read_range(&client, options.state_bytes, place, "range", &mut tally).await;
    }
    Ok(tally.json(started.elapsed()))
}
