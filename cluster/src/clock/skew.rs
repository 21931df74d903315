//! What the clocks of the other nodes say, by pings. Pure: clocks come in as values.
//!
//! A ping's answer carries the other's clocks, and was written between when the ping was sent and
//! when the answer came. Of the last few the quickest is kept, which says it best: half of its
//! round trip is how far off it may be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::NodeId;

/// Of so many pings the quickest counts.
const PINGS_KEPT: usize = 16;

/// A clock that was read longer ago counts no more; by then two that run alone may differ by some
/// tenths of a second.
const READING_AGE_MAX_US: u64 = 3_600 * 1_000_000;

/// The clocks of a node, as it reads them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Its wall clock, in Unix microseconds.
    pub wall_us: u64,
    /// Its node's time, in Unix microseconds.
    pub time_us: u64,
}

/// What a ping told: how far another's clocks are ahead of our time since the machine's start.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_us: u64,
    round_trip_us: u64,
    wall_offset: i128,
    time_offset: i128,
}

/// The clocks of other nodes.
#[derive(Debug, Default)]
pub struct Skews {
    samples: BTreeMap<NodeId, VecDeque<Sample>>,
    /// Nodes that answer pings and say nothing of their clocks: of an older version.
    silent: BTreeSet<NodeId>,
}

impl Skews {
    /// A ping that was sent at one time since the machine's start was answered at another.
    pub fn note(&mut self, node: NodeId, (sent_us, came_us): (u64, u64), read: Option<Reading>) {
        let Some(read) = read else {
            self.silent.insert(node);
            return;
        };
        self.silent.remove(&node);
        let round_trip_us = came_us.saturating_sub(sent_us);
        let middle = i128::from(sent_us + round_trip_us / 2);
        let samples = self.samples.entry(node).or_default();
        if samples.len() == PINGS_KEPT {
            samples.pop_front();
        }
        samples.push_back(Sample {
            at_us: came_us,
            round_trip_us,
            wall_offset: i128::from(read.wall_us) - middle,
            time_offset: i128::from(read.time_us) - middle,
        });
    }

    /// How many of these nodes were heard of lately.
    pub fn heard(&self, nodes: &[NodeId], elapsed_us: u64) -> usize {
        let heard =
            |node: &&NodeId| self.silent.contains(node) || self.best(**node, elapsed_us).is_some();
        nodes.iter().filter(heard).count()
    }

    /// The median of a node's own clocks and those of these nodes, now.
    pub fn median(&self, own: Reading, nodes: &[NodeId], elapsed_us: u64) -> Reading {
        let now = i128::from(elapsed_us);
        let samples: Vec<Sample> =
            nodes.iter().filter_map(|node| self.best(*node, elapsed_us)).collect();
        let walls = samples.iter().map(|it| now + it.wall_offset);
        let times = samples.iter().map(|it| now + it.time_offset);
        Reading {
            wall_us: lower_median(own.wall_us, walls),
            time_us: lower_median(own.time_us, times),
        }
    }

    /// The quickest of the last samples of a node, unless all are old.
    fn best(&self, node: NodeId, elapsed_us: u64) -> Option<Sample> {
        let samples = self.samples.get(&node)?;
        let fresh = |it: &&Sample| elapsed_us.saturating_sub(it.at_us) <= READING_AGE_MAX_US;
        samples.iter().filter(fresh).min_by_key(|it| it.round_trip_us).copied()
    }
}

/// Of an even number the lower of the two in the middle: what is early expires late, and nothing
/// is lost by that.
fn lower_median(own: u64, others: impl Iterator<Item = i128>) -> u64 {
    let clamped = |time: i128| u64::try_from(time.max(0)).unwrap_or(u64::MAX);
    let mut all: Vec<u64> = others.map(clamped).chain([own]).collect();
    all.sort_unstable();
    all[(all.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const WALL: u64 = 1_800_000_000 * SECOND;
    const HOUR: u64 = 3_600 * SECOND;
    const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    fn says(time_us: u64) -> Reading {
        Reading { wall_us: time_us, time_us }
    }

    /// Our machine started `WALL` ago by the right clock, so that it is right at `at + WALL`.
    fn heard(skews: &mut Skews, node: u64, at_us: u64, ahead_us: i64) {
        let there = (WALL + at_us).saturating_add_signed(ahead_us);
        skews.note(NodeId(node), (at_us - 1_000, at_us + 1_000), Some(says(there)));
    }

    #[test]
    fn of_three_one_that_is_an_hour_off_is_outvoted() {
        let now = 100 * SECOND;
        for off in [HOUR as i64, -(HOUR as i64)] {
            let own_wrong = says((WALL + now).saturating_add_signed(off));
            let mut skews = Skews::default();
            heard(&mut skews, 2, now, 0);
            heard(&mut skews, 3, now, 0);
            assert_eq!(skews.median(own_wrong, &OTHERS, now), says(WALL + now));
            let mut skews = Skews::default();
            heard(&mut skews, 2, now, 0);
            heard(&mut skews, 3, now, off);
            assert_eq!(skews.median(says(WALL + now), &OTHERS, now), says(WALL + now));
        }
    }

    #[test]
    fn of_two_the_earlier_counts() {
        let now = 100 * SECOND;
        let mut skews = Skews::default();
        heard(&mut skews, 2, now, HOUR as i64);
        assert_eq!(skews.median(says(WALL + now), &OTHERS, now), says(WALL + now));
        let own_ahead = says(WALL + now + HOUR);
        heard(&mut skews, 2, now, 0);
        let mut skews = Skews::default();
        heard(&mut skews, 2, now, 0);
        assert_eq!(skews.median(own_ahead, &OTHERS, now), says(WALL + now));
    }

    #[test]
    fn the_quickest_ping_says_it_best_and_an_old_one_nothing() {
        let node = NodeId(2);
        let mut skews = Skews::default();
        let late = Some(says(WALL + 10 * SECOND));
        skews.note(node, (10 * SECOND, 12 * SECOND), late);
        let own = says(WALL + HOUR);
        assert_eq!(skews.median(own, &[node], 12 * SECOND), says(WALL + 11 * SECOND));
        heard(&mut skews, 2, 13 * SECOND, 0);
        assert_eq!(skews.median(own, &[node], 14 * SECOND), says(WALL + 14 * SECOND));
        assert_eq!(skews.heard(&OTHERS, 14 * SECOND), 1);
        assert_eq!(skews.heard(&OTHERS, 14 * SECOND + HOUR), 0);
        assert_eq!(skews.median(own, &[node], 14 * SECOND + HOUR), own);
    }

    #[test]
    fn a_node_that_says_nothing_of_its_clocks_was_heard_and_does_not_count() {
        let mut skews = Skews::default();
        skews.note(NodeId(2), (0, 1), None);
        assert_eq!(skews.heard(&OTHERS, 5), 1);
        assert_eq!(skews.median(says(9), &OTHERS, 5), says(9));
    }
}
