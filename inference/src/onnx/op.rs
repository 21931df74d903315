//! A node's operator, typed: attributes read, defaults filled, forms of different opsets made one.
//!
//! What an operator computes is in `run`. Operands that older opsets kept in attributes (axes,
//! split sizes) are `Option` here: `None` means that they come as an input, or not at all.

use super::graph::{Attribute, Node, cast_target};
use super::host::HostTensor;
use super::linear::{Linear, Normalize, Scaler};
use super::trees::Trees;
use crate::error::Error;
use crate::tensor::DType;

pub use super::supported::{DOMAIN_ML, OPERATORS, OPERATORS_ML, unsupported};

/// An operator with its attributes.
#[derive(Clone, Debug)]
pub enum Op {
    /// Nothing changes.
    Identity,
    /// At inference: nothing changes, and the mask keeps everything.
    Dropout,
    /// A constant; planning removes it.
    Constant(HostTensor),
    /// One operand, element by element.
    Unary(Unary),
    /// Two numeric operands, broadcast.
    Binary(Binary),
    /// `Min` and `Max` over any number of operands.
    Extremum(Extremum),
    /// Bounds come as inputs 1 and 2.
    Clip,
    /// Two operands to truth values.
    Compare(Comparison),
    /// `And`.
    And,
    /// `Or`.
    Or,
    /// `Not`.
    Not,
    /// Condition, then, else.
    Where,
    /// To a declared type.
    Cast(DType),
    /// Matrix product as in numpy.
    MatMul,
    /// `alpha * A * B + beta * C`.
    Gemm(Gemm),
    /// Gated recurrent unit.
    Gru(Recurrent),
    /// Long short-term memory.
    Lstm(Recurrent),
    /// Over the axes from `axis` on; also gives the mean and one over the deviation.
    LayerNorm { axis: i64, epsilon: f32 },
    /// With stored statistics.
    BatchNorm { epsilon: f32 },
    /// `flatten`: before opset 13 all axes from `axis` on were one.
    Softmax { axis: i64, log: bool, flatten: bool },
    /// A reduction over axes.
    Reduce(Reduce),
    /// The position of the largest.
    ArgMax { axis: i64, keep_axes: bool, last: bool },
    /// Elements moved, taken or repeated, not changed.
    Shaping(Shaping),
    /// A tree ensemble, classifier or regressor.
    Trees(Box<Trees>),
    /// A linear classifier or regressor.
    Linear(Box<Linear>),
    /// Rows to unit norm.
    Normalizer(Normalize),
    /// `(x - offset) * scale`.
    Scaler(Scaler),
    /// Columns by index.
    ArrayFeatureExtractor,
}

/// Operators that move, take or repeat elements.
#[derive(Clone, Debug)]
pub enum Shaping {
    /// Along an axis.
    Concat { axis: i64 },
    /// Into parts along an axis.
    Split { axis: i64, sizes: Option<Vec<i64>>, parts: usize },
    /// Starts, ends, axes and steps come as inputs.
    Slice,
    /// Entries of an axis by index.
    Gather { axis: i64 },
    /// To the shape in input 1.
    Reshape { allow_zero: bool },
    /// Axes in a new order; reversed without `order`.
    Transpose { order: Option<Vec<i64>> },
    /// Without these axes of length one.
    Squeeze { axes: Option<Vec<i64>> },
    /// With new axes of length one.
    Unsqueeze { axes: Option<Vec<i64>> },
    /// Broadcast to the shape in input 1.
    Expand,
    /// The shape as integers.
    Shape { start: i64, end: Option<i64> },
    /// To two axes.
    Flatten { axis: i64 },
    /// A shape filled with one value.
    ConstantOfShape { value: HostTensor },
}

/// Element-wise operators with one operand.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Unary {
    Sqrt,
    Exp,
    Log,
    Neg,
    Abs,
    Relu,
    Sigmoid,
    Tanh,
    Erf,
    Gelu { tanh: bool },
    LeakyRelu { slope: f32 },
}

/// Arithmetic with two operands.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
}

/// Which end of the order.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Extremum {
    Min,
    Max,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Attributes of `Gemm`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Gemm {
    pub alpha: f32,
    pub beta: f32,
    pub transpose_a: bool,
    pub transpose_b: bool,
}

/// Attributes that GRU and LSTM share.
#[derive(Clone, Copy, Debug)]
pub struct Recurrent {
    /// Which way the sequence is read.
    pub direction: Direction,
    /// GRU: apply the reset gate after the recurrent product.
    pub linear_before_reset: bool,
}

/// Which way a sequence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction {
    Forward,
    Reverse,
    Bidirectional,
}

/// Attributes of the reductions.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// What is computed.
    pub kind: ReduceKind,
    /// Axes from the attribute form.
    pub axes: Option<Vec<i64>>,
    /// Leave reduced axes with length one.
    pub keep_axes: bool,
    /// No axes means no reduction, instead of all axes.
    pub empty_is_identity: bool,
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum ReduceKind {
    Mean,
    Sum,
    Max,
    Min,
}

