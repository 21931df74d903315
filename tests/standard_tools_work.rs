//! Health, reflection, metrics and probes, as the field's tools expect them.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use std::collections::HashSet;

use harness::{House, bytes_field, create, put};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

#[tokio::test]
async fn health_is_served() {
    let house = House::new();
    let node = house.start();
    let channel = tonic::transport::Endpoint::from_shared(node.endpoint()).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let ours = ["State", "Score", "Models", "Pipeline", "Cluster"]
        .map(|name| format!("statehouse.v1.{name}"));
    for service in ours.into_iter().chain([String::new()]) {
        let request = HealthCheckRequest { service: service.clone() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), tonic_health::ServingStatus::Serving.into(), "{service:?}");
    }
    assert_eq!(node.http_get("/livez"), (200, "live\n".to_owned()));
    assert_eq!(node.http_get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(node.http_get("/nothing").0, 404);
}

/// All that a node's client listener serves.
const SERVED: [&str; 9] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "statehouse.v1.Admin",
    "statehouse.v1.Cluster",
    "statehouse.v1.Models",
    "statehouse.v1.Pipeline",
    "statehouse.v1.Score",
    "statehouse.v1.State",
];

/// Asks for reflection once.
async fn reflect(
    reflection: &mut ServerReflectionClient<tonic::transport::Channel>,
    message: MessageRequest,
) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await?;
    Ok(answers.into_inner().message().await?.unwrap().message_response.unwrap())
}

/// The files of an answer.
fn files(answer: MessageResponse) -> Vec<FileDescriptorProto> {
    let MessageResponse::FileDescriptorResponse(found) = answer else { panic!("{answer:?}") };
    let decode = |file: &Vec<u8>| FileDescriptorProto::decode(file.as_slice()).unwrap();
    found.file_descriptor_proto.iter().map(decode).collect()
}

#[tokio::test]
async fn exactly_the_services_that_are_served_are_reflected_with_all_they_are_made_of() {
    let house = House::new();
    let node = house.start();
    let channel = tonic::transport::Endpoint::from_shared(node.endpoint()).unwrap();
    let mut reflection = ServerReflectionClient::new(channel.connect().await.unwrap());
    let list = MessageRequest::ListServices(String::new());
    let answer = reflect(&mut reflection, list).await.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort_unstable();
    assert_eq!(names, SERVED);
    // As a tool does that calls them: from each service through every file that it imports.
    let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
    for service in names {
        let symbol = MessageRequest::FileContainingSymbol(service);
        wanted.extend(files(reflect(&mut reflection, symbol).await.unwrap()));
    }
    while let Some(file) = wanted.pop() {
        for import in file.dependency {
            if seen.insert(import.clone()) {
                let by_name = MessageRequest::FileByFilename(import);
                wanted.extend(files(reflect(&mut reflection, by_name).await.unwrap()));
            }
        }
    }
    assert!(seen.contains("statehouse/v1/types.proto"), "{seen:?}");
    for hidden in ["statehouse.v1.Peer", "statehouse.bench.v1.Echo", "etcdserverpb.KV"] {
        let symbol = MessageRequest::FileContainingSymbol(hidden.to_owned());
        let answer = reflect(&mut reflection, symbol).await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound, "{hidden}");
    }
}

#[tokio::test]
async fn services_are_reflected_to_older_clients() {
    use tonic_reflection::pb::v1alpha as alpha;
    let house = House::new();
    let node = house.start();
    let channel = tonic::transport::Endpoint::from_shared(node.endpoint()).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut reflection = alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let wanted = "statehouse.v1.State".to_owned();
    let request = alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            alpha::server_reflection_request::MessageRequest::FileContainingSymbol(wanted),
        ),
    };
    let answers = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap();
    let alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files) = answer
    else {
        panic!("{answer:?}");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let house = House::new();
    let node = house.start();
    let client = node.client().await;
    create(&client, "c").await;
    for n in 0..20 {
        client.put(put("c", &format!("{n}"), vec![bytes_field("v", "x")])).await.unwrap();
    }
    client.put(put("nowhere", "k", vec![])).await.unwrap_err();
    let (status, metrics) = node.http_get("/metrics");
    assert_eq!(status, 200);
    for line in [
        "statehouse_call_seconds_count{call=\"put\"} 21",
        "statehouse_call_failures_total{call=\"put\",reason=\"COLLECTION_NOT_FOUND\"} 1",
        "statehouse_calls_under_way 0",
    ] {
        assert!(metrics.contains(line), "no {line:?} in\n{metrics}");
    }
    for name in
        ["statehouse_syncs_total", "statehouse_resident_bytes", "statehouse_disk_free_bytes"]
    {
        let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0.0, "{line}");
    }
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn a_node_alone_starts_and_stops_without_a_word_that_reads_like_a_fault() {
    let mut house = House::new();
    // Twice: it founds its cluster, and it comes back to it.
    for _ in 0..2 {
        let node = house.start();
        // It leads its shards: whatever it tells its cluster about itself is told.
        node.json(&["admin", "status"]);
        let said = node.said.clone();
        let (code, log) = node.stop();
        assert_eq!(code, Some(0));
        for line in said.lines().chain(log.iter().map(String::as_str)) {
            let told: serde_json::Value = serde_json::from_str(line).unwrap();
            let level = told["level"].as_str().unwrap();
            assert!(level == "INFO" && told["fields"]["error"].is_null(), "{line}");
        }
        house.flags.clear();
    }
}
