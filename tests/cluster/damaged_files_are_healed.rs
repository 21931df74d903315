//! Any file of one node of three may be damaged, while it is down or under it while it runs: what
//! was acknowledged is there, nothing else is ever answered, and the node's replicas are whole
//! again without anybody's help.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::Client;

use crate::harness::cluster::{Cluster, Shape, await_some};
use crate::harness::harm::{KINDS, harm};
use crate::harness::ledger::{COLLECTION, Ledger};
use crate::harness::{create, http_get, report, scale, seed};

/// Damaged files of a short run; `DAMAGED_FILES` overrides it.
const DAMAGED_FILES: u64 = 6;

/// Acknowledged writes between two of them.
const ACKNOWLEDGED: std::ops::Range<u64> = 100..600;

/// Writes for a while through every node.
async fn write_for_a_while(cluster: &Cluster, ledger: &Ledger, random: &mut StdRng) {
    let mut clients: Vec<Client> = Vec::new();
    for node in cluster.nodes() {
        clients.push(cluster.client(node).await);
    }
    let prefix = random.next_u32().to_string();
    let writers = ledger.start(&clients, &prefix, random.random());
    let enough = ledger.acknowledged() + random.random_range(ACKNOWLEDGED);
    await_some("enough is acknowledged", async || match ledger.acknowledged() {
        now if now >= enough => Ok(()),
        now => Err(format!("{} to go", enough - now)),
    })
    .await;
    for writer in writers {
        writer.abort();
        // It ends in the middle of a write.
        let _ = writer.await;
    }
}

/// Damages a file of a node that is down, starts it, and waits until a scrub has read all of it:
/// what is not seen before the next node is damaged may cost a shard its quorum. Returns what was
/// done.
async fn at_rest(cluster: &mut Cluster, node: u64, random: &mut StdRng) -> Option<String> {
    match random.random() {
        true => cluster.kill(node),
        false => cluster.stop(node).await,
    }
    let kind = KINDS[random.random_range(0..KINDS.len())];
    let done = harm(&cluster.data(node), kind, random);
    cluster.start_node(node).await;
    scrubbed(cluster, node, 1).await;
    done
}

/// Damages a file under a node that runs, and waits until two scrubs of it have ended.
async fn live(cluster: &Cluster, node: u64, random: &mut StdRng) -> Option<String> {
    let kind = [".sst", ".blob"][random.random_range(0..2)];
    let done = harm(&cluster.data(node), kind, random)?;
    // The one under way may have read the file before.
    scrubbed(cluster, node, scrubs_finished(cluster, node) + 2).await;
    Some(format!("live: {done}"))
}

/// Waits until so many scrubs of a node have ended since its start.
async fn scrubbed(cluster: &Cluster, node: u64, scrubs: u64) {
    await_some("its disk is scrubbed", async || match scrubs_finished(cluster, node) {
        now if now >= scrubs => Ok(()),
        now => Err(format!("{now} scrubs of {scrubs}")),
    })
    .await;
}

fn scrubs_finished(cluster: &Cluster, node: u64) -> u64 {
    let (_, metrics) = http_get(cluster.http(node), "/metrics");
    let found = |name: &str| -> u64 {
        let found = metrics.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    };
    let finished = found("statehouse_scrubs_finished_total ");
    assert!(finished == 0 || found("statehouse_scrub_bytes_total ") > 0, "{metrics}");
    finished
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_one_of_three_nodes_is_seen_and_healed_and_nothing_is_lost() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let env = [("STATEHOUSE_SCRUB_INTERVAL_S", "1"), ("STATEHOUSE_HASH_CHECK_INTERVAL_S", "5")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut cluster = Cluster::of(Shape { shards: 4, env, ..Shape::default() }).await;
    create(&cluster.client(1).await, COLLECTION).await;
    for node in cluster.nodes() {
        cluster.spared(node).await;
    }
    let ledger = Ledger::default();
    let rounds = scale("DAMAGED_FILES", DAMAGED_FILES);
    let mut damaged = 0;
    for round in 0..rounds {
        write_for_a_while(&cluster, &ledger, &mut random).await;
        let node = random.random_range(1..=3);
        let done = match random.random_bool(0.3) {
            true => live(&cluster, node, &mut random).await,
            false => at_rest(&mut cluster, node, &mut random).await,
        };
        if let Some(done) = done {
            println!("round {round}, node {node}: {done}");
            damaged += 1;
        }
        cluster.whole().await;
        for reader in 1..=3 {
            ledger.check(&cluster.client(reader).await).await;
        }
        ledger.forget();
    }
    assert!(damaged > 0, "SEED={seed}: no file was damaged in {rounds} rounds");
    let acknowledged = ledger.acknowledged();
    let figures =
        format!("seed {seed}, {damaged} files damaged, {acknowledged} acknowledged, 0 lost");
    report("a damaged file of one of three nodes is healed", &figures);
}
