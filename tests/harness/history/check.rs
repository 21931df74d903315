//! The verdict on a history of one key: linearizable in the order of versions, or why not.
//!
//! Rules, each with a history in `tests/histories_are_judged.rs` that it alone refuses:
//!
//! 1. A version belongs to one write, and a write has one version, however often it was sent.
//! 2. What is seen was sent, and was not refused each time.
//! 3. A trail begins with a put, goes on with patches, names nobody twice, leaves out no version
//!    in between, does not go on across a delete, and agrees with every other trail.
//! 4. A write happens only where its condition holds; a patch only where there is a state; a
//!    state is deleted once.
//! 5. Versions agree with time: nothing comes after what had not been sent when it was answered.
//! 6. A look that found nothing fits a time at which there was nothing.
//! 7. A send is not refused after another send of the same write took effect.
//! 8. A bounded look sees a state that somebody made, and not before it could be made.
//! 9. A bounded look misses nothing that was acknowledged, or read at a leader, longer than its
//!    lag before it was sent: neither a state nor that there is none.
//!
//! Why that is exact and takes no search. An order of operations agrees with time if and only if
//! no operation in it was answered before an earlier one was sent (give each one, in order, the
//! latest sending so far as its moment). The order is known but for looks that found nothing:
//! those go between writes, wherever a delete was. Such a look fits a gap if it was answered
//! after everything before the gap was sent, and sent before anything after the gap was answered.
//! Let each take the latest gap that it fits. Two that are the wrong way round (the one in the
//! earlier gap sent after the other was answered) can't be: the first would fit the later gap
//! too. The same holds for a delete of unknown outcome that a gap needs. So they can be judged
//! one by one.
//!
//! Lenient in one corner: a version that only a refusal named belongs to some write of unknown
//! outcome, and which one is not worked out; nor is which hidden put (never seen, of unknown
//! outcome) a patch went on from, beyond there being one for each.

use super::order::Order;
pub use super::order::Place;
use super::{Condition, History, Look, Nanos, Seen};

/// Why a history is no history of a store that keeps its promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Rule 1.
    #[error("version {version} was given to write {first} and to write {second}")]
    SharedVersion { version: u64, first: u64, second: u64 },
    /// Rule 1.
    #[error("write {id} took effect twice: as version {first} and as version {second}")]
    TwoEffects { id: u64, first: u64, second: u64 },
    /// Rule 2.
    #[error("write {id} was seen, and nobody sent it")]
    Invented { id: u64 },
    /// Rule 2.
    #[error("version {version} was seen, and no write can have made it")]
    InventedVersion { version: u64 },
    /// Rule 2.
    #[error("write {id} was seen, and each of its sends was refused")]
    RefusedYetSeen { id: u64 },
    /// Rule 3.
    #[error("version {version} tells the past {trail:?}, which {fault}")]
    Trail { version: u64, trail: Vec<u64>, fault: &'static str },
    /// Rule 4.
    #[error("write {id} took effect after {after}, where {condition:?} does not hold")]
    Condition { id: u64, after: Place, condition: Condition },
    /// Rule 4.
    #[error("patch {id} took effect after {after}, where there was no state")]
    PatchOfNothing { id: u64, after: Place },
    /// Rule 4.
    #[error("version {version} was deleted twice")]
    DeletedTwice { version: u64 },
    /// Rules 5 and 8.
    #[error("{what} was answered at {answered} ns, before what precedes it was sent at {sent} ns")]
    OutOfTime { what: Place, answered: Nanos, sent: Nanos },
    /// Rule 6.
    #[error("nothing was seen from {sent} to {answered} ns, when there was a state throughout")]
    NotMissing { sent: Nanos, answered: Nanos },
    /// Rule 9.
    #[error(
        "a read sent at {sent} ns saw version {version} as at most {lag} ns old, and what follows \
         that version was acknowledged at {followed} ns"
    )]
    TooOld { version: u64, sent: Nanos, lag: Nanos, followed: Nanos },
    /// Rule 7.
    #[error("write {id} was refused by a state of version {version}, which it precedes")]
    RepeatForgotten { id: u64, version: u64 },
}

impl History {
    /// Whether a store that keeps its promises can have answered this.
    pub fn check(&self) -> Result<(), Violation> {
        let order = Order::of(self)?;
        let timeline = Timeline::of(&order)?;
        for look in &self.looks {
            match (&look.seen, look.lag) {
                (Seen::State { version, .. }, Some(lag)) => {
                    timeline.not_before(&order, *version, look)?;
                    timeline.not_older(&order, *version, (look, lag))?;
                }
                (Seen::Missing, lag) => {
                    timeline.somewhere_missing(&order, look, lag.unwrap_or(0))?;
                }
                (Seen::Version(version), _) if !order.is_known(*version) => {
                    timeline.between(&order, *version, look)?;
                }
                (Seen::State { .. }, None) | (Seen::Version(_), _) => {}
            }
            not_refused_after_effect(&order, look)?;
        }
        Ok(())
    }
}

