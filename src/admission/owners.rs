//! Who holds how much of the room for calls: each connection, and each address that connections
//! come from.
//!
//! Nobody may hold more than a fixed multiple of what is still free. So one who is alone gets
//! nearly all of it, many get equal parts, and there is always some left for whoever comes next,
//! without anybody counting heads (dynamic thresholds, Choudhury and Hahne, 1998).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// How many times what is free a connection may hold: one alone, four fifths of all.
const CONNECTION_FACTOR: u64 = 4;

/// The same of all connections from one address: eight ninths.
const ADDRESS_FACTOR: u64 = 8;

/// Owners known before those that hold nothing are forgotten; then twice as many as are left.
const KNOWN_MIN: usize = 1_024;

/// Whoever a call belongs to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Owner(Arc<Connection>);

#[derive(Debug, Default)]
struct Connection {
    held: AtomicU64,
    address: Arc<AtomicU64>,
}

impl Owner {
    /// Whether a call that holds some units may take some more, while so many are free.
    pub(super) fn may_take(&self, (held, units): (u64, u64), free: u64) -> bool {
        let left = free.saturating_sub(units);
        let others = |all: &AtomicU64| all.load(Relaxed).saturating_sub(held);
        others(&self.0.held) <= CONNECTION_FACTOR * left
            && others(&self.0.address) <= ADDRESS_FACTOR * left
    }

    pub(super) fn took(&self, units: u64) {
        self.0.held.fetch_add(units, Relaxed);
        self.0.address.fetch_add(units, Relaxed);
    }

    pub(super) fn gave_back(&self, units: u64) {
        self.0.held.fetch_sub(units, Relaxed);
        self.0.address.fetch_sub(units, Relaxed);
    }
}

/// All owners that there are.
#[derive(Default)]
pub(super) struct Owners {
    known: Mutex<Known>,
}

struct Known {
    connections: HashMap<SocketAddr, Arc<Connection>>,
    addresses: HashMap<IpAddr, Arc<AtomicU64>>,
    /// So many connections, and those that nobody refers to are forgotten.
    known_max: usize,
}

impl Default for Known {
    fn default() -> Self {
        let (connections, addresses) = (HashMap::new(), HashMap::new());
        Known { connections, addresses, known_max: KNOWN_MIN }
    }
}

impl Owners {
    /// The owner of calls over a connection from an address.
    pub fn of(&self, peer: SocketAddr) -> Owner {
        let mut known = self.known.lock();
        if let Some(connection) = known.connections.get(&peer) {
            return Owner(connection.clone());
        }
        if known.connections.len() >= known.known_max {
            known.connections.retain(|_, connection| Arc::strong_count(connection) > 1);
            known.addresses.retain(|_, held| Arc::strong_count(held) > 1);
            known.known_max = KNOWN_MIN.max(2 * known.connections.len());
        }
        let address = known.addresses.entry(peer.ip()).or_default().clone();
        let connection = Arc::new(Connection { held: AtomicU64::new(0), address });
        known.connections.insert(peer, connection.clone());
        Owner(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_hold_nothing_are_forgotten() {
        let owners = Owners::default();
        let kept = owners.of(SocketAddr::from(([10, 0, 0, 1], 1)));
        kept.took(5);
        for port in 0..20_000u16 {
            owners.of(SocketAddr::from(([10, 0, 0, 2], port)));
        }
        assert!(owners.known.lock().connections.len() <= KNOWN_MIN);
        let again = owners.of(SocketAddr::from(([10, 0, 0, 1], 1)));
        assert_eq!(again.0.held.load(Relaxed), 5);
    }

    #[test]
    fn who_holds_nothing_may_take_what_is_left_and_who_holds_much_may_not() {
        let owners = Owners::default();
        let (greedy, new) = (
            owners.of(SocketAddr::from(([10, 0, 0, 1], 1))),
            owners.of(SocketAddr::from(([10, 0, 0, 2], 1))),
        );
        greedy.took(800);
        assert!(!greedy.may_take((0, 10), 200));
        assert!(greedy.may_take((0, 10), 300));
        assert!(greedy.may_take((800, 10), 20), "what the call has itself does not count");
        assert!(new.may_take((0, 200), 200));
    }

    #[test]
    fn connections_of_one_address_share_what_it_may_have() {
        let owners = Owners::default();
        let of = |host, port| owners.of(SocketAddr::from(([10, 0, 0, host], port)));
        for port in 0..9 {
            of(1, port).took(100);
        }
        assert!(!of(1, 9).may_take((0, 10), 100), "none of them has much, and all have");
        assert!(of(2, 9).may_take((0, 10), 100));
        assert!(!of(1, 9).may_take((0, 10), 110));
        of(1, 0).gave_back(100);
        assert!(of(1, 9).may_take((0, 10), 110));
    }
}
