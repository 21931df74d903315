//! When states and fields expire: as messages say it, and as commands do.
//!
//! A time to live stays one: it counts from the time of the entry that carries it, which only the
//! shard's leader knows.

use statehouse_proto::v1::edit::expire::Expiry as Change;
use statehouse_proto::v1::field::Expiry;
use statehouse_proto::v1::field_header::Expiry as OfHeader;

use statehouse_proto::v1::write_options::Expiry as OfState;
use statehouse_store::{Expiry as Stored, When};

use super::{Result, invalid};

/// When a state that is written expires; `None`: as for its kind of write.
pub fn of_state(expiry: Option<OfState>) -> Result<Option<Stored>> {
    match expiry {
        None => Ok(None),
        Some(OfState::TtlMs(0)) => Err(invalid("ttl_ms is above 0")),
        Some(OfState::TtlMs(ttl_ms)) => Ok(Some(Stored::After(ttl_ms))),
        Some(OfState::ExpiresAtMs(at_ms)) => Ok(Some(Stored::At(at_ms))),
        Some(OfState::NeverExpires(true)) => Ok(Some(Stored::Never)),
        Some(OfState::NeverExpires(false)) => Err(invalid("never_expires is true or not given")),
    }
}

/// When a field that is written expires; `None`: it lasts as long as its state.
pub fn of_field(field: &str, expiry: Option<Expiry>) -> Result<Option<When>> {
    match expiry {
        None => Ok(None),
        Some(Expiry::TtlMs(ttl_ms)) => after(field, ttl_ms).map(Some),
        Some(Expiry::ExpiresAtMs(at_ms)) => Ok(Some(When::At(at_ms))),
    }
}

/// When a field is to expire from now on.
pub fn changed(field: &str, expiry: Option<Change>) -> Result<Option<When>> {
    match expiry {
        Some(Change::TtlMs(ttl_ms)) => after(field, ttl_ms).map(Some),
        Some(Change::ExpiresAtMs(at_ms)) => Ok(Some(When::At(at_ms))),
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

fn after(field: &str, ttl_ms: u64) -> Result<When> {
    match ttl_ms {
        0 => Err(invalid(format!("field {field:?}: ttl_ms is above 0"))),
        ttl_ms => Ok(When::After(ttl_ms)),
    }
}
