//! When fields expire: as messages say it, and as it is kept.
//!
//! A time from now is counted from here, at the node that runs the write, as for whole states.

use statehouse_proto::v1::edit::expire::Expiry as Change;
use statehouse_proto::v1::field::Expiry;
use statehouse_proto::v1::field_header::Expiry as OfHeader;

use super::{Result, invalid};
use crate::clock::unix_now_ms;

/// When a field that is written expires; `None`: it lasts as long as its state.
pub fn expires_at_ms(field: &str, expiry: Option<Expiry>) -> Result<Option<u64>> {
    match expiry {
        None => Ok(None),
        Some(Expiry::TtlMs(ttl_ms)) => after(field, ttl_ms).map(Some),
        Some(Expiry::ExpiresAtMs(at_ms)) => Ok(Some(at_ms)),
    }
}

/// When a field is to expire from now on.
pub fn changed(field: &str, expiry: Option<Change>) -> Result<Option<u64>> {
    match expiry {
        Some(Change::TtlMs(ttl_ms)) => after(field, ttl_ms).map(Some),
        Some(Change::ExpiresAtMs(at_ms)) => Ok(Some(at_ms)),
        Some(Change::NeverExpires(true)) => Ok(None),
        Some(Change::NeverExpires(false)) => {
            Err(invalid(format!("field {field:?}: never_expires is true or not given")))
        }
        None => {
            let expected = "expire needs ttl_ms, expires_at_ms or never_expires";
            Err(invalid(format!("field {field:?}: {expected}")))
        }
    }
}

/// A header's expiry as its field's.
pub fn of_header(expiry: OfHeader) -> Expiry {
    match expiry {
        OfHeader::TtlMs(ttl_ms) => Expiry::TtlMs(ttl_ms),
        OfHeader::ExpiresAtMs(at_ms) => Expiry::ExpiresAtMs(at_ms),
    }
}

fn after(field: &str, ttl_ms: u64) -> Result<u64> {
    match ttl_ms {
        0 => Err(invalid(format!("field {field:?}: ttl_ms is above 0"))),
        ttl_ms => Ok(unix_now_ms().saturating_add(ttl_ms)),
    }
}
