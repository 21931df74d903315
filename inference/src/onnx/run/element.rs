//! Element-wise arithmetic, bounds and casts.

use super::value::{Dense, Value, broadcast};
use super::{Kit, Operands, Outcome};
use crate::onnx::fast_math;
use crate::onnx::fault::Fault;
use crate::onnx::host::{HostTensor, Kind, Values};
use crate::onnx::op::{Binary, Extremum, Unary};
use crate::tensor::DType;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{FloatDType, IntDType, Scalar, read_sync};
use std::sync::Arc;

/// An operator with one operand.
pub fn unary<B: Backend>(op: Unary, value: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let tensor = match value.dense(kit) {
        Dense::Float(tensor) => tensor,
        Dense::Int(tensor) => return unary_int(op, tensor),
        Dense::Bool(_) => return Err("expected numbers".into()),
    };
    Ok(Value::float(match op {
        Unary::Sqrt => B::float_sqrt(tensor),
        Unary::Exp => B::float_exp(tensor),
        Unary::Log => B::float_log(tensor),
        Unary::Neg => B::float_neg(tensor),
        Unary::Abs => B::float_abs(tensor),
        Unary::Relu => B::relu(tensor),
        Unary::Sigmoid => sigmoid(tensor, kit),
        Unary::Tanh => tanh(tensor, kit),
        Unary::Erf => B::float_erf(tensor),
        Unary::Gelu { tanh: false } => B::gelu(tensor),
        Unary::Gelu { tanh: true } => gelu_tanh(tensor, kit),
        Unary::LeakyRelu { slope } => B::leaky_relu(tensor, slope.into()),
    }))
}

fn unary_int<B: Backend>(op: Unary, tensor: IntTensor<B>) -> Outcome<Value<B>> {
    let result = match op {
        Unary::Neg => B::int_neg(tensor),
        Unary::Abs => B::int_abs(tensor),
        Unary::Relu => B::int_clamp_min(tensor, 0_i64.into()),
        Unary::Sqrt
        | Unary::Exp
        | Unary::Log
        | Unary::Sigmoid
        | Unary::Tanh
        | Unary::Erf
        | Unary::Gelu { .. }
        | Unary::LeakyRelu { .. } => return Err("expected floats".into()),
    };
    Ok(Value::Device(Dense::Int(result)))
}

/// `Dropout` at inference; a third operand that asks for training is refused.
pub fn dropout<B: Backend>(mut operands: Operands<B>, wanted: &[bool]) -> Outcome<Vec<Value<B>>> {
    let value = operands.take(0)?;
    if let Some(training) = operands.take_optional(2)
        && training.host_scalar() != Some(0.0)
    {
        return Err("expected inference, not training".into());
    }
    if wanted.get(1) != Some(&true) {
        return Ok(vec![value]);
    }
    let shape = value.shape();
    let values = Values::Bool(vec![true; shape.iter().product()]);
    Ok(vec![value, Value::host(Arc::new(HostTensor { shape, values }))])
}

/// The logistic function.
pub fn sigmoid<B: Backend>(tensor: FloatTensor<B>, kit: &Kit<B>) -> FloatTensor<B> {
    if kit.host_memory { in_place(tensor, kit, fast_math::sigmoid_all) } else { B::sigmoid(tensor) }
}

/// The hyperbolic tangent.
pub fn tanh<B: Backend>(tensor: FloatTensor<B>, kit: &Kit<B>) -> FloatTensor<B> {
    if kit.host_memory { in_place(tensor, kit, fast_math::tanh_all) } else { B::float_tanh(tensor) }
}

/// Changes a host-memory tensor's elements, without a copy if nothing else holds it.
pub fn in_place<B: Backend>(
    tensor: FloatTensor<B>,
    kit: &Kit<B>,
    change: impl FnOnce(&mut [f32]),
) -> FloatTensor<B> {
    let mut data = read_sync(B::float_into_data(tensor)).expect("host memory can be read");
    change(data.as_mut_slice().expect("floats are computed as f32"));
    B::float_from_data(data, &kit.device)
}

