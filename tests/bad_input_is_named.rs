//! Bad input gets a clear, typed error that says what was expected, and loses nothing.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use harness::{
    House, bank_model, bank_score, bytes_field, create, create_with, f32_field, f32_tensor, get,
    push, put, reason,
};
use statehouse_client::v1::{self, ScoreMode, edit};
use statehouse_client::{Client, Error};

async fn bank(house: &House) -> (harness::Node, Client) {
    let node = house.start();
    let client = node.client().await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    (node, client)
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, expected: &str, says: &str) {
    let error = answer.expect_err(expected);
    assert_eq!(error.reason(), Some(expected), "{error}");
    assert!(error.to_string().contains(says), "{error} does not say {says:?}");
}

#[tokio::test]
async fn names_that_are_not_there() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    refused(client.get(get("nope", "k")).await, "COLLECTION_NOT_FOUND", "\"nope\"");
    refused(client.put(put("nope", "k", vec![])).await, "COLLECTION_NOT_FOUND", "\"nope\"");
    let score = |model: &str, version| v1::ScoreRequest {
        model: model.to_owned(),
        model_version: version,
        ..bank_score("a", 1.0, ScoreMode::Peek)
    };
    refused(client.score(score("nope", 0)).await, "MODEL_NOT_FOUND", "\"nope\"");
    refused(client.score(score("bank-gru", 9)).await, "MODEL_VERSION_NOT_FOUND", "9");
    let output = v1::ScoreRequest {
        outputs: vec!["scoer".to_owned()],
        ..bank_score("a", 1.0, ScoreMode::Peek)
    };
    refused(client.score(output).await, "INVALID_INPUT", "score");
    let request = v1::DescribeModelRequest { name: "nope".to_owned() };
    let described = client.models().describe(request).await;
    refused(described.map_err(|status| client.error(&status)), "MODEL_NOT_FOUND", "\"nope\"");
}

#[tokio::test]
async fn inputs_that_do_not_fit() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    let with = |name: &str, tensor: v1::Tensor| {
        let inputs = vec![v1::NamedTensor { name: name.to_owned(), tensor: Some(tensor) }];
        v1::ScoreRequest { inputs, ..bank_score("a", 1.0, ScoreMode::Step) }
    };
    let good = f32_tensor(&[6], &[1.0; 6]);
    let five = client.score(with("x", f32_tensor(&[5], &[1.0; 5]))).await;
    refused(five, "INVALID_INPUT", "[6]");
    let typed = v1::Tensor { dtype: v1::DataType::I32 as i32, ..good.clone() };
    refused(client.score(with("x", typed)).await, "INVALID_INPUT", "f32");
    refused(client.score(with("y", good.clone())).await, "INVALID_INPUT", "'x'");
    let none = v1::ScoreRequest { inputs: vec![], ..bank_score("a", 1.0, ScoreMode::Step) };
    refused(client.score(none).await, "INVALID_INPUT", "'x'");
    let short = v1::Tensor { data: Bytes::from_static(&[0; 23]), ..good.clone() };
    refused(client.score(with("x", short)).await, "INVALID_TENSOR", "24");
    let untyped = v1::Tensor { dtype: 0, ..good };
    refused(client.score(with("x", untyped)).await, "INVALID_TENSOR", "dtype");
    let nan = f32_tensor(&[6], &[1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0]);
    refused(client.score(with("x", nan)).await, "NOT_FINITE", "x");
    assert_eq!(reason(client.get(get("accounts", "a")).await), "STATE_NOT_FOUND", "no step");
}

#[tokio::test]
async fn a_stored_field_that_does_not_fit_the_model() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    let wrong = vec![f32_field("h", &[65], &[0.5; 65])];
    client.put(put("accounts", "a", wrong.clone())).await.unwrap();
    let scored = client.score(bank_score("a", 1.0, ScoreMode::Step)).await;
    refused(scored, "STATE_MISMATCH", "[64]");
    client.put(put("accounts", "b", vec![bytes_field("h", "opaque")])).await.unwrap();
    refused(client.score(bank_score("b", 1.0, ScoreMode::Peek)).await, "STATE_MISMATCH", "f32");
    assert_eq!(client.get(get("accounts", "a")).await.unwrap().fields, wrong, "nothing is lost");
}

