//! Short of space, a node refuses writes before its log fails, goes on reading, takes what frees
//! space, and writes again once there is some.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use bytes::Bytes;
use harness::small_disk::SmallDisk;
use harness::{House, bytes_field, create, field_bytes, get, put, reason};
use statehouse_client::{Source, WriteError, v1};

#[tokio::test]
async fn a_disk_that_fills_up() {
    let mut house = House::new();
    let Some(disk) = SmallDisk::mount(&house.path("disk"), 256) else {
        return;
    };
    house.env.push(("STATEHOUSE_DISK_RESERVE_BYTES".into(), (64u64 << 20).to_string()));
    let data = disk.path().join("data");
    let node = house.try_start_at("127.0.0.1:0", &data).unwrap();
    let client = node.client().await;
    create(&client, "c").await;
    // Something else fills the disk meanwhile, as it does.
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![0u8; 80 << 20]).unwrap();
    let mut written = 0;
    let refused = loop {
        let fields = vec![bytes_field("v", vec![written as u8; 256 << 10])];
        match client.put(put("c", &format!("{written}"), fields)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the disk never fills up");
    };
    assert_eq!(refused.reason(), Some("DISK_FULL"), "{refused}");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(written > 20);
    for n in 0..written {
        let state = client.get(get("c", &format!("{n}"))).await.unwrap();
        assert!(field_bytes(&state, "v").iter().all(|byte| *byte == n as u8));
    }
    std::fs::remove_file(ballast).unwrap();
    // The node looks at the disk again within moments.
    let again = tokio::time::timeout(harness::PATIENCE, async {
        while let Err(error) = client.put(put("c", "again", vec![])).await {
            assert_eq!(error.reason(), Some("DISK_FULL"), "{error}");
        }
    });
    again.await.expect("writes are taken again");
    drop(client);
    node.kill();
    let node = house.try_start_at("127.0.0.1:0", &data).unwrap();
    let client = node.client().await;
    for n in 0..written {
        client.get(get("c", &format!("{n}"))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_finds_the_disk_full_is_given_up_and_its_space_comes_back() {
    let mut house = House::new();
    let Some(disk) = SmallDisk::mount(&house.path("disk"), 512) else {
        return;
    };
    house.env.push(("STATEHOUSE_DISK_RESERVE_BYTES".into(), (128u64 << 20).to_string()));
    // The write-ahead log holds up to twice as much.
    house.env.push(("STATEHOUSE_MEMTABLE_BYTES_MAX".into(), (16u64 << 20).to_string()));
    let node = house.try_start_at("127.0.0.1:0", &disk.path().join("data")).unwrap();
    let client = node.client().await;
    create(&client, "c").await;
    client.put(put("c", "kept", vec![bytes_field("v", vec![1; 1 << 20])])).await.unwrap();
    let before = disk.free();
    let bytes = 600u64 << 20;
    let header = v1::WriteHeader {
        collection: "c".into(),
        key: "large".into(),
        fields: vec![v1::FieldHeader { name: "v".into(), bytes, ..Default::default() }],
        upload_id: "u".into(),
        ..Default::default()
    };
    let refused = client.write(header, &mut Zeros(bytes), |_| {}).await.unwrap_err();
    let WriteError::Refused(refused) = &refused else { panic!("{refused}") };
    assert_eq!(refused.reason(), Some("DISK_FULL"), "{refused}");
    let look =
        v1::GetUploadRequest { collection: "c".into(), key: "large".into(), upload_id: "u".into() };
    let gone = client.state().get_upload(look).await.unwrap_err();
    assert_eq!(client.error(&gone).reason(), Some("UPLOAD_NOT_FOUND"), "{gone}");
    assert_eq!(field_bytes(&client.get(get("c", "kept")).await.unwrap(), "v").len(), 1 << 20);
    let back = async {
        while disk.free() + (64 << 20) < before {
            tokio::task::yield_now().await;
        }
    };
    // At once while the disk is short; once it is not, what was applied is flushed within a minute.
    let came_back = tokio::time::timeout(3 * harness::PATIENCE, back).await;
    let missing = before.saturating_sub(disk.free()) >> 20;
    assert!(came_back.is_ok(), "{missing} MiB of the upload are still taken");
    client.put(put("c", "next", vec![bytes_field("v", "taken again")])).await.unwrap();
}

/// How space is made on a full disk.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Freeing {
    Deletes,
    FieldsRemoved,
    Drop,
}

/// Fills a disk with states of 4 MiB, makes space, and awaits that it is there.
async fn frees(how: Freeing) {
    let mut house = House::new();
    let Some(disk) = SmallDisk::mount(&house.path("disk"), 512) else {
        return;
    };
    house.env.push(("STATEHOUSE_DISK_RESERVE_BYTES".into(), (160u64 << 20).to_string()));
    let node = house.try_start_at("127.0.0.1:0", &disk.path().join("data")).unwrap();
    let client = node.client().await;
    create(&client, "c").await;
    create(&client, "other").await;
    let mut written = 0;
    let refused = loop {
        let fields = vec![bytes_field("v", vec![written as u8; 4 << 20]), bytes_field("w", "w")];
        match client.put(put("c", &format!("{written}"), fields)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 200, "the disk never fills up");
    };
    assert_eq!(refused.reason(), Some("DISK_FULL"), "{refused}");
    assert!(written > 10, "{written}");
    match how {
        Freeing::Deletes => {
            for n in 0..written {
                // By pipeline and by itself, with a request id and without.
                let mut delete = v1::DeleteRequest {
                    collection: "c".into(),
                    key: format!("{n}").into(),
                    ..Default::default()
                };
                if n % 2 == 0 {
                    let request_id = format!("r{n}").into();
                    delete.options = Some(v1::WriteOptions { request_id, ..Default::default() });
                    client.state().delete(delete).await.unwrap();
                } else {
                    client.delete(delete).await.unwrap();
                }
            }
        }
        Freeing::FieldsRemoved => {
            for n in 0..written {
                let edit = v1::edit::Edit::Remove("v".into());
                let patch = v1::PatchRequest {
                    collection: "c".into(),
                    key: format!("{n}").into(),
                    edits: vec![v1::Edit { edit: Some(edit) }],
                    ..Default::default()
                };
                client.patch(patch).await.unwrap();
            }
        }
        Freeing::Drop => {
            let drop = v1::DropCollectionRequest { name: "c".into() };
            client.state().drop_collection(drop).await.unwrap();
        }
    }
    let again = async {
        while let Err(error) = client.put(put("other", "k", vec![])).await {
            assert_eq!(error.reason(), Some("DISK_FULL"), "{error}");
            tokio::task::yield_now().await;
        }
    };
    let came_back = tokio::time::timeout(3 * harness::PATIENCE, again).await;
    assert!(came_back.is_ok(), "{how:?}: no space comes back");
    if how == Freeing::FieldsRemoved {
        let state = client.get(get("c", "0")).await.unwrap();
        assert_eq!(field_bytes(&state, "w"), "w");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_go_through_on_a_full_disk_and_make_space() {
    frees(Freeing::Deletes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_fields_make_space_on_a_full_disk() {
    frees(Freeing::FieldsRemoved).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_dropped_on_a_full_disk_makes_space() {
    frees(Freeing::Drop).await;
}

/// So many bytes of nothing.
struct Zeros(u64);

impl Source for Zeros {
    async fn read(&mut self, offset: u64, bytes_max: usize) -> std::io::Result<Bytes> {
        let left = self.0.saturating_sub(offset).min(bytes_max as u64);
        Ok(Bytes::from(vec![0; left as usize]))
    }
}

#[tokio::test]
async fn a_reserve_that_is_larger_than_what_is_free() {
    let mut house = House::new();
    let node = house.start();
    create(&node.client().await, "c").await;
    node.client().await.put(put("c", "k", vec![bytes_field("v", "kept")])).await.unwrap();
    node.stop();
    house.env.push(("STATEHOUSE_DISK_RESERVE_BYTES".into(), i64::MAX.to_string()));
    let node = house.start();
    let client = node.client().await;
    assert_eq!(reason(client.put(put("c", "k", vec![])).await), "DISK_FULL");
    assert_eq!(field_bytes(&client.get(get("c", "k")).await.unwrap(), "v"), "kept");
    // There is more than the freeing reserve.
    let delete =
        v1::DeleteRequest { collection: "c".into(), key: "k".into(), ..Default::default() };
    client.delete(delete).await.unwrap();
    assert_eq!(reason(client.get(get("c", "k")).await), "STATE_NOT_FOUND");
    // And a way out: states that expire, and smaller ones.
    let brief = v1::UpdateCollectionRequest {
        name: "c".into(),
        state_bytes_max: Some(1_000),
        default_ttl_ms: Some(60_000),
        ..Default::default()
    };
    let updated = client.update_collection(brief).await.unwrap();
    assert_eq!(updated.settings.unwrap().default_ttl_ms, 60_000);
    node.stop();
    house.env.push(("STATEHOUSE_DISK_FREEING_RESERVE_BYTES".into(), i64::MAX.to_string()));
    let node = house.start();
    let delete =
        v1::DeleteRequest { collection: "c".into(), key: "k".into(), ..Default::default() };
    assert_eq!(reason(node.client().await.delete(delete).await), "DISK_FULL");
}
