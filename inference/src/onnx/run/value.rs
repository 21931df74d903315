//! A value while a program runs: on the host, or a tensor of the backend with its rank erased.

use super::{Kit, Outcome};
use crate::onnx::fault::{Fault, unfit};
use crate::onnx::graph::ELEMENTS_MAX;
use crate::onnx::host::{self, HostTensor, Kind, Values};
use crate::tensor::{DType, Tensor};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{
    BoolStore, DType as BurnDType, Shape, Slice, TensorData, TensorMetadata, TransactionPrimitive,
    read_sync,
};
use bytes::Bytes;
use std::sync::{Arc, OnceLock};

/// A value of a running program.
#[derive(Clone)]
pub enum Value<B: Backend> {
    /// Known from constants and shapes alone.
    Host(Arc<Hosted<B>>),
    /// Depends on the caller's numbers.
    Device(Dense<B>),
}

/// A host value and its copy on the device, made on first use.
pub struct Hosted<B: Backend> {
    /// The value.
    pub tensor: Arc<HostTensor>,
    uploaded: OnceLock<Dense<B>>,
}

/// A tensor of the backend.
#[derive(Clone)]
pub enum Dense<B: Backend> {
    /// Always f32.
    Float(FloatTensor<B>),
    /// Always i64.
    Int(IntTensor<B>),
    /// As the backend stores truth values.
    Bool(BoolTensor<B>),
}

/// Applies the same rank-erased operation to whichever kind the tensor has.
macro_rules! each_kind {
    ($dense:expr, $tensor:ident, $float:expr, $int:expr, $bool:expr) => {
        match $dense {
            Dense::Float($tensor) => Dense::Float($float),
            Dense::Int($tensor) => Dense::Int($int),
            Dense::Bool($tensor) => Dense::Bool($bool),
        }
    };
}

impl<B: Backend> Value<B> {
    /// A host value.
    pub fn host(tensor: Arc<HostTensor>) -> Value<B> {
        Value::Host(Arc::new(Hosted { tensor, uploaded: OnceLock::new() }))
    }

    /// A float result.
    pub fn float(tensor: FloatTensor<B>) -> Value<B> {
        Value::Device(Dense::Float(tensor))
    }

    /// The caller's tensor on the device.
    pub fn upload(tensor: Tensor, kit: &Kit<B>) -> Value<B> {
        Value::Device(Dense::upload(tensor, kit))
    }

    /// The length of each axis.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Value::Host(hosted) => hosted.tensor.shape.clone(),
            Value::Device(dense) => dense.shape(),
        }
    }

    /// The value on the device.
    pub fn dense(self, kit: &Kit<B>) -> Dense<B> {
        match self {
            Value::Device(dense) => dense,
            Value::Host(hosted) => {
                hosted.uploaded.get_or_init(|| Dense::from_host(&hosted.tensor, kit)).clone()
            }
        }
    }

    /// The value as floats on the device.
    pub fn floats(self, kit: &Kit<B>) -> Outcome<FloatTensor<B>> {
        self.dense(kit).floats()
    }

    /// The integers of a host value: axes, shapes, sizes.
    pub fn host_ints(&self) -> Outcome<Vec<i64>> {
        match self {
            Value::Host(hosted) => match &hosted.tensor.values {
                Values::Int(values) => Ok(values.clone()),
                Values::Float(_) | Values::Bool(_) => Err("expected integers".into()),
            },
            Value::Device(_) => Err("expected constants or shapes, not computed numbers".into()),
        }
    }

    /// The one number of a host value with one element.
    pub fn host_scalar(&self) -> Option<f64> {
        match self {
            Value::Host(hosted) if hosted.tensor.elements() == 1 => {
                Some(match &hosted.tensor.values {
                    Values::Float(values) => f64::from(values[0]),
                    Values::Int(values) => values[0] as f64,
                    Values::Bool(values) => f64::from(u8::from(values[0])),
                })
            }
            Value::Host(_) | Value::Device(_) => None,
        }
    }

    /// The value in host memory.
    pub fn into_host(self) -> Outcome<Arc<HostTensor>> {
        match self {
            Value::Host(hosted) => Ok(hosted.tensor.clone()),
            Value::Device(dense) => dense.into_host().map(Arc::new),
        }
    }
}

