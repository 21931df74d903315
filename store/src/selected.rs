//! What a read asks of a record: fields, ranges, and the bytes that lie in the record itself.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Error;
use crate::state::{FieldRange, Part, Selection};
use crate::value::FieldType;

/// A field that is read, which of its bytes, and what these are.
#[derive(Debug)]
pub struct Slice<'a, F> {
    /// The field.
    pub field: &'a F,
    /// Bytes of it. May end behind it: reading them says so.
    pub range: Range<u64>,
    /// Type and shape of these bytes.
    pub field_type: FieldType,
}

/// The parts of fields that a selection names. `of` says name, type and bytes of a field, `there`
/// whether it counts as present.
pub(crate) fn selected<'a, F>(
    fields: &'a [F],
    selection: &Selection,
    of: impl Fn(&'a F) -> (&'a str, &'a FieldType, u64),
    there: impl Fn(&F) -> bool,
) -> Result<Vec<Slice<'a, F>>, Error> {
    let slice = |field: &'a F, part| {
        let (name, field_type, bytes) = of(field);
        let (range, field_type) = slice_of(name, field_type, bytes, part)?;
        Ok(Slice { field, range, field_type })
    };
    let Some(wanted) = &selection.fields else {
        let there = fields.iter().filter(|field| there(field));
        return there.map(|field| slice(field, Part::Whole)).collect();
    };
    let found = wanted.iter().filter_map(|FieldRange { name, part }| {
        match fields.iter().find(|field| of(field).0 == name && there(field)) {
            Some(field) => Some(slice(field, *part)),
            None if selection.if_present => None,
            None => Some(Err(Error::UnknownField { name: name.clone() })),
        }
    });
    found.collect()
}

/// Which bytes of a field a part is, and what type these have. The range may end behind the
/// field.
fn slice_of(
    name: &str,
    field_type: &FieldType,
    bytes: u64,
    part: Part,
) -> Result<(Range<u64>, FieldType), Error> {
    let (first, count) = match part {
        Part::Whole => return Ok((0..bytes, field_type.clone())),
        Part::Bytes { offset, len: None } => {
            return Ok((offset..bytes.max(offset), FieldType::Bytes));
        }
        Part::Bytes { offset, len: Some(len) } => {
            return Ok((offset..offset.saturating_add(len), FieldType::Bytes));
        }
        Part::Rows { first, count } => (first, count),
    };
    let FieldType::Tensor { dtype, shape } = field_type else {
        return Err(Error::NoRows { name: name.to_owned() });
    };
    let Some((rows, inner)) = shape.split_first() else {
        return Err(Error::NoRows { name: name.to_owned() });
    };
    let row_bytes = if *rows == 0 { 0 } else { bytes / rows };
    let count = count.unwrap_or_else(|| rows.saturating_sub(first));
    let end = first.saturating_add(count);
    if end > *rows || first > *rows {
        let end = end.saturating_mul(row_bytes.max(1));
        return Err(Error::RangePastEnd { name: name.to_owned(), bytes, end });
    }
    let shape = std::iter::once(count).chain(inner.iter().copied()).collect();
    let range = first * row_bytes..end * row_bytes;
    Ok((range, FieldType::Tensor { dtype: *dtype, shape }))
}

/// A range of a field that lies in its record.
pub(crate) fn inline_part(name: &str, bytes: &Bytes, range: Range<u64>) -> Result<Bytes, Error> {
    check_range(name, bytes.len() as u64, &range)?;
    Ok(match range.end - range.start == bytes.len() as u64 {
        true => bytes.clone(),
        false => bytes.slice(range.start as usize..range.end as usize),
    })
}

/// A range must end within the field, and not before it starts.
pub(crate) fn check_range(name: &str, bytes: u64, range: &Range<u64>) -> Result<(), Error> {
    let end = range.end.max(range.start);
    match range.start <= range.end && end <= bytes {
        true => Ok(()),
        false => Err(Error::RangePastEnd { name: name.to_owned(), bytes, end }),
    }
}
