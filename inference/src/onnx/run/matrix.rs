//! Matrix products.

use super::value::{Dense, Value, broadcast, check_elements};
use super::{Kit, Operands, Outcome};
use crate::onnx::fault::unfit;
use crate::onnx::op::Gemm;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Scalar, TensorMetadata};

/// `MatMul` as in numpy: vectors gain an axis, leading axes broadcast.
pub fn matmul<B: Backend>(left: Value<B>, right: Value<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let (left_shape, right_shape) = (left.shape(), right.shape());
    if left_shape.is_empty() || right_shape.is_empty() {
        return Err("expected matrices, got a scalar".into());
    }
    let left_matrix =
        if left_shape.len() == 1 { vec![1, left_shape[0]] } else { left_shape.clone() };
    let right_matrix =
        if right_shape.len() == 1 { vec![right_shape[0], 1] } else { right_shape.clone() };
    let (left_batch, left_last) = left_matrix.split_at(left_matrix.len() - 2);
    let (right_batch, right_last) = right_matrix.split_at(right_matrix.len() - 2);
    if left_last[1] != right_last[0] {
        return Err(unfit!("{left_shape:?} and {right_shape:?} do not multiply"));
    }
    let mut shape = broadcast(left_batch, right_batch)?;
    shape.extend([left_last[0], right_last[1]]);
    check_elements(&shape)?;
    if shape.contains(&0) || left_last[1] == 0 {
        return empty_product(left, right, result_shape(shape, &left_shape, &right_shape), kit);
    }
    let (left, right) = if right_batch.is_empty() {
        // One plain product over all rows is faster than many small ones.
        let rows = left_matrix[..left_matrix.len() - 1].iter().product::<usize>();
        (
            reshaped(left.dense(kit), vec![rows, left_last[1]]),
            reshaped(right.dense(kit), right_matrix),
        )
    } else {
        let left = reshaped(left.dense(kit), left_matrix).with_rank(shape.len());
        (left, reshaped(right.dense(kit), right_matrix).with_rank(shape.len()))
    };
    let product = match (left, right) {
        (Dense::Float(left), Dense::Float(right)) => Dense::Float(B::float_matmul(left, right)),
        (Dense::Int(left), Dense::Int(right)) => Dense::Int(B::int_matmul(left, right)),
        _ => return Err("expected two matrices of one type".into()),
    };
    Ok(Value::Device(reshaped(product, result_shape(shape, &left_shape, &right_shape))))
}

/// Without the axes that vectors gained.
fn result_shape(mut shape: Vec<usize>, left: &[usize], right: &[usize]) -> Vec<usize> {
    if left.len() == 1 {
        shape.remove(shape.len() - 2);
    }
    if right.len() == 1 {
        shape.pop();
    }
    shape
}

/// A product that has no elements, or whose elements are sums of nothing.
fn empty_product<B: Backend>(
    left: Value<B>,
    right: Value<B>,
    shape: Vec<usize>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    match (left.dense(kit), right.dense(kit)) {
        (Dense::Float(_), dense @ Dense::Float(_)) | (Dense::Int(_), dense @ Dense::Int(_)) => {
            Ok(Value::Device(dense.filled(0.0, shape, kit)))
        }
        _ => Err("expected two matrices of one type".into()),
    }
}

fn reshaped<B: Backend>(dense: Dense<B>, shape: Vec<usize>) -> Dense<B> {
    if dense.shape() == shape { dense } else { dense.reshape(shape) }
}

/// `Gemm`.
pub fn gemm<B: Backend>(gemm: &Gemm, mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let left = turned::<B>(operands.take(0)?.floats(kit)?, gemm.transpose_a)?;
    let right = turned::<B>(operands.take(1)?.floats(kit)?, gemm.transpose_b)?;
    let (left_shape, right_shape) = (left.shape().to_vec(), right.shape().to_vec());
    if left_shape[1] != right_shape[0] {
        return Err(unfit!("{left_shape:?} and {right_shape:?} do not multiply"));
    }
    let shape = vec![left_shape[0], right_shape[1]];
    check_elements(&shape)?;
    let mut product = if shape.contains(&0) || left_shape[1] == 0 {
        Dense::<B>::Float(left).filled(0.0, shape.clone(), kit).floats()?
    } else {
        B::float_matmul(left, right)
    };
    if gemm.alpha != 1.0 {
        product = B::float_mul_scalar(product, Scalar::Float(f64::from(gemm.alpha)));
    }
    let Some(addend) = operands.take_optional(2).filter(|_| !shape.contains(&0)) else {
        return Ok(Value::float(product));
    };
    if broadcast(&addend.shape(), &shape)? != shape {
        return Err(unfit!("{:?} does not broadcast to {shape:?}", addend.shape()));
    }
    let addend = Value::Device(addend.dense(kit).with_rank(2)).floats(kit)?;
    let addend = match gemm.beta {
        1.0 => addend,
        beta => B::float_mul_scalar(addend, Scalar::Float(f64::from(beta))),
    };
    Ok(Value::float(B::float_add(product, addend)))
}

fn turned<B: Backend>(tensor: FloatTensor<B>, transpose: bool) -> Outcome<FloatTensor<B>> {
    let rank = tensor.shape().num_dims();
    if rank != 2 {
        return Err(unfit!("expected a matrix, got rank {rank}"));
    }
    Ok(if transpose { B::float_swap_dims(tensor, 0, 1) } else { tensor })
}