impl<B: Backend> Dense<B> {
    /// The length of each axis.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Dense::Float(tensor) => tensor.shape().to_vec(),
            Dense::Int(tensor) => tensor.shape().to_vec(),
            Dense::Bool(tensor) => tensor.shape().to_vec(),
        }
    }

    /// The tensor of floats that this is.
    pub fn floats(self) -> Outcome<FloatTensor<B>> {
        match self {
            Dense::Float(tensor) => Ok(tensor),
            Dense::Int(_) | Dense::Bool(_) => Err("expected floats".into()),
        }
    }

    /// As many equal elements as `shape` has, of this tensor's kind; `number` is 0 or a float.
    pub fn filled(&self, number: f32, shape: Vec<usize>, kit: &Kit<B>) -> Dense<B> {
        let count = shape.iter().product();
        match self {
            Dense::Float(_) => {
                let data = TensorData::new(vec![number; count], shape);
                Dense::Float(B::float_from_data(data, &kit.device))
            }
            Dense::Int(_) => {
                let data = TensorData::new(vec![number as i64; count], shape);
                Dense::Int(B::int_from_data(data, &kit.device))
            }
            Dense::Bool(_) => Dense::bools(vec![number != 0.0; count], shape, kit),
        }
    }

    fn upload(tensor: Tensor, kit: &Kit<B>) -> Dense<B> {
        let shape = tensor.shape;
        match (tensor.dtype, Kind::of(tensor.dtype)) {
            (DType::F32, _) => {
                // Without a copy if nothing else holds the bytes.
                let raw = Vec::from(tensor.data);
                let data = TensorData::from_bytes_vec(raw, shape, BurnDType::F32);
                Dense::Float(B::float_from_data(data, &kit.device))
            }
            (DType::I64, _) => {
                let raw = Vec::from(tensor.data);
                let data = TensorData::from_bytes_vec(raw, shape, BurnDType::I64);
                Dense::Int(B::int_from_data(data, &kit.device))
            }
            (dtype, Kind::Float) => {
                let values = host::floats(dtype, &tensor.data);
                Dense::Float(B::float_from_data(TensorData::new(values, shape), &kit.device))
            }
            (dtype, Kind::Int) => {
                let values = host::ints(dtype, &tensor.data);
                Dense::Int(B::int_from_data(TensorData::new(values, shape), &kit.device))
            }
            (_, Kind::Bool) => {
                let values: Vec<bool> = tensor.data.iter().map(|&byte| byte != 0).collect();
                Dense::bools(values, shape, kit)
            }
        }
    }

    fn bools(values: Vec<bool>, shape: Vec<usize>, kit: &Kit<B>) -> Dense<B> {
        let mut data = TensorData::new(values, shape);
        if kit.bools != BoolStore::Native {
            data = data.convert_dtype(BurnDType::Bool(kit.bools));
        }
        Dense::Bool(B::bool_from_data(data, &kit.device))
    }

    fn from_host(tensor: &HostTensor, kit: &Kit<B>) -> Dense<B> {
        let shape = tensor.shape.clone();
        match &tensor.values {
            Values::Float(values) => {
                let data = TensorData::new(values.clone(), shape);
                Dense::Float(B::float_from_data(data, &kit.device))
            }
            Values::Int(values) => {
                let data = TensorData::new(values.clone(), shape);
                Dense::Int(B::int_from_data(data, &kit.device))
            }
            Values::Bool(values) => Dense::bools(values.clone(), shape, kit),
        }
    }

    fn into_host(self) -> Outcome<HostTensor> {
        let shape = self.shape();
        let read = |error| Fault::Device(format!("{error:?}"));
        let values = match self {
            Dense::Float(tensor) => {
                let data = read_sync(B::float_into_data(tensor)).map_err(read)?;
                Values::Float(
                    data.into_vec::<f32>().map_err(|error| Fault::Device(format!("{error:?}")))?,
                )
            }
            Dense::Int(tensor) => {
                let data = read_sync(B::int_into_data(tensor)).map_err(read)?;
                Values::Int(data.iter::<i64>().collect())
            }
            Dense::Bool(tensor) => {
                let data = read_sync(B::bool_into_data(tensor)).map_err(read)?;
                Values::Bool(data.iter::<bool>().collect())
            }
        };
        Ok(HostTensor { shape, values })
    }

    /// The same elements under another shape, which must have as many.
    pub fn reshape(self, shape: Vec<usize>) -> Dense<B> {
        let shape = Shape::from(shape);
        each_kind!(
            self,
            tensor,
            B::float_reshape(tensor, shape),
            B::int_reshape(tensor, shape),
            B::bool_reshape(tensor, shape)
        )
    }

    /// Axes in a new order.
    pub fn permute(self, order: &[usize]) -> Dense<B> {
        each_kind!(
            self,
            tensor,
            B::float_permute(tensor, order),
            B::int_permute(tensor, order),
            B::bool_permute(tensor, order)
        )
    }

    /// Part of each axis.
    pub fn slice(self, slices: &[Slice]) -> Dense<B> {
        each_kind!(
            self,
            tensor,
            B::float_slice(tensor, slices),
            B::int_slice(tensor, slices),
            B::bool_slice(tensor, slices)
        )
    }

    /// Axes backwards.
    pub fn flip(self, axes: &[usize]) -> Dense<B> {
        each_kind!(
            self,
            tensor,
            B::float_flip(tensor, axes),
            B::int_flip(tensor, axes),
            B::bool_flip(tensor, axes)
        )
    }

    /// Entries of an axis by index; indices must be in range.
    pub fn select(self, axis: usize, indices: IntTensor<B>) -> Dense<B> {
        each_kind!(
            self,
            tensor,
            B::float_select(tensor, axis, indices),
            B::int_select(tensor, axis, indices),
            B::bool_select(tensor, axis, indices)
        )
    }

    /// Broadcast to `shape`, filling ranks with leading axes of one.
    pub fn expand(self, shape: &[usize]) -> Outcome<Dense<B>> {
        let from = self.shape();
        if from == shape {
            return Ok(self);
        }
        check_elements(shape)?;
        let aligned = self.with_rank(shape.len());
        let fits =
            aligned.shape().iter().zip(shape).all(|(&have, &want)| have == want || have == 1);
        if !fits {
            return Err(unfit!("{from:?} does not broadcast to {shape:?}"));
        }
        let shape = Shape::from(shape.to_vec());
        Ok(each_kind!(
            aligned,
            tensor,
            B::float_expand(tensor, shape),
            B::int_expand(tensor, shape),
            B::bool_expand(tensor, shape)
        ))
    }

    /// With leading axes of length one, up to `rank`.
    pub fn with_rank(self, rank: usize) -> Dense<B> {
        let shape = self.shape();
        if shape.len() >= rank {
            return self;
        }
        let mut longer = vec![1; rank - shape.len()];
        longer.extend(shape);
        self.reshape(longer)
    }
}

