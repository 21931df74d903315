//! Which payloads of a command are written as chunk rows when its entry is appended.
//!
//! A payload that will end in a blob whatever the state looks like by then is written once, at
//! append; the log row keeps a reference, and apply points the record at it. The choice is made
//! from the command alone, so that appending, reading back and applying agree without asking
//! each other. It is therefore part of the on-disk format: changing a rule here needs a new
//! format number of the log row.

use bytes::Bytes;

use crate::command::{Command, Edit};
use crate::ids::CollectionId;
use crate::upload::{Upload, UploadStep};

/// A payload of a command that goes to a blob for certain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Detached<'a> {
    /// The collection under which its chunks lie.
    pub collection: CollectionId,
    /// Which field (of a put) or edit (of a patch) carries it.
    pub slot: u16,
    /// The payload.
    pub bytes: &'a Bytes,
}

/// What a field or edit carries.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Nothing,
    /// A field's whole content: competes with the other fields for the room in the record.
    Whole(&'a Bytes),
    /// A part of a field: becomes an extent of its own if it is large.
    Piece(&'a Bytes),
}

impl Slot<'_> {
    fn len(self) -> u64 {
        match self {
            Slot::Nothing => 0,
            Slot::Whole(bytes) | Slot::Piece(bytes) => bytes.len() as u64,
        }
    }
}

/// The payloads of a command that are written at append, in the order of their slots.
pub(crate) fn detached(command: &Command) -> Vec<Detached<'_>> {
    let (write, slots): (_, Vec<Slot<'_>>) = match command {
        Command::Put(put) => {
            let whole = |field| Slot::Whole(crate::value::Field::bytes(field));
            (&put.write, put.fields.iter().map(whole).collect())
        }
        Command::Patch(patch) => (&patch.write, patch.edits.iter().map(slot_of).collect()),
        Command::Upload(upload) => return uploaded(upload),
        Command::Delete(_)
        | Command::DropCollection { .. }
        | Command::Sweep(_)
        | Command::PutUpload(_) => return Vec::new(),
    };
    let inline_bytes_max = u64::from(write.limits.inline_bytes_max);
    if slots.iter().map(|slot| slot.len()).sum::<u64>() <= inline_bytes_max {
        return Vec::new();
    }
    let whole_sizes: Vec<u64> = slots
        .iter()
        .map(|slot| if matches!(slot, Slot::Whole(_)) { slot.len() } else { 0 })
        .collect();
    let leaving = outgrown(&whole_sizes, inline_bytes_max);
    let collection = write.target.collection;
    let mut detached = Vec::new();
    for (number, slot) in slots.iter().enumerate() {
        let bytes = match slot {
            Slot::Whole(bytes) if leaving.contains(&number) => bytes,
            Slot::Piece(bytes) if bytes.len() as u64 > inline_bytes_max => bytes,
            Slot::Nothing | Slot::Whole(_) | Slot::Piece(_) => continue,
        };
        detached.push(Detached { collection, slot: number as u16, bytes });
    }
    detached
}

/// Bytes of fields that a command brings, whether they end in a blob or not.
pub(crate) fn payload_bytes(command: &Command) -> u64 {
    match command {
        Command::Put(put) => put.fields.iter().map(|field| field.bytes().len() as u64).sum(),
        Command::Patch(patch) => patch.edits.iter().map(|edit| slot_of(edit).len()).sum(),
        Command::Upload(Upload { step: UploadStep::Part { bytes, .. }, .. }) => bytes.len() as u64,
        // An upload's end brings names alone.
        Command::Upload(_)
        | Command::PutUpload(_)
        | Command::Delete(_)
        | Command::DropCollection { .. }
        | Command::Sweep(_) => 0,
    }
}

/// A part of an upload is a blob however short it is.
fn uploaded(upload: &Upload) -> Vec<Detached<'_>> {
    match &upload.step {
        UploadStep::Part { bytes, .. } if !bytes.is_empty() => {
            vec![Detached { collection: upload.target.collection, slot: 0, bytes }]
        }
        UploadStep::Part { .. } | UploadStep::Begin { .. } | UploadStep::Abort => Vec::new(),
    }
}

fn slot_of(edit: &Edit) -> Slot<'_> {
    match edit {
        Edit::Set(field) => Slot::Whole(field.bytes()),
        Edit::Remove { .. } | Edit::Expire { .. } => Slot::Nothing,
        Edit::WriteRange { bytes, .. } | Edit::Append { bytes, .. } => Slot::Piece(bytes),
    }
}

/// Which of several sizes must leave so that the rest is at most `max` together: the largest
/// first, of equals the first one. Answers their positions in ascending order.
pub(crate) fn outgrown(sizes: &[u64], max: u64) -> Vec<usize> {
    let mut rest: u64 = sizes.iter().sum();
    if rest <= max {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|position| std::cmp::Reverse(sizes[*position]));
    let mut leaving = Vec::new();
    for position in order {
        if rest <= max {
            break;
        }
        rest -= sizes[position];
        leaving.push(position);
    }
    leaving.sort_unstable();
    leaving
}

#[cfg(test)]
mod tests {
    use super::outgrown;

    #[test]
    fn the_largest_leave_until_the_rest_fits() {
        assert_eq!(outgrown(&[10, 20, 30], 60), Vec::<usize>::new());
        assert_eq!(outgrown(&[10, 20, 30], 59), vec![2]);
        assert_eq!(outgrown(&[10, 20, 30], 10), vec![1, 2]);
        assert_eq!(outgrown(&[5, 5, 5], 10), vec![0]);
        assert_eq!(outgrown(&[0, 1, 0], 0), vec![1]);
    }
}
