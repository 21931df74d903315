//! Reductions over axes.

use super::value::{Dense, Value, axis};
use super::{Kit, Operands, Outcome};
use crate::onnx::fault::Fault;
use crate::onnx::op::{Reduce, ReduceKind};
use burn::tensor::backend::Backend;
use burn::tensor::{IntDType, Scalar, TensorData};

/// `ReduceMean`, `ReduceSum`, `ReduceMax`, `ReduceMin`.
pub fn reduce<B: Backend>(
    reduce: &Reduce,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let given = match operands.take_optional(1) {
        Some(axes) => Some(axes.host_ints()?),
        None => reduce.axes.clone(),
    };
    let mut shape = value.shape();
    let given = given.filter(|axes| !axes.is_empty());
    if given.is_none() && reduce.empty_is_identity {
        return Ok(value);
    }
    let axes = match given {
        Some(axes) => {
            axes.into_iter().map(|at| axis(at, shape.len())).collect::<Outcome<Vec<_>>>()?
        }
        None => (0..shape.len()).collect(),
    };
    let mut dense = value.dense(kit);
    for &at in &axes {
        let empty = shape[at] == 0;
        shape[at] = 1;
        dense = match (empty, shape.contains(&0)) {
            (_, true) => dense.filled(0.0, shape.clone(), kit),
            (true, false) => dense.filled(of_nothing(reduce.kind, &dense)?, shape.clone(), kit),
            (false, false) => one_axis(reduce.kind, dense, at)?,
        };
    }
    if !reduce.keep_axes {
        let left = shape.iter().enumerate().filter(|(at, _)| !axes.contains(at));
        dense = dense.reshape(left.map(|(_, &length)| length).collect());
    }
    Ok(Value::Device(dense))
}

/// What an empty axis reduces to. Without a value that says that it was empty, as integers have
/// none, it is refused.
fn of_nothing<B: Backend>(kind: ReduceKind, dense: &Dense<B>) -> Outcome<f32> {
    match (kind, dense) {
        (ReduceKind::Sum, Dense::Float(_) | Dense::Int(_)) => Ok(0.0),
        (ReduceKind::Mean, Dense::Float(_)) => Ok(f32::NAN),
        (ReduceKind::Max, Dense::Float(_)) => Ok(f32::NEG_INFINITY),
        (ReduceKind::Min, Dense::Float(_)) => Ok(f32::INFINITY),
        (_, Dense::Bool(_)) => Err("expected numbers".into()),
        (_, Dense::Int(_)) => Err(Fault::Shape("expected elements to reduce".into())),
    }
}

fn one_axis<B: Backend>(kind: ReduceKind, dense: Dense<B>, at: usize) -> Outcome<Dense<B>> {
    Ok(match dense {
        Dense::Float(tensor) => Dense::Float(match kind {
            ReduceKind::Mean => B::float_mean_dim(tensor, at),
            ReduceKind::Sum => B::float_sum_dim(tensor, at),
            ReduceKind::Max => B::float_max_dim(tensor, at),
            ReduceKind::Min => B::float_min_dim(tensor, at),
        }),
        Dense::Int(tensor) => Dense::Int(match kind {
            ReduceKind::Mean => B::int_mean_dim(tensor, at),
            ReduceKind::Sum => B::int_sum_dim(tensor, at),
            ReduceKind::Max => B::int_max_dim(tensor, at),
            ReduceKind::Min => B::int_min_dim(tensor, at),
        }),
        Dense::Bool(_) => return Err("expected numbers".into()),
    })
}

/// `ArgMax`: the first of equal largest values, or the last.
pub fn arg_max<B: Backend>(
    at: i64,
    keep_axes: bool,
    last: bool,
    value: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let mut shape = value.shape();
    let at = axis(at, shape.len())?;
    let length = shape[at];
    let mut result = shape.clone();
    result[at] = 1;
    if result.contains(&0) {
        if !keep_axes {
            result.remove(at);
        }
        let none = TensorData::new(Vec::<i64>::new(), result);
        return Ok(Value::Device(Dense::Int(B::int_from_data(none, &kit.device))));
    }
    if length == 0 {
        return Err("expected elements to choose from".into());
    }
    let dense = if last { value.dense(kit).flip(&[at]) } else { value.dense(kit) };
    let mut found = match dense {
        Dense::Float(tensor) => B::float_argmax(tensor, at, IntDType::I64),
        Dense::Int(tensor) => B::int_cast(B::int_argmax(tensor, at), IntDType::I64),
        Dense::Bool(_) => return Err("expected numbers".into()),
    };
    if last {
        found = B::int_add_scalar(B::int_neg(found), Scalar::Int(length as i64 - 1));
    }
    shape[at] = 1;
    if !keep_axes {
        shape.remove(at);
    }
    Ok(Value::Device(Dense::Int(found).reshape(shape)))
}
