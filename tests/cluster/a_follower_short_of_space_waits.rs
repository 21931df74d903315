//! A follower whose disk is nearly full takes no large entries, though its leader has them: it
//! stays up, says so, and has everything once there is space.

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::small_disk::SmallDisk;
use crate::harness::{bytes_field, create_with, field_bytes, get, http_get, put};

const RESERVE: u64 = 64 << 20;
const STATE_BYTES: usize = 8 << 20;
const STATES: usize = 10;

/// Asserts that a node's metrics say that it is short of space, before its disk is full.
fn assert_short(cluster: &Cluster, node: u64, disk: &SmallDisk) {
    assert!(disk.free() > 8 << 20, "{} MiB are free", disk.free() >> 20);
    let (_, metrics) = http_get(cluster.http(node), "/metrics");
    let figure = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!(figure("statehouse_disk_short "), "1");
    assert_ne!(figure("statehouse_replicas_out_of_room "), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_below_its_reserve_takes_no_large_entries_and_catches_up() {
    let mut cluster = Cluster::start(3).await;
    let full = 3;
    cluster.stop(full).await;
    let Some(disk) = SmallDisk::under(&cluster.data(full), 320) else {
        return;
    };
    let setting = |name: &str, value: u64| (name.to_owned(), value.to_string());
    cluster.set_env(
        full,
        vec![
            setting("STATEHOUSE_DISK_RESERVE_BYTES", RESERVE),
            // So that what is in memory has room on so small a disk.
            setting("STATEHOUSE_MEMTABLE_BYTES_MAX", 16 << 20),
        ],
    );
    cluster.start_node(full).await;
    cluster.whole().await;
    let client = cluster.client(1).await;
    create_with(&client, "c", Default::default()).await;
    cluster.level().await;
    let ballast = disk.fill(40 << 20);
    await_some("the node leads nothing", async || {
        let nodes = cluster.admin_json(&["nodes"]);
        let node = nodes.as_array().unwrap().iter().find(|it| it["id"] == full).unwrap().clone();
        match node["disk_short"] == true && node["leaders"] == 0 {
            true => Ok(()),
            false => Err(node.to_string()),
        }
    })
    .await;
    for n in 0..STATES {
        let fields = || vec![bytes_field("f", vec![n as u8; STATE_BYTES])];
        await_some("a large state is written", async || {
            let written = client.put(put("c", &format!("{n}"), fields())).await;
            written.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
    client.put(put("c", "small", vec![bytes_field("f", "small")])).await.unwrap();
    client
        .delete(statehouse_client::v1::DeleteRequest {
            collection: "c".into(),
            key: "0".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(!cluster.has_ended(full), "the node is up");
    await_some("the node says that it waits", async || {
        let status = cluster.admin_json(&["status"]);
        let ills = status["disk_ills"].to_string();
        let said = ills.contains("node 3 is short of disk space") && ills.contains("wait for it");
        if said { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_short(&cluster, full, &disk);
    // It starts on a disk like that, and serves.
    cluster.stop(full).await;
    cluster.start_node(full).await;
    let through = cluster.client(full).await;
    let state = through.get(get("c", "small")).await.unwrap();
    assert_eq!(field_bytes(&state, "f"), "small");
    std::fs::remove_file(ballast).unwrap();
    cluster.level().await;
    cluster.whole().await;
    for n in 1..STATES {
        let state = through.get(get("c", &format!("{n}"))).await.unwrap();
        assert!(field_bytes(&state, "f").iter().all(|byte| *byte == n as u8));
    }
    assert!(!cluster.has_ended(full));
    cluster.stop_all().await;
}
