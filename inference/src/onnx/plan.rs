//! From a graph to a program: only what the outputs need, in an order that works, constants
//! computed once, each value freed after its last use.

use super::graph::{Axis, Graph, Node, ValueInfo};
use super::host::{HostTensor, Values};
use super::op::{self, Op, Shaping};
use super::run;
use crate::error::Error;
use crate::tensor::DType;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A value's slot while a program runs.
pub type ValueId = usize;

/// A planned graph. Immutable; any device can load it.
#[derive(Clone, Debug)]
pub struct Program {
    /// What the caller gives, in graph order.
    pub inputs: Vec<Port>,
    /// What the caller gets, in graph order.
    pub outputs: Vec<Port>,
    /// Weights and other constants with their slots.
    pub constants: Vec<(ValueId, Arc<HostTensor>)>,
    /// Operators in order of execution.
    pub steps: Vec<Step>,
    /// The number of slots.
    pub values: usize,
    /// For an input that only selects rows of a table: the table's length.
    pub index_limits: BTreeMap<String, usize>,
}

/// An input or output of a program.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Its declared type.
    pub dtype: DType,
    /// Its declared axes, if the graph says.
    pub shape: Option<Vec<Axis>>,
    /// Its slot.
    pub value: ValueId,
}

/// One operator call.
#[derive(Clone, Debug)]
pub struct Step {
    /// The node and its operator, for messages.
    pub name: String,
    /// What to do.
    pub op: Op,
    /// Operands; `None` for an omitted one.
    pub inputs: Vec<Option<Operand>>,
    /// Slots of the results; `None` for an unwanted one.
    pub outputs: Vec<Option<ValueId>>,
}

/// A value as one step reads it.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Its slot.
    pub value: ValueId,
    /// Whether no later step reads it.
    pub last: bool,
}

impl Program {
    /// Plans a graph.
    pub fn plan(graph: Graph) -> Result<Program, Error> {
        let mut names = Names::default();
        let mut constants: BTreeMap<ValueId, Arc<HostTensor>> = BTreeMap::new();
        for (name, value) in graph.constants {
            constants.insert(names.define(&name)?, Arc::new(value));
        }
        let inputs = ports(graph.inputs, |name| names.define(name))?;
        let order = order(&graph.nodes, &graph.outputs, &mut names)?;
        let ops = ops(&order)?;
        let mut steps = Vec::with_capacity(order.len());
        for (node, op) in order.into_iter().zip(ops) {
            let step = names.step(node, op)?;
            match fold(&step, &constants)? {
                Some(folded) => constants.extend(folded),
                None => steps.push(step),
            }
        }
        let outputs = ports(graph.outputs, |name| names.known(name))?;
        if outputs.is_empty() {
            return Err(Error::onnx("expected at least one output"));
        }
        let kept = mark_last_uses(&mut steps, &outputs);
        constants.retain(|value, _| kept.get(*value).copied().unwrap_or(false));
        let index_limits = index_limits(&inputs, &steps, &constants);
        let constants = constants.into_iter().collect();
        Ok(Program { inputs, outputs, constants, steps, values: names.ids.len(), index_limits })
    }

    /// The names of the inputs that these slots are computed from, in graph order.
    pub fn sources(&self, slots: &[ValueId]) -> Vec<String> {
        let mut wanted = vec![false; self.values];
        for &slot in slots {
            wanted[slot] = true;
        }
        for step in self.steps.iter().rev() {
            if step.outputs.iter().flatten().any(|&slot| wanted[slot]) {
                operand_slots(step).for_each(|slot| wanted[slot] = true);
            }
        }
        let found = self.inputs.iter().filter(|input| wanted[input.value]);
        found.map(|input| input.name.clone()).collect()
    }

    /// The bytes of all constants as they are computed (f32, i64, bool).
    pub fn constant_bytes(&self) -> usize {
        self.constants.iter().map(|(_, constant)| host_bytes(constant)).sum()
    }
}

