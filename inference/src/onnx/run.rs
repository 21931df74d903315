//! Runs a program on any Burn backend.
//!
//! Operators work on rank-erased backend tensors. What depends on shapes alone (axes, target
//! shapes, constants of a shape) stays on the host; it is computed in the first run with given
//! input shapes and remembered, so a later run with those shapes only does arithmetic on data.

mod value;

mod classical;
mod compare;
mod element;
mod footprint;
mod index;
mod matrix;
mod normalize;
mod recurrent;
mod reduce;
mod shape;

use super::fault::{Fault, unfit};
use super::host::HostTensor;
use super::op::{Op, Shaping};
use super::plan::{Operand, Program, Step, ValueId};
use crate::error::Error;
use crate::tensor::Tensor;
use burn::backend::Flex;
use burn::tensor::backend::Backend;
use burn::tensor::{BoolDType, get_device_settings};
use footprint::Footprint;
use index::IndexCheck;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
pub use value::{Hosted, Value};

/// Why a step could not run; the caller adds which step.
type Outcome<T> = Result<T, Fault>;

/// The most input shapes whose host values are remembered.
const REMEMBERED_MAX: usize = 256;

/// What every operator needs from the device.
pub struct Kit<B: Backend> {
    /// Where tensors live.
    pub device: B::Device,
    /// How the backend stores truth values.
    pub bools: BoolDType,
    /// Whether tensors live in host memory, so that reading one is free.
    pub host_memory: bool,
    /// Computed indices whose range is looked at when the outputs are read.
    checks: RefCell<Vec<IndexCheck<B>>>,
}

impl<B: Backend> Kit<B> {
    /// A kit for this device.
    pub fn new(device: B::Device, host_memory: bool) -> Kit<B> {
        let bools = get_device_settings::<B>(&device).bool_dtype;
        Kit { device, bools, host_memory, checks: RefCell::default() }
    }

    fn check_later(&self, check: IndexCheck<B>) {
        self.checks.borrow_mut().push(check);
    }

    fn take_checks(&self) -> Vec<IndexCheck<B>> {
        self.checks.take()
    }
}

/// The operands of a step. Taking one moves it out, so that its memory can be reused.
pub struct Operands<B: Backend> {
    values: Vec<Option<Value<B>>>,
}

impl<B: Backend> Operands<B> {
    /// The operand at this position, which must be there.
    fn take(&mut self, position: usize) -> Outcome<Value<B>> {
        self.take_optional(position).ok_or_else(|| unfit!("expected an input {position}"))
    }

    /// The operand at this position, if given.
    fn take_optional(&mut self, position: usize) -> Option<Value<B>> {
        self.values.get_mut(position).and_then(Option::take)
    }

    fn count(&self) -> usize {
        self.values.len()
    }
}

/// A program loaded on a device.
pub struct Session<B: Backend> {
    program: Arc<Program>,
    kit: Kit<B>,
    /// Constants in their slots, uploaded on first use.
    constants: Vec<Option<Value<B>>>,
    remembered: HashMap<Vec<Vec<usize>>, Memory<B>>,
    peak_bytes: usize,
}

/// The host values of one set of input shapes, by slot.
type Memory<B> = Arc<HashMap<usize, Arc<Hosted<B>>>>;

impl<B: Backend> Session<B> {
    /// Loads a program. Constants are uploaded when they are first needed.
    pub fn new(program: Arc<Program>, kit: Kit<B>) -> Session<B> {
        let mut constants: Vec<Option<Value<B>>> = (0..program.values).map(|_| None).collect();
        for (slot, constant) in &program.constants {
            constants[*slot] = Some(Value::host(constant.clone()));
        }
        Session { program, kit, constants, remembered: HashMap::new(), peak_bytes: 0 }
    }

    /// The most bytes that values took at a time, in the last run with shapes that were new.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }

