//! Models are pushed, switched and deleted while they serve, and are there after a restart.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use harness::condition::await_some;
use harness::{House, Node, bank_model, bank_score, create, push, reason, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use statehouse_client::v1::{self, ScoreMode};
use statehouse_client::{Client, Error};

async fn describe(client: &Client, name: &str) -> Result<v1::Model, Error> {
    let request = v1::DescribeModelRequest { name: name.to_owned() };
    let described = client.models().describe(request).await;
    described.map(tonic::Response::into_inner).map_err(|status| client.error(&status))
}

async fn delete(client: &Client, name: &str, version: u64) -> Result<(), Error> {
    let request = v1::DeleteModelRequest { name: name.to_owned(), version };
    let deleted = client.models().delete(request).await;
    deleted.map(drop).map_err(|status| client.error(&status))
}

#[tokio::test]
async fn versions_are_pushed_activated_and_deleted() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "accounts").await;
    let other = house.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(bank_model().join("model.onnx"), other.join("model.onnx")).unwrap();
    let manifest = std::fs::read_to_string(bank_model().join("model.toml")).unwrap();
    std::fs::write(other.join("model.toml"), manifest + "\n# Another one.\n").unwrap();
    for (dir, version) in
        [(bank_model(), 1), (other.clone(), 2), (bank_model(), 1), (other.clone(), 2)]
    {
        let pushed = push(&client, &dir).await.unwrap();
        assert_eq!(pushed.version, version, "the same files again make no new version");
    }
    let (_, metrics) = node.http_get("/metrics");
    let loaded = metrics.lines().filter(|line| line.starts_with("statehouse_model_rows_total{"));
    assert_eq!(loaded.count(), 2, "and are loaded once");
    let model = describe(&client, "bank-gru").await.unwrap();
    assert_eq!((model.active_version, model.versions.len()), (2, 2));
    let version = &model.versions[1];
    assert!(version.loaded);
    assert_eq!((version.inputs[0].name.as_str(), &version.inputs[0].shape[..]), ("x", &[6][..]));
    let fields: Vec<&str> = version.states.iter().map(|state| state.field.as_str()).collect();
    assert_eq!(fields, ["h", "last", "amounts"]);

    assert_eq!(reason(delete(&client, "bank-gru", 2).await), "MODEL_ACTIVE");
    let request = v1::ActivateModelRequest { name: "bank-gru".to_owned(), version: 1 };
    client.models().activate(request).await.unwrap();
    let peek = || bank_score("a", 5.0, ScoreMode::Peek);
    assert_eq!(client.score(peek()).await.unwrap().model_version, 1);
    let second = v1::ScoreRequest { model_version: 2, ..peek() };
    assert_eq!(client.score(second.clone()).await.unwrap().model_version, 2);

    delete(&client, "bank-gru", 2).await.unwrap();
    assert_eq!(reason(client.score(second).await), "MODEL_VERSION_NOT_FOUND");
    assert_eq!(push(&client, &other).await.unwrap().version, 3, "no version comes back");

    node.kill();
    let node = house.start();
    let client = node.client().await;
    let model = describe(&client, "bank-gru").await.unwrap();
    assert_eq!((model.active_version, model.versions.len()), (3, 2));
    assert_eq!(client.score(peek()).await.unwrap().model_version, 3);
    let first = v1::ScoreRequest { model_version: 1, ..peek() };
    assert_eq!(client.score(first).await.unwrap().model_version, 1, "loaded when it's named");

    delete(&client, "bank-gru", 0).await.unwrap();
    assert_eq!(reason(describe(&client, "bank-gru").await), "MODEL_NOT_FOUND");
}

