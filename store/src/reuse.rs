//! How much memory a cache would need for which hit rate, estimated while it runs. Pure.
//!
//! A cache that keeps what was used last answers a lookup if what was used since the last use of
//! the same key, the key itself included, fits into it: the *reuse distance* in bytes. The
//! distances of all lookups so far are the hit rates of all sizes at once. To follow every key
//! would cost more than the cache, so a few stand for all (Waldspurger et al., "Efficient MRC
//! Construction with SHARDS", FAST 2015):
//!
//! - A key is followed if its hash lies below a threshold: always or never, so that its own
//!   distances are true ones. What lies between two uses is measured in followed keys and scaled
//!   up by their share of all keys (section 3.1 there).
//! - Memory is bounded: where the keys are too many, the one with the highest hash goes and the
//!   threshold comes down to it (3.2). Each distance counts for as many lookups as it stood for
//!   when it was measured.
//! - Lookups that should have been seen and were not are put down as the shortest distance, since
//!   a few very hot keys make all the difference (SHARDS_adj, 3.3).
//!
//! Knows hashes and sizes, no keys. A lookup of what is not kept, for it is too large or there is
//! no such state, finds nothing however large the cache is. The cache itself keeps what is used
//! often longer than this takes for granted, and does a little better.

use std::collections::{BinaryHeap, HashMap};

use crate::cache::Carried;

/// Keys followed at most.
const KEYS_MAX: usize = 8_192;

/// The share of all keys that is followed at first: few enough for lookups not to feel it.
const SHARE_FIRST: f64 = 1.0 / 32.0;

/// Moments kept apart before those that are not in use any more are taken out.
const MOMENTS_MAX: usize = 4 * KEYS_MAX;

/// Distances are counted in steps of an eighth of a doubling.
const STEPS_PER_DOUBLING: usize = 8;

/// The smallest size that a curve names, in bytes.
const POINT_BYTES_MIN: u64 = 64 << 10;

/// A curve ends where a larger cache would answer less than so much more.
const GAIN_MIN: f64 = 0.000_5;

/// A key that is followed.
#[derive(Clone, Copy, Debug)]
struct Followed {
    /// When it was used last.
    at: usize,
    /// What it takes in the cache; 0: nothing of it is kept.
    bytes: u64,
}

/// Follows some keys of a cache.
#[derive(Debug)]
pub(crate) struct Reuse {
    /// Keys whose hash is below are followed.
    below: u64,
    /// By hash, its halves swapped: the high bits of those below are all the same.
    keys: HashMap<u64, Followed, Carried>,
    /// The hashes of all keys, the highest first.
    hashes: BinaryHeap<u64>,
    moments: Moments,
    /// Lookups by their distance, each as many as it stands for.
    distances: Vec<f64>,
    /// Lookups that no cache would have answered.
    cold: f64,
    /// Lookups of followed keys.
    seen: u64,
}

/// Hit rates by size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    /// Of all keys, those that were followed in the end.
    pub share: f64,
    /// Keys followed.
    pub keys: u64,
    /// Lookups of followed keys.
    pub seen: u64,
    /// Of all lookups, those of a distance up to the end of each step.
    within: Vec<f64>,
}

impl Default for Reuse {
    fn default() -> Self {
        Reuse::with_share(SHARE_FIRST)
    }
}

impl Reuse {
    fn with_share(share: f64) -> Self {
        Reuse {
            below: (share * HASHES) as u64,
            keys: HashMap::default(),
            hashes: BinaryHeap::new(),
            moments: Moments::default(),
            distances: vec![0.0; u64::BITS as usize * STEPS_PER_DOUBLING],
            cold: 0.0,
            seen: 0,
        }
    }

    /// Keys whose hash is below are followed. It only comes down.
    pub fn sampled_below(&self) -> u64 {
        self.below
    }

