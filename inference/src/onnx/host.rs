//! Values in host memory: constants, shapes, axes. Also the conversion between a tensor's declared
//! type and the three kinds that are computed: f32, i64, bool.

use crate::tensor::{DType, ShapeError, Tensor, byte_count};
use bytes::Bytes;

/// What a value is computed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every float type, as f32.
    Float,
    /// Every integer type, as i64.
    Int,
    /// Truth values.
    Bool,
}

impl Kind {
    /// The kind that a declared type is computed as.
    pub fn of(dtype: DType) -> Kind {
        match dtype {
            DType::Bool => Kind::Bool,
            DType::U8
            | DType::I8
            | DType::U16
            | DType::I16
            | DType::U32
            | DType::I32
            | DType::U64
            | DType::I64 => Kind::Int,
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Kind::Float,
        }
    }
}

/// The elements of a [`HostTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floats.
    Float(Vec<f32>),
    /// Integers.
    Int(Vec<i64>),
    /// Truth values.
    Bool(Vec<bool>),
}

/// A small row-major array in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// As many elements as the product of `shape`.
    pub values: Values,
}

impl HostTensor {
    /// A one-axis tensor of integers.
    pub fn ints(values: Vec<i64>) -> HostTensor {
        HostTensor { shape: vec![values.len()], values: Values::Int(values) }
    }

    /// A float tensor.
    pub fn floats(shape: Vec<usize>, values: Vec<f32>) -> HostTensor {
        HostTensor { shape, values: Values::Float(values) }
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        match &self.values {
            Values::Float(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::Bool(values) => values.len(),
        }
    }

    /// Converts from the declared type to the computed kind.
    pub fn from_tensor(tensor: &Tensor) -> HostTensor {
        let raw = &tensor.data[..];
        let values = match Kind::of(tensor.dtype) {
            Kind::Bool => Values::Bool(raw.iter().map(|&byte| byte != 0).collect()),
            Kind::Int => Values::Int(ints(tensor.dtype, raw)),
            Kind::Float => Values::Float(floats(tensor.dtype, raw)),
        };
        HostTensor { shape: tensor.shape.clone(), values }
    }

    /// Converts to a declared type of the same kind; integers wrap as a cast does.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor, ShapeError> {
        byte_count(dtype, &self.shape)?;
        let data: Vec<u8> = match &self.values {
            Values::Bool(values) => values.iter().map(|&value| u8::from(value)).collect(),
            Values::Int(values) => int_bytes(dtype, values),
            Values::Float(values) => float_bytes(dtype, values),
        };
        Tensor::new(dtype, self.shape.clone(), Bytes::from(data))
    }
}

macro_rules! read {
    ($raw:expr, $type:ty, $as:ty) => {
        $raw.as_chunks::<{ size_of::<$type>() }>()
            .0
            .iter()
            .map(|&bytes| <$type>::from_le_bytes(bytes) as $as)
            .collect()
    };
}

/// Integers of any declared width as i64 (u64 above `i64::MAX` wraps).
pub fn ints(dtype: DType, raw: &[u8]) -> Vec<i64> {
    match dtype {
        DType::Bool | DType::U8 => raw.iter().map(|&byte| i64::from(byte)).collect(),
        DType::I8 => raw.iter().map(|&byte| i64::from(byte as i8)).collect(),
        DType::U16 => read!(raw, u16, i64),
        DType::I16 => read!(raw, i16, i64),
        DType::U32 => read!(raw, u32, i64),
        DType::I32 => read!(raw, i32, i64),
        DType::U64 => read!(raw, u64, i64),
        DType::I64 => read!(raw, i64, i64),
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => {
            floats(dtype, raw).into_iter().map(|value| value as i64).collect()
        }
    }
}

/// Floats of any declared width as f32.
pub fn floats(dtype: DType, raw: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => read!(raw, f32, f32),
        DType::F64 => read!(raw, f64, f32),
        DType::F16 => {
            let (halves, _) = raw.as_chunks::<2>();
            halves.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect()
        }
        DType::BF16 => {
            let (halves, _) = raw.as_chunks::<2>();
            halves.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect()
        }
        DType::Bool
        | DType::U8
        | DType::I8
        | DType::U16
        | DType::I16
        | DType::U32
        | DType::I32
        | DType::U64
        | DType::I64 => ints(dtype, raw).into_iter().map(|value| value as f32).collect(),
    }
}

macro_rules! write {
    ($values:expr, $type:ty) => {
        $values.iter().flat_map(|&value| (value as $type).to_le_bytes()).collect()
    };
}

/// Integers as little-endian bytes of the declared type.
pub fn int_bytes(dtype: DType, values: &[i64]) -> Vec<u8> {
    match dtype {
        DType::Bool => values.iter().map(|&value| u8::from(value != 0)).collect(),
        DType::U8 | DType::I8 => values.iter().map(|&value| value as u8).collect(),
        DType::U16 | DType::I16 => write!(values, u16),
        DType::U32 | DType::I32 => write!(values, u32),
        DType::U64 | DType::I64 => write!(values, u64),
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => {
            float_bytes(dtype, &values.iter().map(|&value| value as f32).collect::<Vec<_>>())
        }
    }
}

/// Floats as little-endian bytes of the declared type.
pub fn float_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => write!(values, f32),
        DType::F64 => write!(values, f64),
        DType::F16 => {
            values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
        }
        DType::BF16 => {
            values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
        }
        DType::Bool
        | DType::U8
        | DType::I8
        | DType::U16
        | DType::I16
        | DType::U32
        | DType::I32
        | DType::U64
        | DType::I64 => {
            int_bytes(dtype, &values.iter().map(|&value| value as i64).collect::<Vec<_>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_way_through_its_kind() {
        for dtype in DType::ALL {
            let host = match Kind::of(dtype) {
                Kind::Float => HostTensor::floats(vec![3], vec![0.0, 1.5, -2.0]),
                Kind::Int => HostTensor::ints(vec![0, 1, 100]),
                Kind::Bool => {
                    HostTensor { shape: vec![2], values: Values::Bool(vec![true, false]) }
                }
            };
            let tensor = host.to_tensor(dtype).unwrap();
            assert_eq!(tensor.dtype, dtype);
            assert_eq!(HostTensor::from_tensor(&tensor), host, "{dtype}");
        }
    }
}
