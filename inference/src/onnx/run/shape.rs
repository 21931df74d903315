//! Operators that move or repeat elements without changing them.

use super::value::{Dense, Value, axis, broadcast, check_elements};
use super::{Kit, Operands, Outcome};
use crate::onnx::fault::unfit;
use crate::onnx::host::{HostTensor, Values};
use crate::tensor::RANK_MAX;
use burn::tensor::backend::Backend;
use std::sync::Arc;

/// `Shape`, or a part of it.
pub fn shape<B: Backend>(value: Value<B>, start: i64, end: Option<i64>) -> Outcome<Vec<Value<B>>> {
    let shape = value.shape();
    let rank = shape.len() as i64;
    let position = |at: i64| (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize;
    let (start, end) = (position(start), position(end.unwrap_or(rank)));
    let lengths = shape[start..end.max(start)].iter().map(|&length| length as i64).collect();
    Ok(vec![Value::host(Arc::new(HostTensor::ints(lengths)))])
}

/// `Reshape`: 0 keeps an axis (unless `allow_zero`), -1 takes what is left.
pub fn reshape<B: Backend>(
    allow_zero: bool,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let target = operands.take(1)?.host_ints()?;
    let from = value.shape();
    let elements: usize = from.iter().product();
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (position, &length) in target.iter().enumerate() {
        shape.push(match length {
            -1 if open.is_none() => {
                open = Some(position);
                1
            }
            0 if !allow_zero => {
                *from.get(position).ok_or_else(|| unfit!("no axis {position} to keep"))?
            }
            length => usize::try_from(length).map_err(|_| unfit!("axis of length {length}"))?,
        });
    }
    check_elements(&shape)?;
    if let Some(position) = open {
        let known: usize = shape.iter().product();
        shape[position] = elements.checked_div(known).unwrap_or(0);
    }
    renamed(value, shape, kit)
}

/// The value under another shape of as many elements.
fn renamed<B: Backend>(value: Value<B>, shape: Vec<usize>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let from = value.shape();
    if shape.len() > RANK_MAX || from.iter().product::<usize>() != shape.iter().product::<usize>() {
        return Err(unfit!("{from:?} does not reshape to {shape:?}"));
    }
    if from == shape {
        return Ok(value);
    }
    Ok(Value::Device(value.dense(kit).reshape(shape)))
}

/// `Transpose`.
pub fn transpose<B: Backend>(
    order: Option<&[i64]>,
    value: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let rank = value.shape().len();
    let order = match order {
        Some(order) => order.iter().map(|&at| axis(at, rank)).collect::<Outcome<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut seen = order.clone();
    seen.sort_unstable();
    if !seen.into_iter().eq(0..rank) {
        return Err(unfit!("expected an order of {rank} axes, got {order:?}"));
    }
    Ok(Value::Device(value.dense(kit).permute(&order)))
}

/// `Squeeze`.
pub fn squeeze<B: Backend>(
    axes: Option<&[i64]>,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let mut shape = value.shape();
    let given = match operands.take_optional(1) {
        Some(axes) => Some(axes.host_ints()?),
        None => axes.map(<[i64]>::to_vec),
    };
    let Some(axes) = given else {
        shape.retain(|&length| length != 1);
        return renamed(value, shape, kit);
    };
    let mut gone = axes.iter().map(|&at| axis(at, shape.len())).collect::<Outcome<Vec<_>>>()?;
    gone.sort_unstable();
    gone.dedup();
    for at in gone.into_iter().rev() {
        if shape.remove(at) != 1 {
            return Err(unfit!("expected axis {at} to have length 1"));
        }
    }
    renamed(value, shape, kit)
}

/// `Unsqueeze`.
pub fn unsqueeze<B: Backend>(
    axes: Option<&[i64]>,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let mut shape = value.shape();
    let axes = match operands.take_optional(1) {
        Some(axes) => axes.host_ints()?,
        None => axes.map(<[i64]>::to_vec).ok_or("expected axes")?,
    };
    let rank = shape.len() + axes.len();
    let mut new = axes.iter().map(|&at| axis(at, rank)).collect::<Outcome<Vec<_>>>()?;
    new.sort_unstable();
    for at in new {
        if at > shape.len() {
            return Err(unfit!("axis {at} is given twice"));
        }
        shape.insert(at, 1);
    }
    renamed(value, shape, kit)
}

/// `Flatten` to two axes.
pub fn flatten<B: Backend>(at: i64, value: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let shape = value.shape();
    let rank = shape.len();
    let at = if at == rank as i64 { rank } else { axis(at, rank)? };
    let flat = vec![shape[..at].iter().product(), shape[at..].iter().product()];
    renamed(value, flat, kit)
}

/// `Expand`, broadcasting in both directions.
pub fn expand<B: Backend>(mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let target = lengths(&operands.take(1)?.host_ints()?)?;
    let shape = broadcast(&value.shape(), &target)?;
    Ok(Value::Device(value.dense(kit).expand(&shape)?))
}

/// `ConstantOfShape`.
pub fn constant_of_shape<B: Backend>(fill: &HostTensor, target: Value<B>) -> Outcome<Value<B>> {
    let shape = lengths(&target.host_ints()?)?;
    check_elements(&shape)?;
    let elements = shape.iter().product();
    let values = match &fill.values {
        Values::Float(values) => Values::Float(vec![values[0]; elements]),
        Values::Int(values) => Values::Int(vec![values[0]; elements]),
        Values::Bool(values) => Values::Bool(vec![values[0]; elements]),
    };
    Ok(Value::host(Arc::new(HostTensor { shape, values })))
}

fn lengths(values: &[i64]) -> Outcome<Vec<usize>> {
    if values.len() > RANK_MAX {
        return Err(unfit!("expected at most {RANK_MAX} axes"));
    }
    let length = |&value| usize::try_from(value).map_err(|_| unfit!("axis of length {value}"));
    values.iter().map(length).collect()
}

/// `Concat`.
pub fn concat<B: Backend>(at: i64, mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let mut parts = Vec::with_capacity(operands.count());
    for position in 0..operands.count() {
        parts.push(operands.take(position)?.dense(kit));
    }
    let first = parts.first().ok_or("expected parts")?.shape();
    let at = axis(at, first.len())?;
    let mut shape = first.clone();
    shape[at] = 0;
    for part in &parts {
        let mut part = part.shape();
        let fits = part.len() == first.len()
            && (0..first.len()).all(|other| other == at || part[other] == first[other]);
        if !fits {
            return Err(unfit!("{first:?} and {part:?} do not join along axis {at}"));
        }
        shape[at] += std::mem::take(&mut part[at]);
    }
    check_elements(&shape)?;
    let (mut floats, mut ints, mut bools) = (Vec::new(), Vec::new(), Vec::new());
    let kind = std::mem::discriminant(&parts[0]);
    if !parts.iter().all(|part| std::mem::discriminant(part) == kind) {
        return Err("expected parts of one type".into());
    }
    if shape.contains(&0) {
        return Ok(Value::Device(parts[0].filled(0.0, shape, kit)));
    }
    // What is empty adds nothing, and no backend need take it.
    parts.retain(|part| part.shape()[at] > 0);
    let count = parts.len();
    for part in parts {
        match part {
            Dense::Float(tensor) => floats.push(tensor),
            Dense::Int(tensor) => ints.push(tensor),
            Dense::Bool(tensor) => bools.push(tensor),
        }
    }
    Ok(Value::Device(if floats.len() == count {
        Dense::Float(B::float_cat(floats, at))
    } else if ints.len() == count {
        Dense::Int(B::int_cat(ints, at))
    } else if bools.len() == count {
        Dense::Bool(B::bool_cat(bools, at))
    } else {
        return Err("expected parts of one type".into());
    }))
}
