//! The applied row: how far a shard's state has come.
//!
//! Written in the same batch as the changes that it covers, in the same column family, so that
//! both become durable together. Whoever opens the shard applies the log from behind it.

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::ids::EntryId;

const FORMAT: u8 = 1;

/// How far a shard's state has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The last entry applied; index 0 before the first.
    pub id: EntryId,
    /// The shard's time: the latest that any entry carried. Never runs backwards.
    pub time_ms: u64,
    /// The last membership applied, and the entry that carried it.
    pub membership: Option<(EntryId, Bytes)>,
}

impl Applied {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64);
        out.u8(FORMAT);
        out.u64(self.id.index);
        out.u64(self.id.term);
        out.u64(self.time_ms);
        match &self.membership {
            None => out.u8(0),
            Some((id, membership)) => {
                out.u8(1);
                out.u64(id.index);
                out.u64(id.term);
                out.long(membership);
            }
        }
        out.into_vec()
    }

    pub fn decode(row: Bytes) -> Result<Applied, Malformed> {
        let mut scan = Scanner::new(row);
        scan.format(FORMAT)?;
        let id = EntryId { index: scan.u64("an index")?, term: scan.u64("a term")? };
        let time_ms = scan.u64("a time")?;
        let membership = match scan.u8("a membership or none")? {
            0 => None,
            1 => {
                let id = EntryId { index: scan.u64("an index")?, term: scan.u64("a term")? };
                Some((id, scan.long("a membership")?))
            }
            _ => return Err(scan.malformed("a membership or none")),
        };
        scan.finish()?;
        Ok(Applied { id, time_ms, membership })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applied_row_survives_a_round_trip_and_no_truncation() {
        let id = EntryId { index: 9, term: 2 };
        let membership = Some((EntryId { index: 4, term: 1 }, Bytes::from_static(b"1,2,3")));
        for applied in
            [Applied { id, time_ms: 77, membership }, Applied { id, time_ms: 77, membership: None }]
        {
            let row = Bytes::from(applied.encode());
            for len in 0..row.len() {
                assert!(Applied::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
            }
            assert_eq!(Applied::decode(row), Ok(applied));
        }
    }
}
