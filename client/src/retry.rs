//! What may be tried again, and when. Pure: randomness comes in as a value.
//!
//! A call that certainly had no effect may go again whatever it is. One that may have had one goes
//! again only if a repeat does no harm: a read, or a write whose request id makes the shard answer
//! a repeat as it answered the first. What one attempt may have done, no later one denies.

use std::time::Duration;

use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;

use crate::Error;
use crate::error::WRONG_CLUSTER;

/// The first wait between two attempts.
const WAIT_FIRST: Duration = Duration::from_millis(2);

/// The longest wait between two attempts.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// What a second run of a call would change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it reads.
    None,
    /// Nothing: its request id is known by then.
    Repeatable,
    /// The state, a second time.
    Once,
}

impl Effect {
    /// Of a call alone or in a batch; a batch is what its most harmful item is.
    pub fn of(call: &Call) -> Effect {
        let worst = |effects: &mut dyn Iterator<Item = Effect>| {
            effects.fold(Effect::None, |worst, effect| match (worst, effect) {
                (Effect::Once, _) | (_, Effect::Once) => Effect::Once,
                (Effect::Repeatable, _) | (_, Effect::Repeatable) => Effect::Repeatable,
                (Effect::None, Effect::None) => Effect::None,
            })
        };
        match call {
            Call::Get(_) | Call::BatchGet(_) | Call::Prefetch(_) => Effect::None,
            Call::Put(put) => Effect::of_write(put.options.as_ref()),
            Call::Patch(patch) => Effect::of_write(patch.options.as_ref()),
            Call::Delete(delete) => Effect::of_write(delete.options.as_ref()),
            Call::Score(score) => Effect::of_score(score),
            Call::BatchPut(batch) => {
                worst(&mut batch.puts.iter().map(|put| Effect::of_write(put.options.as_ref())))
            }
            // Every step of an upload says where it belongs.
            Call::Upload(_) => Effect::Repeatable,
            Call::ScoreBatch(batch) => worst(&mut batch.scores.iter().map(Effect::of_score)),
        }
    }

    /// Of a write with these options.
    pub fn of_write(options: Option<&v1::WriteOptions>) -> Effect {
        match options.is_some_and(|options| !options.request_id.is_empty()) {
            true => Effect::Repeatable,
            false => Effect::Once,
        }
    }

    /// Of a score: a step writes.
    pub fn of_score(score: &v1::ScoreRequest) -> Effect {
        if score.mode != v1::ScoreMode::Step as i32 {
            return Effect::None;
        }
        if score.request_id.is_empty() { Effect::Once } else { Effect::Repeatable }
    }
}

/// What became of a call that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It had no effect, and may have one elsewhere or later.
    Nothing,
    /// It had no effect, and would have none if it went again at once.
    Refused,
    /// It may have had its effect.
    Unknown,
    /// The error is its answer: another attempt would end the same, or is the caller's choice.
    Settled,
}

impl Fate {
    /// As an error tells.
    pub fn of(error: &Error) -> Fate {
        match error {
            Error::Refused { reason, .. } => Fate::of_reason(reason),
            Error::Unreachable { reached: false, .. } => Fate::Nothing,
            Error::Unreachable { reached: true, .. } => Fate::Unknown,
            Error::Unexpected(_) => Fate::Settled,
        }
    }

    /// As the reason of a refusal tells.
    pub fn of_reason(reason: &str) -> Fate {
        match reason {
            "NOT_LEADER" | "UNAVAILABLE" | WRONG_CLUSTER => Fate::Nothing,
            "OVERLOADED" | "DISK_FULL" => Fate::Refused,
            "OUTCOME_UNKNOWN" => Fate::Unknown,
            _ => Fate::Settled,
        }
    }

    /// Whether a call of that effect may go again.
    pub fn allows(self, effect: Effect) -> bool {
        match self {
            Fate::Nothing => true,
            Fate::Unknown => effect != Effect::Once,
            Fate::Refused | Fate::Settled => false,
        }
    }
}

/// The error of that attempt of a call, of those so far, that may have had its effect; none if all
/// of them certainly had none.
#[derive(Debug, Clone)]
pub struct Attempts<E>(Option<E>);

impl<E> Default for Attempts<E> {
    fn default() -> Self {
        Attempts(None)
    }
}

impl<E> Attempts<E> {
    /// Takes the error of an attempt that is followed by another one.
    pub fn failed(&mut self, fate: Fate, effect: Effect, error: E) {
        if fate == Fate::Unknown && effect != Effect::None {
            self.0 = Some(error);
        }
    }

