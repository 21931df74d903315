//! Operators that take part of a tensor: by range, by parts, by index.

use super::value::{Dense, Value, axis, check_elements};
use super::{Kit, Operands, Outcome};
use crate::onnx::fault::{Fault, unfit};
use crate::tensor::RANK_MAX;
use burn::tensor::backend::Backend;
use burn::tensor::ops::IntTensor;
use burn::tensor::{Scalar, Shape, Slice, TensorData, TensorMetadata};

/// A range along one axis, all of the others.
pub fn narrow<B: Backend>(dense: Dense<B>, at: usize, start: usize, length: usize) -> Dense<B> {
    let shape = dense.shape();
    if start == 0 && length == shape[at] {
        return dense;
    }
    let mut slices: Vec<Slice> = shape.iter().map(|&length| whole(length)).collect();
    slices[at] = Slice::new(start as isize, Some((start + length) as isize), 1);
    dense.slice(&slices)
}

fn whole(length: usize) -> Slice {
    Slice::new(0, Some(length as isize), 1)
}

/// `Split`.
pub fn split<B: Backend>(
    at: i64,
    sizes: Option<&[i64]>,
    parts: usize,
    mut operands: Operands<B>,
    kit: &Kit<B>,
) -> Outcome<Vec<Value<B>>> {
    let value = operands.take(0)?;
    let shape = value.shape();
    let at = axis(at, shape.len())?;
    let given = match operands.take_optional(1) {
        Some(sizes) => Some(sizes.host_ints()?),
        None => sizes.map(<[i64]>::to_vec),
    };
    let sizes = match given {
        Some(sizes) => sizes
            .iter()
            .map(|&size| usize::try_from(size).map_err(|_| unfit!("part of size {size}")))
            .collect::<Outcome<Vec<_>>>()?,
        None => even_parts(shape[at], parts)?,
    };
    let total = sizes.iter().try_fold(0_usize, |total, &size| total.checked_add(size));
    if sizes.len() != parts || total != Some(shape[at]) {
        return Err(unfit!("expected {parts} parts of {} in total, got {sizes:?}", shape[at]));
    }
    let dense = value.dense(kit);
    let mut start = 0;
    Ok(sizes
        .into_iter()
        .map(|size| {
            let mut of_part = shape.clone();
            of_part[at] = size;
            let part = match of_part.contains(&0) {
                true => dense.filled(0.0, of_part, kit),
                false => narrow(dense.clone(), at, start, size),
            };
            start += size;
            Value::Device(part)
        })
        .collect())
}

/// Equal parts; the last one is smaller if they don't divide.
fn even_parts(length: usize, parts: usize) -> Outcome<Vec<usize>> {
    let size = length.div_ceil(parts.max(1));
    (0..parts)
        .map(|part| length.checked_sub(part * size).map(|left| left.min(size)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| unfit!("{length} does not split into {parts} parts"))
}

/// `Slice`: starts, ends, axes, steps.
pub fn slice<B: Backend>(mut operands: Operands<B>, kit: &Kit<B>) -> Outcome<Value<B>> {
    let value = operands.take(0)?;
    let shape = value.shape();
    let starts = operands.take(1)?.host_ints()?;
    let ends = operands.take(2)?.host_ints()?;
    let mut optional = |position, default: Vec<i64>| match operands.take_optional(position) {
        Some(value) => value.host_ints(),
        None => Ok(default),
    };
    let axes = optional(3, (0..starts.len() as i64).collect())?;
    let steps = optional(4, vec![1; starts.len()])?;
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err("expected as many ends, axes and steps as starts".into());
    }
    let mut slices: Vec<Slice> = shape.iter().map(|&length| whole(length)).collect();
    let mut result = shape.clone();
    let mut flipped = Vec::new();
    for position in 0..starts.len() {
        let at = axis(axes[position], shape.len())?;
        let range = Range::clamp(shape[at], starts[position], ends[position], steps[position])?;
        if range.backwards {
            flipped.push(at);
        }
        result[at] = (range.end - range.start).div_ceil(range.step);
        slices[at] =
            Slice::new(range.start as isize, Some(range.end as isize), range.step as isize);
    }
    if result == shape && flipped.is_empty() {
        return Ok(value);
    }
    let dense = value.dense(kit);
    if result.contains(&0) {
        return Ok(Value::Device(dense.filled(0.0, result, kit)));
    }
    let dense = if flipped.is_empty() { dense } else { dense.flip(&flipped) };
    Ok(Value::Device(dense.slice(&slices)))
}

/// A range along an axis that is read forwards, after turning the axis round if need be.
struct Range {
    start: usize,
    end: usize,
    step: usize,
    backwards: bool,
}

impl Range {
    fn clamp(length: usize, start: i64, end: i64, step: i64) -> Outcome<Range> {
        let length = length as i64;
        let absolute = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
        let stride = usize::try_from(step.unsigned_abs()).map_err(|_| "step is too large")?;
        let (start, end) = match step {
            0 => return Err("expected a step other than zero".into()),
            1.. => (absolute(start).clamp(0, length), absolute(end).clamp(0, length)),
            _ => {
                // Position p of the axis is length - 1 - p of the axis turned round.
                let start = absolute(start).clamp(-1, length - 1);
                let end = absolute(end).clamp(-1, length - 1);
                (length - 1 - start, length - 1 - end)
            }
        };
        let (start, end) = (start as usize, end.max(start) as usize);
        // The backend counts in isize; a stride beyond the axis takes one element all the same.
        let stride = stride.min(length.max(1) as usize);
        Ok(Range { start, end, step: stride, backwards: step < 0 })
    }
}

