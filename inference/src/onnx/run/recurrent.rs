//! GRU and LSTM over a sequence, one or both ways.
//!
//! All inputs are multiplied at once, then each moment needs one product with the state and the
//! gates. Where tensors live in host memory the gates are one fused pass over each row.

use super::element::{in_place, sigmoid, tanh};
use super::index::narrow;
use super::value::{Dense, Value};
use super::{Kit, Operands, Outcome};
use crate::onnx::fast_math;
use crate::onnx::fault::{Fault, unfit};
use crate::onnx::op::{Direction, Recurrent};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Shape, TensorMetadata, read_sync};

/// `GRU`: all states, then the last one.
pub fn gru<B: Backend>(
    op: &Recurrent,
    operands: Operands<B>,
    wanted: &[bool],
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let sequence = Sequence::read(3, operands, kit)?;
    let mut states = Collected::default();
    for (way, backwards) in ways(op.direction, sequence.ways)? {
        let weights = sequence.weights(way, kit)?;
        let mut state = sequence.initial(way, 0)?;
        for moment in sequence.moments(backwards) {
            let from_input = sequence.moment(&weights.from_input, moment);
            state = gru_step(op.linear_before_reset, from_input, state, &weights, kit)?;
            states.keep(way, moment, &state, wanted);
        }
        states.last.push(state);
    }
    Ok(vec![states.all(&sequence, wanted, kit), sequence.stack(states.last)])
}

/// `LSTM`: all states, the last one, the last cell.
pub fn lstm<B: Backend>(
    op: &Recurrent,
    operands: Operands<B>,
    wanted: &[bool],
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let sequence = Sequence::read(4, operands, kit)?;
    let mut states = Collected::default();
    let mut cells = Vec::new();
    for (way, backwards) in ways(op.direction, sequence.ways)? {
        let weights = sequence.weights(way, kit)?;
        let mut state = sequence.initial(way, 0)?;
        let mut cell = sequence.initial(way, 1)?;
        for moment in sequence.moments(backwards) {
            let from_input = sequence.moment(&weights.from_input, moment);
            let gates = B::float_add(from_input, B::float_matmul(state, weights.recurrent.clone()));
            (state, cell) = lstm_step(gates, cell, &weights, kit)?;
            states.keep(way, moment, &state, wanted);
        }
        states.last.push(state);
        cells.push(cell);
    }
    let last = sequence.stack(states.last.clone());
    Ok(vec![states.all(&sequence, wanted, kit), last, sequence.stack(cells)])
}

/// Which weights are used, and whether they read the sequence backwards.
fn ways(direction: Direction, given: usize) -> Outcome<Vec<(usize, bool)>> {
    let ways = match direction {
        Direction::Forward => vec![(0, false)],
        Direction::Reverse => vec![(0, true)],
        Direction::Bidirectional => vec![(0, false), (1, true)],
    };
    if ways.len() == given {
        Ok(ways)
    } else {
        Err(unfit!("expected weights for {} directions, got {given}", ways.len()))
    }
}

/// The operands of a recurrent node, checked.
struct Sequence<B: Backend> {
    length: usize,
    rows: usize,
    inputs: usize,
    hidden: usize,
    gates: usize,
    ways: usize,
    /// `[length * rows, inputs]`.
    flat: FloatTensor<B>,
    weights: Dense<B>,
    recurrent: Dense<B>,
    bias: Option<Value<B>>,
    /// State, and for LSTM the cell: `[ways, rows, hidden]`.
    initial: [Option<Dense<B>>; 2],
    zeros: FloatTensor<B>,
}

/// One direction's weights, ready to multiply with.
struct Weights<B: Backend> {
    /// Products of all inputs, `[length * rows, gates * hidden]`, without bias.
    from_input: FloatTensor<B>,
    /// `[hidden, gates * hidden]`.
    recurrent: FloatTensor<B>,
    /// `[2, gates * hidden]`: the input's, then the state's.
    bias: Option<Value<B>>,
    hidden: usize,
}

