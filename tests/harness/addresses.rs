//! Addresses for nodes to listen on.

use std::net::SocketAddr;

/// Addresses that nothing listens on. They lie below the range that outgoing connections take
/// theirs from, so nothing takes them between two lives of a node.
pub fn free_addresses() -> [SocketAddr; 3] {
    use std::sync::atomic::{AtomicU16, Ordering};
    const FIRST: u16 = 11_000;
    const LAST: u16 = 31_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id() % 2_000) as u16 * 10;
    let mut free = std::iter::repeat_with(|| {
        let port = FIRST + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % (LAST - FIRST);
        SocketAddr::from(([127, 0, 0, 1], port))
    })
    .filter(|address| std::net::TcpListener::bind(address).is_ok());
    std::array::from_fn(|_| free.next().expect("the ports never end"))
}
