//! A model that counts: `count_out = count + x`, `total = count + x`. With every x 1, the output
//! of a step is the step's rank among all that its key ever took, so a step that is lost or
//! taken twice shows at once.

use std::path::Path;

use prost::Message;
use statehouse_client::v1;

use super::f32_tensor;

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opsets: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<Port>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<Port>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    op: String,
}

#[derive(Clone, PartialEq, Message)]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Message)]
struct Kind {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorKind>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorKind {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    axes: Vec<Axis>,
}

#[derive(Clone, PartialEq, Message)]
struct Axis {
    #[prost(int64, optional, tag = "1")]
    length: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

/// f32 of shape [batch, 1].
fn port(name: &str) -> Port {
    let batch = Axis { length: None, name: Some("batch".to_owned()) };
    let one = Axis { length: Some(1), name: None };
    let shape = Some(Shape { axes: vec![batch, one] });
    let kind = Kind { tensor: Some(TensorKind { dtype: 1, shape }) };
    Port { name: name.to_owned(), kind: Some(kind) }
}

fn add(output: &str) -> Node {
    let inputs = vec!["count".to_owned(), "x".to_owned()];
    Node { inputs, outputs: vec![output.to_owned()], op: "Add".to_owned() }
}

const MANIFEST: &str = "name = \"counter\"\nformat = \"onnx\"\n[[state]]\nfield = \"count\"\n\
                        input = \"count\"\noutput = \"count_out\"\ninitial = \"zeros\"\n";

/// Writes the model's directory.
pub fn write_model(dir: &Path) {
    let graph = Graph {
        nodes: vec![add("count_out"), add("total")],
        inputs: vec![port("x"), port("count")],
        outputs: vec![port("total"), port("count_out")],
    };
    let file = File { graph: Some(graph), opsets: vec![Opset { version: 13 }] };
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.toml"), MANIFEST).unwrap();
    std::fs::write(dir.join("model.onnx"), file.encode_to_vec()).unwrap();
}

/// One more for a key.
pub fn step(collection: &str, key: &str, request_id: u64) -> v1::ScoreRequest {
    let x = v1::NamedTensor { name: "x".to_owned(), tensor: Some(f32_tensor(&[1], &[1.0])) };
    v1::ScoreRequest {
        model: "counter".to_owned(),
        collection: collection.to_owned(),
        key: key.to_owned().into(),
        inputs: vec![x],
        mode: v1::ScoreMode::Step as i32,
        request_id: request_id.to_le_bytes().to_vec().into(),
        ..Default::default()
    }
}

/// What a step counted.
pub fn total(scored: &v1::ScoreResponse) -> u64 {
    let output = scored.outputs.iter().find(|output| output.name == "total").unwrap();
    let data = &output.tensor.as_ref().unwrap().data;
    f32::from_le_bytes(data[..4].try_into().unwrap()) as u64
}
