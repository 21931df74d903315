//! A node that was away while more was written than logs are kept for gets a snapshot, and then
//! has what the others have.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1;

use crate::harness::cluster::Cluster;
use crate::harness::{bytes_field, create, field_bytes, put, seed};

/// More than a log is kept for, in pieces.
const PIECE_BYTES: usize = 1 << 20;
const PIECES: u64 = 100;

/// Longer than a log is kept for a follower that is away (10 s), and then purged (5 s).
const ABSENCE: Duration = Duration::from_secs(17);

/// Absences until one was long enough, on a machine that may be slow.
const ABSENCES_MAX: u32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut cluster = Cluster::start(3).await;
    create(&cluster.client(1).await, "large").await;
    let mut last = 0u64;
    for absence in 1..=ABSENCES_MAX {
        let away = random.random_range(1..=3);
        let other = away % 3 + 1;
        cluster.kill(away);
        cluster.leader(1).await;
        let (since, first) = (Instant::now(), last);
        while last < first + PIECES || since.elapsed() < ABSENCE {
            last += 1;
            let client = cluster.client(other).await;
            let piece = Bytes::from(vec![last as u8; PIECE_BYTES]);
            // One key, so one shard; its replicas that stay are enough.
            let options = v1::WriteOptions {
                request_id: last.to_le_bytes().to_vec().into(),
                ..Default::default()
            };
            let request = v1::PutRequest {
                options: Some(options),
                ..put("large", "key", vec![bytes_field("piece", piece)])
            };
            client.put(request).await.unwrap();
        }
        cluster.start_node(away).await;
        cluster.whole().await;
        cluster.level().await;
        let found = of_its_own(&cluster, away).await;
        let piece = field_bytes(&found, "piece");
        assert_eq!((piece.len(), piece[0]), (PIECE_BYTES, last as u8));
        if cluster.log_says(away, "installing a view") {
            println!("a snapshot after absence {absence}");
            return;
        }
    }
    panic!("no snapshot was taken in {ABSENCES_MAX} absences");
}

/// What a node's own replica has.
async fn of_its_own(cluster: &Cluster, node: u64) -> v1::StoredState {
    let request = v1::GetRequest {
        consistency: v1::Consistency::Bounded as i32,
        max_lag_ms: 60_000,
        ..crate::harness::get("large", "key")
    };
    let found = cluster.client(node).await.state().get(request).await;
    let found = found.unwrap_or_else(|status| panic!("node {node}: {status}"));
    found.into_inner().state.unwrap()
}
