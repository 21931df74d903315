//! A large state that is being written survives the death of any node at any step: it is whole in
//! the end, written once, and nothing is left of it elsewhere.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::{Client, Config, v1};

use crate::harness::cluster::{Cluster, await_some};
use crate::harness::{create, get, report, scale, seed};

const MIB: usize = 1 << 20;

fn header(key: &str, bytes: usize) -> v1::WriteHeader {
    let field = v1::FieldHeader { name: "o".into(), bytes: bytes as u64, ..Default::default() };
    v1::WriteHeader {
        collection: "large".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        fields: vec![field],
        upload_id: Bytes::copy_from_slice(key.as_bytes()),
        ..Default::default()
    }
}

async fn read(client: &Client, key: &str) -> Result<(u64, Vec<u8>), String> {
    let mut stream = client.open(get("large", key)).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    loop {
        match stream.next_chunk().await {
            Ok(Some(chunk)) => found.extend_from_slice(&chunk.data),
            Ok(None) => return Ok((stream.header().version, found)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_survives_the_death_of_any_node_at_any_step() {
    let uploads = scale("UPLOADS", 6);
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3).await;
    create(&cluster.client(1).await, "large").await;
    for upload in 0..uploads {
        let client = Client::connect(Config::any_of(cluster.endpoints())).await.unwrap();
        let mut data = vec![0; random.random_range(8 * MIB..24 * MIB)];
        random.fill_bytes(&mut data);
        let data = Bytes::from(data);
        let key = format!("k{upload}");
        // The first two die before the first byte and behind the last one.
        let at = match upload {
            0 => 0,
            1 => data.len(),
            _ => random.random_range(0..data.len()),
        };
        let victim = random.random_range(1..=3);
        let mut died = false;
        let mut progress = |sent: u64| {
            if sent >= at as u64 && !std::mem::replace(&mut died, true) {
                cluster.kill(victim);
            }
        };
        let head = header(&key, data.len());
        let written = client.write(head.clone(), &mut data.clone(), &mut progress).await.unwrap();
        assert!(died, "somebody died on the way");
        let again = client.write(head, &mut data.clone(), |_| {}).await.unwrap();
        assert_eq!((again.version, again.repeated_request), (written.version, true), "once");
        cluster.start_node(victim).await;
        cluster.whole().await;
        // Any node serves it, the one that died as well.
        for node in 1..=3 {
            let client = cluster.client(node).await;
            let (version, found) = await_some("a read", async || read(&client, &key).await).await;
            assert_eq!(Some(version), written.version);
            assert!(found == data, "upload {upload} of {} bytes: others came back", data.len());
        }
        println!("node {victim} died at byte {at} of {}", data.len());
    }
    cluster.level().await;
    report(
        "large writes",
        &format!("seed {seed}, {uploads} uploads that lost a node on their way"),
    );
}
