//! Messages of states that come and go in chunks.

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::upload_request::Step;
use statehouse_store::{FieldType, Reply, UploadedField};

use super::{Result, dtype_in, expiry, invalid, lag_ms, options, size_warning};
use crate::dtype;
use crate::failure::{Failure, Reason};
use crate::states::{
    Opened, Slice, StateKey, UploadAction, UploadCommand, Uploaded, reply_failure,
};

/// The fields of a write's header; a tensor's bytes are what its type and shape say.
pub fn uploaded_fields(fields: Vec<v1::FieldHeader>) -> Result<Vec<UploadedField>> {
    fields.into_iter().map(uploaded_field).collect()
}

fn uploaded_field(field: v1::FieldHeader) -> Result<UploadedField> {
    let v1::FieldHeader { name, dtype, shape, bytes, expiry } = field;
    let expires = expiry::of_field(&name, expiry.map(expiry::of_header))?;
    if dtype == v1::DataType::Unspecified as i32 {
        return Ok(UploadedField { name, field_type: FieldType::Bytes, bytes, expires });
    }
    let dtype = dtype_in(&name, dtype)?;
    let field_type = FieldType::Tensor { dtype, shape };
    let refused = |message: String| {
        Failure::new(Reason::InvalidTensor, format!("field {name:?}: {message}"))
            .with("field", &name)
    };
    match field_type.bytes_len() {
        None => Err(refused("its shape is too large".into())),
        Some(expected) if bytes != 0 && bytes != expected => {
            Err(refused(format!("its type and shape have {expected} bytes, got {bytes}")))
        }
        Some(bytes) => Ok(UploadedField { name, field_type, bytes, expires }),
    }
}

/// Whether the bytes of an upload are those that were sent.
pub fn check_whole(whole: &[u8], expected: u64, crc32: Option<u32>) -> Result<()> {
    let bytes = whole.len() as u64;
    if bytes != expected {
        return Err(reply_failure(Reply::UploadIncomplete { bytes, expected }));
    }
    let found = crc32fast::hash(whole);
    match crc32 {
        Some(expected) if expected != found => {
            Err(reply_failure(Reply::UploadCorrupt { expected, found }))
        }
        Some(_) | None => Ok(()),
    }
}

/// The fields of an upload that is here whole.
pub fn fields_of(headers: Vec<v1::FieldHeader>, mut whole: Bytes) -> Result<Vec<v1::Field>> {
    let expiries: Vec<_> =
        headers.iter().map(|header| header.expiry.map(expiry::of_header)).collect();
    let fields = uploaded_fields(headers)?.into_iter().zip(expiries).map(|(field, expiry)| {
        let data = whole.split_to(field.bytes as usize);
        let value = match field.field_type {
            FieldType::Bytes => v1::field::Value::Bytes(data),
            FieldType::Tensor { dtype, shape } => {
                let dtype = dtype::to_proto(dtype) as i32;
                v1::field::Value::Tensor(v1::Tensor { dtype, shape, data })
            }
        };
        // As it came: the node that writes the state counts from then.
        v1::Field { name: field.name, value: Some(value), expiry }
    });
    Ok(fields.collect())
}

pub fn upload(request: v1::UploadRequest) -> Result<UploadCommand> {
    let action = match request.step {
        Some(Step::Begin(begin)) => {
            let fields = uploaded_fields(begin.fields)?;
            UploadAction::Begin { writer: begin.writer, fields }
        }
        Some(Step::Part(part)) => UploadAction::Part {
            writer: part.writer,
            offset: part.offset,
            bytes: part.data,
            crc32: part.crc32,
        },
        Some(Step::End(end)) => UploadAction::End {
            writer: end.writer,
            fields: uploaded_fields(end.fields)?,
            options: options(end.options)?,
            crc32: end.crc32,
        },
        Some(Step::Abort(_)) => UploadAction::Abort,
        Some(Step::Look(_)) => UploadAction::Look,
        None => return Err(invalid("a step of an upload is begin, part, end, abort or look")),
    };
    let target = StateKey { collection: request.collection, key: request.key };
    Ok(UploadCommand { target, upload_id: request.upload_id, action })
}

pub fn uploaded(uploaded: Uploaded) -> v1::UploadResponse {
    match uploaded {
        Uploaded::There { bytes, expires_at_ms } => {
            v1::UploadResponse { received_bytes: bytes, expires_at_ms, ..Default::default() }
        }
        Uploaded::Done { version, repeated, warning } => v1::UploadResponse {
            version: Some(version),
            repeated_request: repeated,
            size_warning: warning.map(size_warning),
            ..Default::default()
        },
        Uploaded::Aborted => v1::UploadResponse::default(),
    }
}

/// What a read begins with.
pub fn read_header(opened: &Opened) -> v1::ReadHeader {
    let model = opened.model.clone();
    let (model, model_version) = model.map_or_else(Default::default, |m| (m.name, m.version));
    v1::ReadHeader {
        version: opened.version,
        fields: opened.slices.iter().map(field_header).collect(),
        expires_at_ms: opened.expires_at_ms,
        model,
        model_version,
        lag_ms: lag_ms(opened.lag),
    }
}

fn field_header(slice: &Slice) -> v1::FieldHeader {
    let (dtype, shape) = match &slice.field_type {
        FieldType::Bytes => (v1::DataType::Unspecified, Vec::new()),
        FieldType::Tensor { dtype, shape } => (dtype::to_proto(*dtype), shape.clone()),
    };
    let (name, bytes) = (slice.name.clone(), slice.bytes);
    let expiry = slice.expires_at_ms.map(v1::field_header::Expiry::ExpiresAtMs);
    v1::FieldHeader { name, dtype: dtype as i32, shape, bytes, expiry }
}