fn gelu_tanh<B: Backend>(tensor: FloatTensor<B>, kit: &Kit<B>) -> FloatTensor<B> {
    let cube = B::float_mul(B::float_mul(tensor.clone(), tensor.clone()), tensor.clone());
    let inner = B::float_add(tensor.clone(), B::float_mul_scalar(cube, 0.044_715_f32.into()));
    let root = (2.0 / std::f64::consts::PI).sqrt() as f32;
    let bent = tanh(B::float_mul_scalar(inner, root.into()), kit);
    B::float_mul(
        B::float_mul_scalar(tensor, 0.5_f32.into()),
        B::float_add_scalar(bent, 1.0_f32.into()),
    )
}

/// An operator with two operands, broadcast.
pub fn binary<B: Backend>(
    op: Binary,
    left: Value<B>,
    right: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = broadcast(&left.shape(), &right.shape())?;
    if let Some(scalar) = right.host_scalar()
        && left.shape() == shape
        && let Value::Device(Dense::Float(tensor)) = left
    {
        return Ok(Value::float(with_scalar::<B>(op, tensor, scalar)));
    }
    if let (Some(scalar), Binary::Add | Binary::Mul) = (left.host_scalar(), op)
        && right.shape() == shape
        && let Value::Device(Dense::Float(tensor)) = right
    {
        return Ok(Value::float(with_scalar::<B>(op, tensor, scalar)));
    }
    let (left, right) = (left.dense(kit), right.dense(kit));
    let (left, right) = (left.with_rank(shape.len()), right.with_rank(shape.len()));
    let result = match (left, right) {
        (Dense::Float(left), Dense::Float(right)) => Dense::Float(match op {
            Binary::Add => B::float_add(left, right),
            Binary::Sub => B::float_sub(left, right),
            Binary::Mul => B::float_mul(left, right),
            Binary::Div => B::float_div(left, right),
            Binary::Pow => B::float_powf(left, right),
        }),
        (Dense::Int(left), Dense::Int(right)) => Dense::Int(int_binary::<B>(op, left, right)?),
        (Dense::Float(left), Dense::Int(right)) if op == Binary::Pow => {
            Dense::Float(B::float_powf(left, B::int_into_float(right, FloatDType::F32)))
        }
        _ => return Err("expected two operands of one type".into()),
    };
    Ok(Value::Device(result))
}

fn int_binary<B: Backend>(
    op: Binary,
    left: IntTensor<B>,
    right: IntTensor<B>,
) -> Outcome<IntTensor<B>> {
    Ok(match op {
        Binary::Add => B::int_add(left, right),
        Binary::Sub => B::int_sub(left, right),
        Binary::Mul => B::int_mul(left, right),
        Binary::Div => {
            // A division by zero would end the process, not just this row.
            let divisors = host_ints::<B>(&right)?;
            if divisors.contains(&0) {
                return Err(Fault::Value("integer division by zero".into()));
            }
            if divisors.contains(&-1) && host_ints::<B>(&left)?.contains(&i64::MIN) {
                return Err(Fault::Value("integer division overflows".into()));
            }
            B::int_div(left, right)
        }
        Binary::Pow => B::int_powi(left, right),
    })
}

fn host_ints<B: Backend>(tensor: &IntTensor<B>) -> Outcome<Vec<i64>> {
    let host = Value::<B>::Device(Dense::Int(tensor.clone())).into_host()?;
    Value::<B>::host(host).host_ints()
}

