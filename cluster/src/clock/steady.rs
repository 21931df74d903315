//! A clock that runs with real time, whatever the wall clock does. Pure: clocks come in as values.
//!
//! It advances as the time since the machine's start does, and gets nearer to where it should be
//! by running a little faster or slower for a while. It never jumps and never stands still.

/// How much faster or slower than real time it runs at most, in parts per million: a duration by
/// this clock is within 5 % of the real one, and an error of an hour is gone in 20 hours.
pub const SLEW_MAX_PPM: i64 = 50_000;

const MILLION: i64 = 1_000_000;

/// A clock, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steady {
    /// The machine's elapsed time when the clock was last set or steered.
    at_us: u64,
    /// What it said then.
    time_us: u64,
    /// How much faster it runs since.
    slew_ppm: i64,
    /// For how long; real time afterwards, so that a node that was stopped does not slew on.
    slew_us: u64,
}

impl Steady {
    /// A clock that says this time now.
    pub fn new(elapsed_us: u64, time_us: u64) -> Self {
        Steady { at_us: elapsed_us, time_us, slew_ppm: 0, slew_us: 0 }
    }

    /// What it says.
    pub fn time_us(&self, elapsed_us: u64) -> u64 {
        let passed = elapsed_us.saturating_sub(self.at_us);
        let slewed = passed.min(self.slew_us) as i64 * self.slew_ppm / MILLION;
        (self.time_us + passed).saturating_add_signed(slewed)
    }

    /// Has it come nearer to a time for the next `for_us`, as far as it may.
    pub fn steer(&mut self, elapsed_us: u64, target_us: u64, for_us: u64) {
        let time_us = self.time_us(elapsed_us);
        let off = i128::from(target_us) - i128::from(time_us);
        let needed = off * i128::from(MILLION) / i128::from(for_us.max(1));
        let max = i128::from(SLEW_MAX_PPM);
        let slew_ppm = needed.clamp(-max, max) as i64;
        *self = Steady { at_us: elapsed_us, time_us, slew_ppm, slew_us: for_us };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const MINUTE: u64 = 60 * SECOND;
    const WALL: u64 = 1_800_000_000 * SECOND;

    /// Steers by a wall clock each second from `from` until `until`, seconds since the start.
    fn run(clock: &mut Steady, (from, until): (u64, u64), wall: impl Fn(u64) -> u64) {
        let mut before = clock.time_us(from * SECOND);
        for second in from..until {
            clock.steer(second * SECOND, wall(second * SECOND), SECOND);
            for part in 0..4 {
                let now = clock.time_us(second * SECOND + part * SECOND / 4);
                assert!(now >= before, "it never runs backwards");
                before = now;
            }
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_is_no_step_of_this_one() {
        for step in [16 * 60, 3_600, -16 * 60, -3_600] {
            let mut clock = Steady::new(0, WALL);
            run(&mut clock, (0, 60), |at| WALL + at);
            assert_eq!(clock.time_us(MINUTE), WALL + MINUTE);
            let stepped = |at: u64| (WALL + at).saturating_add_signed(step * SECOND as i64);
            run(&mut clock, (60, 120), stepped);
            let passed = clock.time_us(2 * MINUTE) - (WALL + MINUTE);
            let expected = MINUTE.saturating_add_signed(step.signum() * 3 * SECOND as i64);
            assert_eq!(passed, expected, "{step}: a minute is within 5 % of one");
        }
    }

    #[test]
    fn it_gets_to_where_the_wall_clock_is_and_stays_there() {
        for step in [10, -10] {
            let mut clock = Steady::new(0, WALL);
            let stepped = |at: u64| (WALL + at).saturating_add_signed(step * SECOND as i64);
            run(&mut clock, (0, 201), stepped);
            assert_eq!(clock.time_us(201 * SECOND), stepped(201 * SECOND));
            run(&mut clock, (201, 300), stepped);
            assert_eq!(clock.time_us(300 * SECOND), stepped(300 * SECOND));
        }
    }

    #[test]
    fn a_node_that_is_stopped_slews_no_longer_than_until_it_would_have_been_steered() {
        let mut clock = Steady::new(0, WALL);
        clock.steer(0, WALL + 3_600 * SECOND, SECOND);
        assert_eq!(clock.time_us(3_600 * SECOND), WALL + 3_600 * SECOND + SECOND / 20);
    }
}
