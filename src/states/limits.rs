//! The limits on what a request may name, and their checks.

use statehouse_store::{Field, Value};

use crate::failure::{Failure, Reason};

/// The longest key.
pub const KEY_BYTES_MAX: usize = 512;

/// The longest field name.
pub const FIELD_NAME_BYTES_MAX: usize = 128;

/// Fields in one state.
pub const FIELDS_MAX: usize = 1_024;

/// Edits in one patch.
pub const EDITS_MAX: usize = 1_024;

/// The longest request id.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// The longest collection name.
pub const COLLECTION_NAME_BYTES_MAX: usize = 64;

/// The most axes of a tensor.
pub const TENSOR_RANK_MAX: usize = 16;

/// A key has 1 to 512 bytes.
pub fn check_key(key: &[u8]) -> Result<(), Failure> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    let message = format!("a key has 1..={KEY_BYTES_MAX} bytes, got {}", key.len());
    Err(Failure::new(Reason::InvalidKey, message).with("key_bytes", key.len()))
}

/// A collection's name starts with a letter or digit and goes on with those and `-_.`.
pub fn check_collection_name(name: &str) -> Result<(), Failure> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let valid = (1..=COLLECTION_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|c| plain(c) || b"-_.".contains(&c));
    if valid {
        return Ok(());
    }
    Err(Failure::new(
        Reason::InvalidRequest,
        format!(
            "a collection's name has 1..={COLLECTION_NAME_BYTES_MAX} of [a-z0-9-_.] and starts \
             with a letter or digit, got {name:?}"
        ),
    ))
}

pub(super) fn check_field_name(name: &str) -> Result<(), Failure> {
    if (1..=FIELD_NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(Failure::new(
        Reason::InvalidRequest,
        format!("a field's name has 1..={FIELD_NAME_BYTES_MAX} bytes, got {}", name.len()),
    ))
}

/// Names, and the bytes of tensors against their shapes.
pub(super) fn check_field(field: &Field) -> Result<(), Failure> {
    check_field_name(&field.name)?;
    let Value::Tensor { dtype, shape, data } = &field.value else { return Ok(()) };
    if shape.len() > TENSOR_RANK_MAX {
        return Err(invalid_tensor(
            &field.name,
            &format!("at most {TENSOR_RANK_MAX} axes, got {}", shape.len()),
        ));
    }
    let expected = shape
        .iter()
        .try_fold(dtype.size_bytes() as u64, |bytes, axis| bytes.checked_mul(*axis))
        .ok_or_else(|| invalid_tensor(&field.name, &format!("shape {shape:?} is too large")))?;
    if expected == data.len() as u64 {
        return Ok(());
    }
    let expectation =
        format!("{dtype} of shape {shape:?} has {expected} bytes, got {}", data.len());
    Err(invalid_tensor(&field.name, &expectation))
}

/// Every field is as it must be, and names are unique and not too many.
pub(super) fn check_fields(fields: &[Field]) -> Result<(), Failure> {
    check_field_names(fields.iter().map(|field| field.name.as_str()))?;
    fields.iter().try_for_each(check_field)
}

/// Names are unique and not too many.
pub(super) fn check_field_names<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Failure> {
    let count = names.clone().count();
    if count > FIELDS_MAX {
        let message = format!("a state has at most {FIELDS_MAX} fields, got {count}");
        return Err(Failure::new(Reason::InvalidRequest, message));
    }
    for (position, name) in names.clone().enumerate() {
        check_field_name(name)?;
        if names.clone().take(position).any(|other| other == name) {
            let message = format!("field {name:?} is given twice");
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
    }
    Ok(())
}

fn invalid_tensor(name: &str, expectation: &str) -> Failure {
    Failure::new(Reason::InvalidTensor, format!("field {name:?}: {expectation}"))
        .with("field", name)
}
