//! What an edit does to the fields of a state that is being worked out.
//!
//! Pure, part of `apply.rs`. An edit that can't be done refuses the whole patch with a reply.

use bytes::{Bytes, BytesMut};

use crate::apply::{Away, Draft, DraftContent, Moment, bad_field};
use crate::command::Edit;
use crate::extent::{Piece, Pieces};
use crate::reply::Reply;
use crate::value::FieldType;

/// Whether an edit makes sense without a state.
pub(crate) fn creates(edit: &Edit) -> bool {
    match edit {
        Edit::Set(_) => true,
        Edit::Remove { .. }
        | Edit::WriteRange { .. }
        | Edit::Append { .. }
        | Edit::Expire { .. } => false,
    }
}

/// Does one edit, or says why not.
pub(crate) fn edit(
    drafts: &mut Vec<Draft>,
    slot: usize,
    edit: &Edit,
    (away, moment): (&Away, Moment),
) -> Result<(), Reply> {
    match edit {
        Edit::Set(field) => {
            let bytes = field.bytes().len() as u64;
            if let Some(refusal) = bad_field(&field.name, &field.value.field_type(), bytes) {
                return Err(refusal);
            }
            let draft = away.draft(slot, field, moment);
            match drafts.iter_mut().find(|known| known.name == field.name) {
                Some(known) => *known = draft,
                None => drafts.push(draft),
            }
            Ok(())
        }
        Edit::Remove { name } => {
            let found = drafts.iter().position(|draft| draft.name == *name);
            let position = found.ok_or_else(|| Reply::FieldNotFound { name: name.clone() })?;
            drafts.remove(position);
            Ok(())
        }
        Edit::WriteRange { name, offset, bytes } => {
            write_range(find(drafts, name)?, *offset, bytes, away.piece(slot, bytes))
        }
        Edit::Append { name, bytes, max_bytes } => {
            append(find(drafts, name)?, bytes, away.piece(slot, bytes), *max_bytes)
        }
        Edit::Expire { name, when } => {
            let expires_at_ms = when.map(|when| when.at_ms(moment.time_ms));
            find(drafts, name)?.expires_at_ms = expires_at_ms;
            Ok(())
        }
    }
}

fn find<'a>(drafts: &'a mut [Draft], name: &str) -> Result<&'a mut Draft, Reply> {
    let found = drafts.iter_mut().find(|draft| draft.name == name);
    found.ok_or_else(|| Reply::FieldNotFound { name: name.to_owned() })
}

fn write_range(draft: &mut Draft, offset: u64, bytes: &Bytes, piece: Piece) -> Result<(), Reply> {
    let len = draft.content.len();
    let end = offset.saturating_add(bytes.len() as u64);
    if end > len {
        return Err(Reply::RangePastEnd { name: draft.name.clone(), bytes: len, end });
    }
    match (&mut draft.content, piece) {
        (DraftContent::Inline(content), Piece::Fresh(bytes)) => {
            let mut written = BytesMut::from(&content[..]);
            written[offset as usize..end as usize].copy_from_slice(&bytes);
            *content = written.freeze();
        }
        (DraftContent::Inline(content), piece @ Piece::Stored(_)) => {
            let mut pieces = Pieces::fresh(content.clone());
            pieces.write(offset, piece);
            draft.content = DraftContent::Pieces(pieces);
        }
        (DraftContent::Pieces(pieces), piece) => pieces.write(offset, piece),
    }
    Ok(())
}

fn append(
    draft: &mut Draft,
    bytes: &Bytes,
    piece: Piece,
    max_bytes: Option<u64>,
) -> Result<(), Reply> {
    let row = row_bytes(draft, bytes.len() as u64)?;
    match (&mut draft.content, piece) {
        (DraftContent::Inline(content), Piece::Fresh(bytes)) => {
            let mut longer = BytesMut::with_capacity(content.len() + bytes.len());
            longer.extend_from_slice(content);
            longer.extend_from_slice(&bytes);
            *content = longer.freeze();
        }
        (DraftContent::Inline(content), piece @ Piece::Stored(_)) => {
            let mut pieces = Pieces::fresh(content.clone());
            pieces.push(piece);
            draft.content = DraftContent::Pieces(pieces);
        }
        (DraftContent::Pieces(pieces), piece) => pieces.push(piece),
    }
    let len = draft.content.len();
    let kept = max_bytes.map_or(len, |max| len.min(max / row * row));
    match &mut draft.content {
        DraftContent::Inline(content) => *content = content.slice((len - kept) as usize..),
        DraftContent::Pieces(pieces) => pieces.drop_front(len - kept),
    }
    if let FieldType::Tensor { shape, .. } = &mut draft.field_type {
        shape[0] = kept / row;
    }
    Ok(())
}

/// Bytes of what an append adds one or more of: a tensor's row, or a byte.
fn row_bytes(draft: &Draft, appended: u64) -> Result<u64, Reply> {
    let FieldType::Tensor { dtype, shape } = &draft.field_type else { return Ok(1) };
    let mismatch = |expected| Err(Reply::FieldMismatch { name: draft.name.clone(), expected });
    let Some((_, inner)) = shape.split_first() else {
        return mismatch("a tensor with an axis to append along, not a scalar".to_owned());
    };
    let inner = FieldType::Tensor { dtype: *dtype, shape: inner.to_vec() };
    let Some(row) = inner.bytes_len().filter(|row| *row > 0) else {
        return mismatch(format!("rows of at least one element, not shape {shape:?}"));
    };
    if !appended.is_multiple_of(row) {
        return mismatch(format!("whole rows of {row} bytes, not {appended} bytes"));
    }
    Ok(row)
}
