//! States come back as they were put, conditions hold, repeats have one effect, expiry expires.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::condition::await_some;
use harness::{
    House, Node, bytes_field, create, create_with, f32_field, field_bytes, get, put, reason, seed,
};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::v1::{self, edit, field::Value, write_options, write_stream_request::Part};

fn options(condition: Option<write_options::Condition>) -> Option<v1::WriteOptions> {
    Some(v1::WriteOptions { condition, ..Default::default() })
}

fn with_id(request_id: &str) -> Option<v1::WriteOptions> {
    Some(v1::WriteOptions { request_id: request_id.to_owned().into(), ..Default::default() })
}

fn patch(collection: &str, key: &str, edits: Vec<edit::Edit>) -> v1::PatchRequest {
    v1::PatchRequest {
        collection: collection.to_owned(),
        key: key.to_owned().into(),
        edits: edits.into_iter().map(|edit| v1::Edit { edit: Some(edit) }).collect(),
        options: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_every_size_survive_a_restart() {
    let mut random = StdRng::seed_from_u64(seed());
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let mut states = Vec::new();
    for bytes in [0usize, 1, 500, 16 << 10, (16 << 10) + 1, 262_144, 262_145, 3_000_000] {
        let mut data = vec![0u8; bytes];
        random.fill_bytes(&mut data);
        let fields = vec![
            bytes_field("blob", data),
            f32_field("h", &[2, 3], &[1.0, -2.5, f32::NAN, 0.0, 1e30, -0.0]),
        ];
        let key = format!("{bytes} bytes");
        let written = client.put(put("c", &key, fields.clone())).await.unwrap();
        states.push((key, written.version, fields));
    }
    // The client's pipeline is idle now: it must not hold the stop up.
    let stopping = std::time::Instant::now();
    let (code, _) = node.stop();
    assert!(stopping.elapsed() < std::time::Duration::from_secs(5), "{:?}", stopping.elapsed());
    assert_eq!(code, Some(0));
    let node = house.start();
    let client = node.client().await;
    for (key, version, fields) in states {
        let state = client.get(get("c", &key)).await.unwrap();
        assert_eq!((state.version, state.fields), (version, fields), "{key}");
    }
}

/// Opens a connection of HTTP/2 that says nothing more: no goodbye either.
fn mute(node: &Node) -> TcpStream {
    let mut stream = TcpStream::connect(node.grpc).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    // Settings, none of them changed; the node's own show that it takes this for a connection.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    stream.read_exact(&mut [0; 9]).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_calls_and_not_for_connections_without() {
    let mut house = House::new();
    house.env.push(("STATEHOUSE_SHUTDOWN_GRACE_S".into(), "600".into()));
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let _mute = mute(&node);
    let (parts, brought) = futures::channel::mpsc::unbounded();
    let send = |part| parts.unbounded_send(v1::WriteStreamRequest { part: Some(part) }).unwrap();
    let fields = vec![v1::FieldHeader { name: "v".into(), bytes: 4, ..Default::default() }];
    let (collection, key) = ("c".to_owned(), "k".into());
    send(Part::Header(v1::WriteHeader { collection, key, fields, ..Default::default() }));
    let mut answer = tokio::spawn({
        let mut state = client.state();
        async move { state.write(brought).await }
    });
    await_some("the stream is open", async || {
        let (_, metrics) = node.http_get("/metrics");
        match metrics.contains("statehouse_streams_open{call=\"write\"} 1") {
            true => Ok(()),
            false => Err(metrics),
        }
    })
    .await;
    node.terminate();
    await_some("nobody is let in any more", async || match TcpStream::connect(node.grpc) {
        Ok(_) => Err("somebody is".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    // For longer than connections without a call get.
    let waits = tokio::time::timeout(Duration::from_secs(3), &mut answer).await;
    assert!(waits.is_err(), "{waits:?}");
    send(Part::Chunk(v1::WriteChunk { data: "kept".into(), crc32: None }));
    send(Part::End(v1::WriteEnd { crc32: None }));
    drop(parts);
    answer.await.unwrap().unwrap();
    let stopping = Instant::now();
    let (code, log) = node.stop();
    // Pings would find the mute connection dead in twice the time.
    assert!(stopping.elapsed() < Duration::from_secs(20), "{:?}", stopping.elapsed());
    assert_eq!(code, Some(0), "{log:?}");
    let node = house.start();
    let state = node.client().await.get(get("c", "k")).await.unwrap();
    assert_eq!(field_bytes(&state, "v"), "kept");
}

#[tokio::test]
async fn ranges_and_fields_are_read_alone() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let fields = vec![
        bytes_field("small", "hello"),
        bytes_field("large", data.clone()),
        f32_field("t", &[3], &[1.0, 2.0, 3.0]),
    ];
    client.put(put("c", "k", fields)).await.unwrap();
    let select = |name: &str, offset, length| v1::FieldSelector {
        name: name.to_owned(),
        offset,
        length,
        ..Default::default()
    };
    let read = |selector| v1::GetRequest { fields: vec![selector], ..get("c", "k") };
    for (offset, length) in [(0, 1), (262_143, 2), (500_000, 400_000), (999_999, 1)] {
        let request = read(select("large", Some(offset), Some(length)));
        let state = client.get(request).await.unwrap();
        let expected = &data[offset as usize..(offset + length) as usize];
        assert_eq!(field_bytes(&state, "large"), expected, "{offset}+{length}");
        assert_eq!(state.fields.len(), 1);
    }
    let state = client.get(read(select("t", Some(4), None))).await.unwrap();
    let expected: Vec<u8> = [2.0f32, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(state.fields[0].value, Some(Value::Bytes(expected.into())));
    assert_eq!(reason(client.get(read(select("none", None, None))).await), "FIELD_NOT_FOUND");
    let past = read(select("large", Some(999_999), Some(2)));
    assert_eq!(reason(client.get(past).await), "RANGE_PAST_END");
}

#[tokio::test]
async fn conditions_hold() {
    use write_options::Condition::{IfAbsent, IfVersion};
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let write = |condition| v1::PutRequest {
        options: options(condition),
        ..put("c", "k", vec![bytes_field("v", "x")])
    };
    let first = client.put(write(Some(IfAbsent(true)))).await.unwrap().version;
    assert_eq!(reason(client.put(write(Some(IfAbsent(true)))).await), "VERSION_CONFLICT");
    let second = client.put(write(Some(IfVersion(first)))).await.unwrap().version;
    assert!(second > first);
    let refused = client.put(write(Some(IfVersion(first)))).await.unwrap_err();
    let statehouse_client::Error::Refused { metadata, .. } = refused else { panic!("{refused}") };
    assert_eq!(metadata["current_version"], second.to_string());

    let delete = |version| v1::DeleteRequest {
        collection: "c".to_owned(),
        key: "k".into(),
        options: options(Some(IfVersion(version))),
    };
    assert_eq!(reason(client.delete(delete(first)).await), "VERSION_CONFLICT");
    assert!(client.delete(delete(second)).await.unwrap().existed);
    assert_eq!(reason(client.get(get("c", "k")).await), "STATE_NOT_FOUND");
    let again = client.put(write(Some(IfAbsent(true)))).await.unwrap().version;
    assert!(again > second, "a version is not used again after a delete");
}

#[tokio::test]
async fn a_request_id_has_one_effect_and_one_answer() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let append = |bytes: &str, id: &str| v1::PatchRequest {
        options: with_id(id),
        ..patch(
            "c",
            "k",
            vec![edit::Edit::Append(edit::Append {
                field: "log".to_owned(),
                data: bytes.to_owned().into(),
                max_bytes: None,
            })],
        )
    };
    client.put(put("c", "k", vec![bytes_field("log", "")])).await.unwrap();
    let first = client.patch(append("a", "id-1")).await.unwrap();
    let repeat = client.patch(append("a", "id-1")).await.unwrap();
    assert_eq!((repeat.version, repeat.repeated_request), (first.version, true));
    assert_eq!(reason(client.patch(append("b", "id-1")).await), "REQUEST_ID_REUSED");
    node.kill();
    let node = house.start();
    let client = node.client().await;
    assert!(client.patch(append("a", "id-1")).await.unwrap().repeated_request, "after a crash");
    client.patch(append("b", "id-2")).await.unwrap();
    let state = client.get(get("c", "k")).await.unwrap();
    assert_eq!(field_bytes(&state, "log"), "ab");
}

#[tokio::test]
async fn patches_change_parts() {
    let mut random = StdRng::seed_from_u64(seed());
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    // A large field against a plain vector of bytes.
    let mut model = vec![0u8; 700_000];
    random.fill_bytes(&mut model);
    client.put(put("c", "k", vec![bytes_field("f", model.clone())])).await.unwrap();
    for _ in 0..60 {
        let mut data = vec![0u8; random.random_range(1..40_000)];
        random.fill_bytes(&mut data);
        let edit = if random.random_bool(0.3) {
            model.extend_from_slice(&data);
            edit::Edit::Append(edit::Append {
                field: "f".to_owned(),
                data: data.into(),
                max_bytes: None,
            })
        } else {
            let offset = random.random_range(0..=model.len() - data.len());
            model[offset..offset + data.len()].copy_from_slice(&data);
            let (field, offset) = ("f".to_owned(), offset as u64);
            edit::Edit::WriteRange(edit::WriteRange { field, offset, data: data.into() })
        };
        client.patch(patch("c", "k", vec![edit])).await.unwrap();
    }
    let state = client.get(get("c", "k")).await.unwrap();
    assert!(field_bytes(&state, "f") == model, "the field is what the edits made of it");

    // A window of events: the front is dropped by whole rows.
    client.put(put("c", "w", vec![f32_field("w", &[0, 2], &[])])).await.unwrap();
    for row in 0..5u8 {
        let row = [f32::from(row), 0.5].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let append = edit::Append { field: "w".into(), data: row.into(), max_bytes: Some(24) };
        client.patch(patch("c", "w", vec![edit::Edit::Append(append)])).await.unwrap();
    }
    let state = client.get(get("c", "w")).await.unwrap();
    assert_eq!(state.fields[0], f32_field("w", &[3, 2], &[2.0, 0.5, 3.0, 0.5, 4.0, 0.5]));

    let remove = vec![edit::Edit::Remove("w".to_owned())];
    client.patch(patch("c", "w", remove.clone())).await.unwrap();
    assert!(client.get(get("c", "w")).await.unwrap().fields.is_empty());
    assert_eq!(reason(client.patch(patch("c", "none", remove)).await), "STATE_NOT_FOUND");
}

#[tokio::test]
async fn states_expire_and_collections_say_when() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let settings = v1::CollectionSettings {
        default_ttl_ms: 1,
        missing: v1::MissingState::Empty as i32,
        ..Default::default()
    };
    create_with(&client, "brief", settings).await;
    let brief = put("brief", "k", vec![bytes_field("v", "x")]);
    let version = client.put(brief.clone()).await.unwrap().version;
    // Awaited, not slept for: it's there until it has expired, then it reads as empty.
    let state = tokio::time::timeout(harness::PATIENCE, async {
        loop {
            let state = client.get(get("brief", "k")).await.unwrap();
            if state.version != version {
                return state;
            }
        }
    });
    assert_eq!(state.await.unwrap(), v1::StoredState::default());

    let forever = v1::WriteOptions {
        expiry: Some(write_options::Expiry::NeverExpires(true)),
        ..Default::default()
    };
    let request = v1::PutRequest { options: Some(forever), ..brief };
    let version = client.put(request).await.unwrap().version;
    let state = client.get(get("brief", "k")).await.unwrap();
    assert_eq!((state.version, state.expires_at_ms), (version, None));
}

#[tokio::test]
async fn batches_answer_for_each_key() {
    use statehouse_client::v1::pipeline_request::Call;
    use statehouse_client::v1::pipeline_response::Result as Answer;
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let puts = (0..100)
        .map(|n| put(if n == 50 { "nowhere" } else { "c" }, &format!("{n}"), vec![]))
        .collect();
    let answer = client.call(Call::BatchPut(v1::BatchPutRequest { puts })).await.unwrap();
    let Answer::BatchPut(puts) = answer else { panic!("{answer:?}") };
    for (n, item) in puts.items.iter().enumerate() {
        use v1::batch_put_response::item::Result as Item;
        match item.result.as_ref().unwrap() {
            Item::Written(written) => assert!(n != 50 && written.version > 0),
            Item::Error(error) => {
                assert_eq!((n, error.reason.as_str()), (50, "COLLECTION_NOT_FOUND"));
            }
        }
    }
    let keys = ["1", "99", "none"].iter().map(|key| (*key).into()).collect();
    let request = v1::BatchGetRequest { collection: "c".into(), keys, ..Default::default() };
    let answer = client.call(Call::BatchGet(request)).await.unwrap();
    let Answer::BatchGet(gets) = answer else { panic!("{answer:?}") };
    use v1::batch_get_response::item::Result as Item;
    let found: Vec<bool> =
        gets.items.iter().map(|item| matches!(item.result, Some(Item::State(_)))).collect();
    assert_eq!(found, [true, true, false]);
}

#[tokio::test]
async fn a_dropped_collection_is_gone_and_its_name_is_free() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let first = create(&client, "c").await;
    for n in 0..50 {
        client.put(put("c", &format!("{n}"), vec![bytes_field("v", "x")])).await.unwrap();
    }
    let drop = || v1::DropCollectionRequest { name: "c".to_owned() };
    client.state().drop_collection(drop()).await.unwrap();
    assert_eq!(reason(client.get(get("c", "1")).await), "COLLECTION_NOT_FOUND");
    let again = client.state().drop_collection(drop()).await;
    let again = again.map_err(|status| client.error(&status));
    assert_eq!(reason(again), "COLLECTION_NOT_FOUND");
    let second = create(&client, "c").await;
    assert_ne!(first.id, second.id, "an id is not used again");
    for n in 0..50 {
        assert_eq!(reason(client.get(get("c", &format!("{n}"))).await), "STATE_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_whose_caller_leaves_gives_all_space_back() {
    let mut random = StdRng::seed_from_u64(seed());
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    for round in 0..12 {
        let name = format!("c{round}");
        create(&client, &name).await;
        for n in 0..32 {
            client.put(put(&name, &format!("k{n}"), vec![bytes_field("v", "x")])).await.unwrap();
        }
        let drop = v1::DropCollectionRequest { name: name.clone() };
        let leaves = Duration::from_micros(random.random_range(0..6_000));
        // Whether it was in time is no matter.
        let _ = tokio::time::timeout(leaves, client.state().drop_collection(drop)).await;
        await_some("it is there as it was, or all of it is gone", async || {
            let request = v1::DescribeCollectionRequest { name: name.clone() };
            let there = client.state().describe_collection(request).await.is_ok();
            let usage = node.json(&["admin", "usage"]);
            // Shard 0 has the catalog's own.
            let shards = usage["shards"].as_array().unwrap().iter().filter(|it| it["shard"] != 0);
            let states = shards.map(|it| it["holdings"]["states"].as_u64().unwrap()).sum::<u64>();
            match (there, states) {
                (true, 32) | (false, 0) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await;
        // What is there makes room for the next round.
        let drop = v1::DropCollectionRequest { name };
        let _ = client.state().drop_collection(drop).await;
    }
}

/// Far more than the memtables may hold, over many shards at once: writes slow down, none hangs.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_memory_is_written_without_a_hang() {
    use statehouse_client::v1::pipeline_request::Call;
    let mut house = House::new();
    house.flags = vec!["--shards".into(), "16".into()];
    house.env.push(("STATEHOUSE_MEMTABLE_BYTES_MAX".into(), (8u64 << 20).to_string()));
    let node = house.start();
    let client = node.client_with(4).await;
    create(&client, "c").await;
    let data = bytes::Bytes::from(vec![7u8; 256 << 10]);
    let writes = async {
        let mut answers = Vec::new();
        for n in 0..768u32 {
            let fields = vec![bytes_field("v", data.clone())];
            let call = Call::Put(put("c", &format!("{n}"), fields));
            answers.push(client.send(call).await.unwrap());
        }
        for answer in answers {
            answer.await.unwrap();
        }
    };
    tokio::time::timeout(harness::PATIENCE, writes).await.expect("every write is answered");
    for n in (0..768u32).step_by(97) {
        let state = client.get(get("c", &format!("{n}"))).await.unwrap();
        assert_eq!(field_bytes(&state, "v"), data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_is_listed_at_once() {
    const COLLECTIONS: usize = 150;
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    for n in 1..=COLLECTIONS {
        create(&client, &format!("c{n}")).await;
        let listed = client.state().list_collections(v1::ListCollectionsRequest {}).await.unwrap();
        assert_eq!(listed.into_inner().collections.len(), n);
    }
}