    /// Runs the program on whole batched inputs in graph order; outputs come in graph order.
    pub fn run(&mut self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        if inputs.len() != self.program.inputs.len() {
            let expected = self.program.inputs.len();
            return Err(Error::internal(format!("expected {expected} graph inputs")));
        }
        let program = self.program.clone();
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape.clone()).collect();
        let memory = self.remembered.get(&shapes).cloned();
        let mut slots: Vec<Option<Value<B>>> = (0..program.values).map(|_| None).collect();
        let mut footprint = memory.is_none().then(Footprint::default);
        for (port, input) in program.inputs.iter().zip(inputs) {
            let value = Value::upload(input, &self.kit);
            footprint.iter_mut().for_each(|footprint| footprint.add(port.value, &value));
            slots[port.value] = Some(value);
        }
        // A run that failed before may have left some.
        drop(self.kit.take_checks());
        let mut checks = Vec::new();
        for step in &program.steps {
            if memory.as_ref().is_some_and(|memory| recall(memory, step, &mut slots)) {
                continue;
            }
            let operands = self.operands(step, &mut slots)?;
            let results = execute(step, operands, &self.kit)
                .map_err(|fault| failed(&program, step, fault))?;
            checks.extend(self.kit.take_checks().into_iter().map(|check| (step, check)));
            for (slot, result) in step.outputs.iter().zip(results) {
                if let Some(slot) = slot {
                    footprint.iter_mut().for_each(|footprint| footprint.add(*slot, &result));
                    slots[*slot] = Some(result);
                }
            }
            footprint.iter_mut().for_each(|footprint| footprint.stepped(step));
        }
        let outputs = program.outputs.iter().map(|port| {
            let value = slots[port.value].clone().or_else(|| self.constants[port.value].clone());
            let value = value.ok_or_else(|| Error::internal("an output was not computed"))?;
            Ok((value, port.dtype))
        });
        let outputs = outputs.collect::<Result<Vec<_>, Error>>()?;
        if let Some(footprint) = footprint {
            self.remember(shapes, &slots);
            self.peak_bytes = footprint.peak();
        }
        // What only the outputs hold can be read without a copy.
        drop(slots);
        let extremes =
            checks.iter().flat_map(|(_, check)| [check.lowest.clone(), check.highest.clone()]);
        let (outputs, extremes) = value::download(outputs, extremes.collect())
            .map_err(|fault| Error::internal(format!("reading outputs: {fault}")))?;
        for ((step, check), found) in checks.iter().zip(extremes.chunks_exact(2)) {
            check.judge(found[0], found[1]).map_err(|fault| failed(&program, step, fault))?;
        }
        Ok(outputs)
    }

    fn operands(&self, step: &Step, slots: &mut [Option<Value<B>>]) -> Result<Operands<B>, Error> {
        let mut values = Vec::with_capacity(step.inputs.len());
        for operand in &step.inputs {
            values.push(match operand {
                None => None,
                Some(operand) => Some(self.operand(*operand, slots).ok_or_else(|| {
                    Error::internal(format!("{}: an operand was not computed", step.name))
                })?),
            });
        }
        Ok(Operands { values })
    }

    fn operand(&self, operand: Operand, slots: &mut [Option<Value<B>>]) -> Option<Value<B>> {
        let slot = &mut slots[operand.value];
        let is_host = matches!(slot, Some(Value::Host(_)));
        // Host values are kept to the end: they are what a later run remembers.
        let value = if operand.last && !is_host { slot.take() } else { slot.clone() };
        value.or_else(|| self.constants[operand.value].clone())
    }

    fn remember(&mut self, shapes: Vec<Vec<usize>>, slots: &[Option<Value<B>>]) {
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.clear();
        }
        let mut memory = HashMap::new();
        for (slot, value) in slots.iter().enumerate() {
            if let Some(Value::Host(hosted)) = value {
                memory.insert(slot, hosted.clone());
            }
        }
        self.remembered.insert(shapes, Arc::new(memory));
    }
}

/// The error of a step that could not run, with the inputs whose numbers or shapes it worked on.
fn failed(program: &Program, step: &Step, fault: Fault) -> Error {
    if let Fault::Device(reason) = &fault {
        return Error::internal(format!("{}: {reason}", step.name));
    }
    let operands = step.inputs.iter().flatten().map(|operand| operand.value);
    let slots: Vec<ValueId> = match (&fault, step.inputs.get(1).copied().flatten()) {
        // The second operand of whatever selects by index.
        (Fault::Index { .. }, Some(index)) => vec![index.value],
        _ => operands.collect(),
    };
    let inputs = program.sources(&slots);
    Error::Run { step: step.name.clone(), fault, inputs }
}

/// Fills a step's results from memory; `false` if it must run.
fn recall<B: Backend>(memory: &Memory<B>, step: &Step, slots: &mut [Option<Value<B>>]) -> bool {
    let mut known = step.outputs.iter().flatten().map(|slot| memory.get(slot));
    if !known.all(|hosted| hosted.is_some()) {
        return false;
    }
    for slot in step.outputs.iter().flatten() {
        slots[*slot] = memory.get(slot).map(|hosted| Value::Host(hosted.clone()));
    }
    for operand in step.inputs.iter().flatten().filter(|operand| operand.last) {
        slots[operand.value] = None;
    }
    true
}

/// Runs a step: on the host if all it reads is there, else on the device.
fn execute<B: Backend>(
    step: &Step,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    if let Op::Shaping(Shaping::Shape { start, end }) = &step.op {
        return shape::shape(operands.take(0)?, *start, *end);
    }
    let hosted: Option<Vec<_>> = operands
        .values
        .iter()
        .map(|value| match value {
            None => Some(None),
            Some(Value::Host(hosted)) => Some(Some(hosted.tensor.clone())),
            Some(Value::Device(_)) => None,
        })
        .collect();
    match hosted {
        Some(hosted) => {
            let results = on_host(step, hosted)?;
            Ok(results.into_iter().map(Value::host).collect())
        }
        None => dispatch(step, operands, kit),
    }
}

