//! What a batch costs, measured. Pure: durations in, durations out.
//!
//! One estimate per power of two of rows: a moving mean plus twice the mean deviation, as TCP
//! estimates its round trip. Beside it the cheapest run of late, which no hiccup can raise: only
//! that may refuse work while the device is idle, so a bad estimate can't refuse the very runs that
//! would correct it.

use std::time::Duration;

/// Powers of two from 1 to 65,536 rows.
const BUCKETS: usize = 17;
/// A sample counts at most this many times the present estimate.
const OUTLIER: f64 = 8.0;
/// The cheapest run is forgotten by this factor per run.
const FORGET: f64 = 1.02;

/// Measured costs of one model on one device.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    measured: bool,
    mean: f64,
    deviation: f64,
    cheapest: f64,
}

impl Cost {
    /// Counts a run of this many rows.
    pub fn record(&mut self, rows: usize, took: Duration) {
        let bucket = &mut self.buckets[bucket_of(rows)];
        let mut sample = took.as_secs_f64();
        if !bucket.measured {
            let deviation = sample / 4.0;
            *bucket = Bucket { measured: true, mean: sample, deviation, cheapest: sample };
            return;
        }
        bucket.cheapest = (bucket.cheapest * FORGET).min(sample);
        sample = sample.min(bucket.upper() * OUTLIER);
        let error = sample - bucket.mean;
        bucket.mean += error / 8.0;
        bucket.deviation += (error.abs() - bucket.deviation) / 4.0;
    }

    /// How long a run of this many rows takes, nearly always. Zero before anything was measured.
    pub fn estimate(&self, rows: usize) -> Duration {
        self.scaled(rows, Bucket::upper)
    }

    /// How long a run of this many rows takes at least.
    pub fn at_least(&self, rows: usize) -> Duration {
        self.scaled(rows, |bucket| bucket.cheapest)
    }

    /// How long this many rows take in batches of at most `rows_max`.
    pub fn backlog(&self, rows: usize, rows_max: usize) -> Duration {
        let full = (rows / rows_max.max(1)) as u32;
        let rest = rows % rows_max.max(1);
        let rest = if rest == 0 { Duration::ZERO } else { self.estimate(rest) };
        self.estimate(rows_max) * full + rest
    }

    /// A figure for this many rows; from smaller runs in proportion, else from larger ones as they
    /// are.
    fn scaled(&self, rows: usize, figure: impl Fn(&Bucket) -> f64) -> Duration {
        let wanted = bucket_of(rows);
        let below = (0..=wanted).rev().find(|&at| self.buckets[at].measured);
        let above = (wanted..BUCKETS).find(|&at| self.buckets[at].measured);
        let seconds = match (below, above) {
            (Some(at), _) => figure(&self.buckets[at]) * f64::from(1_u32 << (wanted - at)),
            (None, Some(at)) => figure(&self.buckets[at]),
            (None, None) => 0.0,
        };
        Duration::from_secs_f64(seconds)
    }
}

impl Bucket {
    fn upper(&self) -> f64 {
        self.mean + 2.0 * self.deviation
    }
}

fn bucket_of(rows: usize) -> usize {
    (rows.max(1).next_power_of_two().ilog2() as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn settles_on_what_is_measured() {
        let mut cost = Cost::default();
        assert_eq!(cost.estimate(8), Duration::ZERO);
        (0..100).for_each(|_| cost.record(8, 4 * MS));
        assert!(cost.estimate(8) >= 4 * MS && cost.estimate(8) < 5 * MS, "{:?}", cost.estimate(8));
        assert_eq!(cost.estimate(5), cost.estimate(8));
        assert_eq!(cost.estimate(1), cost.estimate(8), "nothing smaller is known");
        assert_eq!(cost.estimate(32), cost.estimate(8) * 4, "in proportion beyond what is known");
    }

    #[test]
    fn one_hiccup_raises_the_estimate_but_not_the_least() {
        let mut cost = Cost::default();
        (0..100).for_each(|_| cost.record(1, MS));
        cost.record(1, 1000 * MS);
        assert!(cost.estimate(1) > 2 * MS && cost.estimate(1) < 10 * MS);
        assert!(cost.at_least(1) <= MS.mul_f64(1.03));
        (0..100).for_each(|_| cost.record(1, MS));
        assert!(cost.estimate(1) < MS.mul_f64(1.1), "{:?}", cost.estimate(1));
    }

    #[test]
    fn a_backlog_is_full_batches_and_a_rest() {
        let mut cost = Cost::default();
        (0..200).for_each(|_| cost.record(4, 2 * MS));
        (0..200).for_each(|_| cost.record(1, MS));
        let (full, one) = (cost.estimate(4), cost.estimate(1));
        assert_eq!(cost.backlog(9, 4), full * 2 + one);
        assert_eq!(cost.backlog(0, 4), Duration::ZERO);
    }
}