/// The shape that two operands broadcast to.
pub fn broadcast(left: &[usize], right: &[usize]) -> Outcome<Vec<usize>> {
    let rank = left.len().max(right.len());
    let axis = |shape: &[usize], at: usize| {
        (at + shape.len()).checked_sub(rank).map_or(1, |position| shape[position])
    };
    let shape = (0..rank)
        .map(|at| match (axis(left, at), axis(right, at)) {
            (one, other) if one == other => Ok(one),
            (1, other) | (other, 1) => Ok(other),
            _ => Err(unfit!("{left:?} and {right:?} do not broadcast")),
        })
        .collect::<Outcome<Vec<_>>>()?;
    check_elements(&shape)?;
    Ok(shape)
}

/// Refuses a result so large that allocating it could end the process.
pub fn check_elements(shape: &[usize]) -> Outcome<()> {
    let elements = shape.iter().try_fold(1_usize, |product, &axis| product.checked_mul(axis));
    match elements {
        Some(elements) if elements <= ELEMENTS_MAX => Ok(()),
        Some(_) | None => {
            Err(Fault::TooLarge(format!("{shape:?} is over the limit of {ELEMENTS_MAX} elements")))
        }
    }
}

/// A possibly negative axis as a position below `rank`.
pub fn axis(axis: i64, rank: usize) -> Outcome<usize> {
    let signed = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(signed)
        .ok()
        .filter(|&position| position < rank)
        .ok_or_else(|| unfit!("axis {axis} is out of range for rank {rank}"))
}

