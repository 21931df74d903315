//! `statehouse repair` gives up nothing of a node whose data other nodes have: they rebuild it.

use std::path::{Path, PathBuf};

use crate::harness::cluster::{Cluster, Shape};
use crate::harness::{bytes_field, create, field_bytes, get, put, statehouse};

const PUTS: usize = 200;

/// Flips a bit in the newest write-ahead log, within the first of some bytes.
fn flip(data: &Path, of: &[u8]) -> PathBuf {
    let files = std::fs::read_dir(data.join("db")).unwrap().map(|file| file.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|kind| kind == "log"));
    let newest = logs.max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let at = bytes.windows(of.len()).position(|found| found == of).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_of_a_member_accepts_no_loss_and_the_others_rebuild_it() {
    const ILL: u64 = 3;
    let mut cluster = Cluster::of(Shape { shards: 1, ..Shape::default() }).await;
    let client = cluster.client(1).await;
    create(&client, "c").await;
    cluster.spared(ILL).await;
    for n in 0..PUTS {
        let fields = vec![bytes_field("f", format!("filler of {n:03}"))];
        client.put(put("c", &format!("k{n}"), fields)).await.unwrap();
    }
    cluster.level().await;
    cluster.kill(ILL);
    let file = flip(&cluster.data(ILL), b"filler of 100");
    let repair = || {
        let mut command = statehouse();
        command.args(["repair", "--accept-loss", "--data"]).arg(cluster.data(ILL));
        command
    };
    let out = repair().arg("--json").output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["damages"][0]["file"], file.to_str().unwrap(), "{report:#}");
    assert_eq!(report["rebuilt_from_other_nodes"], true, "{report:#}");
    assert_eq!(report["loss_accepted"], false, "{report:#}");
    let said = String::from_utf8(repair().output().unwrap().stdout).unwrap();
    assert!(said.contains("start the node, and they rebuild these replicas"), "{said}");
    cluster.start_node(ILL).await;
    cluster.whole().await;
    cluster.kill(1);
    let client = cluster.client(ILL).await;
    for n in 0..PUTS {
        let state = client.get(get("c", &format!("k{n}"))).await.unwrap();
        assert_eq!(field_bytes(&state, "f"), format!("filler of {n:03}"), "k{n}");
    }
}