impl<B: Backend> Sequence<B> {
    fn read(gates: usize, mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Sequence<B>> {
        let input = operands.take(0)?;
        let [length, rows, inputs] = input.shape()[..] else {
            return Err(unfit!("expected [time, batch, features], got {:?}", input.shape()));
        };
        let (weights, recurrent) = (operands.take(1)?, operands.take(2)?);
        let [ways, wide, hidden] = recurrent.shape()[..] else {
            return Err(unfit!(
                "expected recurrent weights of rank 3, got {:?}",
                recurrent.shape()
            ));
        };
        if wide != gates * hidden || weights.shape() != [ways, wide, inputs] {
            let shape = weights.shape();
            return Err(unfit!(
                "expected weights {:?}, got {shape:?}",
                [ways, gates * hidden, inputs]
            ));
        }
        let bias = operands.take_optional(3);
        if let Some(bias) = bias.as_ref().filter(|bias| bias.shape() != [ways, 2 * wide]) {
            return Err(unfit!("expected bias {:?}, got {:?}", [ways, 2 * wide], bias.shape()));
        }
        if let Some(lengths) = operands.take_optional(4) {
            full_lengths(lengths, length)?;
        }
        let mut initial = [None, None];
        for (slot, position) in initial.iter_mut().zip([5, 6]) {
            let Some(value) = operands.take_optional(position) else { continue };
            if value.shape() != [ways, rows, hidden] {
                let shape = value.shape();
                return Err(unfit!("expected a state {:?}, got {shape:?}", [ways, rows, hidden]));
            }
            *slot = Some(value.dense(kit));
        }
        let flat = B::float_reshape(input.floats(kit)?, Shape::from(vec![length * rows, inputs]));
        let (weights, recurrent) = (weights.dense(kit), recurrent.dense(kit));
        let shape = Shape::from(vec![rows, hidden]);
        let zeros = B::float_zeros(shape, &kit.device, burn::tensor::FloatDType::F32);
        Ok(Sequence {
            length,
            rows,
            inputs,
            hidden,
            gates,
            ways,
            flat,
            weights,
            recurrent,
            bias,
            initial,
            zeros,
        })
    }

    fn weights(&self, way: usize, kit: &Kit<B>) -> Outcome<Weights<B>> {
        let wide = self.gates * self.hidden;
        let of_way = |all: &Dense<B>, columns: usize| -> Outcome<FloatTensor<B>> {
            let own = narrow(all.clone(), 0, way, 1).reshape(vec![wide, columns]);
            Ok(B::float_swap_dims(Value::Device(own).floats(kit)?, 0, 1))
        };
        let bias = self.bias.clone().map(|bias| match (self.ways, bias) {
            (1, bias) => bias,
            (_, bias) => Value::Device(narrow(bias.dense(kit), 0, way, 1)),
        });
        // Without a moment there is nothing to multiply, and nobody reads the products.
        let from_input = match self.length {
            0 => self.flat.clone(),
            _ => B::float_matmul(self.flat.clone(), of_way(&self.weights, self.inputs)?),
        };
        let recurrent = of_way(&self.recurrent, self.hidden)?;
        Ok(Weights { from_input, recurrent, bias, hidden: self.hidden })
    }

    fn initial(&self, way: usize, which: usize) -> Outcome<FloatTensor<B>> {
        match &self.initial[which] {
            None => Ok(self.zeros.clone()),
            Some(states) => {
                let own = narrow(states.clone(), 0, way, 1).reshape(vec![self.rows, self.hidden]);
                own.floats()
            }
        }
    }

    fn moments(&self, backwards: bool) -> Vec<usize> {
        if backwards { (0..self.length).rev().collect() } else { (0..self.length).collect() }
    }

    fn moment(&self, from_input: &FloatTensor<B>, moment: usize) -> FloatTensor<B> {
        let all = Dense::<B>::Float(from_input.clone());
        let Dense::Float(own) = narrow(all, 0, moment * self.rows, self.rows) else {
            unreachable!("narrowing keeps the kind");
        };
        own
    }

    /// `[ways, rows, hidden]` from one `[rows, hidden]` per direction.
    fn stack(&self, states: Vec<FloatTensor<B>>) -> Value<B> {
        Value::float(stacked::<B>(states, vec![1, self.rows, self.hidden], 0))
    }
}

fn full_lengths<B: Backend>(lengths: Value<B>, length: usize) -> Outcome<()> {
    let host = lengths.into_host()?;
    let lengths = Value::<B>::host(host).host_ints()?;
    if lengths.iter().all(|&given| given == length as i64) {
        Ok(())
    } else {
        Err(unfit!("expected every sequence to be {length} long, got {lengths:?}"))
    }
}

fn stacked<B: Backend>(parts: Vec<FloatTensor<B>>, shape: Vec<usize>, at: usize) -> FloatTensor<B> {
    let mut parts: Vec<_> =
        parts.into_iter().map(|part| B::float_reshape(part, Shape::from(shape.clone()))).collect();
    match parts.len() {
        1 => parts.remove(0),
        _ => B::float_cat(parts, at),
    }
}

/// States by direction and moment.
struct Collected<B: Backend> {
    moments: Vec<Vec<(usize, FloatTensor<B>)>>,
    last: Vec<FloatTensor<B>>,
}

impl<B: Backend> Default for Collected<B> {
    fn default() -> Self {
        Collected { moments: Vec::new(), last: Vec::new() }
    }
}

impl<B: Backend> Collected<B> {
    fn keep(&mut self, way: usize, moment: usize, state: &FloatTensor<B>, wanted: &[bool]) {
        if wanted.first() == Some(&true) {
            self.moments.resize_with(way + 1, Vec::new);
            self.moments[way].push((moment, state.clone()));
        }
    }