impl Op {
    /// Reads a node. An operator that isn't interpreted is [`Error::UnsupportedOperators`].
    pub fn parse(node: &Node) -> Result<Op, Error> {
        let op = match node.domain.as_str() {
            "" => default_domain(node)?,
            DOMAIN_ML => machine_learning(node)?,
            _ => None,
        };
        op.ok_or_else(|| Error::UnsupportedOperators {
            operators: unsupported([node]),
            others: Vec::new(),
        })
    }
}

fn default_domain(node: &Node) -> Result<Option<Op>, Error> {
    let op = match node.op.as_str() {
        "Constant" => constant(node)?,
        "Identity" => Op::Identity,
        "Dropout" => Op::Dropout,
        "Cast" => Op::Cast(cast_target(node.int("to", 0)?).map_err(|reason| node.wrong(reason))?),
        "MatMul" => Op::MatMul,
        "Gemm" => Op::Gemm(Gemm {
            alpha: node.float("alpha", 1.0)?,
            beta: node.float("beta", 1.0)?,
            transpose_a: node.int("transA", 0)? != 0,
            transpose_b: node.int("transB", 0)? != 0,
        }),
        "GRU" => Op::Gru(recurrent(node, &["Sigmoid", "Tanh"])?),
        "LSTM" => Op::Lstm(recurrent(node, &["Sigmoid", "Tanh", "Tanh"])?),
        "LayerNormalization" => {
            Op::LayerNorm { axis: node.int("axis", -1)?, epsilon: node.float("epsilon", 1e-5)? }
        }
        "BatchNormalization" => {
            inference_only(node, Op::BatchNorm { epsilon: node.float("epsilon", 1e-5)? })?
        }
        "Softmax" => softmax(node, false)?,
        "LogSoftmax" => softmax(node, true)?,
        "ReduceMean" => reduce(node, ReduceKind::Mean)?,
        "ReduceSum" => reduce(node, ReduceKind::Sum)?,
        "ReduceMax" => reduce(node, ReduceKind::Max)?,
        "ReduceMin" => reduce(node, ReduceKind::Min)?,
        "ArgMax" => Op::ArgMax {
            axis: node.int("axis", 0)?,
            keep_axes: node.int("keepdims", 1)? != 0,
            last: node.int("select_last_index", 0)? != 0,
        },
        _ => match element_wise(node)? {
            Some(op) => op,
            None => return Ok(shaping(node)?.map(Op::Shaping)),
        },
    };
    Ok(Some(op))
}

fn element_wise(node: &Node) -> Result<Option<Op>, Error> {
    Ok(Some(match node.op.as_str() {
        "Sqrt" => Op::Unary(Unary::Sqrt),
        "Exp" => Op::Unary(Unary::Exp),
        "Log" => Op::Unary(Unary::Log),
        "Neg" => Op::Unary(Unary::Neg),
        "Abs" => Op::Unary(Unary::Abs),
        "Relu" => Op::Unary(Unary::Relu),
        "Sigmoid" => Op::Unary(Unary::Sigmoid),
        "Tanh" => Op::Unary(Unary::Tanh),
        "Erf" => Op::Unary(Unary::Erf),
        "Gelu" => Op::Unary(Unary::Gelu { tanh: node.text("approximate", "none")? == "tanh" }),
        "LeakyRelu" => Op::Unary(Unary::LeakyRelu { slope: node.float("alpha", 0.01)? }),
        "Add" => Op::Binary(Binary::Add),
        "Sub" => Op::Binary(Binary::Sub),
        "Mul" => Op::Binary(Binary::Mul),
        "Div" => Op::Binary(Binary::Div),
        "Pow" => Op::Binary(Binary::Pow),
        "Min" => Op::Extremum(Extremum::Min),
        "Max" => Op::Extremum(Extremum::Max),
        "Clip" => Op::Clip,
        "Equal" => Op::Compare(Comparison::Equal),
        "Less" => Op::Compare(Comparison::Less),
        "LessOrEqual" => Op::Compare(Comparison::LessOrEqual),
        "Greater" => Op::Compare(Comparison::Greater),
        "GreaterOrEqual" => Op::Compare(Comparison::GreaterOrEqual),
        "And" => Op::And,
        "Or" => Op::Or,
        "Not" => Op::Not,
        "Where" => Op::Where,
        _ => return Ok(None),
    }))
}

