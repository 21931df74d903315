//! Normalisations over axes: layer norm, batch norm, softmax.

use super::value::{Dense, Value, axis};
use super::{Kit, Operands, Outcome};
use crate::onnx::fault::unfit;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Scalar, Shape};

/// `LayerNormalization` over the axes from `from` on; then the mean and one over the deviation, if
/// wanted.
pub fn layer_norm<B: Backend>(
    from: i64,
    epsilon: f32,
    mut operands: Operands<B>,
    wanted: &[bool],
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let value = operands.take(0)?;
    let shape = value.shape();
    let from = axis(from, shape.len())?;
    let width: usize = shape[from..].iter().product();
    let rows: usize = shape[..from].iter().product();
    let mut parameter = |position| -> Outcome<Option<FloatTensor<B>>> {
        let Some(value) = operands.take_optional(position) else { return Ok(None) };
        let full = value.dense(kit).expand(&shape[from..])?.reshape(vec![width]);
        Value::Device(full).floats(kit).map(Some)
    };
    let scale = parameter(1)?.ok_or("expected a scale")?;
    let bias = parameter(2)?;
    let tensor = value.floats(kit)?;
    if width == 0 {
        return Err("expected elements to normalise".into());
    }
    if rows == 0 {
        let mut kept = shape;
        let whole = Dense::<B>::Float(tensor);
        let normal = whole.filled(0.0, kept.clone(), kit);
        kept[from..].fill(1);
        let statistics = whole.filled(0.0, kept, kit);
        return Ok([normal, statistics.clone(), statistics].map(Value::Device).into());
    }
    let flat = B::float_reshape(tensor, Shape::from(vec![rows, width]));
    let statistics = if wanted.iter().skip(1).any(|&wanted| wanted) {
        let mut kept = shape.clone();
        kept[from..].fill(1);
        statistics::<B>(flat.clone(), epsilon)
            .map(|tensor| Value::float(B::float_reshape(tensor, Shape::from(kept.clone()))))
            .to_vec()
    } else {
        Vec::new()
    };
    let normal = B::layer_norm(flat, scale, bias, f64::from(epsilon));
    let mut results = vec![Value::float(B::float_reshape(normal, Shape::from(shape)))];
    results.extend(statistics);
    Ok(results)
}

/// The mean of each row, and one over its deviation.
fn statistics<B: Backend>(rows: FloatTensor<B>, epsilon: f32) -> [FloatTensor<B>; 2] {
    let mean = B::float_mean_dim(rows.clone(), 1);
    let centered = B::float_sub(rows, mean.clone());
    let variance = B::float_mean_dim(B::float_mul(centered.clone(), centered), 1);
    let spread = B::float_add_scalar(variance, Scalar::Float(f64::from(epsilon)));
    [mean, B::float_recip(B::float_sqrt(spread))]
}

/// `BatchNormalization` with stored mean and variance, per channel (axis 1).
pub fn batch_norm<B: Backend>(
    epsilon: f32,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let shape = value.shape();
    let channels = *shape.get(1).ok_or("expected a channel axis")?;
    let mut channel_shape = vec![1; shape.len()];
    channel_shape[1] = channels;
    let mut parameter = |position| -> Outcome<FloatTensor<B>> {
        let value = operands.take(position)?;
        if value.shape() != [channels] {
            return Err(unfit!("expected {channels} channels, got {:?}", value.shape()));
        }
        Value::Device(value.dense(kit).reshape(channel_shape.clone())).floats(kit)
    };
    let (scale, bias, mean, variance) =
        (parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?);
    if shape.contains(&0) {
        return value.floats(kit).map(Value::float);
    }
    let spread = B::float_sqrt(B::float_add_scalar(variance, Scalar::Float(f64::from(epsilon))));
    let scale = B::float_div(scale, spread);
    let centered = B::float_sub(value.floats(kit)?, mean);
    Ok(Value::float(B::float_add(B::float_mul(centered, scale), bias)))
}

/// `Softmax` or `LogSoftmax`.
pub fn softmax<B: Backend>(
    over: i64,
    log: bool,
    flatten: bool,
    value: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = value.shape();
    let over = axis(over, shape.len())?;
    let tensor = value.floats(kit)?;
    if shape.contains(&0) {
        return Ok(Value::float(tensor));
    }
    let apply = |tensor, axis| {
        if log { B::log_softmax(tensor, axis) } else { B::softmax(tensor, axis) }
    };
    if !flatten {
        return Ok(Value::float(apply(tensor, over)));
    }
    let rows: usize = shape[..over].iter().product();
    let width: usize = shape[over..].iter().product();
    let flat = B::float_reshape(tensor, Shape::from(vec![rows, width]));
    Ok(Value::float(B::float_reshape(apply(flat, 1), Shape::from(shape))))
}
