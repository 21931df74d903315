//! Built-in graphs around weights in `model.safetensors`, under PyTorch's parameter names.
//!
//! A built-in becomes the same kind of graph that an ONNX file holds, and from there on is planned
//! and run like one. PyTorch keeps a GRU's gates in the order reset, update, new; ONNX wants
//! update, reset, new.

use crate::error::Error;
use crate::manifest::{Activation, Architecture};
use crate::onnx::graph::{Attribute, Axis, Graph, Node, ValueInfo};
use crate::onnx::host::{HostTensor, Values};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// The operator set that the nodes below are written in.
const OPSET: i64 = 17;

/// The graph of a built-in architecture with its weights.
pub fn build(architecture: &Architecture, file: &Bytes) -> Result<Graph, Error> {
    let mut build = Build { weights: read(file)?, graph: Graph::default() };
    match architecture {
        Architecture::Gru { inputs, hidden, head, activation, output_activation } => {
            build.input("x", *inputs);
            build.input("h_in", *hidden);
            build.gru(*inputs, *hidden)?;
            build.output("h_out", *hidden);
            if let Some(&last) = head.last() {
                let mut sizes = vec![*hidden];
                sizes.extend(head);
                build.layers("h_out", &sizes, *activation, *output_activation)?;
                build.output("score", last);
            }
        }
        Architecture::Mlp { sizes, activation, output_activation } => {
            let [first, .., last] = sizes[..] else {
                return Err(Error::manifest("architecture.sizes: expected two or more widths"));
            };
            build.input("x", first);
            build.layers("x", sizes, *activation, *output_activation)?;
            build.output("score", last);
        }
    }
    if let Some(name) = build.weights.keys().next() {
        return Err(wrong(format!("unknown tensor '{name}'")));
    }
    Ok(build.graph)
}

fn wrong(reason: String) -> Error {
    Error::Weights { file: "model.safetensors".into(), reason }
}

fn read(file: &Bytes) -> Result<BTreeMap<String, HostTensor>, Error> {
    let tensors = SafeTensors::deserialize(file)
        .map_err(|error| wrong(format!("truncated or not a safetensors file: {error}")))?;
    tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => return Err(wrong(format!("tensor '{name}': {other:?} is not supported"))),
            };
            let data = Bytes::copy_from_slice(view.data());
            let tensor = Tensor::new(dtype, view.shape().to_vec(), data)
                .map_err(|error| wrong(format!("tensor '{name}': {error}")))?;
            Ok((name, HostTensor::from_tensor(&tensor)))
        })
        .collect()
}

struct Build {
    weights: BTreeMap<String, HostTensor>,
    graph: Graph,
}

impl Build {
    fn port(name: &str, width: usize) -> ValueInfo {
        let batch = Axis::Free(Some("batch".into()));
        ValueInfo {
            name: name.into(),
            dtype: DType::F32,
            shape: Some(vec![batch, Axis::Fixed(width)]),
        }
    }

    fn input(&mut self, name: &str, width: usize) {
        self.graph.inputs.push(Build::port(name, width));
    }

    fn output(&mut self, name: &str, width: usize) {
        self.graph.outputs.push(Build::port(name, width));
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64)]) {
        self.graph.nodes.push(Node {
            name: output.to_string(),
            op: op.to_string(),
            domain: String::new(),
            opset: OPSET,
            inputs: inputs.iter().map(|name| Some((*name).to_string())).collect(),
            outputs: vec![Some(output.to_string())],
            attributes: attributes
                .iter()
                .map(|(name, value)| ((*name).to_string(), Attribute::Int(*value)))
                .collect(),
        });
    }

    fn constant(&mut self, name: &str, value: HostTensor) {
        self.graph.constants.insert(name.to_string(), value);
    }

    /// Takes a weight out of the file; what is left over in the end was unexpected.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<HostTensor, Error> {
        let tensor = self
            .weights
            .remove(name)
            .ok_or_else(|| wrong(format!("missing tensor '{name}': expected {shape:?}")))?;
        if tensor.shape != shape {
            let actual = &tensor.shape;
            return Err(wrong(format!("tensor '{name}': expected {shape:?}, got {actual:?}")));
        }
        Ok(tensor)
    }

    fn gru(&mut self, inputs: usize, hidden: usize) -> Result<(), Error> {
        let of_input = self.take("gru.weight_ih", &[3 * hidden, inputs])?;
        let of_state = self.take("gru.weight_hh", &[3 * hidden, hidden])?;
        let mut bias = gates_reordered(self.take("gru.bias_ih", &[3 * hidden])?, hidden);
        bias.extend(gates_reordered(self.take("gru.bias_hh", &[3 * hidden])?, hidden));
        let of_input = gates_reordered(of_input, hidden);
        let of_state = gates_reordered(of_state, hidden);
        self.constant("w", HostTensor::floats(vec![1, 3 * hidden, inputs], of_input));
        self.constant("r", HostTensor::floats(vec![1, 3 * hidden, hidden], of_state));
        self.constant("b", HostTensor::floats(vec![1, 6 * hidden], bias));
        self.constant("first", HostTensor::ints(vec![0]));
        self.node("Unsqueeze", &["x", "first"], "sequence", &[]);
        self.node("Unsqueeze", &["h_in", "first"], "initial", &[]);
        let inputs = ["sequence", "w", "r", "b", "", "initial"];
        self.node("GRU", &inputs, "last", &[("linear_before_reset", 1)]);
        let gru = self.graph.nodes.last_mut().expect("a node was just added");
        gru.inputs[4] = None;
        gru.outputs = vec![None, Some("last".into())];
        self.node("Squeeze", &["last", "first"], "h_out", &[]);
        Ok(())
    }

    fn layers(
        &mut self,
        from: &str,
        sizes: &[usize],
        between: Activation,
        last: Activation,
    ) -> Result<(), Error> {
        let mut from = from.to_string();
        let count = sizes.len() - 1;
        for layer in 1..=count {
            let (weight, bias) = (format!("fc{layer}.weight"), format!("fc{layer}.bias"));
            let value = self.take(&weight, &[sizes[layer], sizes[layer - 1]])?;
            self.constant(&weight, value);
            let value = self.take(&bias, &[sizes[layer]])?;
            self.constant(&bias, value);
            let product = format!("fc{layer}");
            self.node("Gemm", &[&from, &weight, &bias], &product, &[("transB", 1)]);
            let is_last = layer == count;
            let activated = if is_last { "score".to_string() } else { format!("active{layer}") };
            let op = match if is_last { last } else { between } {
                Activation::Relu => "Relu",
                Activation::Tanh => "Tanh",
                Activation::Sigmoid => "Sigmoid",
                Activation::Gelu => "Gelu",
                Activation::None => "Identity",
            };
            self.node(op, &[&product], &activated, &[]);
            from = activated;
        }
        Ok(())
    }
}

/// Reset, update, new to update, reset, new.
fn gates_reordered(tensor: HostTensor, hidden: usize) -> Vec<f32> {
    let Values::Float(values) = tensor.values else { unreachable!("weights are read as floats") };
    let gate = hidden * tensor.shape.get(1).copied().unwrap_or(1);
    [&values[gate..2 * gate], &values[..gate], &values[2 * gate..]].concat()
}
