//! What generic tools need: gRPC's own health and reflection services.

mod support;

use support::Plane;
use tokio_stream::{StreamExt as _, iter};
use tonic::transport::Endpoint;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

const WANTED: [&str; 10] = [
    "grpc.health.v1.Health",
    "lunette.admin.v1.Cluster",
    "lunette.admin.v1.Disks",
    "lunette.admin.v1.Nodes",
    "lunette.admin.v1.Pools",
    "lunette.admin.v1.Sessions",
    "lunette.admin.v1.Targets",
    "lunette.admin.v1.Volumes",
    "lunette.cluster.v1.Members",
    "lunette.cluster.v1.Raft",
];

/// Guards `grpcurl list` and probes: every service is named, in both versions, and a leader is serving.
#[tokio::test]
async fn health_and_reflection() {
    let plane = Plane::new().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", plane.control.address())).expect("an address");
    let channel = endpoint.connect().await.expect("connects");
    let ours = WANTED.iter().filter(|name| name.starts_with("lunette."));
    for service in ours.chain(&[""]) {
        let request = HealthCheckRequest { service: (*service).into() };
        let answer = HealthClient::new(channel.clone()).check(request).await.expect("known").into_inner();
        assert_eq!(answer.status, ServingStatus::Serving as i32);
    }

    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(iter([ask])).await.expect("answers").into_inner();
    let answer = answers.next().await.expect("one").expect("an answer").message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("no list: {answer:?}")
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for wanted in WANTED {
        assert!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }

    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "lunette.admin.v1.Volumes".into(),
        )),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(iter([ask])).await.expect("answers").into_inner();
    let answer = answers.next().await.expect("one").expect("an answer").message_response;
    assert!(
        matches!(
            answer,
            Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
        ),
        "{answer:?}"
    );
    plane.control.stop().await;
}
