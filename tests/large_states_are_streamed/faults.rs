//! Streams that end in a fault: what came whole before it is kept.

use super::*;

/// The metadata of a refusal that says how much of the upload is there.
fn told(error: &Error) -> u64 {
    let Error::Refused { metadata, .. } = error else { panic!("{error}") };
    metadata["received_bytes"].parse().unwrap()
}

/// What may be wrong with a stream behind the chunks that came whole.
fn faults(head: &v1::WriteHeader, left: usize) -> Vec<(Vec<Part>, &'static str)> {
    let data = Bytes::from(vec![7; MIB]);
    let damaged = v1::WriteChunk { data, crc32: Some(1) };
    let too_long = Bytes::from(vec![7; (4 << 20) + 1]);
    let mut beyond = vec![chunk(&Bytes::from(vec![7; left % (4 << 20) + 1]))];
    let whole = chunk(&Bytes::from(vec![7; 4 << 20]));
    // What fits of them is there too.
    beyond.splice(..0, vec![whole; left / (4 << 20)]);
    vec![
        (vec![Part::Chunk(damaged)], "CHECKSUM_MISMATCH"),
        (vec![Part::Header(head.clone())], "INVALID_REQUEST"),
        (vec![chunk(&too_long)], "INVALID_REQUEST"),
        (beyond, "INVALID_REQUEST"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_chunks_that_came_whole_before_a_fault_are_there_when_it_is_answered() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, _node, client) = house(&[]).await;
    let data = noise(&mut random, 12 * MIB);
    for round in 0..scale("UPLOAD_FAULTS", 6) {
        for (kind, _) in faults(&header("", "", vec![]), 0).iter().enumerate() {
            let id = format!("{round}-{kind}");
            let head = header("k", &id, vec![opaque("o", data.len())]);
            let mut parts = vec![Part::Header(head.clone())];
            let mut sent = 0;
            for _ in 0..random.random_range(1..8) {
                // Parts are cut from chunks of any size, and some chunks are a part as they are.
                let bytes = if random.random() { MIB } else { random.random_range(1..MIB + 9) };
                parts.push(chunk(&data.slice(sent..sent + bytes)));
                sent += bytes;
            }
            let left = data.len() - sent;
            let (fault, reason) = faults(&head, left).swap_remove(kind);
            let whole = if kind == 3 { sent + left / (4 << 20) * (4 << 20) } else { sent } as u64;
            parts.extend(fault);
            let error = refused(send(&client, parts).await, reason);
            assert_eq!(told(&error), whole, "round {round}, fault {kind}: it says how much");
            let there = received(&client, "k", &id).await.unwrap();
            assert_eq!(there, whole, "round {round}, fault {kind}: all of it is there");
            if kind != 3 {
                client.write(head, &mut data.clone(), |_| {}).await.unwrap();
                assert!(read_all(&client, "k").await[0] == data, "the rest makes it whole");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_chunks_that_came_whole_before_a_stall_or_a_cut_are_there() {
    let mut random = StdRng::seed_from_u64(seed());
    let (_house, node, client) = house(&[("STATEHOUSE_STREAM_STALL_S", "5")]).await;
    let data = noise(&mut random, 5 * MIB);
    let silent = |id: &str, sent: usize| {
        let head = header("k", id, vec![opaque("o", data.len())]);
        let parts =
            [Part::Header(head), chunk(&data.slice(..MIB / 2)), chunk(&data.slice(MIB / 2..sent))];
        let parts = parts.map(|part| v1::WriteStreamRequest { part: Some(part) });
        tokio_stream::iter(parts).chain(tokio_stream::pending())
    };
    let sent = random.random_range(MIB..4 * MIB);
    let stalled = client.state().write(silent("stalled", sent)).await.unwrap_err();
    let error = refused(Err::<(), _>(client.error(&stalled)), "STREAM_STALLED");
    assert_eq!(told(&error), sent as u64);
    assert_eq!(received(&client, "k", "stalled").await.unwrap(), sent as u64);

    // A deadline is answered when it passes: what came is there soon.
    let sent = random.random_range(MIB..4 * MIB);
    let mut late = tonic::Request::new(silent("late", sent));
    late.set_timeout(std::time::Duration::from_secs(3));
    client.state().write(late).await.unwrap_err();
    await_received(&client, "late", sent).await;

    // Whose connection is cut is told nothing; what the node got of it is there.
    let sent = random.random_range(MIB..4 * MIB);
    let other = node.client().await;
    let stream = silent("cut", sent);
    let cut = tokio::spawn(async move { other.state().write(stream).await });
    // All but the part that is not full gets there while the stream is open.
    let full = sent / MIB * MIB;
    let there = async {
        while received(&client, "k", "cut").await.unwrap_or(0) < full as u64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();
    cut.abort();
    await_received(&client, "cut", sent).await;
}

/// Waits until exactly so many bytes of an upload are there.
async fn await_received(client: &Client, id: &str, bytes: usize) {
    let there = async {
        while received(client, "k", id).await.unwrap_or(0) != bytes as u64 {
            tokio::task::yield_now().await;
        }
    };
    let there = tokio::time::timeout(PATIENCE, there).await;
    assert!(there.is_ok(), "{id}: {:?} of {bytes}", received(client, "k", id).await);
}
