//! A parsed graph: names, typed attributes, constants, checked against limits.
//!
//! Nothing here knows what an operator does. Every way a file can be wrong ends in a typed error.

use super::host::HostTensor;
use super::op;
use super::wire::{self, attribute_kind};
use crate::error::Error;
use crate::tensor::{DType, RANK_MAX, Tensor, byte_count};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// The largest file that is read.
pub const FILE_BYTES_MAX: usize = 1 << 30;
/// The most nodes in a graph.
pub const NODES_MAX: usize = 50_000;
/// The most elements in one tensor, constant or computed.
pub const ELEMENTS_MAX: usize = 1 << 28;
/// The operator-set versions of the default domain that are interpreted.
pub const OPSET_RANGE: std::ops::RangeInclusive<i64> = 11..=21;

/// A graph as it stands in the file.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Nodes in file order, which need not be a valid order of execution.
    pub nodes: Vec<Node>,
    /// What the caller gives, constants left out.
    pub inputs: Vec<ValueInfo>,
    /// What the caller gets.
    pub outputs: Vec<ValueInfo>,
    /// Constants by name.
    pub constants: BTreeMap<String, HostTensor>,
}

/// One axis of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Always this long.
    Fixed(usize),
    /// As long as the caller says, with the name that the exporter gave it, if any.
    Free(Option<String>),
}

/// The declared type of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its axes; `None` if the file doesn't say.
    pub shape: Option<Vec<Axis>>,
}

/// One operator call.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The exporter's name for it, or `#3` after its position.
    pub name: String,
    /// The operator.
    pub op: String,
    /// Its domain; empty for the default one.
    pub domain: String,
    /// The version of its domain.
    pub opset: i64,
    /// Input names; `None` for an omitted optional input.
    pub inputs: Vec<Option<String>>,
    /// Output names; `None` for an unwanted optional output.
    pub outputs: Vec<Option<String>>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A float.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    Text(String),
    /// A tensor.
    Tensor(HostTensor),
    /// Floats.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Texts(Vec<String>),
}

impl Node {
    /// An error about this node.
    pub fn wrong(&self, reason: impl std::fmt::Display) -> Error {
        Error::onnx(format!("node '{}' ({}): {reason}", self.name, self.op))
    }

    /// An integer attribute, or its default.
    pub fn int(&self, name: &str, default: i64) -> Result<i64, Error> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Int(value)) => Ok(*value),
            Some(_) => Err(self.wrong(format!("expected an integer in attribute '{name}'"))),
        }
    }

    /// A float attribute, or its default.
    pub fn float(&self, name: &str, default: f32) -> Result<f32, Error> {
        match self.attributes.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(*value),
            Some(_) => Err(self.wrong(format!("expected a float in attribute '{name}'"))),
        }
    }

    /// A text attribute, or its default.
    pub fn text(&self, name: &str, default: &str) -> Result<String, Error> {
        match self.attributes.get(name) {
            None => Ok(default.to_string()),
            Some(Attribute::Text(value)) => Ok(value.clone()),
            Some(_) => Err(self.wrong(format!("expected a text in attribute '{name}'"))),
        }
    }

    /// A list of integers, if given.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values.clone())),
            Some(_) => Err(self.wrong(format!("expected integers in attribute '{name}'"))),
        }
    }

    /// A list of floats, if given.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Floats(values)) => Ok(Some(values.clone())),
            Some(_) => Err(self.wrong(format!("expected floats in attribute '{name}'"))),
        }
    }

    /// A list of texts, if given.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Error> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Texts(values)) => Ok(Some(values.clone())),
            Some(_) => Err(self.wrong(format!("expected texts in attribute '{name}'"))),
        }
    }

    /// Whether the input at this position is given.
    pub fn has_input(&self, position: usize) -> bool {
        self.inputs.get(position).is_some_and(Option::is_some)
    }
}

