//! One limit for all of a node's memory, and how it is shared out. Pure.
//!
//! `memory_max` pays for everything that a node keeps in memory. Each part has a limit of its own,
//! a share of it unless it is set by name; what is left is for what nobody counts: the program,
//! models, stacks, buffers of connections, compactions, the allocator's slack. `governor.rs` looks
//! at what the system says that the process has, and takes from the block cache when the parts
//! together come out at more than was planned.

mod governor;

use anyhow::{bail, ensure};

use crate::size::ByteSize;

pub use governor::{Governor, resident_bytes};

/// The least that a node can do with.
pub const MEMORY_MIN: ByteSize = ByteSize::mib(128);

/// The parts together may have so many thousandths of all; the rest is for what nobody counts.
const PARTS_PER_MILLE_MAX: u64 = 850;

/// The largest message that a node takes unless told otherwise, and the least that it must take:
/// what nodes send each other of an upload at a time.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;
const MESSAGE_BYTES_MIN: u64 = 2 << 20;

/// How often a message is in memory while it is worked on: as it came, and as it goes on to the
/// log or to another node.
pub const MESSAGE_COPIES: u64 = 2;

/// A part of the memory, with its share in thousandths.
macro_rules! parts {
    ($($(#[$doc:meta])* $field:ident = $key:literal, $per_mille:literal;)*) => {
        /// What each part of a node's memory may have, in bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct Plan {
            /// All of it.
            pub memory_max: u64,
            $($(#[$doc])* pub $field: u64,)*
            /// One gRPC message.
            pub message: u64,
        }

        /// Parts whose limits are set by name; the others get their shares.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Chosen {
            $(#[doc = $key] pub $field: Option<ByteSize>,)*
            /// `message_bytes_max`
            pub message: Option<ByteSize>,
        }

        impl Plan {
            fn shared_out(memory_max: u64, chosen: &Chosen) -> Plan {
                let share = |per_mille: u64| memory_max / 1_000 * per_mille;
                $(let $field = chosen.$field.map_or(share($per_mille), |ByteSize(bytes)| bytes);)*
                Plan { memory_max, $($field,)* message: 0 }
            }

            /// The parts by the keys of their settings.
            pub fn parts(&self) -> Vec<(&'static str, u64)> {
                vec![$(($key, self.$field),)*]
            }
        }
    };
}

parts! {
    /// Blocks of files, as RocksDB has them.
    block_cache = "block_cache_bytes", 260;
    /// What is applied or logged and not yet in files.
    memtables = "memtable_bytes_max", 90;
    /// Decoded states.
    state_cache = "state_cache_bytes", 120;
    /// The newest entries of all logs.
    log_tails = "log_tail_bytes_max", 40;
    /// Calls under way: their requests, what they read, their answers.
    requests = "request_bytes_max", 140;
    /// Large states on their way in and out, in pieces.
    transfers = "transfer_bytes_max", 60;
    /// Rows and results of one batch on the device.
    batch = "batch_bytes_max", 40;
    /// Entries sent to one other node and not answered.
    appends = "append_bytes_max", 30;
}

impl Plan {
    /// Shares `memory_max` out. Refuses what does not fit.
    pub fn new(memory_max: ByteSize, chosen: &Chosen) -> anyhow::Result<Plan> {
        if memory_max < MEMORY_MIN {
            bail!("memory_max is {memory_max}; a node needs {MEMORY_MIN} at least");
        }
        let mut plan = Plan::shared_out(memory_max.0, chosen);
        let parts = plan.parts();
        for (key, bytes) in &parts {
            ensure!(*bytes >= 1 << 20, "{key} is {}; it needs 1 MiB at least", ByteSize(*bytes));
        }
        let sum = parts.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let sum_max = memory_max.0 / 1_000 * PARTS_PER_MILLE_MAX;
        if sum > sum_max {
            let list: Vec<_> =
                parts.iter().map(|(key, bytes)| format!("{key} {}", ByteSize(*bytes))).collect();
            bail!(
                "the parts of the memory have {sum} bytes together, and of memory_max \
                 ({memory_max}) they may have {sum_max}: {}",
                list.join(", ")
            );
        }
        let message_max = plan.requests / MESSAGE_COPIES;
        ensure!(
            message_max >= MESSAGE_BYTES_MIN,
            "request_bytes_max is {}; it needs {} at least, a message of {} {MESSAGE_COPIES} times",
            ByteSize(plan.requests),
            ByteSize(MESSAGE_BYTES_MIN * MESSAGE_COPIES),
            ByteSize(MESSAGE_BYTES_MIN)
        );
        let message = match chosen.message {
            Some(ByteSize(bytes)) if bytes > message_max => bail!(
                "message_bytes_max is {}; request_bytes_max ({}) must hold it {MESSAGE_COPIES} \
                 times",
                ByteSize(bytes),
                ByteSize(plan.requests)
            ),
            Some(ByteSize(bytes)) if bytes < MESSAGE_BYTES_MIN => bail!(
                "message_bytes_max is {}; nodes need {} at least for each other",
                ByteSize(bytes),
                ByteSize(MESSAGE_BYTES_MIN)
            ),
            Some(ByteSize(bytes)) => bytes,
            // In whole MiB, since people are told of it.
            None => (message_max >> 20 << 20).min(MESSAGE_BYTES_MAX),
        };
        plan.message = message;
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_get_their_shares_and_leave_room_for_what_nobody_counts() {
        for mib in [128, 512, 1 << 10, 64 << 10] {
            let plan = Plan::new(ByteSize::mib(mib), &Chosen::default()).unwrap();
            let sum: u64 = plan.parts().iter().map(|(_, bytes)| bytes).sum();
            assert!(sum <= plan.memory_max / 1_000 * PARTS_PER_MILLE_MAX, "{plan:?}");
            assert!(plan.message * MESSAGE_COPIES <= plan.requests, "{plan:?}");
        }
        let plan = Plan::new(ByteSize::mib(1 << 10), &Chosen::default()).unwrap();
        assert_eq!(plan.message, 64 << 20);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refused = |mib, chosen| Plan::new(ByteSize::mib(mib), &chosen).unwrap_err().to_string();
        assert!(refused(64, Chosen::default()).contains("128 MiB at least"));
        let large = Some(ByteSize::mib(900));
        let error = refused(1_024, Chosen { block_cache: large, ..Chosen::default() });
        assert!(error.contains("block_cache_bytes 900 MiB"), "{error}");
        let error = refused(512, Chosen { message: Some(ByteSize::mib(64)), ..Chosen::default() });
        assert!(error.contains("message_bytes_max is 64 MiB"), "{error}");
        let error = refused(512, Chosen { message: Some(ByteSize::mib(1)), ..Chosen::default() });
        assert!(error.contains("message_bytes_max is 1 MiB; nodes need 2 MiB"), "{error}");
        let error = refused(512, Chosen { requests: Some(ByteSize::mib(3)), ..Chosen::default() });
        assert!(error.contains("request_bytes_max is 3 MiB; it needs 4 MiB"), "{error}");
        let error = refused(512, Chosen { batch: Some(ByteSize(5)), ..Chosen::default() });
        assert!(error.contains("batch_bytes_max is 5 bytes"), "{error}");
    }
}