    /// `[length, ways, rows, hidden]`; the first direction's last state if it isn't wanted.
    fn all(&self, sequence: &Sequence<B>, wanted: &[bool], kit: &Kit<B>) -> Value<B> {
        if wanted.first() != Some(&true) {
            return Value::float(sequence.zeros.clone());
        }
        if sequence.length == 0 {
            let none = vec![0, sequence.ways, sequence.rows, sequence.hidden];
            return Value::Device(Dense::Float(sequence.zeros.clone()).filled(0.0, none, kit));
        }
        let one = vec![1, 1, sequence.rows, sequence.hidden];
        let ways = self.moments.iter().map(|states| {
            let mut states = states.clone();
            states.sort_by_key(|(moment, _)| *moment);
            let states = states.into_iter().map(|(_, state)| state).collect();
            stacked::<B>(states, one.clone(), 0)
        });
        let whole = vec![sequence.length, 1, sequence.rows, sequence.hidden];
        Value::float(stacked::<B>(ways.collect(), whole, 1))
    }
}

/// One moment of a GRU: the new state from the input's products and the old state.
fn gru_step<B: Backend>(
    linear_before_reset: bool,
    from_input: FloatTensor<B>,
    state: FloatTensor<B>,
    weights: &Weights<B>,
    kit: &Kit<B>,
) -> Outcome<FloatTensor<B>> {
    let hidden = weights.hidden;
    if linear_before_reset && kit.host_memory {
        let from_state = B::float_matmul(state.clone(), weights.recurrent.clone());
        let (from_input, from_state) = (read::<B>(from_input)?, read::<B>(from_state)?);
        let bias = host_bias(weights, 6 * hidden)?;
        return Ok(in_place(state, kit, |state| {
            fast_math::gru_gates(&from_input, &from_state, &bias, state);
        }));
    }
    let (from_input, state_bias) = biased(from_input, weights, kit)?;
    let part = |tensor: &FloatTensor<B>, axis: usize, start: usize, gates: usize| {
        let dense = Dense::<B>::Float(tensor.clone());
        narrow(dense, axis, start * hidden, gates * hidden).floats()
    };
    let add_bias = |product, start, gates| -> Outcome<FloatTensor<B>> {
        match &state_bias {
            None => Ok(product),
            Some(bias) => Ok(B::float_add(product, part(bias, 1, start, gates)?)),
        }
    };
    let halves = |from_state: FloatTensor<B>| -> Outcome<(FloatTensor<B>, FloatTensor<B>)> {
        let both = sigmoid(B::float_add(part(&from_input, 1, 0, 2)?, from_state), kit);
        Ok((part(&both, 1, 0, 1)?, part(&both, 1, 1, 1)?))
    };
    let (update, new) = if linear_before_reset {
        let product = B::float_matmul(state.clone(), weights.recurrent.clone());
        let from_state = add_bias(product, 0, 3)?;
        let (update, reset) = halves(part(&from_state, 1, 0, 2)?)?;
        let kept = B::float_mul(reset, part(&from_state, 1, 2, 1)?);
        (update, tanh(B::float_add(part(&from_input, 1, 2, 1)?, kept), kit))
    } else {
        let product = B::float_matmul(state.clone(), part(&weights.recurrent, 1, 0, 2)?);
        let (update, reset) = halves(add_bias(product, 0, 2)?)?;
        let kept = B::float_mul(reset, state.clone());
        let product = B::float_matmul(kept, part(&weights.recurrent, 1, 2, 1)?);
        let from_state = add_bias(product, 2, 1)?;
        (update, tanh(B::float_add(part(&from_input, 1, 2, 1)?, from_state), kit))
    };
    Ok(B::float_add(B::float_mul(update, B::float_sub(state, new.clone())), new))
}

/// One moment of an LSTM: new state and cell from the summed products. Gates: input, output,
/// forget, cell.
fn lstm_step<B: Backend>(
    gates: FloatTensor<B>,
    cell: FloatTensor<B>,
    weights: &Weights<B>,
    kit: &Kit<B>,
) -> Outcome<(FloatTensor<B>, FloatTensor<B>)> {
    let hidden = weights.hidden;
    if kit.host_memory {
        let bias = host_bias(weights, 8 * hidden)?;
        let gates = read::<B>(gates)?;
        let mut state = vec![0.0; cell.shape().num_elements()];
        let shape = cell.shape();
        let cell = in_place(cell, kit, |cell| {
            fast_math::lstm_gates(&gates, &bias, cell, &mut state);
        });
        let state = burn::tensor::TensorData::new(state, shape);
        return Ok((B::float_from_data(state, &kit.device), cell));
    }
    let (gates, state_bias) = biased(gates, weights, kit)?;
    let gates = match state_bias {
        Some(bias) => B::float_add(gates, bias),
        None => gates,
    };
    let part = |start: usize, count: usize| {
        let dense = Dense::<B>::Float(gates.clone());
        narrow(dense, 1, start * hidden, count * hidden).floats()
    };
    let (input, output) = (sigmoid(part(0, 1)?, kit), sigmoid(part(1, 1)?, kit));
    let (forget, new) = (sigmoid(part(2, 1)?, kit), tanh(part(3, 1)?, kit));
    let cell = B::float_add(B::float_mul(forget, cell), B::float_mul(input, new));
    Ok((B::float_mul(output, tanh(cell.clone(), kit)), cell))
}

/// The products with the input's bias added, and the state's bias as `[1, gates * hidden]`.
fn biased<B: Backend>(
    product: FloatTensor<B>,
    weights: &Weights<B>,
    kit: &Kit<B>,
) -> Outcome<(FloatTensor<B>, Option<FloatTensor<B>>)> {
    let Some(bias) = weights.bias.clone() else { return Ok((product, None)) };
    let wide = product.shape()[1];
    let both = bias.dense(kit).reshape(vec![2, wide]);
    let of_input = narrow(both.clone(), 0, 0, 1).floats()?;
    let of_state = narrow(both, 0, 1, 1).floats()?;
    Ok((B::float_add(product, of_input), Some(of_state)))
}

fn read<B: Backend>(tensor: FloatTensor<B>) -> Outcome<Vec<f32>> {
    let data = read_sync(B::float_into_data(tensor))
        .map_err(|error| Fault::Device(format!("{error:?}")))?;
    data.into_vec::<f32>().map_err(|error| Fault::Device(format!("{error:?}")))
}

fn host_bias<B: Backend>(weights: &Weights<B>, length: usize) -> Outcome<Vec<f32>> {
    let Some(bias) = weights.bias.clone() else { return Ok(vec![0.0; length]) };
    let host = bias.into_host()?;
    match &host.values {
        crate::onnx::host::Values::Float(values) => Ok(values.clone()),
        _ => Err("expected floats in the bias".into()),
    }
}