fn host_bytes(tensor: &HostTensor) -> usize {
    match &tensor.values {
        Values::Float(values) => size_of_val(&values[..]),
        Values::Int(values) => size_of_val(&values[..]),
        Values::Bool(values) => size_of_val(&values[..]),
    }
}

/// Names to slots. A name is defined once.
#[derive(Default)]
struct Names {
    ids: HashMap<String, ValueId>,
}

impl Names {
    fn define(&mut self, name: &str) -> Result<ValueId, Error> {
        let id = self.ids.len();
        match self.ids.insert(name.to_string(), id) {
            None => Ok(id),
            Some(_) => Err(Error::onnx(format!("value '{name}' is defined twice"))),
        }
    }

    fn known(&self, name: &str) -> Result<ValueId, Error> {
        let unknown = || Error::onnx(format!("value '{name}' is never computed"));
        self.ids.get(name).copied().ok_or_else(unknown)
    }

    fn step(&self, node: &Node, op: Op) -> Result<Step, Error> {
        let operand = |name: &Option<String>| {
            let value = name.as_ref().map(|name| self.known(name)).transpose()?;
            Ok(value.map(|value| Operand { value, last: false }))
        };
        let result = |name: &Option<String>| name.as_ref().map(|name| self.known(name)).transpose();
        Ok(Step {
            name: format!("node '{}' ({})", node.name, node.op),
            op,
            inputs: node.inputs.iter().map(operand).collect::<Result<_, Error>>()?,
            outputs: node.outputs.iter().map(result).collect::<Result<_, Error>>()?,
        })
    }
}

/// Every node's operator, or all that is wrong with any of them.
fn ops(nodes: &[&Node]) -> Result<Vec<Op>, Error> {
    let unknown = op::unsupported(nodes.iter().copied());
    let (mut ops, mut wrong) = (Vec::with_capacity(nodes.len()), Vec::new());
    for node in nodes {
        match Op::parse(node) {
            Ok(op) => ops.push(op),
            // Among the unknown ones.
            Err(Error::UnsupportedOperators { .. }) => {}
            Err(other) => wrong.push(other),
        }
    }
    Error::of_graph(unknown, wrong).map_or(Ok(ops), Err)
}

fn ports(
    infos: Vec<ValueInfo>,
    mut slot: impl FnMut(&str) -> Result<ValueId, Error>,
) -> Result<Vec<Port>, Error> {
    infos
        .into_iter()
        .map(|info| {
            let value = slot(&info.name)?;
            Ok(Port { name: info.name, dtype: info.dtype, shape: info.shape, value })
        })
        .collect()
}

/// The nodes that the outputs need, each after what it reads. Defines their results.
fn order<'a>(
    nodes: &'a [Node],
    outputs: &[ValueInfo],
    names: &mut Names,
) -> Result<Vec<&'a Node>, Error> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (position, node) in nodes.iter().enumerate() {
        for name in node.outputs.iter().flatten() {
            names.define(name)?;
            maker.insert(name, position);
        }
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        Unseen,
        Open,
        Done,
    }
    let mut marks = vec![Mark::Unseen; nodes.len()];
    let mut ordered = Vec::new();
    let mut pending: Vec<usize> = outputs
        .iter()
        .rev()
        .filter_map(|output| maker.get(output.name.as_str()).copied())
        .collect();
    // Depth first with an explicit stack: a long chain must not exhaust the thread's.
    while let Some(&position) = pending.last() {
        match marks[position] {
            Mark::Done => {
                pending.pop();
            }
            Mark::Open => {
                marks[position] = Mark::Done;
                ordered.push(&nodes[position]);
                pending.pop();
            }
            Mark::Unseen => {
                marks[position] = Mark::Open;
                for name in nodes[position].inputs.iter().flatten() {
                    let Some(&before) = maker.get(name.as_str()) else { continue };
                    if marks[before] == Mark::Open {
                        return Err(nodes[position].wrong("the graph has a cycle"));
                    }
                    pending.push(before);
                }
            }
        }
    }
    Ok(ordered)
}