fn shaping(node: &Node) -> Result<Option<Shaping>, Error> {
    Ok(Some(match node.op.as_str() {
        "Concat" => Shaping::Concat { axis: node.int("axis", 0)? },
        "Split" => Shaping::Split {
            axis: node.int("axis", 0)?,
            sizes: node.ints("split")?,
            parts: node.outputs.len(),
        },
        "Slice" => Shaping::Slice,
        "Gather" => Shaping::Gather { axis: node.int("axis", 0)? },
        "Reshape" => Shaping::Reshape { allow_zero: node.int("allowzero", 0)? != 0 },
        "Transpose" => Shaping::Transpose { order: node.ints("perm")? },
        "Squeeze" => Shaping::Squeeze { axes: node.ints("axes")? },
        "Unsqueeze" => Shaping::Unsqueeze { axes: node.ints("axes")? },
        "Expand" => Shaping::Expand,
        "Shape" => Shaping::Shape {
            start: node.int("start", 0)?,
            end: node.attributes.contains_key("end").then(|| node.int("end", 0)).transpose()?,
        },
        "Flatten" => Shaping::Flatten { axis: node.int("axis", 1)? },
        "ConstantOfShape" => Shaping::ConstantOfShape { value: fill_value(node)? },
        _ => return Ok(None),
    }))
}

fn machine_learning(node: &Node) -> Result<Option<Op>, Error> {
    Ok(Some(match node.op.as_str() {
        "TreeEnsembleClassifier" => Op::Trees(Box::new(Trees::classifier(node)?)),
        "TreeEnsembleRegressor" => Op::Trees(Box::new(Trees::regressor(node)?)),
        "LinearClassifier" => Op::Linear(Box::new(Linear::classifier(node)?)),
        "LinearRegressor" => Op::Linear(Box::new(Linear::regressor(node)?)),
        "Normalizer" => Op::Normalizer(Normalize::parse(node)?),
        "Scaler" => Op::Scaler(Scaler::parse(node)?),
        "ArrayFeatureExtractor" => Op::ArrayFeatureExtractor,
        "ZipMap" => return Err(node.wrong("export scikit-learn models with zipmap=False")),
        _ => return Ok(None),
    }))
}

fn constant(node: &Node) -> Result<Op, Error> {
    let value = match node.attributes.iter().next() {
        Some((name, Attribute::Tensor(value))) if name == "value" => value.clone(),
        Some((name, Attribute::Float(value))) if name == "value_float" => {
            HostTensor::floats(vec![], vec![*value])
        }
        Some((name, Attribute::Int(value))) if name == "value_int" => {
            HostTensor { shape: vec![], ..HostTensor::ints(vec![*value]) }
        }
        Some((name, Attribute::Floats(values))) if name == "value_floats" => {
            HostTensor::floats(vec![values.len()], values.clone())
        }
        Some((name, Attribute::Ints(values))) if name == "value_ints" => {
            HostTensor::ints(values.clone())
        }
        Some(_) | None => return Err(node.wrong("expected a numeric value")),
    };
    Ok(Op::Constant(value))
}

fn fill_value(node: &Node) -> Result<HostTensor, Error> {
    match node.attributes.get("value") {
        None => Ok(HostTensor::floats(vec![1], vec![0.0])),
        Some(Attribute::Tensor(value)) if value.elements() == 1 => Ok(value.clone()),
        Some(_) => Err(node.wrong("expected a value of one element")),
    }
}

/// Refuses the training forms: their extra outputs and their flag.
fn inference_only(node: &Node, op: Op) -> Result<Op, Error> {
    if node.outputs.iter().skip(1).any(Option::is_some) || node.int("training_mode", 0)? != 0 {
        return Err(node.wrong("expected the inference form with one output"));
    }
    Ok(op)
}

fn recurrent(node: &Node, activations: &[&str]) -> Result<Recurrent, Error> {
    let direction = match node.text("direction", "forward")?.as_str() {
        "forward" => Direction::Forward,
        "reverse" => Direction::Reverse,
        "bidirectional" => Direction::Bidirectional,
        other => return Err(node.wrong(format!("unknown direction '{other}'"))),
    };
    if let Some(given) = node.texts("activations")? {
        let default = |(position, name): (usize, &String)| {
            name.eq_ignore_ascii_case(activations[position % activations.len()])
        };
        if !given.iter().enumerate().all(default) {
            return Err(node.wrong(format!("expected the activations {activations:?}")));
        }
    }
    for unsupported in ["clip", "activation_alpha", "activation_beta"] {
        if node.attributes.contains_key(unsupported) {
            return Err(node.wrong(format!("attribute '{unsupported}' is not supported")));
        }
    }
    if node.int("layout", 0)? != 0 || node.int("input_forget", 0)? != 0 || node.has_input(7) {
        return Err(node.wrong("expected layout 0, input_forget 0 and no peepholes"));
    }
    let linear_before_reset = node.int("linear_before_reset", 0)? != 0;
    Ok(Recurrent { direction, linear_before_reset })
}

fn softmax(node: &Node, log: bool) -> Result<Op, Error> {
    let flatten = node.opset < 13;
    let axis = node.int("axis", if flatten { 1 } else { -1 })?;
    Ok(Op::Softmax { axis, log, flatten })
}

fn reduce(node: &Node, kind: ReduceKind) -> Result<Op, Error> {
    Ok(Op::Reduce(Reduce {
        kind,
        axes: node.ints("axes")?,
        keep_axes: node.int("keepdims", 1)? != 0,
        empty_is_identity: node.int("noop_with_empty_axes", 0)? != 0,
    }))
}