    /// A key was looked up.
    pub fn looked_up(&mut self, hash: u64) {
        if hash >= self.below {
            return;
        }
        let stands_for = 1.0 / self.share();
        self.seen += 1;
        match self.keys.get(&swapped(hash)).copied() {
            Some(Followed { at, bytes }) if bytes > 0 => {
                let between = self.moments.bytes_after(at) as f64 * stands_for;
                self.distances[step_of(between + bytes as f64)] += stands_for;
                if !self.moments.is_last(at) {
                    self.used(hash, bytes);
                }
            }
            Some(_) | None => {
                self.cold += stands_for;
                self.used(hash, 0);
            }
        }
    }

    /// A key's record is kept, and takes so much.
    pub fn kept(&mut self, hash: u64, bytes: u64) {
        if hash < self.below {
            self.used(hash, bytes);
        }
    }

    /// Nothing is kept of a key any more.
    pub fn gone(&mut self, hash: u64) {
        if let Some(key) = self.keys.get_mut(&swapped(hash)) {
            self.moments.take(key.at, std::mem::take(&mut key.bytes));
        }
    }

    fn used(&mut self, hash: u64, bytes: u64) {
        if self.moments.are_spent() {
            self.renumber();
        }
        let at = self.moments.give(bytes);
        let before = self.keys.insert(swapped(hash), Followed { at, bytes });
        if let Some(before) = before {
            return self.moments.take(before.at, before.bytes);
        }
        self.hashes.push(hash);
        if self.keys.len() > KEYS_MAX
            && let Some(highest) = self.hashes.pop()
            && let Some(key) = self.keys.remove(&swapped(highest))
        {
            self.moments.take(key.at, key.bytes);
            self.below = highest;
        }
    }

    /// Gives the keys the first moments, in the same order.
    fn renumber(&mut self) {
        let mut keys: Vec<&mut Followed> = self.keys.values_mut().collect();
        keys.sort_unstable_by_key(|key| key.at);
        self.moments = Moments::default();
        for key in keys {
            key.at = self.moments.give(key.bytes);
        }
    }

    fn share(&self) -> f64 {
        self.below as f64 / HASHES
    }

    /// The hit rates of all sizes over `lookups`, which is how many there were of all keys.
    pub fn curve(&self, lookups: u64) -> Curve {
        let counted = self.cold + self.distances.iter().sum::<f64>();
        let lookups = lookups as f64;
        let mut sum = lookups - counted;
        let within = self.distances.iter().map(|count| {
            sum += count;
            if lookups > 0.0 { (sum / lookups).clamp(0.0, 1.0) } else { 0.0 }
        });
        let (within, keys) = (within.collect(), self.keys.len() as u64);
        Curve { share: self.share(), keys, seen: self.seen, within }
    }
}

impl Curve {
    /// What share of the lookups a cache of so many bytes would have answered.
    pub fn hit_rate(&self, bytes: u64) -> f64 {
        let position = (bytes.max(1) as f64).log2() * STEPS_PER_DOUBLING as f64;
        let step = (position as usize).min(self.within.len() - 1);
        let before = step.checked_sub(1).map_or(0.0, |before| self.within[before]);
        before + (self.within[step] - before) * position.fract()
    }

    /// Sizes and their hit rates: doubling, up to `bytes` at least and to where more would not
    /// help.
    pub fn points(&self, bytes: u64) -> Vec<(u64, f64)> {
        let most = self.within.last().copied().unwrap_or_default();
        let mut points = Vec::new();
        let mut size = POINT_BYTES_MIN;
        loop {
            let rate = self.hit_rate(size);
            points.push((size, rate));
            if (size >= bytes && rate + GAIN_MIN >= most) || size > u64::MAX / 4 {
                return points;
            }
            size *= 2;
        }
    }
}

fn swapped(hash: u64) -> u64 {
    hash.rotate_left(u64::BITS / 2)
}

/// How many hashes there are.
const HASHES: f64 = 18_446_744_073_709_551_616.0;

fn step_of(distance: f64) -> usize {
    let step = (distance.max(1.0).log2() * STEPS_PER_DOUBLING as f64) as usize;
    step.min(u64::BITS as usize * STEPS_PER_DOUBLING - 1)
}

/// The moments at which keys were used last, in order, and the bytes of each: a Fenwick tree.
#[derive(Debug, Default)]
struct Moments {
    /// Of each node the bytes of the moments that it stands for; grows from nothing.
    tree: Vec<u64>,
    next: usize,
    bytes: u64,
}

