//! The bytes of states: noise that is made once, so that a load of gigabytes costs no memory.

use std::io;

use bytes::{Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use statehouse_client::v1;
use statehouse_client::v1::field::Value;

use crate::bench::COLLECTION;

/// Bytes after which noise repeats itself.
const NOISE_BYTES: usize = 8 << 20;

/// Bytes that are had in one piece wherever they begin.
pub const PIECE_BYTES: usize = 1 << 20;

/// The name of the field that is not the model's.
pub const VALUE: &str = "value";

/// Noise to cut states from. Cheap to clone.
#[derive(Clone)]
pub struct Noise(Bytes);

impl Noise {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        let mut noise = BytesMut::zeroed(NOISE_BYTES + PIECE_BYTES);
        SmallRng::seed_from_u64(seed).fill_bytes(&mut noise);
        noise.copy_within(0..PIECE_BYTES, NOISE_BYTES);
        Noise(noise.freeze())
    }

    /// Bytes of what `salt` names: at most so many, and not more than a piece.
    pub fn slice(&self, salt: u64, offset: u64, bytes_max: usize) -> Bytes {
        let at = (salt.wrapping_add(offset) % NOISE_BYTES as u64) as usize;
        self.0.slice(at..at + bytes_max.min(PIECE_BYTES))
    }

    /// Bytes that may be more than a piece.
    pub fn whole(&self, salt: u64, bytes: u64) -> Bytes {
        if bytes <= PIECE_BYTES as u64 {
            return self.slice(salt, 0, bytes as usize);
        }
        let mut whole = BytesMut::with_capacity(bytes as usize);
        while (whole.len() as u64) < bytes {
            let left = (bytes - whole.len() as u64).min(PIECE_BYTES as u64) as usize;
            whole.extend_from_slice(&self.slice(salt, whole.len() as u64, left));
        }
        whole.freeze()
    }
}

/// What states are made of.
#[derive(Clone)]
pub struct Contents {
    pub noise: Noise,
    /// The model's fields as they begin; may be none.
    pub model_fields: Vec<v1::Field>,
}

impl Contents {
    fn model_bytes(&self) -> u64 {
        self.model_fields.iter().map(|field| data_of(field).len() as u64).sum()
    }

    /// Bytes of the field that is not the model's, of a state of so many.
    pub fn value_bytes(&self, state_bytes: u64) -> u64 {
        state_bytes.saturating_sub(self.model_bytes())
    }

    /// A state as one message.
    pub fn put(&self, key: Bytes, state_bytes: u64, salt: u64) -> v1::PutRequest {
        let mut fields = self.model_fields.clone();
        let value = self.noise.whole(salt, self.value_bytes(state_bytes));
        let (name, value) = (VALUE.to_owned(), Some(Value::Bytes(value)));
        fields.push(v1::Field { name, value, expiry: None });
        v1::PutRequest { collection: COLLECTION.to_owned(), key, fields, options: None }
    }

    /// A state as a stream: what it begins with, and where its bytes come from.
    pub fn write(&self, key: Bytes, state_bytes: u64, salt: u64) -> (v1::WriteHeader, Source) {
        let mut fields: Vec<v1::FieldHeader> = self.model_fields.iter().map(header_of).collect();
        let value = self.value_bytes(state_bytes);
        let (name, bytes) = (VALUE.to_owned(), value);
        fields.push(v1::FieldHeader { name, bytes, ..Default::default() });
        let front: Vec<u8> =
            self.model_fields.iter().flat_map(|field| data_of(field).to_vec()).collect();
        let source = Source { front: front.into(), noise: self.noise.clone(), salt, value };
        let collection = COLLECTION.to_owned();
        (v1::WriteHeader { collection, key, fields, ..Default::default() }, source)
    }
}

fn data_of(field: &v1::Field) -> &[u8] {
    match &field.value {
        Some(Value::Tensor(tensor)) => &tensor.data,
        Some(Value::Bytes(bytes)) => bytes,
        None => &[],
    }
}

fn header_of(field: &v1::Field) -> v1::FieldHeader {
    let bytes = data_of(field).len() as u64;
    let name = field.name.clone();
    match &field.value {
        Some(Value::Tensor(tensor)) => v1::FieldHeader {
            name,
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes,
            ..Default::default()
        },
        Some(Value::Bytes(_)) | None => v1::FieldHeader { name, bytes, ..Default::default() },
    }
}

/// A state's bytes, made as they are asked for.
pub struct Source {
    front: Bytes,
    noise: Noise,
    salt: u64,
    value: u64,
}

impl statehouse_client::Source for Source {
    async fn read(&mut self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        let front = self.front.len() as u64;
        if offset < front {
            let from = offset as usize;
            return Ok(self.front.slice(from..self.front.len().min(from + bytes_max)));
        }
        let left = (front + self.value).saturating_sub(offset).min(bytes_max as u64) as usize;
        Ok(self.noise.slice(self.salt, offset - front, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_client::Source as _;

    #[tokio::test]
    async fn a_stream_brings_what_a_put_does() {
        let front = Value::Bytes(Bytes::from(vec![0; 300]));
        let field = v1::Field { name: "h".into(), value: Some(front), expiry: None };
        let contents = Contents { noise: Noise::new(3), model_fields: vec![field] };
        let bytes = 3 * PIECE_BYTES as u64 + 17;
        let put = contents.put(Bytes::new(), bytes, 99);
        let whole: Vec<u8> = put.fields.iter().flat_map(|field| data_of(field).to_vec()).collect();
        let (header, mut source) = contents.write(Bytes::new(), bytes, 99);
        assert_eq!(header.fields.iter().map(|field| field.bytes).sum::<u64>(), bytes);
        let mut streamed = Vec::new();
        loop {
            let piece = source.read(streamed.len() as u64, PIECE_BYTES).await.unwrap();
            if piece.is_empty() {
                break;
            }
            streamed.extend_from_slice(&piece);
        }
        assert!(streamed == whole);
    }
}
