//! What a state is made of: named fields, each a tensor or opaque bytes.
//!
//! The store keeps types and shapes, and checks that bytes fit them. It does no arithmetic.

use std::fmt;

use bytes::Bytes;

/// The most axes of a tensor.
pub const AXES_MAX: usize = 32;

/// The element type of a tensor. The codes are on disk: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool = 0,
    /// Unsigned, 8 bits.
    U8 = 1,
    /// Signed, 8 bits.
    I8 = 2,
    /// Unsigned, 16 bits.
    U16 = 3,
    /// Signed, 16 bits.
    I16 = 4,
    /// Unsigned, 32 bits.
    U32 = 5,
    /// Signed, 32 bits.
    I32 = 6,
    /// Unsigned, 64 bits.
    U64 = 7,
    /// Signed, 64 bits.
    I64 = 8,
    /// IEEE half precision.
    F16 = 9,
    /// Brain float, 16 bits.
    BF16 = 10,
    /// IEEE single precision.
    F32 = 11,
    /// IEEE double precision.
    F64 = 12,
}

impl DType {
    /// Every element type, in the order of the codes.
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

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::Bool | DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 | DType::F16 | DType::BF16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }

    /// The element type of a code, if there is one.
    pub fn from_code(code: u8) -> Option<DType> {
        DType::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
        })
    }
}

/// What kind of value a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Bytes without meaning to us.
    Bytes,
    /// Elements of one type in row-major order, little endian.
    Tensor {
        /// The element type.
        dtype: DType,
        /// Length of each axis, outermost first; empty for a scalar.
        shape: Vec<u64>,
    },
}

impl FieldType {
    /// The bytes that a value of this type has, if the type decides it.
    /// `None` for opaque bytes, and for a shape whose product passes `u64`.
    pub fn bytes_len(&self) -> Option<u64> {
        match self {
            FieldType::Bytes => None,
            FieldType::Tensor { dtype, shape } => {
                let element = dtype.size_bytes() as u64;
                shape.iter().try_fold(element, |bytes, axis| bytes.checked_mul(*axis))
            }
        }
    }

    /// The value of this type with these bytes.
    pub fn with(self, data: Bytes) -> Value {
        match self {
            FieldType::Bytes => Value::Bytes(data),
            FieldType::Tensor { dtype, shape } => Value::Tensor { dtype, shape, data },
        }
    }
}

/// A field's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Elements of one type.
    Tensor {
        /// The element type.
        dtype: DType,
        /// Length of each axis, outermost first; empty for a scalar.
        shape: Vec<u64>,
        /// Row-major, little endian.
        data: Bytes,
    },
    /// Bytes without meaning to us.
    Bytes(Bytes),
}

impl Value {
    /// The content's bytes.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Value::Tensor { data, .. } => data,
            Value::Bytes(bytes) => bytes,
        }
    }

    /// Type and shape without the bytes.
    pub fn field_type(&self) -> FieldType {
        match self {
            Value::Tensor { dtype, shape, .. } => {
                FieldType::Tensor { dtype: *dtype, shape: shape.clone() }
            }
            Value::Bytes(_) => FieldType::Bytes,
        }
    }
}

/// A named part of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Unique in its state.
    pub name: String,
    /// What it holds.
    pub value: Value,
    /// From when on it counts as absent; `None`: as long as its state lasts.
    pub expires: Option<When>,
}

/// When a field expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this time, in Unix milliseconds. What is read says this.
    At(u64),
    /// So many milliseconds after the time of the entry that carries it.
    After(u64),
}

impl When {
    /// The Unix milliseconds that it comes to in an entry of a time.
    pub fn at_ms(self, entry_ms: u64) -> u64 {
        match self {
            When::At(at_ms) => at_ms,
            When::After(ttl_ms) => entry_ms.saturating_add(ttl_ms),
        }
    }
}

impl Field {
    /// A field that lasts as long as its state.
    pub fn new(name: impl Into<String>, value: Value) -> Self {
        Field { name: name.into(), value, expires: None }
    }

    /// The content's bytes.
    pub fn bytes(&self) -> &Bytes {
        self.value.bytes()
    }
}