impl Moments {
    fn are_spent(&self) -> bool {
        self.next == MOMENTS_MAX
    }

    fn is_last(&self, at: usize) -> bool {
        at + 1 == self.next
    }

    /// The next moment, at which a key of so many bytes is used.
    fn give(&mut self, bytes: u64) -> usize {
        if self.tree.is_empty() {
            self.tree = vec![0; MOMENTS_MAX + 1];
        }
        let at = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.change(at, |sum| sum + bytes);
        at
    }

    /// A key was not used last at a moment any more.
    fn take(&mut self, at: usize, bytes: u64) {
        self.bytes -= bytes;
        self.change(at, |sum| sum - bytes);
    }

    fn change(&mut self, at: usize, change: impl Fn(u64) -> u64) {
        let mut node = at + 1;
        while node < self.tree.len() {
            self.tree[node] = change(self.tree[node]);
            node += node & node.wrapping_neg();
        }
    }

    /// Bytes of the keys used last after a moment.
    fn bytes_after(&self, at: usize) -> u64 {
        let (mut node, mut through) = (at + 1, 0);
        while node > 0 {
            through += self.tree[node];
            node -= node & node.wrapping_neg();
        }
        self.bytes - through
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const SEED: u64 = 0x5eed;

    /// A hash that is spread evenly (splitmix64).
    fn hash(key: u64) -> u64 {
        let mut hash = key.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        hash ^ (hash >> 31)
    }

    fn bytes(key: u64) -> u64 {
        300 + hash(key) % 3_000
    }

    /// Keys as users come back: the n-th of them as often as 1 / n^skew.
    fn zipf(random: &mut StdRng, keys: u64, skew: f64, lookups: usize) -> Vec<u64> {
        let mut sum = 0.0;
        let weights: Vec<f64> = (1..=keys)
            .map(|key| {
                sum += (key as f64).powf(-skew);
                sum
            })
            .collect();
        let mut pick = || {
            let at = random.random::<f64>() * sum;
            weights.partition_point(|weight| *weight < at) as u64
        };
        (0..lookups).map(|_| pick()).collect()
    }

    /// The hit rate of a cache that keeps what was used last, by doing what it does.
    fn simulated(trace: &[u64], capacity: u64) -> f64 {
        let (mut by_time, mut times) = (BTreeMap::new(), BTreeMap::new());
        let (mut used, mut hits) = (0, 0);
        for (time, key) in trace.iter().enumerate() {
            match times.insert(*key, time) {
                Some(before) => {
                    hits += 1;
                    by_time.remove(&before);
                }
                None => used += bytes(*key),
            }
            by_time.insert(time, *key);
            while used > capacity {
                let (_, oldest) = by_time.pop_first().expect("something is kept");
                times.remove(&oldest);
                used -= bytes(oldest);
            }
        }
        hits as f64 / trace.len() as f64
    }

    fn estimated(reuse: &mut Reuse, trace: &[u64]) -> Curve {
        for key in trace {
            reuse.looked_up(hash(*key));
            reuse.kept(hash(*key), bytes(*key));
        }
        reuse.curve(trace.len() as u64)
    }

    #[test]
    fn hit_rates_are_those_of_a_cache_that_keeps_what_was_used_last() {
        println!("SEED={SEED}");
        let mut random = StdRng::seed_from_u64(SEED);
        for (share, keys, skew, lookups) in [
            (0.25, 20_000, 0.9, 400_000),
            (SHARE_FIRST, 100_000, 0.9, 900_000),
            (1.0, 100_000, 0.7, 900_000),
        ] {
            let trace = zipf(&mut random, keys, skew, lookups);
            let mut reuse = Reuse::with_share(share);
            let curve = estimated(&mut reuse, &trace);
            assert!(reuse.keys.len() <= KEYS_MAX);
            let all: u64 = (0..keys).map(bytes).sum();
            let mut off = Vec::new();
            for part in [64, 16, 8, 4, 2, 1] {
                let (real, guess) = (simulated(&trace, all / part), curve.hit_rate(all / part));
                println!("{keys} keys, 1/{part} of them: {real:.3}, estimated {guess:.3}");
                off.push((real - guess).abs());
            }
            let mean = off.iter().sum::<f64>() / off.len() as f64;
            assert!(mean < 0.02, "off by {off:?}");
            assert!(off.iter().all(|off| *off < 0.05), "off by {off:?}");
        }
    }

    #[test]
    fn followed_keys_are_bounded_and_the_share_comes_down() {
        let mut reuse = Reuse::default();
        for key in 0..400_000 {
            reuse.looked_up(hash(key));
            reuse.kept(hash(key), 1_000);
        }
        assert_eq!(reuse.keys.len(), KEYS_MAX);
        let share = KEYS_MAX as f64 / 400_000.0;
        assert!((reuse.share() / share - 1.0).abs() < 0.05, "{} of {share}", reuse.share());
        let all: u64 = reuse.keys.values().map(|key| key.bytes).sum();
        assert_eq!(all, reuse.moments.bytes);
        assert!(reuse.curve(400_000).hit_rate(u64::MAX) < 0.02, "nothing came back");
    }

    #[test]
    fn a_few_keys_tell_something_of_a_small_cache() {
        let mut off = Vec::new();
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let pick = |at: f64| (8_000.0 * at.powi(4)) as u64;
            let trace: Vec<u64> = (0..60_000).map(|_| pick(random.random())).collect();
            let trace: Vec<u64> = trace.into_iter().map(|key| key + 10_000 * seed).collect();
            let mut reuse = Reuse::default();
            let curve = estimated(&mut reuse, &trace);
            let (real, guess) = (simulated(&trace, 2 << 20), curve.hit_rate(2 << 20));
            println!("seed {seed}: {real:.3}, estimated {guess:.3}");
            off.push((real - guess).abs());
        }
        // Some 250 keys that are followed stand for 8,000.
        assert!(off.iter().sum::<f64>() / 20.0 < 0.08, "off by {off:?}");
        assert!(off.iter().all(|off| *off < 0.2), "off by {off:?}");
    }