/// `Gather`: entries of an axis by indices of any shape; negative ones count from the end.
pub fn gather<B: Backend>(
    at: i64,
    value: Value<B>,
    indices: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = value.shape();
    let at = axis(at, shape.len())?;
    let index_shape = indices.shape();
    let mut result = shape[..at].to_vec();
    result.extend(&index_shape);
    result.extend(&shape[at + 1..]);
    if result.len() > RANK_MAX {
        return Err(unfit!("can't select {index_shape:?} from axis {at} of {shape:?}"));
    }
    let bounds = Bounds { min: -(shape[at] as i64), max: shape[at] as i64 - 1 };
    select(Selection { at, bounds, result }, value, indices, kit)
}

/// `ArrayFeatureExtractor`: columns by indices, whose number is the last axis whatever their shape.
pub fn extract_columns<B: Backend>(
    value: Value<B>,
    indices: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let shape = value.shape();
    let columns = *shape.last().ok_or("expected columns, got a scalar")?;
    // One axis is one row.
    let mut result = if shape.len() == 1 { vec![1] } else { shape[..shape.len() - 1].to_vec() };
    result.push(indices.shape().iter().product());
    let bounds = Bounds { min: 0, max: columns as i64 - 1 };
    select(Selection { at: shape.len() - 1, bounds, result }, value, indices, kit)
}

/// The indices that select something.
#[derive(Clone, Copy)]
struct Bounds {
    min: i64,
    max: i64,
}

/// What to take: along which axis, which indices there are, and the shape to come.
struct Selection {
    at: usize,
    bounds: Bounds,
    result: Vec<usize>,
}

fn select<B: Backend>(
    selection: Selection,
    value: Value<B>,
    indices: Value<B>,
    kit: &Kit<B>,
) -> Outcome<Value<B>> {
    let Selection { at, bounds, result } = selection;
    check_elements(&result)?;
    let shape = value.shape();
    let count: usize = indices.shape().iter().product();
    if count > 0 && shape[at] == 0 {
        return Err(unfit!("can't select from axis {at} of {shape:?}: it is empty"));
    }
    let positions = match &indices {
        Value::Host(_) => Positions::<B>::Known(in_range(&indices.host_ints()?, bounds)?),
        Value::Device(Dense::Int(computed)) => Positions::Computed(computed.clone()),
        Value::Device(Dense::Float(_) | Dense::Bool(_)) => {
            return Err("expected integer indices".into());
        }
    };
    let dense = value.dense(kit);
    let selected = match positions {
        _ if count == 0 => dense.filled(0.0, result.clone(), kit),
        Positions::Known(known) if known.len() == 1 => narrow(dense, at, known[0] as usize, 1),
        Positions::Known(known) => {
            let data = TensorData::new(known, vec![count]);
            taken(dense, at, B::int_from_data(data, &kit.device), kit)
        }
        Positions::Computed(computed) => {
            let flat = B::int_reshape(computed, Shape::from(vec![count]));
            kit.check_later(IndexCheck {
                lowest: B::int_min(flat.clone()),
                highest: B::int_max(flat.clone()),
                bounds,
            });
            taken(dense, at, clamped::<B>(flat, shape[at], kit), kit)
        }
    };
    Ok(Value::Device(selected.reshape(result)))
}

enum Positions<B: Backend> {
    Known(Vec<i64>),
    Computed(IntTensor<B>),
}

/// Entries of an axis at positions within it.
fn taken<B: Backend>(
    dense: Dense<B>,
    at: usize,
    positions: IntTensor<B>,
    kit: &Kit<B>,
) -> Dense<B> {
    let mut shape = dense.shape();
    if !shape.contains(&0) {
        return dense.select(at, positions);
    }
    shape[at] = positions.shape().num_elements();
    dense.filled(0.0, shape, kit)
}

/// Indices known from constants and shapes: the same for every row.
fn in_range(indices: &[i64], bounds: Bounds) -> Outcome<Vec<i64>> {
    let length = bounds.max + 1;
    indices
        .iter()
        .map(|&index| match (bounds.min..=bounds.max).contains(&index) {
            true => Ok(if index < 0 { index + length } else { index }),
            false => Err(unfit!(
                "index {index} is out of range, expected {}..={}",
                bounds.min,
                bounds.max
            )),
        })
        .collect()
}

/// The extremes of computed indices, which are known once the device has run.
pub struct IndexCheck<B: Backend> {
    /// The least index, one element.
    pub lowest: IntTensor<B>,
    /// The largest index, one element.
    pub highest: IntTensor<B>,
    bounds: Bounds,
}

impl<B: Backend> IndexCheck<B> {
    /// Refuses extremes outside the bounds.
    pub fn judge(&self, lowest: i64, highest: i64) -> Outcome<()> {
        let Bounds { min, max } = self.bounds;
        let outside = [highest, lowest].into_iter().find(|index| !(min..=max).contains(index));
        outside.map_or(Ok(()), |value| Err(Fault::Index { value, min, max }))
    }
}

/// Computed indices: negative ones count from the end, and all are forced into range, because the
/// device would read outside the tensor. Whether that changed any is judged when outputs are read.
fn clamped<B: Backend>(indices: IntTensor<B>, length: usize, kit: &Kit<B>) -> IntTensor<B> {
    let length = length as i64;
    let negative = B::int_lower_elem(indices.clone(), Scalar::Int(0), kit.bools);
    let from_end = B::int_add_scalar(indices.clone(), Scalar::Int(length));
    let positions = B::int_mask_where(indices, negative, from_end);
    B::int_clamp(positions, Scalar::Int(0), Scalar::Int(length - 1))
}
