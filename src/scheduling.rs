//! How the kernel takes turns with a node's threads.
//!
//! A thread that wakes usually takes the processor from the one that runs. In a node every message
//! wakes a few threads, each of which would rather find many messages at once: under
//! `SCHED_BATCH` whoever runs goes on for its slice, and work gathers meanwhile (ADR 9).

/// Has this thread, and all that it starts from now on, not interrupt others when they wake.
#[cfg(target_os = "linux")]
pub fn gather() {
    // Of this policy the priority must be 0.
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a live value that the call only reads; 0 is the calling thread.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    if answer != 0 {
        // A sandbox may forbid it: the node works all the same, with smaller batches.
        let error = std::io::Error::last_os_error();
        eprintln!("threads keep the usual scheduling: {error}");
    }
}

/// Elsewhere there is no such policy.
#[cfg(not(target_os = "linux"))]
pub fn gather() {}

/// How nice threads for large states are: if all want the processor, each has a third of what
/// another one has.
#[cfg(target_os = "linux")]
const NICE: libc::c_int = 5;

/// Has this thread give way to the others of the process.
#[cfg(target_os = "linux")]
pub fn give_way() {
    // SAFETY: takes no pointer; 0 is the calling thread.
    let answer = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if answer != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "a thread for large states keeps its priority");
    }
}

/// Elsewhere priorities are a process's.
#[cfg(not(target_os = "linux"))]
pub fn give_way() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn threads_inherit_the_policy() {
        let of_a_child = std::thread::spawn(|| {
            super::gather();
            // SAFETY: takes no pointer.
            std::thread::spawn(|| unsafe { libc::sched_getscheduler(0) }).join().unwrap()
        });
        assert_eq!(of_a_child.join().unwrap(), libc::SCHED_BATCH);
    }
}
