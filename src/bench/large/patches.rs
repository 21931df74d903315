//! A patch of 4 KiB in a large state beside a put of 4 KiB, in turns, one at a time.

use std::time::Instant;

use anyhow::Context as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value as Json;
use statehouse_client::v1;
use statehouse_client::v1::edit::{Edit, WriteRange};

use super::Options;
use super::content::{Contents, Noise, VALUE};
use super::plan::RANGE_BYTES;
use super::streams::key;
use super::tally::Tally;
use crate::bench::{COLLECTION, setup};

/// Patches states that are there, `count` times.
pub async fn patches(options: &Options) -> anyhow::Result<Json> {
    let client = setup::connect(&options.endpoint).await?;
    let contents = Contents { noise: Noise::new(options.seed), model_fields: Vec::new() };
    let mut random = SmallRng::seed_from_u64(options.seed);
    let places =
        options.state_bytes.checked_sub(RANGE_BYTES).context("states of 4 KiB at least")?;
    let started = Instant::now();
    let mut tally = Tally::default();
    for number in 0..options.count {
        if started.elapsed() > options.duration {
            break;
        }
        let salt = random.random();
        let (rank, offset) =
            (random.random_range(0..options.keys), random.random_range(0..=places));
        let data = contents.noise.slice(salt, 0, RANGE_BYTES as usize);
        let edit = Edit::WriteRange(WriteRange { field: VALUE.to_owned(), offset, data });
        let patch = v1::PatchRequest {
            collection: COLLECTION.to_owned(),
            key: key(options.state_bytes, rank),
            edits: vec![v1::Edit { edit: Some(edit) }],
            options: None,
        };
        let since = Instant::now();
        match client.patch(patch).await {
            Ok(_) => tally.answered("patch", since, RANGE_BYTES),
            Err(error) => _ = tally.refused("patch", &error),
        }
        let put = contents.put(key(RANGE_BYTES, number % options.keys), RANGE_BYTES, salt);
        let since = Instant::now();
        match client.put(put).await {
            Ok(_) => tally.answered("put", since, RANGE_BYTES),
            Err(error) => _ = tally.refused("put", &error),
        }
    }
    Ok(tally.json(started.elapsed()))
}
