//! Health, reflection, metrics and probes, as the field's tools expect them.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use harness::{House, bytes_field, create, put};
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

#[tokio::test]
async fn services_are_reflected() {
    let house = House::new();
    let node = house.start();
    let channel = tonic::transport::Endpoint::from_shared(node.endpoint()).unwrap();
    let mut reflection = ServerReflectionClient::new(channel.connect().await.unwrap());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["State", "Score", "Models", "Pipeline", "Cluster"] {
        assert!(names.contains(&format!("statehouse.v1.{service}")), "{names:?}");
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