impl Graph {
    /// Parses the bytes of an ONNX file.
    pub fn parse(file: Bytes) -> Result<Graph, Error> {
        if file.len() > FILE_BYTES_MAX {
            return Err(Error::onnx(format!("expected at most {FILE_BYTES_MAX} bytes")));
        }
        let model = wire::ModelProto::decode(file)
            .map_err(|error| Error::onnx(format!("truncated or not an ONNX file: {error}")))?;
        let mut wrong = Vec::new();
        let opsets: BTreeMap<String, i64> = model
            .opset_import
            .iter()
            .map(|import| (domain(&import.domain), import.version))
            .collect();
        wrong.extend(check_opsets(&opsets).err());
        let Some(graph) = model.graph else {
            wrong.push(Error::onnx("expected a graph"));
            return Err(Error::of_graph(Vec::new(), wrong).expect("something is wrong"));
        };
        if graph.node.len() > NODES_MAX {
            return Err(Error::onnx(format!("expected at most {NODES_MAX} nodes")));
        }
        let constant_names: BTreeSet<String> =
            graph.initializer.iter().map(|constant| constant.name.clone()).collect();
        let inputs = graph.input.into_iter();
        let inputs = inputs.filter(|input| !constant_names.contains(&input.name)).map(value_info);
        let inputs = right(inputs, &mut wrong);
        let outputs = right(graph.output.into_iter().map(value_info), &mut wrong);
        let constants = right(graph.initializer.into_iter().map(constant), &mut wrong);
        let nodes = graph.node.into_iter().enumerate();
        let nodes = nodes.map(|(position, message)| node(position, message, &opsets));
        let nodes = right(nodes, &mut wrong);
        if wrong.is_empty() {
            return Ok(Graph {
                nodes,
                inputs,
                outputs,
                constants: constants.into_iter().collect(),
            });
        }
        let unsupported = op::unsupported(&nodes);
        Err(Error::of_graph(unsupported, wrong).expect("something is wrong"))
    }
}

/// What could be read; what could not goes to `wrong`, so that all of it is told at once.
fn right<T>(results: impl Iterator<Item = Result<T, Error>>, wrong: &mut Vec<Error>) -> Vec<T> {
    results.filter_map(|result| result.map_err(|error| wrong.push(error)).ok()).collect()
}

fn check_opsets(opsets: &BTreeMap<String, i64>) -> Result<(), Error> {
    match opsets.get("") {
        Some(version) if !OPSET_RANGE.contains(version) => Err(Error::onnx(format!(
            "expected opset {} to {}, got {version}",
            OPSET_RANGE.start(),
            OPSET_RANGE.end()
        ))),
        Some(_) => Ok(()),
        None if opsets.is_empty() => Err(Error::onnx("expected an opset import")),
        None => Ok(()),
    }
}

/// `ai.onnx` is the long name of the default domain.
fn domain(name: &str) -> String {
    if name == "ai.onnx" { String::new() } else { name.to_string() }
}

fn constant(message: wire::TensorProto) -> Result<(String, HostTensor), Error> {
    let name = message.name.clone();
    let tensor =
        tensor(message).map_err(|reason| Error::onnx(format!("constant '{name}': {reason}")))?;
    Ok((name, HostTensor::from_tensor(&tensor)))
}

fn value_info(message: wire::ValueInfoProto) -> Result<ValueInfo, Error> {
    let name = message.name;
    let wrong = |reason: String| Error::onnx(format!("value '{name}': {reason}"));
    let kind = message
        .r#type
        .and_then(|kind| kind.tensor_type)
        .ok_or_else(|| wrong("expected a tensor; export scikit-learn with zipmap=False".into()))?;
    let dtype = dtype(kind.elem_type).map_err(wrong)?;
    let shape = match kind.shape {
        None => None,
        Some(shape) if shape.dim.len() > RANK_MAX => {
            return Err(wrong(format!("expected at most {RANK_MAX} axes")));
        }
        Some(shape) => Some(shape.dim.into_iter().map(axis).collect()),
    };
    Ok(ValueInfo { name, dtype, shape })
}

fn axis(message: wire::DimensionProto) -> Axis {
    match message.dim_value {
        // Exporters write 0 or -1 for an axis they know nothing about.
        Some(length) if length > 0 => Axis::Fixed(length as usize),
        Some(_) | None => Axis::Free(message.dim_param.filter(|name| !name.is_empty())),
    }
}