fn with_scalar<B: Backend>(op: Binary, tensor: FloatTensor<B>, scalar: f64) -> FloatTensor<B> {
    let value = Scalar::Float(scalar);
    match op {
        Binary::Add => B::float_add_scalar(tensor, value),
        Binary::Sub => B::float_sub_scalar(tensor, value),
        Binary::Mul => B::float_mul_scalar(tensor, value),
        Binary::Div => B::float_div_scalar(tensor, value),
        Binary::Pow if scalar == 2.0 => B::float_mul(tensor.clone(), tensor),
        Binary::Pow if scalar == 0.5 => B::float_sqrt(tensor),
        Binary::Pow => B::float_powf_scalar(tensor, value),
    }
}

/// `Min` and `Max` over all operands.
pub fn extremum<B: Backend>(
    op: Extremum,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let mut best = operands.take(0)?;
    for position in 1..operands.count() {
        best = extremum_of_two(op, best, operands.take(position)?, kit)?;
    }
    Ok(best)
}

fn extremum_of_two<B: Backend>(
    op: Extremum,
    left: Value<B>,
    right: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = broadcast(&left.shape(), &right.shape())?;
    let (left, right) = (left.dense(kit).expand(&shape)?, right.dense(kit).expand(&shape)?);
    Ok(Value::Device(match (left, right) {
        (Dense::Float(left), Dense::Float(right)) => {
            let better = match op {
                Extremum::Min => B::float_lower(right.clone(), left.clone(), kit.bools),
                Extremum::Max => B::float_greater(right.clone(), left.clone(), kit.bools),
            };
            Dense::Float(B::float_mask_where(left, better, right))
        }
        (Dense::Int(left), Dense::Int(right)) => {
            let better = match op {
                Extremum::Min => B::int_lower(right.clone(), left.clone(), kit.bools),
                Extremum::Max => B::int_greater(right.clone(), left.clone(), kit.bools),
            };
            Dense::Int(B::int_mask_where(left, better, right))
        }
        _ => return Err("expected two operands of one type".into()),
    }))
}

/// `Clip`: bounds in inputs 1 and 2, each optional.
pub fn clip<B: Backend>(mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let mut value = operands.take(0)?;
    for (position, op) in [(1, Extremum::Max), (2, Extremum::Min)] {
        let Some(bound) = operands.take_optional(position) else { continue };
        value = match (bound.host_scalar(), value) {
            (Some(scalar), Value::Device(Dense::Float(tensor))) => Value::float(match op {
                Extremum::Max => B::float_clamp_min(tensor, Scalar::Float(scalar)),
                Extremum::Min => B::float_clamp_max(tensor, Scalar::Float(scalar)),
            }),
            (_, value) => extremum_of_two(op, value, bound, kit)?,
        };
    }
    Ok(value)
}

/// `Cast` between kinds. Within a kind nothing changes: floats are f32 and integers i64 here.
pub fn cast<B: Backend>(value: Value<B>, dtype: DType, kit: &Kit<B>) -> Outcome<Value<B>> {
    let result = match (value.dense(kit), Kind::of(dtype)) {
        (Dense::Float(tensor), Kind::Int) => Dense::Int(B::float_into_int(tensor, IntDType::I64)),
        (Dense::Float(tensor), Kind::Bool) => {
            Dense::Bool(B::float_not_equal_elem(tensor, Scalar::Float(0.0), kit.bools))
        }
        (Dense::Int(tensor), Kind::Float) => {
            Dense::Float(B::int_into_float(tensor, FloatDType::F32))
        }
        (Dense::Int(tensor), Kind::Bool) => {
            Dense::Bool(B::int_not_equal_elem(tensor, Scalar::Int(0), kit.bools))
        }
        (Dense::Bool(tensor), Kind::Float) => {
            Dense::Float(B::bool_into_float(tensor, FloatDType::F32))
        }
        (Dense::Bool(tensor), Kind::Int) => Dense::Int(B::bool_into_int(tensor, IntDType::I64)),
        (same, Kind::Float | Kind::Int | Kind::Bool) => same,
    };
    Ok(Value::Device(result))
}