    #[test]
    fn what_is_not_kept_is_not_found() {
        let mut reuse = Reuse::with_share(1.0);
        for _ in 0..10 {
            reuse.looked_up(7);
        }
        assert_eq!(reuse.curve(10).hit_rate(1 << 40), 0.0, "there is no such state");
        reuse.kept(7, 1_000);
        reuse.looked_up(7);
        let curve = reuse.curve(11);
        assert!((curve.hit_rate(1 << 20) - 1.0 / 11.0).abs() < 1e-9);
        assert!(curve.hit_rate(500) < 1e-9, "it does not fit");
        reuse.gone(7);
        reuse.looked_up(7);
        assert!((reuse.curve(12).hit_rate(1 << 20) - 1.0 / 12.0).abs() < 1e-9);
    }

    #[test]
    fn lookups_that_were_not_seen_are_hot_ones() {
        let mut reuse = Reuse::with_share(1.0);
        for key in 0..100 {
            reuse.looked_up(key);
            reuse.kept(key, 1_000);
        }
        let curve = reuse.curve(400);
        assert!((curve.hit_rate(10_000) - 0.75).abs() < 1e-9, "{}", curve.hit_rate(10_000));
    }

    #[test]
    fn a_curve_ends_where_more_does_not_help() {
        let mut reuse = Reuse::with_share(1.0);
        for round in 0..3 {
            for key in 0..100 {
                reuse.looked_up(hash(key));
                reuse.kept(hash(key), 10_000 + round);
            }
        }
        let points = reuse.curve(300).points(0);
        let sizes: Vec<u64> = points.iter().map(|(bytes, _)| bytes >> 10).collect();
        assert_eq!(sizes, [64, 128, 256, 512, 1_024]);
        assert!(points[3].1 < 0.01 && points[4].1 > 0.66, "{points:?}");
        assert_eq!(reuse.curve(300).points(2 << 20).len(), 6, "today's size is on it");
        assert_eq!(Reuse::default().curve(0).points(0).len(), 1);
    }
}