fn node(
    position: usize,
    message: wire::NodeProto,
    opsets: &BTreeMap<String, i64>,
) -> Result<Node, Error> {
    let domain = domain(&message.domain);
    let opset = opsets.get(&domain).copied().unwrap_or(1);
    let name = if message.name.is_empty() { format!("#{position}") } else { message.name };
    let mut node = Node {
        name,
        op: message.op_type,
        domain,
        opset,
        inputs: message.input.into_iter().map(present).collect(),
        outputs: message.output.into_iter().map(present).collect(),
        attributes: BTreeMap::new(),
    };
    for attribute in message.attribute {
        let name = attribute.name.clone();
        let value = value(attribute)
            .map_err(|reason| node.wrong(format!("attribute '{name}': {reason}")))?;
        if let Some(value) = value {
            node.attributes.insert(name, value);
        }
    }
    Ok(node)
}

fn present(name: String) -> Option<String> {
    (!name.is_empty()).then_some(name)
}

/// `None` for kinds that no supported operator has; the operator check reports those nodes.
fn value(message: wire::AttributeProto) -> Result<Option<Attribute>, String> {
    Ok(match message.kind {
        attribute_kind::FLOAT => Some(Attribute::Float(message.f)),
        attribute_kind::INT => Some(Attribute::Int(message.i)),
        attribute_kind::STRING => Some(Attribute::Text(text(&message.s)?)),
        attribute_kind::TENSOR => {
            let message = message.t.ok_or("expected a tensor")?;
            Some(Attribute::Tensor(HostTensor::from_tensor(&tensor(message)?)))
        }
        attribute_kind::FLOATS => Some(Attribute::Floats(message.floats)),
        attribute_kind::INTS => Some(Attribute::Ints(message.ints)),
        attribute_kind::STRINGS => {
            Some(Attribute::Texts(message.strings.iter().map(text).collect::<Result<_, _>>()?))
        }
        _ => None,
    })
}

fn text(bytes: &Bytes) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "expected UTF-8 text".to_string())
}

/// `TensorProto.DataType`.
fn dtype(code: i32) -> Result<DType, String> {
    Ok(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        8 => return Err("string tensors are not supported".into()),
        other => return Err(format!("element type {other} is not supported")),
    })
}

/// The computed kind that a data type code of a `Cast` means.
pub fn cast_target(code: i64) -> Result<DType, String> {
    i32::try_from(code).map_err(|_| format!("element type {code} is not supported")).and_then(dtype)
}

fn tensor(message: wire::TensorProto) -> Result<Tensor, String> {
    if message.data_location == wire::LOCATION_EXTERNAL || !message.external_data.is_empty() {
        return Err("external data is refused: export the model as one file".into());
    }
    let dtype = dtype(message.data_type)?;
    let shape = message
        .dims
        .iter()
        .map(|&length| usize::try_from(length).map_err(|_| format!("axis of length {length}")))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = byte_count(dtype, &shape).map_err(|error| error.to_string())?;
    if bytes / dtype.size_bytes() > ELEMENTS_MAX {
        return Err(format!("expected at most {ELEMENTS_MAX} elements"));
    }
    let data =
        if message.raw_data.is_empty() { typed_bytes(dtype, &message) } else { message.raw_data };
    Tensor::new(dtype, shape, data).map_err(|error| error.to_string())
}

/// The bytes of a tensor that was written in a typed field instead of `raw_data`.
fn typed_bytes(dtype: DType, message: &wire::TensorProto) -> Bytes {
    let narrow = || message.int32_data.iter();
    let bytes: Vec<u8> = match dtype {
        DType::F32 => message.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::F64 => message.double_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::I64 => message.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::U64 => message.uint64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DType::U32 => {
            message.uint64_data.iter().flat_map(|&value| (value as u32).to_le_bytes()).collect()
        }
        DType::I32 => narrow().flat_map(|value| value.to_le_bytes()).collect(),
        DType::U16 | DType::I16 | DType::F16 | DType::BF16 => {
            narrow().flat_map(|&value| (value as u16).to_le_bytes()).collect()
        }
        DType::Bool | DType::U8 | DType::I8 => narrow().map(|&value| value as u8).collect(),
    };
    Bytes::from(bytes)
}
