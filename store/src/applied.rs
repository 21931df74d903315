//! The applied row: how far a shard's state has come.
//!
//! Written in the same batch as the changes that it covers, in the same column family, so that
//! both become durable together. Whoever opens the shard applies the log from behind it.

use bytes::Bytes;

use crate::codec::{Malformed, Scanner, Writer};
use crate::ids::EntryId;
use crate::requests::Requests;

/// The newest format; one that says nothing of requests is written as 1.
const FORMAT: u8 = 2;
const WITHOUT_REQUESTS: u8 = 1;

/// How far a shard's state has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The last entry applied; index 0 before the first.
    pub id: EntryId,
    /// The shard's time: the latest that any entry carried. Never runs backwards.
    pub time_ms: u64,
    /// The last membership applied, and the entry that carried it.
    pub membership: Option<(EntryId, Bytes)>,
    /// Where the requests lie that are remembered.
    pub requests: Requests,
}

impl Applied {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(64);
        let counted = !self.requests.is_default();
        out.u8(if counted { FORMAT } else { WITHOUT_REQUESTS });
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
        if counted {
            self.requests.encode(&mut out);
        }
        out.into_vec()
    }

    pub fn decode(row: Bytes) -> Result<Applied, Malformed> {
        let mut scan = Scanner::new(row);
        let format = scan.format(FORMAT)?;
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
        let requests = match format {
            WITHOUT_REQUESTS => Requests::default(),
            _ => Requests::decode(&mut scan)?,
        };
        scan.finish()?;
        Ok(Applied { id, time_ms, membership, requests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_applied_row_survives_a_round_trip_and_no_truncation() {
        let id = EntryId { index: 9, term: 2 };
        let membership = Some((EntryId { index: 4, term: 1 }, Bytes::from_static(b"1,2,3")));
        let mut requests = Requests::default();
        requests.place(77, 50);
        let none = Requests::default();
        for applied in [
            Applied { id, time_ms: 77, membership, requests: none.clone() },
            Applied { id, time_ms: 77, membership: None, requests: none },
            Applied { id, time_ms: 77, membership: None, requests },
        ] {
            let row = Bytes::from(applied.encode());
            for len in 0..row.len() {
                assert!(Applied::decode(row.slice(..len)).is_err(), "{len} of {}", row.len());
            }
            assert_eq!(Applied::decode(row), Ok(applied));
        }
    }
}
