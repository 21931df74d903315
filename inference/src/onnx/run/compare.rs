//! Comparisons, logic, and choosing by a condition.

use super::value::{Dense, Value, broadcast};
use super::{Kit, Operands, Outcome};
use crate::onnx::op::Comparison;
use burn::tensor::backend::Backend;
use burn::tensor::ops::BoolTensor;

/// A comparison, broadcast.
pub fn compare<B: Backend>(
    op: Comparison,
    left: Value<B>,
    right: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = broadcast(&left.shape(), &right.shape())?;
    let (left, right) = (left.dense(kit).expand(&shape)?, right.dense(kit).expand(&shape)?);
    let result = match (left, right) {
        (Dense::Float(left), Dense::Float(right)) => match op {
            Comparison::Equal => B::float_equal(left, right, kit.bools),
            Comparison::Less => B::float_lower(left, right, kit.bools),
            Comparison::LessOrEqual => B::float_lower_equal(left, right, kit.bools),
            Comparison::Greater => B::float_greater(left, right, kit.bools),
            Comparison::GreaterOrEqual => B::float_greater_equal(left, right, kit.bools),
        },
        (Dense::Int(left), Dense::Int(right)) => match op {
            Comparison::Equal => B::int_equal(left, right, kit.bools),
            Comparison::Less => B::int_lower(left, right, kit.bools),
            Comparison::LessOrEqual => B::int_lower_equal(left, right, kit.bools),
            Comparison::Greater => B::int_greater(left, right, kit.bools),
            Comparison::GreaterOrEqual => B::int_greater_equal(left, right, kit.bools),
        },
        (Dense::Bool(left), Dense::Bool(right)) if op == Comparison::Equal => {
            B::bool_equal(left, right)
        }
        _ => return Err("expected two operands of one type".into()),
    };
    Ok(Value::Device(Dense::Bool(result)))
}

/// `And` (or `Or`), broadcast.
pub fn logic<B: Backend>(
    is_and: bool,
    left: Value<B>,
    right: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = broadcast(&left.shape(), &right.shape())?;
    let left = bools(left.dense(kit).expand(&shape)?)?;
    let right = bools(right.dense(kit).expand(&shape)?)?;
    let result = if is_and { B::bool_and(left, right) } else { B::bool_or(left, right) };
    Ok(Value::Device(Dense::Bool(result)))
}

/// `Not`.
pub fn not<B: Backend>(value: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    Ok(Value::Device(Dense::Bool(B::bool_not(bools(value.dense(kit))?))))
}

/// `Where`: condition, then, else.
pub fn select<B: Backend>(mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let (condition, chosen, other) = (operands.take(0)?, operands.take(1)?, operands.take(2)?);
    let shape = broadcast(&condition.shape(), &broadcast(&chosen.shape(), &other.shape())?)?;
    let condition = bools(condition.dense(kit).expand(&shape)?)?;
    let (chosen, other) = (chosen.dense(kit).expand(&shape)?, other.dense(kit).expand(&shape)?);
    Ok(Value::Device(match (other, chosen) {
        (Dense::Float(other), Dense::Float(chosen)) => {
            Dense::Float(B::float_mask_where(other, condition, chosen))
        }
        (Dense::Int(other), Dense::Int(chosen)) => {
            Dense::Int(B::int_mask_where(other, condition, chosen))
        }
        (Dense::Bool(other), Dense::Bool(chosen)) => {
            Dense::Bool(B::bool_mask_where(other, condition, chosen))
        }
        _ => return Err("expected two alternatives of one type".into()),
    }))
}

fn bools<B: Backend>(dense: Dense<B>) -> Outcome<BoolTensor<B>> {
    match dense {
        Dense::Bool(tensor) => Ok(tensor),
        Dense::Float(_) | Dense::Int(_) => Err("expected truth values".into()),
    }
}
