//! Answers that nobody takes: asked for on connections whose other end may send little that is not
//! taken, and left there until somebody comes back for the rest.

use statehouse_client::{Client, Error, v1};
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// What comes of a stream before it must be taken.
const WINDOW_BYTES: u32 = 64 << 10;

/// The largest answer that is taken in the end.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A channel whose other end may send little that is not taken.
pub async fn narrow(endpoint: String) -> Channel {
    let endpoint = Endpoint::new(endpoint).unwrap();
    endpoint.initial_stream_window_size(WINDOW_BYTES).connect().await.unwrap()
}

/// Asks for a state in one answer, and takes nothing of it.
pub async fn get_untaken(
    channel: Channel,
    request: impl tonic::IntoRequest<v1::GetRequest>,
) -> Streaming<v1::GetResponse> {
    let mut call = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    call.ready().await.unwrap();
    let codec = ProstCodec::<v1::GetRequest, v1::GetResponse>::default();
    let path = PathAndQuery::from_static("/statehouse.v1.State/Get");
    call.server_streaming(request.into_request(), path, codec).await.unwrap().into_inner()
}

/// Takes an answer to its end, which is a refusal.
pub async fn refusal<T>(client: &Client, answer: &mut Streaming<T>) -> Error {
    loop {
        match answer.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it was answered to its end"),
            Err(status) => return client.error(&status),
        }
    }
}