/// Rule 7. A look that found nothing is held to it where it is placed.
fn not_refused_after_effect(order: &Order<'_>, look: &Look) -> Result<(), Violation> {
    let (Some(id), Seen::Version(seen)) = (look.of, &look.seen) else { return Ok(()) };
    match order.version_of(id) {
        Some(own) if own <= *seen => Err(Violation::RepeatForgotten { id, version: *seen }),
        _ => Ok(()),
    }
}

/// The bounds that the known order sets to everything else.
struct Timeline {
    /// The latest sending in the stages before each one, and before the end.
    sent_before: Vec<Nanos>,
    /// The earliest answer in each stage and all after it, and after the end.
    answered_after: Vec<Nanos>,
}

impl Timeline {
    /// Holds the known order to rule 5.
    fn of(order: &Order<'_>) -> Result<Self, Violation> {
        let mut sent_before = vec![0];
        for stage in &order.stages {
            let sent = sent_before[sent_before.len() - 1];
            if let Some(moment) = stage.iter().find(|moment| moment.answered < sent) {
                let (what, answered) = (moment.what.clone(), moment.answered);
                return Err(Violation::OutOfTime { what, answered, sent });
            }
            sent_before.push(stage.iter().map(|moment| moment.sent).fold(sent, Nanos::max));
        }
        let mut answered_after = vec![super::NEVER; order.stages.len() + 1];
        for (at, stage) in order.stages.iter().enumerate().rev() {
            let after = answered_after[at + 1];
            answered_after[at] = stage.iter().map(|moment| moment.answered).fold(after, Nanos::min);
        }
        Ok(Timeline { sent_before, answered_after })
    }

    /// Rules 6 and 9: as if the look had been sent by its lag earlier.
    fn somewhere_missing(
        &self,
        order: &Order<'_>,
        look: &Look,
        lag: Nanos,
    ) -> Result<(), Violation> {
        let began = look.sent.saturating_sub(lag);
        let own = look.of.and_then(|id| order.stage_of(id)).unwrap_or(usize::MAX);
        let fits = order.gaps.iter().any(|gap| {
            let sent = self.sent_before[gap.at].max(gap.maybe_since.unwrap_or(0));
            let answered = self.answered_after[gap.at];
            gap.at <= own
                && sent <= look.answered
                && began <= answered
                && gap.maybe_since.is_none_or(|since| since <= answered)
        });
        let answered = look.answered;
        if fits { Ok(()) } else { Err(Violation::NotMissing { sent: began, answered }) }
    }

    /// Rule 8.
    fn not_before(&self, order: &Order<'_>, version: u64, look: &Look) -> Result<(), Violation> {
        let made = order.stage_of_version(version).map_or(0, |stage| stage + 1);
        let (sent, answered) = (self.sent_before[made], look.answered);
        if sent <= answered {
            return Ok(());
        }
        Err(Violation::OutOfTime { what: Place::Look(version), answered, sent })
    }

    /// Rule 9.
    fn not_older(
        &self,
        order: &Order<'_>,
        version: u64,
        (look, lag): (&Look, Nanos),
    ) -> Result<(), Violation> {
        // Behind the version's own stage is that of the looks at it, which do not follow it.
        let behind = order.stage_of_version(version).map_or(0, |stage| stage + 2);
        let followed = self.answered_after[behind];
        let sent = look.sent;
        if sent.saturating_sub(lag) <= followed {
            return Ok(());
        }
        Err(Violation::TooOld { version, sent, lag, followed })
    }

    /// A version that only refusals named: between its neighbours, made by a hidden write.
    fn between(&self, order: &Order<'_>, version: u64, look: &Look) -> Result<(), Violation> {
        if !order.maker_sent_by(version, look.answered) {
            return Err(Violation::InventedVersion { version });
        }
        let before = order.known_before(version).and_then(|v| order.stage_of_version(v));
        let after = order.known_after(version).and_then(|v| order.stage_of_version(v));
        let sent = self.sent_before[before.map_or(0, |stage| stage + 1)];
        let latest = after.map_or(super::NEVER, |stage| self.answered_after[stage]);
        let (what, answered) = (Place::Look(version), look.answered);
        if answered < sent {
            return Err(Violation::OutOfTime { what, answered, sent });
        }
        if latest < look.sent {
            return Err(Violation::OutOfTime { what, answered: latest, sent: look.sent });
        }
        Ok(())
    }
}
