//! The answer of a step as it lies beside its request id, so that a repeat is told the same.
//!
//! Layout, little endian: format u8 = 1, model version u64, flags u8 (1: from the initial state),
//! outputs u16, then for each: name length u16, name, dtype u8, rank u8, axes u64, bytes u32, data.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use statehouse_inference::Tensor;

use super::Scored;
use crate::dtype;
use crate::failure::{Failure, Reason};

/// The largest answer that a request id can keep.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;

const FORMAT: u8 = 1;

/// Writes a score without its state version, which the commit decides.
pub fn encode(scored: &Scored) -> Result<Bytes, Failure> {
    let mut out = BytesMut::with_capacity(128);
    out.put_u8(FORMAT);
    out.put_u64_le(scored.model_version);
    out.put_u8(u8::from(scored.from_initial_state));
    out.put_u16_le(scored.outputs.len() as u16);
    for (name, tensor) in &scored.outputs {
        out.put_u16_le(name.len() as u16);
        out.put_slice(name.as_bytes());
        out.put_u8(dtype::to_store(tensor.dtype) as u8);
        out.put_u8(tensor.shape.len() as u8);
        for axis in &tensor.shape {
            out.put_u64_le(*axis as u64);
        }
        out.put_u32_le(tensor.data.len() as u32);
        out.put_slice(&tensor.data);
    }
    if out.len() <= ANSWER_BYTES_MAX {
        return Ok(out.freeze());
    }
    Err(Failure::new(
        Reason::InvalidRequest,
        format!(
            "a step with a request id answers at most {ANSWER_BYTES_MAX} bytes, this one {}: name \
             fewer outputs",
            out.len()
        ),
    ))
}

/// Reads what [`encode`] wrote.
pub fn decode(answer: &Bytes) -> Result<Scored, Failure> {
    read(answer.clone()).ok_or_else(|| {
        Failure::new(Reason::Corrupt, "the answer kept for this request id can't be read")
    })
}

fn read(mut bytes: Bytes) -> Option<Scored> {
    if take(&mut bytes, 1)?.get_u8() != FORMAT {
        return None;
    }
    let model_version = take(&mut bytes, 8)?.get_u64_le();
    let from_initial_state = take(&mut bytes, 1)?.get_u8() != 0;
    let count = take(&mut bytes, 2)?.get_u16_le();
    let mut outputs = Vec::with_capacity(usize::from(count).min(64));
    for _ in 0..count {
        let name_bytes = take(&mut bytes, 2)?.get_u16_le();
        let name = String::from_utf8(take(&mut bytes, usize::from(name_bytes))?.to_vec()).ok()?;
        let dtype = statehouse_store::DType::from_code(take(&mut bytes, 1)?.get_u8())?;
        let rank = take(&mut bytes, 1)?.get_u8();
        let shape = (0..rank)
            .map(|_| Some(take(&mut bytes, 8)?.get_u64_le() as usize))
            .collect::<Option<Vec<_>>>()?;
        let data_bytes = take(&mut bytes, 4)?.get_u32_le();
        let data = take(&mut bytes, data_bytes as usize)?;
        outputs.push((name, Tensor::new(dtype::to_inference(dtype), shape, data).ok()?));
    }
    let blank = Scored::blank();
    bytes.is_empty().then_some(Scored { outputs, model_version, from_initial_state, ..blank })
}

fn take(bytes: &mut Bytes, count: usize) -> Option<Bytes> {
    (bytes.len() >= count).then(|| bytes.split_to(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_inference::DType;

    fn scored(outputs: usize, floats: usize) -> Scored {
        let data = Bytes::from(vec![7u8; floats * 4]);
        let tensor = Tensor::new(DType::F32, vec![floats], data).unwrap();
        let outputs = (0..outputs).map(|n| (format!("out{n}"), tensor.clone())).collect();
        Scored { outputs, model_version: 3, from_initial_state: true, ..Scored::blank() }
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        for (outputs, floats) in [(0, 0), (1, 1), (3, 65)] {
            let scored = scored(outputs, floats);
            assert_eq!(decode(&encode(&scored).unwrap()).unwrap(), scored);
        }
    }

    #[test]
    fn a_truncated_answer_is_refused() {
        let whole = encode(&scored(2, 5)).unwrap();
        for length in 0..whole.len() {
            assert!(decode(&whole.slice(..length)).is_err(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn an_answer_over_the_limit_is_refused() {
        let failure = encode(&scored(1, 5_000)).unwrap_err();
        assert_eq!(failure.reason, Reason::InvalidRequest);
    }
}
