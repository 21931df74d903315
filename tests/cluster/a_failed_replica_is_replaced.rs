//! A replica that fails on a node that goes on is seen, kept out of votes and reads, and replaced
//! by a new one under a new id, without anybody's help.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::{Client, v1};
use statehouse_store::{CollectionId, ReplicaId, Store, Tamper};

use crate::harness::cluster::{Cluster, Shape};
use crate::harness::condition::{await_some, await_some_for};
use crate::harness::harm;
use crate::harness::{bytes_field, create, field_bytes, get, http_get, put, report, seed};

/// A failed replica is replaced within this time.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of a state whose bytes lie in blob files.
const LARGE_BYTES: usize = 300 << 10;

/// The replicas of a shard that vote: id and node.
pub async fn voters(cluster: &Cluster, shard: u32) -> BTreeMap<u64, u64> {
    let shards = cluster.shards().await.unwrap();
    let found = shards.into_iter().find(|found| found.id == shard).unwrap();
    found.replicas.into_iter().map(|replica| (replica.node, replica.id)).collect()
}

/// Waits until a node has another replica of a shard than the one it had, and all is well.
pub async fn replaced(cluster: &Cluster, (shard, node): (u32, u64), old: u64) -> u64 {
    let what = format!("node {node} has a new replica of shard {shard}");
    let new = await_some_for(REPLACED_WITHIN, &what, async || {
        let shards = cluster.shards().await?;
        let found = shards.iter().find(|found| found.id == shard).ok_or("no such shard")?;
        let voters = |replica: &&v1::Replica| {
            replica.role == v1::ReplicaRole::Leader as i32
                || replica.role == v1::ReplicaRole::Follower as i32
        };
        let here = found.replicas.iter().filter(voters).find(|replica| replica.node == node);
        let gone = found.replicas.iter().all(|replica| replica.id != old);
        match here {
            Some(replica) if gone => Ok(replica.id),
            _ => Err(format!("{found:?}")),
        }
    })
    .await;
    cluster.whole().await;
    assert_ne!(new, old, "ids are never used again");
    new
}

/// The collection's id, as a node's own replicas have it.
async fn collection_id(client: &Client) -> CollectionId {
    CollectionId(create(client, "c").await.id)
}

/// Opens the directory of a node that does not run.
fn with_store(dir: &Path, work: impl FnOnce(&Store)) {
    let store = Store::open(dir, statehouse_store::Config::default()).unwrap();
    work(&store);
    store.close().unwrap();
}