#[tokio::test]
async fn keys_values_and_tensors_out_of_bounds() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let settings = v1::CollectionSettings { state_bytes_max: 1_000, ..Default::default() };
    create_with(&client, "c", settings).await;
    for key in [String::new(), "k".repeat(513), "k".repeat(600)] {
        refused(client.get(get("c", &key)).await, "INVALID_KEY", "1..=512");
        refused(client.put(put("c", &key, vec![])).await, "INVALID_KEY", "1..=512");
    }
    client.put(put("c", &"k".repeat(512), vec![])).await.unwrap();
    let large = put("c", "k", vec![bytes_field("v", vec![0; 1_001])]);
    refused(client.put(large).await, "STATE_TOO_LARGE", "1000");
    let twice = put("c", "k", vec![bytes_field("v", "a"), bytes_field("v", "b")]);
    refused(client.put(twice).await, "INVALID_REQUEST", "twice");
    let nameless = put("c", "k", vec![bytes_field("", "a")]);
    refused(client.put(nameless).await, "INVALID_REQUEST", "1..=128");
    let mut field = f32_field("t", &[2, 2], &[0.0; 4]);
    if let Some(v1::field::Value::Tensor(tensor)) = &mut field.value {
        tensor.shape = vec![2, 3];
    }
    refused(client.put(put("c", "k", vec![field])).await, "INVALID_TENSOR", "24 bytes, got 16");
    assert_eq!(reason(client.get(get("c", "k")).await), "STATE_NOT_FOUND", "nothing was written");
    for name in ["", "Upper", "_models", "a b", &"c".repeat(65)] {
        let request = v1::CreateCollectionRequest { name: name.to_owned(), ..Default::default() };
        refused(client.create_collection(request).await, "INVALID_REQUEST", "[a-z0-9-_.]");
    }
    let request = v1::CreateCollectionRequest { name: "c".to_owned(), ..Default::default() };
    refused(client.create_collection(request).await, "COLLECTION_EXISTS", "\"c\"");
}

#[tokio::test]
async fn patches_that_contradict_themselves() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    client.put(put("c", "k", vec![bytes_field("f", "0123456789")])).await.unwrap();
    let write = |offset, data: &str| {
        let (field, data) = ("f".to_owned(), Bytes::copy_from_slice(data.as_bytes()));
        edit::Edit::WriteRange(edit::WriteRange { field, offset, data })
    };
    let patch = |edits: Vec<edit::Edit>| v1::PatchRequest {
        collection: "c".into(),
        key: "k".into(),
        edits: edits.into_iter().map(|edit| v1::Edit { edit: Some(edit) }).collect(),
        options: None,
    };
    let overlapping = patch(vec![write(0, "abc"), write(5, "xyz"), write(2, "d")]);
    let says = "edits 0 and 2 overwrite the same bytes of \"f\"";
    refused(client.patch(overlapping).await, "INVALID_REQUEST", says);
    let past = patch(vec![write(0, "abc"), write(9, "xy")]);
    refused(client.patch(past).await, "RANGE_PAST_END", "byte 11");
    let found = client.get(get("c", "k")).await.unwrap();
    assert_eq!(harness::field_bytes(&found, "f"), "0123456789", "all edits or none");
    let set = edit::Edit::Set(bytes_field("f", "......"));
    client.patch(patch(vec![write(0, "abc"), write(3, "d"), set, write(1, "x")])).await.unwrap();
    let found = client.get(get("c", "k")).await.unwrap();
    assert_eq!(harness::field_bytes(&found, "f"), ".x....");
}

fn bad_model(name: &str) -> PathBuf {
    Path::new("inference/testdata/bad").join(name)
}

async fn push_files(client: &Client, toml: &str, onnx: Vec<u8>) -> Result<u64, Error> {
    let files = vec![
        ("model.toml".to_owned(), Bytes::from(toml.to_owned())),
        ("model.onnx".to_owned(), Bytes::from(onnx)),
    ];
    client.push_model(files, true).await.map(|pushed| pushed.version)
}

#[tokio::test]
async fn models_that_can_not_be_served() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    let toml = "name = \"bad\"\nformat = \"onnx\"\n";
    let onnx = std::fs::read(bank_model().join("model.onnx")).unwrap();
    for cut in [0, 1, 100, onnx.len() / 2, onnx.len() - 1] {
        let answer = push_files(&client, toml, onnx[..cut].to_vec()).await;
        refused(answer, "INVALID_MODEL", "model.onnx");
    }
    let unknown = format!("{toml}[batch]\nrow_max = 8\n");
    refused(push_files(&client, &unknown, onnx.clone()).await, "INVALID_MODEL", "rows_max");
    let operator = std::fs::read(bad_model("unlisted_operator.onnx")).unwrap();
    refused(push_files(&client, toml, operator).await, "INVALID_MODEL", "unsupported operator");
    let nan = std::fs::read(bad_model("nan_output.onnx")).unwrap();
    let trial = format!("{toml}[[input]]\nname = \"x\"\ntrial = 1\n");
    refused(push_files(&client, &trial, nan).await, "INVALID_MODEL", "self-test");
    let external = std::fs::read(bad_model("external_data.onnx")).unwrap();
    refused(push_files(&client, toml, external).await, "INVALID_MODEL", "external");
    let alone = vec![("model.onnx".to_owned(), Bytes::from(onnx))];
    refused(client.push_model(alone, true).await, "INVALID_MODEL", "model.toml");
    let listed = client.models().list(v1::ListModelsRequest {}).await.unwrap().into_inner();
    assert!(listed.models.is_empty(), "nothing was stored");
}

