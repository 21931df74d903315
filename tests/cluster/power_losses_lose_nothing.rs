//! The power of a node alone, of one of three or of all three at once may go at any time, in the
//! middle of any write: everything that was acknowledged is there when it is back.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::Client;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::ledger::{COLLECTION, Ledger};
use crate::harness::power::Disk;
use crate::harness::{create, report, scale, seed};

/// Power losses of a short run; `POWER_LOSSES` overrides it.
const POWER_LOSSES: u64 = 3;

/// Acknowledged writes before the power goes.
const ACKNOWLEDGED: std::ops::Range<u64> = 40..800;

/// A node's disk, in MiB: sparse, so that it takes what is written to it.
const DISK_MIB: u64 = 1_024;

/// Whether power losses can be tried here; says so loudly where not.
fn can_lose_power(promise: &str) -> bool {
    let Some(why) = Disk::unavailable() else { return true };
    eprintln!("LEFT OUT, {promise}: no file system can be shut down here ({why})");
    report(promise, &format!("left out: {why}"));
    false
}

fn shape(nodes: u64) -> Shape {
    let reserve = ("STATEHOUSE_DISK_RESERVE_BYTES".to_owned(), (64 << 20).to_string());
    let (replicas, env, disk_mib) = (nodes as u32, vec![reserve], Some(DISK_MIB));
    Shape { nodes, replicas, env, disk_mib, ..Shape::default() }
}

/// Takes the power of the nodes that `victims` names again and again under load.
async fn lose_power_again_and_again(
    promise: &str,
    nodes: u64,
    mut victims: impl FnMut(&mut StdRng) -> Vec<u64>,
) {
    let seed = seed();
    if !can_lose_power(promise) {
        return;
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(shape(nodes)).await;
    create(&cluster.client(1).await, COLLECTION).await;
    let ledger = Ledger::default();
    let losses = scale("POWER_LOSSES", POWER_LOSSES);
    for loss in 0..losses {
        let mut clients: Vec<Client> = Vec::new();
        for node in cluster.nodes() {
            clients.push(cluster.client(node).await);
        }
        let writers = ledger.start(&clients, &format!("{loss}"), random.random());
        let enough = ledger.acknowledged() + random.random_range(ACKNOWLEDGED);
        await_some("enough is acknowledged", async || match ledger.acknowledged() {
            now if now >= enough => Ok(()),
            now => Err(format!("{} to go", enough - now)),
        })
        .await;
        let victims = victims(&mut random);
        ledger.darken();
        cluster.lose_power(&victims);
        for writer in writers {
            writer.abort();
            // It ends in the middle of a write.
            let _ = writer.await;
        }
        for victim in &victims {
            cluster.launch(*victim).await;
        }
        for victim in &victims {
            cluster.ready(*victim).await;
        }
        cluster.whole().await;
        ledger.check(&cluster.client(random.random_range(1..=nodes)).await).await;
        if random.random() {
            // Else what was there before is looked at after the next one too.
            ledger.forget();
        }
    }
    let acknowledged = ledger.acknowledged();
    let figures =
        format!("seed {seed}, {losses} power losses, {acknowledged} acknowledged, 0 lost");
    report(promise, &figures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_keeps_what_it_acknowledged_when_its_power_goes() {
    let promise = "a node alone loses nothing with its power";
    lose_power_again_and_again(promise, 1, |_| vec![1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_keep_what_they_acknowledged_when_the_power_of_some_or_all_goes() {
    let promise = "three nodes lose nothing with the power of some or all";
    let victims = |random: &mut StdRng| match random.random_range(0..3) {
        0 => vec![random.random_range(1..=3)],
        _ => vec![1, 2, 3],
    };
    lose_power_again_and_again(promise, 3, victims).await;
}

/// What the two above stand on.
#[test]
fn a_disk_that_loses_power_loses_what_was_not_synced_and_nothing_else() {
    use std::fs::File;
    use std::io::Write as _;
    if !can_lose_power("a disk that loses power loses what was not synced") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&dir.path().join("disk"), 32).unwrap();
    let mut synced = File::create(disk.path().join("synced")).unwrap();
    synced.write_all(b"here").unwrap();
    synced.sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let mut unsynced = File::create(disk.path().join("unsynced")).unwrap();
    unsynced.write_all(b"gone").unwrap();
    disk.lose_power().unwrap();
    unsynced.sync_all().unwrap_err();
    drop((synced, unsynced));
    disk.return_power();
    assert_eq!(std::fs::read(disk.path().join("synced")).unwrap(), b"here");
    assert!(!disk.path().join("unsynced").exists());
}