/// Constants by slot that a step came to.
type Folded = Vec<(ValueId, Arc<HostTensor>)>;

/// The results of a step whose operands are all constant.
fn fold(
    step: &Step,
    constants: &BTreeMap<ValueId, Arc<HostTensor>>,
) -> Result<Option<Folded>, Error> {
    if let Op::Constant(value) = &step.op {
        let results = step.outputs.iter().flatten();
        return Ok(Some(results.map(|&id| (id, Arc::new(value.clone()))).collect()));
    }
    let mut operands = Vec::with_capacity(step.inputs.len());
    for operand in &step.inputs {
        match operand.map(|operand| constants.get(&operand.value)) {
            None => operands.push(None),
            Some(Some(constant)) => operands.push(Some(constant.clone())),
            Some(None) => return Ok(None),
        }
    }
    let results = run::on_host(step, operands)
        .map_err(|reason| Error::onnx(format!("{}: {reason}", step.name)))?;
    let slots = step.outputs.iter().zip(results);
    Ok(Some(slots.filter_map(|(slot, result)| Some(((*slot)?, result))).collect()))
}

/// Marks each slot's last reader and returns which slots are read at all.
fn mark_last_uses(steps: &mut [Step], outputs: &[Port]) -> Vec<bool> {
    let slots = steps
        .iter()
        .flat_map(|step| step.outputs.iter().flatten().copied().chain(operand_slots(step)))
        .chain(outputs.iter().map(|output| output.value))
        .max()
        .map_or(0, |slot| slot + 1);
    let mut read = vec![false; slots];
    for output in outputs {
        read[output.value] = true;
    }
    for step in steps.iter_mut().rev() {
        // Backwards within a step too: of two equal operands the second is the last use.
        for operand in step.inputs.iter_mut().rev().flatten() {
            operand.last = !std::mem::replace(&mut read[operand.value], true);
        }
    }
    read
}

fn operand_slots(step: &Step) -> impl Iterator<Item = ValueId> + '_ {
    step.inputs.iter().flatten().map(|operand| operand.value)
}

/// Which inputs index a constant table, directly or through pure reshaping: a wrong index can then
/// be refused before the row is queued. Anywhere else the run finds it.
fn index_limits(
    inputs: &[Port],
    steps: &[Step],
    constants: &BTreeMap<ValueId, Arc<HostTensor>>,
) -> BTreeMap<String, usize> {
    let mut source: HashMap<ValueId, usize> =
        inputs.iter().enumerate().map(|(position, input)| (input.value, position)).collect();
    let mut limits = BTreeMap::new();
    for step in steps {
        let operand = |position: usize| step.inputs.get(position).copied().flatten();
        match (&step.op, operand(0), operand(1)) {
            (
                Op::Identity
                | Op::Cast(
                    DType::U8
                    | DType::I8
                    | DType::U16
                    | DType::I16
                    | DType::U32
                    | DType::I32
                    | DType::U64
                    | DType::I64,
                )
                | Op::Shaping(
                    Shaping::Squeeze { .. }
                    | Shaping::Unsqueeze { .. }
                    | Shaping::Reshape { .. }
                    | Shaping::Flatten { .. },
                ),
                Some(from),
                _,
            ) => {
                let to = step.outputs.first().copied().flatten();
                if let (Some(&input), Some(to)) = (source.get(&from.value), to) {
                    source.insert(to, input);
                }
            }
            (Op::Shaping(Shaping::Gather { axis }), Some(table), Some(index)) => {
                let Some(&input) = source.get(&index.value) else { continue };
                let Some(table) = constants.get(&table.value) else { continue };
                let rank = table.shape.len() as i64;
                let axis = if *axis < 0 { axis + rank } else { *axis };
                let Some(&length) = table.shape.get(axis as usize) else { continue };
                let limit = limits.entry(inputs[input].name.clone()).or_insert(length);
                *limit = length.min(*limit);
            }
            _ => {}
        }
    }
    limits
}
