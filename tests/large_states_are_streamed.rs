//! A state of any size is written and read in chunks: whole or not at all, from where a broken
//! stream stopped, one version throughout; whatever is wrong with a stream is named.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "large_states_are_streamed/faults.rs"]
mod faults;
mod harness;

use bytes::Bytes;
use harness::{
    House, Node, PATIENCE, bytes_field, create, create_with, field_bytes, get, put, scale, seed,
};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::v1::write_stream_request::Part;
use statehouse_client::v1::{self, write_options};
use statehouse_client::{Client, Error, StateStream};
use tokio_stream::StreamExt as _;

const MIB: usize = 1 << 20;

fn noise(random: &mut StdRng, bytes: usize) -> Bytes {
    let mut data = vec![0; bytes];
    random.fill_bytes(&mut data);
    data.into()
}

fn opaque(name: &str, bytes: usize) -> v1::FieldHeader {
    v1::FieldHeader { name: name.into(), bytes: bytes as u64, ..Default::default() }
}

fn f32s(name: &str, shape: &[u64]) -> v1::FieldHeader {
    let bytes = 4 * shape.iter().product::<u64>();
    let dtype = v1::DataType::F32 as i32;
    v1::FieldHeader { name: name.into(), dtype, shape: shape.to_vec(), bytes, expiry: None }
}

fn header(key: &str, id: &str, fields: Vec<v1::FieldHeader>) -> v1::WriteHeader {
    v1::WriteHeader {
        collection: "c".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        fields,
        upload_id: Bytes::copy_from_slice(id.as_bytes()),
        ..Default::default()
    }
}

fn chunk(data: &Bytes) -> Part {
    Part::Chunk(v1::WriteChunk { data: data.clone(), crc32: Some(crc32fast::hash(data)) })
}

fn end(data: &[u8]) -> Part {
    Part::End(v1::WriteEnd { crc32: Some(crc32fast::hash(data)) })
}

/// Sends messages as they are, and closes the stream.
async fn send(client: &Client, parts: Vec<Part>) -> Result<v1::WriteStreamResponse, Error> {
    let messages = parts.into_iter().map(|part| v1::WriteStreamRequest { part: Some(part) });
    let answer = client.state().write(tokio_stream::iter(messages.collect::<Vec<_>>())).await;
    answer.map(tonic::Response::into_inner).map_err(|status| client.error(&status))
}

async fn write(client: &Client, header: v1::WriteHeader, data: &Bytes) -> v1::WriteStreamResponse {
    client.write(header, &mut data.clone(), |_| {}).await.unwrap()
}

async fn read(stream: &mut StateStream) -> Result<Vec<Bytes>, Error> {
    let mut fields = vec![Vec::new(); stream.header().fields.len()];
    while let Some(chunk) = stream.next_chunk().await? {
        fields[chunk.field as usize].extend_from_slice(&chunk.data);
    }
    Ok(fields.into_iter().map(Bytes::from).collect())
}

async fn read_all(client: &Client, key: &str) -> Vec<Bytes> {
    read(&mut client.open(get("c", key)).await.unwrap()).await.unwrap()
}

async fn received(client: &Client, key: &str, id: &str) -> Result<u64, Error> {
    let request = v1::GetUploadRequest {
        collection: "c".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        upload_id: Bytes::copy_from_slice(id.as_bytes()),
    };
    let answer = client.state().get_upload(request).await;
    answer.map(|upload| upload.into_inner().received_bytes).map_err(|status| client.error(&status))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, reason: &str) -> Error {
    let error = answer.unwrap_err();
    assert_eq!(error.reason(), Some(reason), "{error}");
    error
}