/// Reads values as tensors of the declared types, and single numbers beside them, all with one wait
/// for the device.
pub fn download<B: Backend>(
    values: Vec<(Value<B>, DType)>,
    numbers: Vec<IntTensor<B>>,
) -> Outcome<(Vec<Tensor>, Vec<i64>)> {
    let (mut floats, mut ints, mut bools) = (Vec::new(), numbers, Vec::new());
    let count = ints.len();
    for (value, _) in &values {
        match value {
            Value::Device(Dense::Float(tensor)) => floats.push(tensor.clone()),
            Value::Device(Dense::Int(tensor)) => ints.push(tensor.clone()),
            Value::Device(Dense::Bool(tensor)) => bools.push(tensor.clone()),
            Value::Host(_) => {}
        }
    }
    let declared: Vec<(Option<Arc<HostTensor>>, Kind, DType)> = values
        .into_iter()
        .map(|(value, dtype)| match value {
            Value::Host(hosted) => (Some(hosted.tensor.clone()), Kind::of(dtype), dtype),
            Value::Device(Dense::Float(_)) => (None, Kind::Float, dtype),
            Value::Device(Dense::Int(_)) => (None, Kind::Int, dtype),
            Value::Device(Dense::Bool(_)) => (None, Kind::Bool, dtype),
        })
        .collect();
    let transaction = TransactionPrimitive::<B>::new(floats, Vec::new(), ints, bools);
    let read = read_sync(B::tr_execute(transaction))
        .map_err(|error| Fault::Device(format!("{error:?}")))?;
    let mut floats = read.read_floats.into_iter();
    let mut ints = read.read_ints.into_iter();
    let mut bools = read.read_bools.into_iter();
    let numbers = ints.by_ref().take(count).flat_map(|data| data.iter::<i64>().collect::<Vec<_>>());
    let numbers = numbers.collect();
    let tensors = declared
        .into_iter()
        .map(|(hosted, kind, dtype)| {
            if let Some(hosted) = hosted {
                return hosted.to_tensor(dtype).map_err(|error| Fault::Device(error.to_string()));
            }
            let next = match kind {
                Kind::Float => floats.next(),
                Kind::Int => ints.next(),
                Kind::Bool => bools.next(),
            };
            let read = next.ok_or_else(|| Fault::Device("too few tensors came back".into()))?;
            from_data(read, kind, dtype)
        })
        .collect::<Outcome<Vec<_>>>()?;
    Ok((tensors, numbers))
}

fn from_data(data: TensorData, kind: Kind, dtype: DType) -> Outcome<Tensor> {
    let shape = data.shape.to_vec();
    let bytes = match (kind, dtype, data.dtype) {
        (Kind::Float, DType::F32, BurnDType::F32) | (Kind::Int, DType::I64, BurnDType::I64) => {
            Bytes::from_owner(Owned(data.bytes))
        }
        (Kind::Float, _, _) => {
            Bytes::from(host::float_bytes(dtype, &data.iter::<f32>().collect::<Vec<_>>()))
        }
        (Kind::Int, _, _) => {
            Bytes::from(host::int_bytes(dtype, &data.iter::<i64>().collect::<Vec<_>>()))
        }
        (Kind::Bool, _, _) => {
            let values: Vec<i64> = data.iter::<bool>().map(i64::from).collect();
            Bytes::from(host::int_bytes(dtype, &values))
        }
    };
    Tensor::new(dtype, shape, bytes).map_err(|error| Fault::Device(error.to_string()))
}

/// Lets [`Bytes`] own the backend's buffer without copying it.
struct Owned(burn::tensor::Bytes);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