    /// Returns the error of the call after its last attempt. Where that says that nothing happened,
    /// it speaks for itself alone, and one that may have had its effect comes first.
    pub fn end(self, fate: Fate, last: E) -> E {
        match fate {
            Fate::Nothing | Fate::Refused => self.0.unwrap_or(last),
            Fate::Unknown | Fate::Settled => last,
        }
    }
}

/// Waits between attempts: doubling, with jitter so that callers do not march in step.
#[derive(Debug, Clone)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(WAIT_FIRST)
    }
}

impl Backoff {
    /// The next wait: between half and all of 2 ms, 4 ms and so on up to 100 ms. `random` is
    /// from 0 to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(WAIT_MAX);
        wait.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// The longest wait there is.
    pub fn longest(random: f64) -> Duration {
        Backoff(WAIT_MAX).next(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &str) -> Error {
        v1::Error { reason: reason.to_owned(), ..Default::default() }.into()
    }

    fn unreachable(reached: bool) -> Error {
        Error::Unreachable { endpoint: "n".into(), message: "gone".into(), reached }
    }

    #[test]
    fn what_may_have_happened_goes_again_only_if_that_does_no_harm() {
        use Effect::{None, Once, Repeatable};
        let goes = |error: &Error| [None, Repeatable, Once].map(|e| Fate::of(error).allows(e));
        assert_eq!(goes(&refused("NOT_LEADER")), [true, true, true]);
        assert_eq!(goes(&refused("UNAVAILABLE")), [true, true, true]);
        assert_eq!(goes(&unreachable(false)), [true, true, true]);
        assert_eq!(goes(&unreachable(true)), [true, true, false]);
        assert_eq!(goes(&refused("OUTCOME_UNKNOWN")), [true, true, false]);
        assert_eq!(goes(&refused("VERSION_CONFLICT")), [false, false, false]);
        assert_eq!(goes(&refused("OVERLOADED")), [false, false, false]);
    }

    #[test]
    fn what_one_attempt_may_have_done_is_not_denied_by_a_later_one() {
        let ends = |first: Error, effect, last: Error| {
            let mut attempts = Attempts::default();
            attempts.failed(Fate::of(&first), effect, first);
            attempts.failed(Fate::Nothing, effect, refused("NOT_LEADER"));
            attempts.end(Fate::of(&last), last)
        };
        let unknown = || refused("OUTCOME_UNKNOWN");
        for last in ["NOT_LEADER", "UNAVAILABLE", "OVERLOADED", "DISK_FULL"] {
            let end = ends(unknown(), Effect::Repeatable, refused(last));
            assert_eq!(end.reason(), Some("OUTCOME_UNKNOWN"), "{last}");
            let end = ends(refused("UNAVAILABLE"), Effect::Repeatable, refused(last));
            assert_eq!(end.reason(), Some(last), "nothing happened at any attempt");
        }
        let end = ends(unreachable(true), Effect::Repeatable, unreachable(false));
        assert_eq!(Fate::of(&end), Fate::Unknown);
        let end = ends(unreachable(true), Effect::None, unreachable(false));
        assert_eq!(Fate::of(&end), Fate::Nothing, "a read has no effect");
        // The shard knows a repeat: what it answers is what happened.
        let end = ends(unknown(), Effect::Repeatable, refused("VERSION_CONFLICT"));
        assert_eq!(end.reason(), Some("VERSION_CONFLICT"));
    }

    #[test]
    fn a_batch_is_what_its_most_harmful_item_is() {
        let put = |id: &'static [u8]| v1::PutRequest {
            options: Some(v1::WriteOptions { request_id: id.into(), ..Default::default() }),
            ..Default::default()
        };
        let batch = |puts| Effect::of(&Call::BatchPut(v1::BatchPutRequest { puts }));
        assert_eq!(batch(vec![put(b"a"), put(b"b")]), Effect::Repeatable);
        assert_eq!(batch(vec![put(b"a"), put(b"")]), Effect::Once);
        assert_eq!(batch(vec![]), Effect::None);
        let step = v1::ScoreRequest { mode: v1::ScoreMode::Step as i32, ..Default::default() };
        assert_eq!(Effect::of(&Call::Score(step)), Effect::Once);
        assert_eq!(Effect::of(&Call::Score(v1::ScoreRequest::default())), Effect::None);
    }

    #[test]
    fn waits_double_up_to_a_limit_and_are_spread() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 100, 100]);
        assert_eq!(Backoff::default().next(0.0), WAIT_FIRST / 2);
    }
}
