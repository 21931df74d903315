//! The end of the process: at once, once everything that must be done is done.
//!
//! A usual exit runs the destructors of RocksDB's global state while threads that still read or
//! write a database use it: a start that failed half-way leaves some, and so does a stop whose
//! grace has ended. That is a use after free, seen as "pthread lock: Invalid argument". What must
//! be on disk has been synced before, so nothing is owed to these threads.

use std::io::Write as _;

/// Ends the process with an exit code. Nothing else of it runs any more.
pub fn now(code: u8) -> ! {
    // Whoever read the output may have gone; there is nobody left to tell.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    // SAFETY: ends the process; takes no pointer.
    unsafe { libc::_exit(i32::from(code)) }
}