#[tokio::test]
async fn data_directories_that_can_not_be_opened() {
    let house = House::new();
    let node = house.start();
    let second = house.try_start().err().expect("a directory has one node");
    assert!(second.contains("in use"), "{second}");
    let taken = node.grpc.to_string();
    let other = House::new();
    let refused = other.try_start_at(&taken, &other.data()).err().expect("the port is taken");
    assert!(refused.contains(&taken), "{refused}");
    node.stop();

    let theirs = house.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("thesis.txt"), "irreplaceable").unwrap();
    let refused = house.try_start_at("127.0.0.1:0", &theirs).err().expect("not a data directory");
    assert!(refused.contains("not a store"), "{refused}");
    let kept: Vec<_> = std::fs::read_dir(&theirs).unwrap().collect();
    assert_eq!(kept.len(), 1, "nothing was added to it");
}

#[tokio::test]
async fn data_of_a_newer_version() {
    let house = House::new();
    house.start().stop();
    let marker = house.data().join("STATEHOUSE");
    let text = std::fs::read_to_string(&marker).unwrap();
    let (first, rest) = text.split_once("format ").unwrap();
    let (format, rest) = rest.split_once('\n').unwrap();
    let newer = format.parse::<u32>().unwrap() + 1;
    std::fs::write(&marker, format!("{first}format {newer}\n{rest}")).unwrap();
    let refused = house.try_start().err().expect("newer data is not opened");
    assert!(refused.contains(&format!("format {newer}")) && refused.contains("newer"), "{refused}");
    std::fs::write(&marker, text).unwrap();
    house.start();
}

#[tokio::test]
async fn configuration_that_is_wrong() {
    let mut house = House::new();
    let file = house.path("node.toml");
    std::fs::write(&file, "lissten = \"127.0.0.1:0\"\n").unwrap();
    house.flags = vec!["--config".into(), file.display().to_string()];
    let refused = house.try_start().err().expect("an unknown key");
    assert!(refused.contains("\"lissten\"") && refused.contains("\"listen\""), "{refused}");
    house.flags = vec!["--device".into(), "tpu".into()];
    assert!(house.try_start().is_err());
}

#[tokio::test]
async fn events_that_can_not_be_read() {
    let house = House::new();
    let (node, _client) = bank(&house).await;
    let events = house.path("events.csv");
    let header = "account_id,date,type,operation,k_symbol,amount,balance\n";
    let good = "7,930101,PRIJEM,VKLAD,,700.00,700.00\n";
    let map = bank_model().join("map.toml");
    let (events_arg, map_arg) = (events.display().to_string(), map.display().to_string());
    for (row, says) in [
        ("7,930101,PRIJEM,VKLAD,,seven,700.00\n", "line 3"),
        ("7,931301,PRIJEM,VKLAD,,700.00,700.00\n", "line 3"),
        ("7,930101,PRIJEM\n", "line 3: expected 7 columns, got 3"),
    ] {
        std::fs::write(&events, format!("{header}{good}{row}")).unwrap();
        let out = node.run(&["replay", "--events", &events_arg, "--map", &map_arg]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(says), "{said}");
    }
}

#[tokio::test]
async fn a_request_too_large_for_a_pipeline_ends_it_once_those_before_it_are_answered() {
    use statehouse_client::v1::pipeline_client::PipelineClient;
    use statehouse_client::v1::pipeline_request::Call;
    use statehouse_client::v1::pipeline_response::Result as Answer;
    const BEFORE: u64 = 64;
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    let request = |id: u64, bytes: usize| {
        let fields = vec![bytes_field("f", vec![id as u8; bytes])];
        let call = Some(Call::Put(put("c", &format!("{id}"), fields)));
        v1::PipelineRequest { id, timeout_ms: 0, call }
    };
    let requests = (1..=BEFORE).map(move |id| request(id, 10)).chain([request(99, 3 << 20)]);
    let channel = tonic::transport::Endpoint::from_shared(node.endpoint()).unwrap();
    let mut pipeline = PipelineClient::new(channel.connect().await.unwrap());
    let mut answers = pipeline.run(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut written = Vec::new();
    let broken = loop {
        match answers.message().await {
            Ok(Some(v1::PipelineResponse { id, result: Some(Answer::Write(_)), .. })) => {
                written.push(id);
            }
            Ok(other) => panic!("{other:?}"),
            Err(status) => break status,
        }
    };
    assert_eq!(broken.code(), tonic::Code::OutOfRange, "{broken}");
    written.sort_unstable();
    assert_eq!(written, Vec::from_iter(1..=BEFORE), "each of them is answered first");
    assert_eq!(reason(client.get(get("c", "99")).await), "STATE_NOT_FOUND");
}