/// What their exports do not say. PyTorch's own GRU and LSTM have the batch in the second axis.
fn manifest(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let states: &[&str] = match name {
        name if name.starts_with("torch_gru_step") => &["h"],
        name if name.starts_with("torch_lstm_step") => &["h", "c"],
        // A trial with every place masked is no number, and rightly so.
        name if name.starts_with("torch_attention") => {
            return "[[output]]\nname = \"score\"\nnan = \"allow\"\n".to_owned();
        }
        _ => &[],
    };
    let binding = |state: &&str| {
        format!(
            "[[state]]\nfield = \"{state}\"\ninput = \"{state}_in\"\n\
             output = \"{state}_out\"\nbatch_axis = 1\n"
        )
    };
    states.iter().map(binding).collect()
}

/// Exports of PyTorch and scikit-learn, as their exporters wrote them.
#[tokio::test]
async fn exported_models_are_served_as_they_are() {
    let dir = PathBuf::from("inference/testdata/models");
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let mut pushed = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        pushed += 1;
        let name = format!("m{pushed}");
        let toml = format!("name = \"{name}\"\nformat = \"onnx\"\n{}", manifest(&path));
        let files = vec![
            ("model.toml".to_owned(), Bytes::from(toml)),
            ("model.onnx".to_owned(), Bytes::from(std::fs::read(&path).unwrap())),
        ];
        let answer = client.push_model(files, true).await;
        answer.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(describe(&client, &name).await.unwrap().versions[0].loaded);
    }
    assert!(pushed >= 30, "{pushed} models");
}

/// The bank's model as a version of its own.
fn variant(number: usize) -> Vec<(String, Bytes)> {
    let manifest = std::fs::read_to_string(bank_model().join("model.toml")).unwrap();
    let onnx = std::fs::read(bank_model().join("model.onnx")).unwrap();
    let manifest = format!("{manifest}\n# Variant {number}.\n");
    vec![("model.toml".into(), manifest.into()), ("model.onnx".into(), onnx.into())]
}

/// Models that are loaded on the device, whoever knows of them.
fn loaded(node: &Node) -> usize {
    let (_, metrics) = node.http_get("/metrics");
    metrics.lines().filter(|line| line.starts_with("statehouse_model_rows_total{")).count()
}

#[tokio::test]
async fn a_model_for_which_the_disk_has_no_room_is_not_left_on_the_device() {
    let mut house = House::new();
    assert_eq!(house.start().stop().0, Some(0));
    house.env.push(("STATEHOUSE_DISK_RESERVE_BYTES".into(), i64::MAX.to_string()));
    let node = house.start();
    let client = node.client().await;
    assert_eq!(reason(push(&client, &bank_model()).await), "DISK_FULL");
    assert_eq!(loaded(&node), 0);
}

/// Waits until exactly the versions that are listed are loaded.
async fn all_are_known(node: &Node, client: &Client) {
    await_some("what is loaded is what is listed", async || {
        let versions = match describe(client, "bank-gru").await {
            Ok(model) => model.versions.len(),
            Err(error) if error.reason() == Some("MODEL_NOT_FOUND") => 0,
            Err(error) => return Err(error.to_string()),
        };
        match loaded(node) {
            found if found == versions => Ok(()),
            found => Err(format!("{found} are loaded, {versions} are listed")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_a_push_or_a_delete_leaves_nothing_unknown_on_the_device() {
    let mut random = StdRng::seed_from_u64(seed());
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let begun = std::time::Instant::now();
    client.push_model(variant(0), true).await.unwrap();
    let whole = begun.elapsed();
    for number in 1..=8 {
        let leaves = random.random_range(Duration::ZERO..whole);
        // Whether it was in time is no matter.
        let _ = tokio::time::timeout(leaves, client.push_model(variant(number), false)).await;
    }
    // The device loads one after the other: those before are loaded by then, too.
    client.push_model(variant(9), true).await.unwrap();
    all_are_known(&node, &client).await;
    for _ in 0..8 {
        let leaves = random.random_range(Duration::ZERO..Duration::from_millis(4));
        let _ = tokio::time::timeout(leaves, delete(&client, "bank-gru", 0)).await;
        all_are_known(&node, &client).await;
        client.push_model(variant(10), true).await.unwrap();
    }
}
