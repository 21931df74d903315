//! Which states there are and which calls are made on them. Pure and seeded, so that a node and a
//! peer get the same.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};

/// Sizes of states, each four times the one before.
const CLASS_BYTES: [u64; 10] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    256 << 20,
];

/// The first class that is read by ranges and patched.
const RANGED_FROM: usize = 4;

/// The first class that comes and goes in streams.
const STREAMED_FROM: usize = 5;

/// Bytes of a range that is read or written.
pub const RANGE_BYTES: u64 = 4 << 10;

/// States written by one call while loading, and bytes.
const BATCH_STATES: usize = 64;
const BATCH_BYTES: u64 = 512 << 10;

/// States of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Of one state.
    pub bytes: u64,
    /// How many there are.
    pub states: u64,
}

/// One state: which class, which of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    /// Its place among the classes.
    pub class: u8,
    /// From 0.
    pub rank: u32,
}

impl Id {
    /// Its key.
    pub fn key(self) -> Bytes {
        format!("class-{}-{:07}", self.class, self.rank).into()
    }

    /// What tells its bytes from those of others.
    pub fn salt(self) -> u64 {
        ((u64::from(self.class) << 32) | u64::from(self.rank)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Classes of about as many bytes each, one state at least.
pub fn classes(total_bytes: u64) -> Vec<Class> {
    let share = total_bytes / CLASS_BYTES.len() as u64;
    CLASS_BYTES
        .iter()
        .map(|bytes| Class { bytes: *bytes, states: (share / bytes).max(1) })
        .collect()
}

/// All states in the order in which they are written, by calls of one large state or some small
/// ones.
pub fn calls(classes: &[Class], seed: u64) -> Vec<Vec<Id>> {
    let mut order = Vec::new();
    for (class, of) in (0u8..).zip(classes) {
        order.extend((0..of.states as u32).map(|rank| Id { class, rank }));
    }
    order.shuffle(&mut SmallRng::seed_from_u64(seed));
    let (mut calls, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
    for id in order {
        if is_streamed(id) {
            calls.push(vec![id]);
            continue;
        }
        batch.push(id);
        bytes += classes[usize::from(id.class)].bytes;
        if batch.len() == BATCH_STATES || bytes >= BATCH_BYTES {
            calls.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    calls.extend(Some(batch).filter(|batch| !batch.is_empty()));
    calls
}

/// Whether a state comes in a stream.
pub fn is_streamed(id: Id) -> bool {
    usize::from(id.class) >= STREAMED_FROM
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Read a small state.
    Get,
    /// Read 4 KiB of a large one.
    Range,
    /// Read a large one as a stream.
    Read,
    /// Replace a small one.
    Put,
    /// Replace a large one by a stream.
    Write,
    /// Overwrite 4 KiB of a large one.
    WriteRange,
    /// Add 1 KiB to the end of a large one and drop as much from its front.
    Append,
    /// Score, and write the model's fields of a state of any size.
    Step,
}

/// Kinds, their names, and how many of a hundred calls they are.
pub const KINDS: [(Kind, &str, u32); 8] = [
    (Kind::Get, "get", 30),
    (Kind::Range, "range", 20),
    (Kind::Read, "read", 3),
    (Kind::Put, "put", 15),
    (Kind::Write, "write", 2),
    (Kind::WriteRange, "write_range", 10),
    (Kind::Append, "append", 5),
    (Kind::Step, "step", 15),
];

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// What it does.
    pub kind: Kind,
    /// To which state.
    pub id: Id,
    /// A number to derive places and contents from.
    pub salt: u64,
}

/// The calls of one worker.
pub struct Draws {
    random: SmallRng,
    keys: Vec<Zipf<f64>>,
}

impl Draws {
    /// `zipf` 0 is uniform over a class.
    pub fn new(classes: &[Class], zipf: f64, seed: u64) -> Self {
        let zipf = zipf.max(0.0);
        let keys = |class: &Class| Zipf::new(class.states as f64, zipf).expect("counts above 0");
        Draws { random: SmallRng::seed_from_u64(seed), keys: classes.iter().map(keys).collect() }
    }

    /// The next call.
    pub fn draw(&mut self) -> Call {
        let mut point = self.random.random_range(0..KINDS.iter().map(|kind| kind.2).sum());
        let mut kind = Kind::Get;
        for (candidate, _, weight) in KINDS {
            if point < weight {
                kind = candidate;
                break;
            }
            point -= weight;
        }
        let class = match kind {
            Kind::Get | Kind::Put => self.random.random_range(0..RANGED_FROM),
            Kind::Range | Kind::WriteRange | Kind::Append => {
                self.random.random_range(RANGED_FROM..CLASS_BYTES.len())
            }
            Kind::Read | Kind::Write => self.streamed(),
            Kind::Step => self.random.random_range(0..CLASS_BYTES.len()),
        };
        let rank = self.keys[class].sample(&mut self.random) as u32 - 1;
        Call { kind, id: Id { class: class as u8, rank }, salt: self.random.random() }
    }

    /// A class so that streams move as many bytes of each.
    fn streamed(&mut self) -> usize {
        let mut class = STREAMED_FROM;
        while class + 1 < CLASS_BYTES.len() && self.random.random_range(0..4) == 0 {
            class += 1;
        }
        class
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_share_and_every_state_is_written_once() {
        let classes = classes(4 << 30);
        let bytes: Vec<u64> = classes.iter().map(|class| class.bytes * class.states).collect();
        let share = (4 << 30) / 10;
        assert!(bytes.iter().all(|bytes| (share / 2..=share).contains(bytes)), "{bytes:?}");
        let calls = calls(&classes, 1);
        let mut written: Vec<Bytes> = calls.iter().flatten().map(|id| id.key()).collect();
        written.sort();
        let count = written.len() as u64;
        written.dedup();
        assert_eq!(written.len() as u64, count);
        assert_eq!(count, classes.iter().map(|class| class.states).sum::<u64>());
    }

    #[test]
    fn a_seed_repeats_all_calls_and_kinds_come_by_weight() {
        let classes = classes(1 << 30);
        let draw = || {
            let mut draws = Draws::new(&classes, 0.99, 7);
            (0..10_000).map(|_| draws.draw()).collect::<Vec<_>>()
        };
        let drawn = draw();
        assert_eq!(drawn, draw());
        for (kind, name, weight) in KINDS {
            let count = drawn.iter().filter(|call| call.kind == kind).count() as f64 / 100.0;
            assert!((count - f64::from(weight)).abs() < 3.0, "{name}: {count} of 100");
        }
        let fits =
            |call: &Call| u64::from(call.id.rank) < classes[usize::from(call.id.class)].states;
        assert!(drawn.iter().all(fits));
    }
}
