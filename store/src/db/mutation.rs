//! One change of the database's rows, and what it concerns.

use bytes::Bytes;

use super::{Family, Owner};
use crate::keys;

/// A change of one row, or of a range of them.
pub(crate) enum Mutation {
    Put { family: Family, key: Vec<u8>, value: Bytes },
    Delete { family: Family, key: Vec<u8> },
    DeleteRange { family: Family, start: Vec<u8>, end: Vec<u8> },
}

impl Mutation {
    /// The column family that it changes.
    pub fn family(&self) -> &Family {
        match self {
            Mutation::Put { family, .. }
            | Mutation::Delete { family, .. }
            | Mutation::DeleteRange { family, .. } => family,
        }
    }

    /// Whether it changes a fact of the node.
    pub fn is_fact(&self) -> bool {
        let (Mutation::Put { key, .. }
        | Mutation::Delete { key, .. }
        | Mutation::DeleteRange { start: key, .. }) = self;
        self.family().owner() == Owner::Meta && keys::is_fact(key)
    }

    /// Bytes that the change takes in a queue.
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 32;
        match self {
            Mutation::Put { key, value, .. } => FIXED + key.len() + value.len(),
            Mutation::Delete { key, .. } => FIXED + key.len(),
            Mutation::DeleteRange { start, end, .. } => FIXED + start.len() + end.len(),
        }
    }
}
