//! Tensors as they cross the room's door: a type, a shape and little-endian row-major bytes.
//!
//! Plain values: no device, no arithmetic. [`Tensor::new`] is the only way to make one, so a
//! tensor's bytes always match its type and shape.

use bytes::Bytes;
use std::fmt;

/// The most axes a tensor may have.
pub const RANK_MAX: usize = 8;

/// The type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// One byte: 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl DType {
    /// Every type, in declaration order.
    pub const ALL: [DType; 13] = [
        DType::Bool,
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::U32,
        DType::I32,
        DType::U64,
        DType::I64,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
    ];

    /// Bytes per element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::BF16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }

    /// The short name: `f32`, `i64`, `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::U16 => "u16",
            DType::I16 => "i16",
            DType::U32 => "u32",
            DType::I32 => "i32",
            DType::U64 => "u64",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// The type with this short name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Whether values can be NaN or infinite.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Why bytes are not a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The bytes are not what type and shape need.
    #[error("expected {expected} bytes for {dtype} {shape:?}, got {actual}")]
    ByteCount { dtype: DType, shape: Vec<usize>, expected: usize, actual: usize },
    /// The product of the axes does not fit in memory.
    #[error("shape {shape:?} of {dtype} is too large")]
    TooLarge { dtype: DType, shape: Vec<usize> },
    /// More axes than [`RANK_MAX`].
    #[error("expected at most {RANK_MAX} axes, got {rank}")]
    Rank { rank: usize },
}

/// A typed array in row-major order. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The type of its elements.
    pub dtype: DType,
    /// The length of each axis; empty for a single value.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major, without padding.
    pub data: Bytes,
}

impl Tensor {
    /// A tensor of these bytes, which must be as many as type and shape need.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Tensor, ShapeError> {
        let expected = byte_count(dtype, &shape)?;
        if data.len() != expected {
            return Err(ShapeError::ByteCount { dtype, shape, expected, actual: data.len() });
        }
        Ok(Tensor { dtype, shape, data })
    }

    /// A tensor of zeros.
    pub fn zeros(dtype: DType, shape: Vec<usize>) -> Result<Tensor, ShapeError> {
        let expected = byte_count(dtype, &shape)?;
        Ok(Tensor { dtype, shape, data: Bytes::from(vec![0; expected]) })
    }

    /// A tensor of f32 values.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Tensor, ShapeError> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape, Bytes::from(data))
    }

    /// A tensor of i64 values.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Tensor, ShapeError> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(DType::I64, shape, Bytes::from(data))
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.data.len() / self.dtype.size_bytes()
    }

    /// Every element as f64, whatever the type.
    pub fn to_f64(&self) -> Vec<f64> {
        self.data
            .chunks_exact(self.dtype.size_bytes())
            .map(|raw| read_f64(self.dtype, raw))
            .collect()
    }

    /// The elements of an f32 tensor; `None` for another type.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32)
            .then(|| self.data.chunks_exact(4).map(|raw| f32::from_le_bytes(exact(raw))).collect())
    }

    /// The position of the first element that is NaN or infinite, if any.
    pub fn first_not_finite(&self) -> Option<usize> {
        first_not_finite(self.dtype, &self.data)
    }
}

/// The bytes that `shape` of `dtype` takes.
pub fn byte_count(dtype: DType, shape: &[usize]) -> Result<usize, ShapeError> {
    if shape.len() > RANK_MAX {
        return Err(ShapeError::Rank { rank: shape.len() });
    }
    shape
        .iter()
        .try_fold(dtype.size_bytes(), |bytes, &axis| bytes.checked_mul(axis))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| ShapeError::TooLarge { dtype, shape: shape.to_vec() })
}

/// The position of the first NaN or infinity in raw elements of `dtype`, if any: as numbers are
/// computed, so of f64 also the first that is too large for f32.
pub fn first_not_finite(dtype: DType, raw: &[u8]) -> Option<usize> {
    match dtype {
        DType::F16 => find(raw, |bytes: [u8; 2]| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00),
        DType::BF16 => find(raw, |bytes: [u8; 2]| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80),
        DType::F32 => find(raw, |bytes: [u8; 4]| !f32::from_le_bytes(bytes).is_finite()),
        DType::F64 => find(raw, |bytes: [u8; 8]| !(f64::from_le_bytes(bytes) as f32).is_finite()),
        DType::Bool
        | DType::U8
        | DType::I8
        | DType::U16
        | DType::I16
        | DType::U32
        | DType::I32
        | DType::U64
        | DType::I64 => None,
    }
}

/// A branch-free pass first (it vectorises), then the position only when there is one.
fn find<const N: usize>(raw: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let (elements, _) = raw.as_chunks::<N>();
    let any = elements.iter().fold(false, |any, &bytes| any | bad(bytes));
    if any { elements.iter().position(|&bytes| bad(bytes)) } else { None }
}

fn exact<const N: usize>(raw: &[u8]) -> [u8; N] {
    raw.try_into().expect("chunks_exact yields chunks of the element's size")
}

fn read_f64(dtype: DType, raw: &[u8]) -> f64 {
    match dtype {
        DType::Bool | DType::U8 => f64::from(raw[0]),
        DType::I8 => f64::from(raw[0] as i8),
        DType::U16 => f64::from(u16::from_le_bytes(exact(raw))),
        DType::I16 => f64::from(i16::from_le_bytes(exact(raw))),
        DType::U32 => f64::from(u32::from_le_bytes(exact(raw))),
        DType::I32 => f64::from(i32::from_le_bytes(exact(raw))),
        DType::U64 => u64::from_le_bytes(exact(raw)) as f64,
        DType::I64 => i64::from_le_bytes(exact(raw)) as f64,
        DType::F16 => half::f16::from_le_bytes(exact(raw)).to_f64(),
        DType::BF16 => half::bf16::from_le_bytes(exact(raw)).to_f64(),
        DType::F32 => f64::from(f32::from_le_bytes(exact(raw))),
        DType::F64 => f64::from_le_bytes(exact(raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_match_type_and_shape() {
        let error = Tensor::new(DType::F32, vec![2, 3], Bytes::from_static(&[0; 20])).unwrap_err();
        assert_eq!(error.to_string(), "expected 24 bytes for f32 [2, 3], got 20");
        assert!(Tensor::new(DType::I64, vec![], Bytes::from_static(&[0; 8])).is_ok());
        let huge = Tensor::zeros(DType::F64, vec![usize::MAX, 2]).unwrap_err();
        assert!(matches!(huge, ShapeError::TooLarge { .. }));
        assert_eq!(Tensor::zeros(DType::U8, vec![1; 9]), Err(ShapeError::Rank { rank: 9 }));
    }

    #[test]
    fn names_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DType::from_name("float"), None);
    }

    #[test]
    fn finds_what_is_not_finite() {
        let tensor = Tensor::from_f32(vec![3], &[1.0, f32::NAN, f32::INFINITY]).unwrap();
        assert_eq!(tensor.first_not_finite(), Some(1));
        let half = half::f16::NEG_INFINITY.to_le_bytes();
        assert_eq!(first_not_finite(DType::F16, &half), Some(0));
        assert_eq!(first_not_finite(DType::BF16, &half::bf16::ONE.to_le_bytes()), None);
        assert_eq!(first_not_finite(DType::I64, &[0xff; 8]), None);
        let wide = |number: f64| first_not_finite(DType::F64, &number.to_le_bytes());
        assert_eq!(wide(f64::from(f32::MAX)), None);
        assert_eq!(wide(1e39), Some(0), "f32 has no such number");
        assert_eq!(wide(f64::NAN), Some(0));
    }
}