/// Runs a step whose operands are all in host memory. A panic in the backend is an error here.
pub fn on_host(
    step: &Step,
    operands: Vec<Option<Arc<HostTensor>>>,
) -> Outcome<Vec<Arc<HostTensor>>> {
    let run = || -> Outcome<Vec<Arc<HostTensor>>> {
        let kit = Kit::<Flex>::new(Default::default(), true);
        let values = operands.into_iter().map(|operand| operand.map(Value::host)).collect();
        let results = dispatch(step, Operands { values }, &kit)?;
        results.into_iter().map(Value::into_host).collect()
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("operands don't fit".into()))
}

fn dispatch<B: Backend>(
    step: &Step,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let one = |value: Outcome<Value<B>>| value.map(|value| vec![value]);
    match &step.op {
        Op::Identity => one(operands.take(0)),
        Op::Dropout => element::dropout(operands, &wanted(step)),
        Op::Constant(value) => Ok(vec![Value::host(Arc::new(value.clone()))]),
        Op::Unary(op) => one(element::unary(*op, operands.take(0)?, kit)),
        Op::Binary(op) => one(element::binary(*op, operands.take(0)?, operands.take(1)?, kit)),
        Op::Extremum(op) => one(element::extremum(*op, operands, kit)),
        Op::Clip => one(element::clip(operands, kit)),
        Op::Cast(dtype) => one(element::cast(operands.take(0)?, *dtype, kit)),
        Op::Compare(op) => one(compare::compare(*op, operands.take(0)?, operands.take(1)?, kit)),
        Op::And => one(compare::logic(true, operands.take(0)?, operands.take(1)?, kit)),
        Op::Or => one(compare::logic(false, operands.take(0)?, operands.take(1)?, kit)),
        Op::Not => one(compare::not(operands.take(0)?, kit)),
        Op::Where => one(compare::select(operands, kit)),
        Op::MatMul => one(matrix::matmul(operands.take(0)?, operands.take(1)?, kit)),
        Op::Gemm(gemm) => one(matrix::gemm(gemm, operands, kit)),
        Op::Gru(recurrent) => recurrent::gru(recurrent, operands, &wanted(step), kit),
        Op::Lstm(recurrent) => recurrent::lstm(recurrent, operands, &wanted(step), kit),
        Op::LayerNorm { axis, epsilon } => {
            normalize::layer_norm(*axis, *epsilon, operands, &wanted(step), kit)
        }
        Op::BatchNorm { epsilon } => one(normalize::batch_norm(*epsilon, operands, kit)),
        Op::Softmax { axis, log, flatten } => {
            one(normalize::softmax(*axis, *log, *flatten, operands.take(0)?, kit))
        }
        Op::Reduce(reduce) => one(reduce::reduce(reduce, operands, kit)),
        Op::ArgMax { axis, keep_axes, last } => {
            one(reduce::arg_max(*axis, *keep_axes, *last, operands.take(0)?, kit))
        }
        Op::Shaping(op) => shaping(op, operands, kit),
        Op::Trees(trees) => classical::trees(trees, operands.take(0)?, kit),
        Op::Linear(linear) => classical::linear(linear, operands.take(0)?, kit),
        Op::Normalizer(norm) => one(classical::normalizer(*norm, operands.take(0)?, kit)),
        Op::Scaler(scaler) => one(classical::scaler(scaler, operands.take(0)?, kit)),
        Op::ArrayFeatureExtractor => {
            one(index::extract_columns(operands.take(0)?, operands.take(1)?, kit))
        }
    }
}

fn shaping<B: Backend>(
    op: &Shaping,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let one = |value: Outcome<Value<B>>| value.map(|value| vec![value]);
    match op {
        Shaping::Concat { axis } => one(shape::concat(*axis, operands, kit)),
        Shaping::Split { axis, sizes, parts } => {
            index::split(*axis, sizes.as_deref(), *parts, operands, kit)
        }
        Shaping::Slice => one(index::slice(operands, kit)),
        Shaping::Gather { axis } => {
            one(index::gather(*axis, operands.take(0)?, operands.take(1)?, kit))
        }
        Shaping::Reshape { allow_zero } => one(shape::reshape(*allow_zero, operands, kit)),
        Shaping::Transpose { order } => {
            one(shape::transpose(order.as_deref(), operands.take(0)?, kit))
        }
        Shaping::Squeeze { axes } => one(shape::squeeze(axes.as_deref(), operands, kit)),
        Shaping::Unsqueeze { axes } => one(shape::unsqueeze(axes.as_deref(), operands, kit)),
        Shaping::Expand => one(shape::expand(operands, kit)),
        Shaping::Flatten { axis } => one(shape::flatten(*axis, operands.take(0)?, kit)),
        Shaping::ConstantOfShape { value } => {
            one(shape::constant_of_shape(value, operands.take(0)?))
        }
        Shaping::Shape { start, end } => shape::shape(operands.take(0)?, *start, *end),
    }
}

fn wanted(step: &Step) -> Vec<bool> {
    step.outputs.iter().map(Option::is_some).collect()
}
