//! Which operators are interpreted, and which of a graph are not.

use super::graph::Node;
use crate::error::Unsupported;

/// The domain of the classical machine-learning operators.
pub const DOMAIN_ML: &str = "ai.onnx.ml";

/// Every operator of the default domain that is interpreted, for documentation and tests.
pub const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Dropout",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "GRU",
    "Gather",
    "Gelu",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Every operator of `ai.onnx.ml` that is interpreted.
pub const OPERATORS_ML: &[&str] = &[
    "ArrayFeatureExtractor",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
];

/// The operators among nodes that aren't interpreted, each once, in the order of their first nodes.
pub fn unsupported<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Vec<Unsupported> {
    let mut found: Vec<Unsupported> = Vec::new();
    for node in nodes {
        let known = match node.domain.as_str() {
            "" => OPERATORS.contains(&node.op.as_str()),
            // Its own refusal says what to do instead.
            DOMAIN_ML => node.op == "ZipMap" || OPERATORS_ML.contains(&node.op.as_str()),
            _ => false,
        };
        if known {
            continue;
        }
        let same = |seen: &&mut Unsupported| seen.op == node.op && seen.domain == node.domain;
        match found.iter_mut().find(same) {
            Some(seen) => seen.nodes += 1,
            None => found.push(Unsupported {
                op: node.op.clone(),
                domain: node.domain.clone(),
                opset: node.opset,
                nodes: 1,
                node: node.name.clone(),
            }),
        }
    }
    found
}
