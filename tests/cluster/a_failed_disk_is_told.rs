//! A node whose disk is filled to its last byte stops, and the others can say why. It comes back
//! when it is started again and there is space.

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::orders::Orders;
use crate::harness::small_disk::SmallDisk;
use crate::harness::{bytes_field, create_with, field_bytes, get, put};

const FULL: u64 = 3;
const STATE_BYTES: usize = 32 << 10;
const TRIES_MAX: u64 = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_to_the_last_byte_says_so_before_it_stops() {
    let mut cluster = Cluster::start(3).await;
    cluster.stop(FULL).await;
    let Some(disk) = SmallDisk::under(&cluster.data(FULL), 256) else { return };
    // It does not see it coming: what is kept free would have it refuse writes before.
    let setting = |name: &str, value: u64| (name.to_owned(), value.to_string());
    cluster.set_env(
        FULL,
        vec![
            setting("STATEHOUSE_DISK_RESERVE_BYTES", 0),
            setting("STATEHOUSE_MEMTABLE_BYTES_MAX", 16 << 20),
        ],
    );
    cluster.start_node(FULL).await;
    cluster.whole().await;
    let client = cluster.client(1).await;
    create_with(&client, "c", Default::default()).await;
    cluster.level().await;
    let unasked = Orders::to(&cluster, FULL, 1).await.listen().await;
    let ballast = disk.fill(0);
    let (mut written, mut tried) = (0, 0);
    while !cluster.has_ended(FULL) {
        let fields = vec![bytes_field("f", vec![7; STATE_BYTES])];
        // Refused for a moment while leads go elsewhere.
        if client.put(put("c", &format!("{written}"), fields)).await.is_ok() {
            written += 1;
        }
        tried += 1;
        assert!(tried < TRIES_MAX, "the node is up, with {} bytes free", disk.free());
    }
    cluster.kill(FULL);
    let last = unasked.last().await.expect("it says something unasked");
    assert!(last.disk_failed.contains("No space left"), "{last:?}");
    for node in [1, 2] {
        await_some("the others say why it is silent", async || {
            let status = cluster.admin_of(node, &["status"]);
            let ills = status["disk_ills"].to_string();
            match ills.contains("node 3 has stopped: ") && ills.contains("No space left") {
                true => Ok(()),
                false => Err(status.to_string()),
            }
        })
        .await;
    }
    std::fs::remove_file(ballast).unwrap();
    cluster.start_node(FULL).await;
    cluster.whole().await;
    cluster.level().await;
    await_some("nothing is said of it any more", async || {
        let status = cluster.admin_json(&["status"]);
        match status["disk_ills"].as_array().is_some_and(Vec::is_empty) {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    })
    .await;
    let through = cluster.client(FULL).await;
    for number in 0..written {
        let state = through.get(get("c", &format!("{number}"))).await.unwrap();
        assert_eq!(field_bytes(&state, "f"), vec![7; STATE_BYTES], "{number}");
    }
    cluster.stop_all().await;
}
