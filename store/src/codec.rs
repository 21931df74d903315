//! Little-endian integers and length-prefixed bytes, written and read.
//!
//! The ground under every format of this crate. Reading is total: whatever the input, the
//! answer is a value or [`Malformed`]. Bytes come out as slices of the input, not as copies.
//! Hand-written rather than derived, so that what is on disk is what these files say.

use bytes::Bytes;

use crate::value::{AXES_MAX, DType, FieldType};

/// Input that is not what this version writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} at byte {offset}")]
pub struct Malformed {
    /// What should have been there.
    pub expected: &'static str,
    /// Where, in bytes from the start.
    pub offset: usize,
}

/// Appends values to a growing buffer.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub fn with_capacity(bytes: usize) -> Self {
        Writer { out: Vec::with_capacity(bytes) }
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }

    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// At most 255 bytes, with their length.
    pub fn short(&mut self, bytes: &[u8]) {
        self.u8(u8::try_from(bytes.len()).expect("names are checked to be at most 255 bytes"));
        self.raw(bytes);
    }

    /// At most 65,535 bytes, with their length.
    pub fn medium(&mut self, bytes: &[u8]) {
        self.u16(u16::try_from(bytes.len()).expect("keys and answers are checked to be short"));
        self.raw(bytes);
    }

    /// At most 4 GiB, with their length.
    pub fn long(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("a single value here is below 4 GiB"));
        self.raw(bytes);
    }

    /// 0, or 1 and the value.
    pub fn option_u64(&mut self, value: Option<u64>) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                self.u64(value);
            }
        }
    }

    pub fn field_type(&mut self, field_type: &FieldType) {
        match field_type {
            FieldType::Bytes => self.u8(0),
            FieldType::Tensor { dtype, shape } => self.tensor_type(*dtype, shape),
        }
    }

    pub fn tensor_type(&mut self, dtype: DType, shape: &[u64]) {
        self.u8(1);
        self.u8(dtype as u8);
        self.u8(u8::try_from(shape.len()).expect("a tensor has at most 32 axes"));
        for axis in shape {
            self.u64(*axis);
        }
    }
}

/// Takes values off the front of a buffer.
pub(crate) struct Scanner {
    input: Bytes,
    at: usize,
}

impl Scanner {
    pub fn new(input: Bytes) -> Self {
        Scanner { input, at: 0 }
    }

    pub fn malformed(&self, expected: &'static str) -> Malformed {
        Malformed { expected, offset: self.at }
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], Malformed> {
        let found = self.input.get(self.at..self.at + N).ok_or(self.malformed(expected))?;
        self.at += N;
        Ok(found.try_into().expect("the slice has N bytes"))
    }

    pub fn u8(&mut self, expected: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(expected).map(|[byte]| byte)
    }

    pub fn u16(&mut self, expected: &'static str) -> Result<u16, Malformed> {
        self.array(expected).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, expected: &'static str) -> Result<u32, Malformed> {
        self.array(expected).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, expected: &'static str) -> Result<u64, Malformed> {
        self.array(expected).map(u64::from_le_bytes)
    }

    pub fn bytes16(&mut self, expected: &'static str) -> Result<[u8; 16], Malformed> {
        self.array(expected)
    }

    /// The next `len` bytes, sharing the input's memory.
    pub fn raw(&mut self, len: usize, expected: &'static str) -> Result<Bytes, Malformed> {
        if len > self.input.len() - self.at {
            return Err(self.malformed(expected));
        }
        let found = self.input.slice(self.at..self.at + len);
        self.at += len;
        Ok(found)
    }

    pub fn medium(&mut self, expected: &'static str) -> Result<Bytes, Malformed> {
        let len = self.u16(expected)?;
        self.raw(usize::from(len), expected)
    }

    pub fn long(&mut self, expected: &'static str) -> Result<Bytes, Malformed> {
        let len = self.u32(expected)?;
        self.raw(len as usize, expected)
    }

    /// UTF-8 of at most 255 bytes.
    pub fn short_text(&mut self, expected: &'static str) -> Result<String, Malformed> {
        let len = usize::from(self.u8(expected)?);
        let found = self.input.get(self.at..self.at + len).ok_or(self.malformed(expected))?;
        let text = std::str::from_utf8(found).map_err(|_| self.malformed(expected))?.to_owned();
        self.at += len;
        Ok(text)
    }

    pub fn option_u64(&mut self, expected: &'static str) -> Result<Option<u64>, Malformed> {
        match self.u8(expected)? {
            0 => Ok(None),
            1 => self.u64(expected).map(Some),
            _ => Err(self.malformed(expected)),
        }
    }

    pub fn field_type(&mut self) -> Result<FieldType, Malformed> {
        match self.u8("a field's type")? {
            0 => Ok(FieldType::Bytes),
            1 => {
                let code = self.u8("an element type")?;
                let dtype = DType::from_code(code).ok_or(self.malformed("a known element type"))?;
                let axes = usize::from(self.u8("a number of axes")?);
                if axes > AXES_MAX {
                    return Err(self.malformed("at most 32 axes"));
                }
                let shape = (0..axes).map(|_| self.u64("an axis")).collect::<Result<_, _>>()?;
                Ok(FieldType::Tensor { dtype, shape })
            }
            _ => Err(self.malformed("a known kind of field")),
        }
    }

    /// Checks the format number in front: ours, or an older one that we still read.
    pub fn format(&mut self, supported: u8) -> Result<u8, Malformed> {
        let found = self.u8("a format number")?;
        if found == 0 || found > supported {
            return Err(self.malformed("a supported format number"));
        }
        Ok(found)
    }

    /// Nothing may follow what was read.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.at == self.input.len() {
            return Ok(());
        }
        Err(self.malformed("the end"))
    }
}