/// Has a node that does not run take its replica of shard 0 for damaged at its next start.
pub fn quarantine(dir: &Path, replica: u64) {
    with_store(dir, |store| {
        let row = [&[1, 0, 0, 3][..], b"its rows were lost"].concat();
        let (sender, synced) = std::sync::mpsc::channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        store.meta_put(&format!("replica/{replica}"), row.into(), done).unwrap();
        synced.recv().unwrap().unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_can_not_apply_is_replaced_and_its_node_goes_on() {
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    let collection = collection_id(&client).await;
    for key in ["a", "b"] {
        client.put(put("c", key, vec![bytes_field("f", key)])).await.unwrap();
    }
    cluster.level().await;
    let leader = cluster.leader(1).await;
    let ill = leader % 3 + 1;
    let old = voters(&cluster, 1).await[&ill];
    cluster.stop(ill).await;
    with_store(&cluster.data(ill), |store| {
        store.shard(ReplicaId(old)).unwrap().tamper(collection, b"a", Tamper::Cut).unwrap();
    });
    cluster.start_node(ill).await;
    // Its row can't be read: the entry can't be applied there.
    client.put(put("c", "a", vec![bytes_field("f", "2")])).await.unwrap();
    let new = replaced(&cluster, (1, ill), old).await;
    assert!(cluster.log_says(ill, "a replica has stopped"), "an audit line says so");
    let (code, body) = http_get(cluster.http(ill), "/readyz");
    assert_eq!((code, body.as_str()), (200, "ready\n"));
    let (_, metrics) = http_get(cluster.http(ill), "/metrics");
    assert!(metrics.contains("statehouse_replicas_stopped 0"), "{metrics}");
    cluster.kill(leader);
    let other = cluster.client(ill).await;
    let state = other.get(get("c", "a")).await.unwrap();
    assert_eq!(
        field_bytes(&state, "f"),
        "2",
        "with the new replica the shard outlives another node"
    );
    report("a dead replica", &format!("node {ill}: replica {old} replaced by {new}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_manifest_is_damaged_begins_anew_and_its_replicas_are_rebuilt() {
    let mut cluster = Cluster::of(Shape { shards: 2, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    for n in 0..20 {
        client
            .put(put("c", &format!("k{n}"), vec![bytes_field("f", format!("{n}"))]))
            .await
            .unwrap();
    }
    cluster.level().await;
    let ill = 2;
    let mut before = Vec::new();
    for shard in 0..3 {
        before.push(voters(&cluster, shard).await[&ill]);
    }
    cluster.spared(ill).await;
    cluster.kill(ill);
    for file in harm::files(&cluster.data(ill), "MANIFEST") {
        std::fs::write(file, b"not a list of files").unwrap();
    }
    cluster.start_node(ill).await;
    for (shard, old) in (0..).zip(before) {
        replaced(&cluster, (shard, ill), old).await;
    }
    assert!(cluster.log_says(ill, "was set aside"), "an audit line says so");
    // What was set aside is not needed any more.
    let kept = cluster.data(ill).join("damaged/db-1");
    await_some("its old files are removed", async || {
        (!kept.exists()).then_some(()).ok_or_else(|| "they are there".to_owned())
    })
    .await;
    cluster.kill(1);
    let other = cluster.client(ill).await;
    for n in 0..20 {
        let state = other.get(get("c", &format!("k{n}"))).await.unwrap();
        assert_eq!(field_bytes(&state, "f"), format!("{n}"), "state {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_blob_files_are_never_served_and_the_replica_is_rebuilt() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    // Reads are answered from memory for long: what a start has read of the logs stays there.
    let env = vec![("STATEHOUSE_SCRUB_INTERVAL_S".to_owned(), "1".to_owned())];
    let shape = Shape { shards: 2, env, ..Shape::default() };
    let mut cluster = Cluster::of(shape).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    let mut states: BTreeMap<String, Bytes> = BTreeMap::new();
    for n in 0..24 {
        let mut bytes = vec![0; LARGE_BYTES];
        random.fill_bytes(&mut bytes);
        let (key, bytes) = (format!("k{n}"), Bytes::from(bytes));
        let fields = vec![bytes_field("f", bytes.clone())];
        client.put(put("c", &key, fields)).await.unwrap();
        states.insert(key, bytes);
    }
    cluster.level().await;
    // Everything in files, and nothing in memory.
    cluster.stop(3).await;
    cluster.start_node(3).await;
    cluster.whole().await;
    cluster.level().await;
    let mut old = BTreeMap::new();
    for shard in 1..=2 {
        await_some(&format!("node 3 leads shard {shard}"), async || {
            if cluster.leader(shard).await == 3 {
                return Ok(());
            }
            let out = cluster.admin(&["transfer-leader", &shard.to_string(), "--to", "3"]);
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        })
        .await;
        old.insert(shard, voters(&cluster, shard).await[&3]);
    }
    let flipped = flip(&cluster.data(3), &mut random);
    assert!(flipped > 0, "there are blob files");
    for (key, bytes) in &states {
        let state = client.get(get("c", key)).await.unwrap();
        assert_eq!(&field_bytes(&state, "f"), bytes, "{key}: another replica has the right bytes");
    }
    for (shard, old) in old {
        replaced(&cluster, (shard, 3), old).await;
    }
    // Nothing stands in the way of moves, and another node may go.
    cluster.add().await;
    cluster.whole().await;
    cluster.admin_json(&["move-shard", "1", "--from", "3", "--to", "4", "--wait=60s"]);
    cluster.kill(1);
    let client = cluster.client(3).await;
    for (key, bytes) in &states {
        let state = client.get(get("c", key)).await.unwrap();
        assert_eq!(&field_bytes(&state, "f"), bytes, "{key} without node 1");
    }
    report("flipped blob bytes", &format!("seed {seed}: {flipped} bits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_though_a_log_of_its_own_can_not_be_read() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    for n in 0..8 {
        let fields = vec![bytes_field("f", vec![n; LARGE_BYTES])];
        client.put(put("c", &format!("k{n}"), fields)).await.unwrap();
    }
    cluster.level().await;
    // In files, with entries behind that are not.
    cluster.stop(3).await;
    cluster.start_node(3).await;
    cluster.whole().await;
    client.put(put("c", "small", vec![bytes_field("f", "1")])).await.unwrap();
    cluster.level().await;
    let old = voters(&cluster, 1).await[&3];
    cluster.kill(3);
    assert!(flip(&cluster.data(3), &mut random) > 0, "there are blob files");
    cluster.start_node(3).await;
    let new = replaced(&cluster, (1, 3), old).await;
    cluster.kill(1);
    let client = cluster.client(3).await;
    for n in 0..8 {
        let state = client.get(get("c", &format!("k{n}"))).await.unwrap();
        assert_eq!(field_bytes(&state, "f"), vec![n; LARGE_BYTES], "k{n} without node 1");
    }
    report("a log that can't be read", &format!("seed {seed}: {old} replaced by {new}"));
}

/// Flips a bit in every so many bytes of a node's blob files; answers how many.
fn flip(dir: &Path, random: &mut StdRng) -> usize {
    let mut flipped = 0;
    for path in files(dir).into_iter().filter(|path| path.extension().is_some_and(|e| e == "blob"))
    {
        let file: File = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut at = 4_096;
        while at < len {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << random.random_range(0..8);
            file.write_all_at(&byte, at).unwrap();
            flipped += 1;
            at += random.random_range(64 << 10..128 << 10);
        }
        file.sync_all().unwrap();
    }
    flipped
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_replica_of_shard_0_is_quarantined_gets_a_new_one() {
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(2).await;
    create(&client, "c").await;
    client.put(put("c", "a", vec![bytes_field("f", "1")])).await.unwrap();
    cluster.level().await;
    // The founder: nobody has told it where the others are.
    let old = voters(&cluster, 0).await[&1];
    cluster.stop(1).await;
    quarantine(&cluster.data(1), old);
    cluster.start_node(1).await;
    let new = replaced(&cluster, (0, 1), old).await;
    let (code, body) = http_get(cluster.http(1), "/readyz");
    assert_eq!((code, body.as_str()), (200, "ready\n"));
    cluster.kill(2);
    let client = cluster.client(1).await;
    let state = client.get(get("c", "a")).await.unwrap();
    assert_eq!(field_bytes(&state, "f"), "1", "it knows the collection, and shard 0 has a quorum");
    create(&client, "d").await;
    report("a damaged shard 0", &format!("replica {old} replaced by {new}"));
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(&path, to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_was_put_back_from_a_copy_is_replaced() {
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    client.put(put("c", "a", vec![bytes_field("f", "old")])).await.unwrap();
    cluster.level().await;
    // Neither leads nor controls: who leads goes on knowing what it acknowledged.
    let leads = [cluster.leader(0).await, cluster.leader(1).await];
    let ill = (1..=3).find(|node| !leads.contains(node)).unwrap();
    let old = voters(&cluster, 1).await[&ill];
    let (data, aside) = (cluster.data(ill), cluster.dir().join("copy"));
    cluster.stop(ill).await;
    copy(&data, &aside);
    cluster.start_node(ill).await;
    for number in 0..20 {
        client.put(put("c", "a", vec![bytes_field("f", number.to_string())])).await.unwrap();
    }
    cluster.level().await;
    cluster.stop(ill).await;
    std::fs::remove_dir_all(&data).unwrap();
    copy(&aside, &data);
    cluster.start_node(ill).await;
    client.put(put("c", "a", vec![bytes_field("f", "new")])).await.unwrap();
    let new = replaced(&cluster, (1, ill), old).await;
    assert!(cluster.log_says(ill, "which it had acknowledged"), "an audit line says why");
    cluster.kill(leads[1]);
    let state = cluster.client(ill).await.get(get("c", "a")).await.unwrap();
    assert_eq!(field_bytes(&state, "f"), "new");
    report("a disk put back from a copy", &format!("replica {old} replaced by {new}"));
}
