//! What a read asks of a record: fields, ranges, and the bytes that lie in the record itself.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Error;
use crate::record::{Record, RecordField};
use crate::state::{FieldRange, Selection};

/// The fields that a selection names, and the range of each.
pub(crate) fn selected<'a>(
    record: &'a Record,
    selection: &Selection,
) -> Result<Vec<(&'a RecordField, Range<u64>)>, Error> {
    let Some(wanted) = &selection.fields else {
        return Ok(record.fields.iter().map(|field| (field, 0..field.content.len())).collect());
    };
    let found = wanted.iter().filter_map(|FieldRange { name, range }| {
        match record.fields.iter().find(|field| field.name == *name) {
            Some(field) => Some(Ok((field, range))),
            None if selection.if_present => None,
            None => Some(Err(Error::UnknownField { name: name.clone() })),
        }
    });
    found
        .map(|found| {
            let (field, range) = found?;
            let bytes = field.content.len();
            let range = match range {
                None => 0..bytes,
                Some((offset, None)) => *offset..bytes.max(*offset),
                Some((offset, Some(len))) => *offset..offset.saturating_add(*len),
            };
            Ok((field, range))
        })
        .collect()
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
