//! A node killed with -9 at any time keeps every write and every step that it acknowledged.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::{
    House, bank_model, bank_score, bytes_field, create, field_bytes, get, push, put, seed,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::{Client, v1};
use tokio::sync::Mutex;

/// Kills of one run.
const KILLS: usize = 8;

/// Writers under way at a time; each owns its keys.
const WRITERS: u64 = 16;

/// Keys of one writer.
const KEYS: u64 = 8;

/// What each key must hold at least: the last acknowledged value, and the one that was under way
/// when the node was killed, which may or may not have happened.
#[derive(Debug, Clone, Copy, Default)]
struct Expected {
    acknowledged: u64,
    attempted: u64,
}

type Ledger = Arc<Mutex<HashMap<String, Expected>>>;

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_kill_9_in_a_loop() {
    let mut random = StdRng::seed_from_u64(seed());
    let house = House::new();
    let ledger = Ledger::default();
    for kill in 0..KILLS {
        let node = house.start();
        let client = node.client_with(2).await;
        if kill == 0 {
            create(&client, "ledger").await;
        }
        check(&client, &ledger).await;
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, ledger) = (client.clone(), ledger.clone());
                let (acknowledged, seed) = (acknowledged.clone(), random.random());
                tokio::spawn(write(client, ledger, writer, acknowledged, seed))
            })
            .collect();
        // Killed after a random number of acknowledged writes, so in the middle of others.
        let enough = random.random_range(50..600);
        while acknowledged.load(Ordering::Relaxed) < enough {
            tokio::task::yield_now().await;
        }
        node.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
    let node = house.start();
    check(&node.client().await, &ledger).await;
}

/// Counts its keys up until the node is gone.
async fn write(
    client: Client,
    ledger: Ledger,
    writer: u64,
    acknowledged: Arc<AtomicU64>,
    seed: u64,
) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let key = format!("{writer}-{}", random.random_range(0..KEYS));
        let value = {
            let mut ledger = ledger.lock().await;
            let expected = ledger.entry(key.clone()).or_default();
            expected.attempted = expected.acknowledged.max(expected.attempted) + 1;
            expected.attempted
        };
        // Some are large enough to lie in chunks.
        let padding = if random.random_bool(0.1) { 300_000 } else { 100 };
        let fields = vec![
            bytes_field("value", value.to_string()),
            bytes_field("padding", vec![value as u8; padding]),
        ];
        // Without a request id nothing is sent twice: an error leaves the outcome open.
        if client.put(put("ledger", &key, fields)).await.is_err() {
            return;
        }
        ledger.lock().await.get_mut(&key).unwrap().acknowledged = value;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

async fn check(client: &Client, ledger: &Ledger) {
    for (key, expected) in ledger.lock().await.iter_mut() {
        let found = match client.get(get("ledger", key)).await {
            Ok(state) => {
                let value = String::from_utf8(field_bytes(&state, "value").to_vec()).unwrap();
                let value: u64 = value.parse().unwrap();
                let padding = field_bytes(&state, "padding");
                assert!(padding.iter().all(|byte| *byte == value as u8), "{key}: mixed padding");
                value
            }
            Err(error) if error.reason() == Some("STATE_NOT_FOUND") => 0,
            Err(error) => panic!("{key}: {error}"),
        };
        let (least, most) = (expected.acknowledged, expected.attempted);
        assert!((least..=most).contains(&found), "{key}: {found} is not in {least}..={most}");
        *expected = Expected { acknowledged: found, attempted: found };
    }
}

/// Steps carry request ids: repeated after the kill, each has happened exactly once in the end.
#[tokio::test(flavor = "multi_thread")]
async fn every_event_steps_its_state_exactly_once_across_kills() {
    const EVENTS: usize = 240;
    const ACCOUNTS: usize = 4;
    let mut random = StdRng::seed_from_u64(seed());
    let amounts: Vec<f32> =
        (0..EVENTS).map(|_| random.random_range(1.0f32..900.0).round()).collect();
    let step = |event: usize| {
        let key = format!("account-{}", event % ACCOUNTS);
        let request_id = format!("event-{event}").into();
        v1::ScoreRequest { request_id, ..bank_score(&key, amounts[event], v1::ScoreMode::Step) }
    };

    // Killed again and again, each event sent until it is answered.
    let house = House::new();
    let mut node = house.start();
    let mut client = node.client().await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    for event in 0..EVENTS {
        let killed = random.random_bool(0.03);
        if killed {
            // In the middle of a step, that may or may not be committed.
            let under_way = tokio::spawn({
                let (client, request) = (client.clone(), step(event));
                async move { client.score(request).await }
            });
            for _ in 0..random.random_range(0..200) {
                tokio::task::yield_now().await;
            }
            node.kill();
            // Its outcome is open on purpose.
            drop(under_way.await);
            node = house.start();
            client = node.client().await;
        }
        client.score(step(event)).await.unwrap();
    }

    // The same events on a node that nobody kills.
    let calm = House::new();
    let calm_node = calm.start();
    let calm_client = calm_node.client().await;
    create(&calm_client, "accounts").await;
    push(&calm_client, &bank_model()).await.unwrap();
    for event in 0..EVENTS {
        calm_client.score(step(event)).await.unwrap();
    }
    for account in 0..ACCOUNTS {
        let key = format!("account-{account}");
        let (killed, calm) =
            tokio::join!(client.get(get("accounts", &key)), calm_client.get(get("accounts", &key)));
        assert_eq!(killed.unwrap().fields, calm.unwrap().fields, "{key}");
    }
}