async fn house(env: &[(&str, &str)]) -> (House, Node, Client) {
    let mut house = House::new();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    house.env.extend(env);
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    (house, node, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_every_size_come_back_as_they_were() {
    let mut random = StdRng::seed_from_u64(seed());
    let (house, node, client) = house(&[]).await;
    let mut written = Vec::new();
    let sizes = [0, 1, 16 << 10, MIB - 1, MIB, MIB + 1, 3 * MIB, 70 * MIB + 17];
    for (n, bytes) in sizes.into_iter().enumerate() {
        let data = noise(&mut random, bytes + 400);
        let key = format!("k{n}");
        let fields = vec![opaque("o", bytes), f32s("t", &[10, 10])];
        let answer = write(&client, header(&key, "", fields.clone()), &data).await;
        assert_eq!(answer.received_bytes, data.len() as u64);
        written.push((key, answer.version, fields, data));
    }
    for (key, version, fields, data) in &written {
        let mut stream = client.open(get("c", key)).await.unwrap();
        assert_eq!(Some(stream.header().version), *version, "{key}");
        assert_eq!(stream.header().fields, *fields, "{key}");
        let found = read(&mut stream).await.unwrap();
        assert!(found.concat() == data[..], "{key}: other bytes came back");
    }
    node.kill();
    let node = house.start();
    let client = node.client().await;
    for (key, _, _, data) in &written {
        assert!(read_all(&client, key).await.concat() == data[..], "{key}: after kill -9");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_fields_are_read_alone() {
    let (_house, _node, client) = house(&[]).await;
    let data: Bytes = (0..8u32 << 20).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    write(&client, header("k", "", vec![f32s("t", &[1 << 13, 1 << 10])]), &data).await;
    let select = |selector: v1::FieldSelector| {
        let fields = vec![v1::FieldSelector { name: "t".into(), ..selector }];
        v1::GetRequest { fields, ..get("c", "k") }
    };
    let rows = |first, rows| v1::FieldSelector {
        first_row: Some(first),
        rows: Some(rows),
        ..Default::default()
    };
    let mut stream = client.open(select(rows(5_000, 600))).await.unwrap();
    assert_eq!(stream.header().fields, [f32s("t", &[600, 1 << 10])]);
    let (from, until) = (5_000 * 4_096, 5_600 * 4_096);
    assert!(read(&mut stream).await.unwrap()[0] == data[from..until]);
    let state = client.get(select(rows(8_191, 1))).await.unwrap();
    assert!(field_bytes(&state, "t") == data[8_191 * 4_096..]);
    let bytes = v1::FieldSelector {
        offset: Some(MIB as u64 - 3),
        length: Some(2 * MIB as u64 + 7),
        ..Default::default()
    };
    let mut stream = client.open(select(bytes)).await.unwrap();
    assert_eq!(stream.header().fields, [opaque("t", 2 * MIB + 7)]);
    assert!(read(&mut stream).await.unwrap()[0] == data[MIB - 3..3 * MIB + 4]);
    let past = client.open(select(rows(8_000, 193))).await.map(|_| ());
    refused(past, "RANGE_PAST_END");
    let both = v1::FieldSelector { offset: Some(1), ..rows(1, 1) };
    refused(client.open(select(both)).await.map(|_| ()), "INVALID_REQUEST");
    let unknown = vec![v1::FieldSelector { name: "x".into(), ..Default::default() }];
    let unknown = v1::GetRequest { fields: unknown, ..get("c", "k") };
    refused(client.open(unknown).await.map(|_| ()), "FIELD_NOT_FOUND");
    refused(client.open(get("c", "absent")).await.map(|_| ()), "STATE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_broke_off_goes_on_where_it_was_also_after_a_kill() {
    let mut random = StdRng::seed_from_u64(seed());
    let (house, node, client) = house(&[]).await;
    let data = noise(&mut random, 12 * MIB);
    let head = header("k", "u", vec![opaque("o", data.len())]);
    // A stream that just closes leaves what came.
    let (one, two) = (data.slice(..4 * MIB), data.slice(4 * MIB..5 * MIB));
    let first = vec![Part::Header(head.clone()), chunk(&one), chunk(&two)];
    let answer = send(&client, first).await.unwrap();
    assert_eq!((answer.version, answer.received_bytes), (None, 5 * MIB as u64));
    refused(client.get(get("c", "k")).await, "STATE_NOT_FOUND");
    drop(client);
    node.kill();
    let node = house.start();
    let client = node.client().await;
    assert_eq!(received(&client, "k", "u").await.unwrap(), 5 * MIB as u64);
    // One that is cut off leaves what came too.
    let next = v1::WriteHeader { offset: 5 * MIB as u64, ..head.clone() };
    let parts = vec![Part::Header(next), chunk(&data.slice(5 * MIB..9 * MIB))];
    let parts = parts.into_iter().map(|part| v1::WriteStreamRequest { part: Some(part) });
    let endless = tokio_stream::iter(parts.collect::<Vec<_>>()).chain(tokio_stream::pending());
    let mut states = client.state();
    let cut_off = tokio::spawn(async move { states.write(endless).await });
    let there = async {
        while received(&client, "k", "u").await.unwrap() < 9 * MIB as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();
    cut_off.abort();
    // The client finds out by itself.
    let mut sent_from = None;
    let head_again = head.clone();
    let progress = |at| sent_from = sent_from.or(Some(at));
    let answer = client.write(head_again, &mut data.clone(), progress).await.unwrap();
    assert_eq!(sent_from, Some(9 * MIB as u64), "only the rest was sent");
    assert!(!answer.repeated_request);
    assert!(read_all(&client, "k").await[0] == data);
    refused(received(&client, "k", "u").await, "UPLOAD_NOT_FOUND");
    // Sent once more, it is answered as the first time.
    let again = write(&client, head, &data).await;
    assert_eq!((again.version, again.repeated_request), (answer.version, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_stream_is_named_and_changes_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, _node, client) = house(&[]).await;
    let settings = v1::CollectionSettings { state_bytes_max: 4 << 20, ..Default::default() };
    create_with(&client, "small", settings).await;
    let data = noise(&mut random, 3 * MIB);
    let head = |id: &str| header("k", id, vec![opaque("o", data.len())]);
    let begin = |id: &str| Part::Header(head(id));

    refused(send(&client, vec![]).await, "INVALID_REQUEST");
    refused(send(&client, vec![chunk(&data)]).await, "INVALID_REQUEST");
    refused(send(&client, vec![begin("b"), begin("b")]).await, "INVALID_REQUEST");
    let wide = header("k", "a", vec![opaque("o", 5 * MIB)]);
    let wide = vec![Part::Header(wide), chunk(&Bytes::from(vec![0; 5 * MIB]))];
    refused(send(&client, wide).await, "INVALID_REQUEST");
    let longer = vec![begin("b"), chunk(&data), chunk(&data.slice(..1))];
    refused(send(&client, longer).await, "INVALID_REQUEST");
    let with_id = v1::WriteOptions { request_id: "r".into(), ..Default::default() };
    let with_id = v1::WriteHeader { options: Some(with_id), ..head("x") };
    refused(send(&client, vec![Part::Header(with_id)]).await, "INVALID_REQUEST");
    let twice = header("k", "x", vec![opaque("o", MIB), opaque("o", MIB)]);
    refused(send(&client, vec![Part::Header(twice)]).await, "INVALID_REQUEST");
    let wrong_tensor = v1::FieldHeader { bytes: 7, ..f32s("t", &[2]) };
    let wrong_tensor = Part::Header(header("k", "x", vec![wrong_tensor]));
    refused(send(&client, vec![wrong_tensor]).await, "INVALID_TENSOR");
    let unknown = v1::WriteHeader { collection: "unknown".into(), ..head("x") };
    refused(send(&client, vec![Part::Header(unknown)]).await, "COLLECTION_NOT_FOUND");

    // Too large is refused before a byte of it is sent.
    let large = header("k", "c", vec![opaque("o", 4 * MIB), f32s("t", &[1])]);
    let large = v1::WriteHeader { collection: "small".into(), ..large };
    refused(send(&client, vec![Part::Header(large)]).await, "STATE_TOO_LARGE");

    // What came whole before a chunk that was damaged is there.
    let damaged = v1::WriteChunk { data: data.slice(2 * MIB..), crc32: Some(1) };
    let parts = vec![begin("d"), chunk(&data.slice(..2 * MIB)), Part::Chunk(damaged)];
    refused(send(&client, parts).await, "CHECKSUM_MISMATCH");
    let there = received(&client, "k", "d").await.unwrap();
    assert_eq!(there, 2 * MIB as u64);
    let wrong_offset = v1::WriteHeader { offset: 3 * MIB as u64, ..head("d") };
    let error = refused(send(&client, vec![Part::Header(wrong_offset)]).await, "UPLOAD_OFFSET");
    let Error::Refused { metadata, .. } = &error else { panic!("{error}") };
    assert_eq!(metadata["received_bytes"], there.to_string());
    // Too early an end keeps it too; a wrong checksum of all bytes ends it.
    let rest = v1::WriteHeader { offset: there, ..head("d") };
    let early = vec![Part::Header(rest.clone()), end(&data)];
    refused(send(&client, early).await, "UPLOAD_INCOMPLETE");
    let other = v1::WriteHeader { fields: vec![opaque("other", data.len())], ..head("d") };
    refused(send(&client, vec![Part::Header(other)]).await, "UPLOAD_MISMATCH");
    let wrong = vec![Part::Header(rest), chunk(&data.slice(there as usize..)), end(b"other")];
    refused(send(&client, wrong).await, "CHECKSUM_MISMATCH");
    refused(received(&client, "k", "d").await, "UPLOAD_NOT_FOUND");
    // The same for one that is small.
    let small = header("k", "e", vec![opaque("o", 5)]);
    let wrong = vec![Part::Header(small.clone()), chunk(&"hello".into()), end(b"other")];
    refused(send(&client, wrong).await, "CHECKSUM_MISMATCH");
    let early = vec![Part::Header(small), chunk(&"hell".into()), end(b"hell")];
    refused(send(&client, early).await, "UPLOAD_INCOMPLETE");

    // A condition that does not hold leaves the upload for another try.
    let absent = Some(write_options::Condition::IfVersion(7));
    let conditional = v1::WriteOptions { condition: absent, ..Default::default() };
    let conditional = v1::WriteHeader { options: Some(conditional), ..head("f") };
    let parts = vec![Part::Header(conditional), chunk(&data), end(&data)];
    refused(send(&client, parts).await, "VERSION_CONFLICT");
    assert_eq!(received(&client, "k", "f").await.unwrap(), 3 * MIB as u64);
    refused(client.get(get("c", "k")).await, "STATE_NOT_FOUND");
    let rest = v1::WriteHeader { offset: 3 * MIB as u64, ..head("f") };
    send(&client, vec![Part::Header(rest), end(&data)]).await.unwrap();
    assert!(read_all(&client, "k").await[0] == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_streams_on_one_upload_the_later_goes_on() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, _node, client) = house(&[]).await;
    let data = noise(&mut random, 6 * MIB);
    let head = header("k", "u", vec![opaque("o", data.len())]);
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    let message = |part| v1::WriteStreamRequest { part: Some(part) };
    let mut states = client.state();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let earlier = tokio::spawn(async move { states.write(stream).await });
    sender.send(message(Part::Header(head.clone()))).await.unwrap();
    sender.send(message(chunk(&data.slice(..2 * MIB)))).await.unwrap();
    let there = async {
        while received(&client, "k", "u").await.unwrap_or(0) < 2 * MIB as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();
    let later = v1::WriteHeader { offset: 2 * MIB as u64, ..head };
    let parts = vec![Part::Header(later.clone()), chunk(&data.slice(2 * MIB..4 * MIB))];
    assert_eq!(send(&client, parts).await.unwrap().received_bytes, 4 * MIB as u64);
    sender.send(message(chunk(&Bytes::from(vec![0; 2 * MIB])))).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, earlier).await.unwrap().unwrap().unwrap_err();
    refused(Err::<(), _>(client.error(&status)), "UPLOAD_TAKEN");
    let later = v1::WriteHeader { offset: 4 * MIB as u64, ..later };
    let rest = vec![Part::Header(later), chunk(&data.slice(4 * MIB..)), end(&data)];
    send(&client, rest).await.unwrap();
    assert!(read_all(&client, "k").await[0] == data, "nothing of the earlier stream came in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_replaced_or_dropped_while_it_is_read_is_read_to_its_end() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, _node, client) = house(&[]).await;
    let data = noise(&mut random, 40 * MIB);
    write(&client, header("k", "", vec![opaque("o", data.len())]), &data).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(client.open(get("c", "k")).await.unwrap());
    }
    let mut found = streams[0].next_chunk().await.unwrap().unwrap().data.to_vec();
    client.put(put("c", "k", vec![bytes_field("o", "replaced")])).await.unwrap();
    while let Some(chunk) = streams[0].next_chunk().await.unwrap() {
        found.extend_from_slice(&chunk.data);
    }
    assert!(found == data);
    let drop = v1::DropCollectionRequest { name: "c".into() };
    client.state().drop_collection(drop).await.unwrap();
    for stream in &mut streams[1..] {
        assert!(read(stream).await.unwrap()[0] == data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_their_bytes_and_their_uploads_are_counted() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node, client) = house(&[]).await;
    let counts = async |lines: &[&str]| {
        let shown = async {
            loop {
                let page = node.http_get("/metrics").1;
                if lines.iter().all(|line| page.contains(&format!("statehouse_{line}\n"))) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, shown).await.expect("it is counted in the end");
    };
    counts(&["memory_part_bytes{part=\"transfer\"} 0"]).await;
    // More than the connection's windows hold: a read that is not taken stays open.
    let data = noise(&mut random, 40 * MIB);
    write(&client, header("k", "", vec![opaque("o", data.len())]), &data).await;
    let small = noise(&mut random, 100);
    write(&client, header("small", "", vec![opaque("o", small.len())]), &small).await;
    let brought = format!("stream_bytes_total{{call=\"write\"}} {}", data.len() + small.len());
    let uploads = ["uploads_total{step=\"begun\"} 1", "uploads_total{step=\"ended\"} 1"];
    counts(&[&brought, uploads[0], uploads[1], "streams_open{call=\"write\"} 0"]).await;
    let mut stream = client.open(get("c", "k")).await.unwrap();
    counts(&["streams_open{call=\"read\"} 1"]).await;
    assert!(read(&mut stream).await.unwrap()[0] == data);
    let taken = format!("stream_bytes_total{{call=\"read\"}} {}", data.len());
    counts(&[&taken, "streams_open{call=\"read\"} 0", "memory_part_bytes{part=\"transfer\"} 0"])
        .await;
    let unended = vec![Part::Header(header("k", "u", vec![opaque("o", 2 * MIB)]))];
    send(&client, unended).await.unwrap();
    let (collection, key) = ("c".to_owned(), Bytes::from_static(b"k"));
    let abort = v1::AbortUploadRequest { collection, key, upload_id: Bytes::from_static(b"u") };
    client.state().abort_upload(abort).await.unwrap();
    counts(&["uploads_total{step=\"begun\"} 2", "uploads_total{step=\"aborted\"} 1"]).await;
    let page = node.http_get("/metrics").1;
    let applied = (data.len() + small.len()) as f64;
    for name in ["payload_applied_bytes_total", "written_bytes_total{kind=\"wal\"}"] {
        let line = page.lines().find(|line| line.starts_with(&format!("statehouse_{name} ")));
        let bytes: f64 = line.expect(name).rsplit(' ').next().unwrap().parse().unwrap();
        assert!(bytes >= applied && bytes < 1.2 * applied, "{name}: {bytes} for {applied}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_is_cut_off_and_so_is_who_sends_nothing() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node, client) = house(&[("STATEHOUSE_STREAM_STALL_S", "1")]).await;
    let data = noise(&mut random, 40 * MIB);
    write(&client, header("k", "", vec![opaque("o", data.len())]), &data).await;
    let mut stream = client.open(get("c", "k")).await.unwrap();
    // More than the connection's windows hold is left: the node can't be done.
    let cut = async {
        let counted = "call=\"read\",reason=\"STREAM_STALLED\"";
        while !node.http_get("/metrics").1.contains(counted) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.unwrap();
    let cut = loop {
        match stream.next_chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was read to its end"),
            Err(error) => break error,
        }
    };
    refused(Err::<(), _>(cut), "STREAM_STALLED");
    let parts = [Part::Header(header("k", "u", vec![opaque("o", 2 * MIB)]))];
    let parts = parts.map(|part| v1::WriteStreamRequest { part: Some(part) });
    let silent = tokio_stream::iter(parts).chain(tokio_stream::pending());
    let cut = tokio::time::timeout(PATIENCE, client.state().write(silent)).await.unwrap();
    refused(Err::<(), _>(client.error(&cut.unwrap_err())), "STREAM_STALLED");
    assert_eq!(received(&client, "k", "u").await.unwrap(), 0, "it may go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_continues_expires_and_one_can_be_given_up() {
    let env = [("STATEHOUSE_UPLOAD_IDLE_S", "1"), ("STATEHOUSE_SWEEP_INTERVAL_S", "1")];
    let (_house, node, client) = house(&env).await;
    let data = Bytes::from(vec![7; 2 * MIB]);
    for id in ["idle", "given-up"] {
        let parts = vec![Part::Header(header("k", id, vec![opaque("o", 3 * MIB)])), chunk(&data)];
        send(&client, parts).await.unwrap();
    }
    let abort = v1::AbortUploadRequest {
        collection: "c".into(),
        key: "k".into(),
        upload_id: "given-up".into(),
    };
    client.state().abort_upload(abort.clone()).await.unwrap();
    client.state().abort_upload(abort).await.unwrap();
    refused(received(&client, "k", "given-up").await, "UPLOAD_NOT_FOUND");
    let gone = async {
        while received(&client, "k", "idle").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    refused(received(&client, "k", "idle").await, "UPLOAD_NOT_FOUND");
    drop(node);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_come_through() {
    let seed = seed();
    let (_house, _node, client) = house(&[("STATEHOUSE_TRANSFER_BYTES_MAX", "4194304")]).await;
    let stream = |n: u64| {
        let client = client.clone();
        async move {
            let mut random = StdRng::seed_from_u64(seed ^ n);
            let bytes = random.random_range(1..6 * MIB);
            let data = noise(&mut random, bytes);
            let key = format!("k{n}");
            write(&client, header(&key, "", vec![opaque("o", bytes)]), &data).await;
            assert!(read_all(&client, &key).await[0] == data);
        }
    };
    let streams: Vec<_> = (0..24).map(|n| tokio::spawn(stream(n))).collect();
    for stream in streams {
        stream.await.unwrap();
    }
}
