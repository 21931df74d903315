//! The checker that judges what a cluster answered is itself held to account: each of its rules
//! refuses a history that it alone refuses, and on random histories it agrees with a checker of
//! another kind.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "histories_are_judged/bounded.rs"]
mod bounded;
mod harness;
#[path = "histories_are_judged/random.rs"]
mod random;

use harness::history::check::Violation;
use harness::history::search::Search;
use harness::history::{Action, Condition, History, Look, NEVER, Outcome, Seen, Write};
use harness::seed;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use Condition::{Absent, Any, Version};

/// A history in few words: times are small numbers, and ids too.
#[derive(Default, Clone)]
struct Told(History);

impl Told {
    fn write(mut self, id: u64, action: Action, sent: u64, outcome: Outcome) -> Self {
        self.0.writes.push(Write { id, action, sent, outcome });
        self
    }

    fn put(self, id: u64, (sent, at): (u64, u64), version: u64) -> Self {
        self.write(id, Action::Put(Any), sent, Outcome::Done { versions: vec![version], at })
    }

    fn patch(self, id: u64, (sent, at): (u64, u64), version: u64) -> Self {
        self.write(id, Action::Patch(Any), sent, Outcome::Done { versions: vec![version], at })
    }

    fn delete(self, id: u64, (sent, at): (u64, u64), version: u64) -> Self {
        let outcome = Outcome::Done { versions: Vec::new(), at };
        self.write(id, Action::Delete(version), sent, outcome)
    }

    fn look(mut self, (sent, answered): (u64, u64), seen: Seen) -> Self {
        self.0.looks.push(Look { sent, answered, seen, of: None, lag: None });
        self
    }

    fn get(self, times: (u64, u64), version: u64, trail: &[u64]) -> Self {
        self.look(times, Seen::State { version, trail: trail.to_vec() })
    }

    /// The last look was a bounded read, and answered with this lag.
    fn bounded(mut self, lag: u64) -> Self {
        self.0.looks.last_mut().unwrap().lag = Some(lag);
        self
    }

    fn missing(self, times: (u64, u64)) -> Self {
        self.look(times, Seen::Missing)
    }

    fn refused(mut self, of: u64, times: (u64, u64), seen: Seen) -> Self {
        self = self.look(times, seen);
        self.0.looks.last_mut().unwrap().of = Some(of);
        self
    }

    fn fine(&self) {
        assert_eq!(self.0.check(), Ok(()));
        assert_ne!(self.0.search(Search::Versioned), Some(false), "the search thinks otherwise");
    }

    fn wrong(&self) -> Violation {
        self.0.check().expect_err("the history is wrong")
    }
}

fn told() -> Told {
    Told::default()
}

/// A put that is done, patched, read, deleted, missed and put again.
fn calm() -> Told {
    told()
        .missing((1, 2))
        .put(1, (3, 4), 10)
        .patch(2, (5, 6), 20)
        .get((7, 8), 20, &[1, 2])
        .delete(3, (9, 10), 20)
        .missing((11, 12))
        .put(4, (13, 14), 30)
        .get((15, 16), 30, &[4])
}

#[test]
fn a_calm_history_is_fine() {
    calm().fine();
    let around = calm().write(5, Action::Put(Any), 1, Outcome::Unknown);
    around.fine();
    // What is under way may be seen or not, in any order that one order explains.
    told().put(1, (1, 9), 10).put(2, (2, 8), 20).get((3, 4), 10, &[1]).fine();
    told().put(1, (1, 9), 20).put(2, (2, 8), 10).get((3, 4), 20, &[1]).fine();
    told().missing((2, 3)).put(1, (1, 9), 10).get((4, 5), 10, &[1]).fine();
}

#[test]
fn a_patch_that_nobody_saw_may_go_on_from_a_put_that_nobody_saw() {
    let hidden = |action| {
        let put = told().put(1, (0, 2), 10).delete(2, (3, 4), 10);
        let unknown = put.write(3, action, 5, Outcome::Unknown);
        unknown.patch(4, (6, 7), 13).put(5, (8, 9), 14).get((10, 11), 14, &[5])
    };
    let fine = hidden(Action::Put(Any));
    fine.fine();
    assert_eq!(fine.0.search(Search::Bare), Some(true));
    let wrong = hidden(Action::Patch(Any));
    wrong.wrong();
    assert_eq!(wrong.0.search(Search::Bare), Some(false));
    // What held only where the hidden put was can't be searched for.
    let needs = Action::Put(Version(12));
    let needing = told().write(1, Action::Put(Any), 0, Outcome::Unknown);
    let needing = needing.write(2, needs, 3, Outcome::Done { versions: vec![13], at: 4 });
    assert_eq!(needing.get((5, 6), 13, &[2]).0.search(Search::Bare), None);
}

#[test]
fn a_version_belongs_to_one_write_and_a_write_has_one() {
    let shared = told().put(1, (1, 2), 10).put(2, (3, 4), 10);
    assert_eq!(shared.wrong(), Violation::SharedVersion { version: 10, first: 1, second: 2 });
    let twice = Outcome::Done { versions: vec![10, 20], at: 2 };
    let twice = told().write(1, Action::Put(Any), 1, twice);
    assert_eq!(twice.wrong(), Violation::TwoEffects { id: 1, first: 10, second: 20 });
    let same = Outcome::Done { versions: vec![10, 10], at: 2 };
    told().write(1, Action::Put(Any), 1, same).fine();
}

#[test]
fn what_is_seen_was_sent_and_not_refused() {
    assert_eq!(told().get((1, 2), 10, &[1]).wrong(), Violation::Invented { id: 1 });
    let refused = told().write(1, Action::Put(Version(7)), 1, Outcome::Nothing);
    assert_eq!(refused.get((2, 3), 10, &[1]).wrong(), Violation::RefusedYetSeen { id: 1 });
    let named = told().put(1, (1, 2), 10).look((3, 4), Seen::Version(12));
    assert_eq!(named.wrong(), Violation::InventedVersion { version: 12 });
    // Named by a refusal, made by a write of unknown outcome of which a later trail tells.
    let told_of = told().write(1, Action::Put(Any), 3, Outcome::Unknown).patch(2, (5, 6), 20);
    let told_of = told_of.get((7, 8), 20, &[1, 2]);
    told_of.clone().look((4, 5), Seen::Version(10)).fine();
    let early = told_of.look((1, 2), Seen::Version(10));
    assert_eq!(early.wrong(), Violation::InventedVersion { version: 10 });
    named.write(2, Action::Put(Any), 1, Outcome::Unknown).fine();
}

#[test]
fn a_trail_tells_every_write_once_and_in_order() {
    let fault = |told: Told| match told.wrong() {
        Violation::Trail { fault, .. } => fault,
        other => panic!("{other}"),
    };
    let two = || told().put(1, (1, 9), 10).patch(2, (2, 8), 20);
    assert_eq!(fault(two().get((3, 4), 20, &[])), "is empty");
    assert_eq!(fault(two().get((3, 4), 20, &[2])), "does not begin with its only put");
    assert_eq!(fault(two().get((3, 4), 20, &[1, 2, 2])), "names a write twice");
    let lost = two().patch(3, (1, 9), 30).get((3, 4), 30, &[1, 3]);
    assert_eq!(fault(lost), "leaves out a version, or is out of order");
    let unknown = |id, told: Told| told.write(id, Action::Patch(Any), 1, Outcome::Unknown);
    let forked = unknown(4, unknown(3, told().put(1, (1, 9), 10).patch(2, (2, 8), 20)));
    let forked = forked.get((5, 6), 20, &[1, 3, 2]);
    forked.fine();
    let other = "is not the past that another look saw";
    assert_eq!(fault(forked.get((6, 7), 20, &[1, 4, 2])), other);
    let across = two().delete(3, (3, 4), 10).get((5, 6), 20, &[1, 2]);
    assert_eq!(fault(across), "goes on across a delete");
}

#[test]
fn writes_happen_where_their_conditions_hold() {
    let done = |version| Outcome::Done { versions: vec![version], at: 9 };
    let on = |condition, version| {
        told().put(1, (1, 9), 10).write(2, Action::Put(condition), 1, done(version))
    };
    on(Version(10), 20).fine();
    let after = || harness::history::check::Violation::Condition {
        id: 2,
        after: harness::history::check::Place::Write(1),
        condition: Absent,
    };
    assert_eq!(on(Absent, 20).wrong(), after());
    on(Absent, 5).fine();
    on(Absent, 20).delete(3, (1, 9), 10).fine();
    on(Absent, 20).write(3, Action::Delete(10), 1, Outcome::Unknown).fine();
    let between = on(Version(10), 30).put(3, (1, 9), 20);
    assert!(matches!(between.wrong(), Violation::Condition { id: 2, .. }));
    let nothing = told().patch(1, (1, 2), 10);
    assert!(matches!(nothing.wrong(), Violation::PatchOfNothing { id: 1, .. }));
    nothing.write(2, Action::Put(Any), 1, Outcome::Unknown).fine();
    let twice = told().put(1, (1, 2), 10).delete(2, (3, 4), 10).delete(3, (5, 6), 10);
    assert_eq!(twice.wrong(), Violation::DeletedTwice { version: 10 });
}

#[test]
fn versions_agree_with_time() {
    let out_of_time = |told: &Told| matches!(told.wrong(), Violation::OutOfTime { .. });
    let backwards = told().put(1, (1, 2), 20).put(2, (3, 4), 10);
    assert!(out_of_time(&backwards), "a later write has an earlier version");
    let lost = told().put(1, (1, 2), 10).put(2, (3, 4), 20).get((5, 6), 10, &[1]);
    assert!(out_of_time(&lost), "a read misses an acknowledged write");
    let back = told().put(1, (1, 2), 10).put(2, (3, 9), 20);
    let back = back.get((4, 5), 20, &[2]).get((6, 7), 10, &[1]);
    assert!(out_of_time(&back), "reads go backwards");
    let future = told().put(1, (5, 6), 10).get((1, 2), 10, &[1]);
    assert!(out_of_time(&future), "a read sees what was not sent yet");
    let early = told().get((1, 2), 10, &[1]).write(1, Action::Put(Any), 3, Outcome::Unknown);
    assert!(out_of_time(&early), "a write of unknown outcome is no exception");
}

#[test]
fn nothing_is_seen_only_where_there_is_nothing() {
    let lost = told().put(1, (1, 2), 10).missing((3, 4));
    assert_eq!(lost.wrong(), Violation::NotMissing { sent: 3, answered: 4 });
    let maybe = lost.clone().write(2, Action::Delete(10), 1, Outcome::Unknown);
    maybe.fine();
    // It was not deleted after all: the trail goes on.
    let goes_on = maybe.patch(3, (5, 6), 20).get((7, 8), 20, &[1, 3]);
    assert_eq!(goes_on.wrong(), Violation::NotMissing { sent: 3, answered: 4 });
    let late = lost.write(2, Action::Delete(10), 5, Outcome::Unknown);
    assert_eq!(late.wrong(), Violation::NotMissing { sent: 3, answered: 4 });
    let again = calm().missing((17, 18));
    assert_eq!(again.wrong(), Violation::NotMissing { sent: 17, answered: 18 });
}

#[test]
fn a_repeat_is_known_as_one() {
    let refused = |seen| {
        let done = Outcome::Done { versions: vec![10], at: 9 };
        let told = told().write(1, Action::Put(Absent), 1, done);
        told.refused(1, (2, 8), seen)
    };
    let forgotten = Violation::RepeatForgotten { id: 1, version: 10 };
    assert_eq!(refused(Seen::Version(10)).wrong(), forgotten);
    assert_eq!(
        refused(Seen::Version(10)).0.search(Search::Versioned),
        Some(true),
        "the order alone does not tell"
    );
    // A patch refused before there was a state, and done after, is fine.
    let done = Outcome::Done { versions: vec![20], at: 9 };
    let early = told().put(1, (3, 4), 10).write(2, Action::Patch(Any), 1, done);
    early.clone().refused(2, (1, 2), Seen::Missing).fine();
    let late = early.delete(3, (5, 9), 20).refused(2, (8, 9), Seen::Missing);
    assert_eq!(late.wrong(), Violation::NotMissing { sent: 8, answered: 9 });
}

#[test]
fn two_checkers_of_different_kinds_agree() {
    const HISTORIES: u32 = 20_000;
    let seed = seed();
    let (mut fine, mut wrong, mut lenient) = (0, 0, 0);
    let mut round = 0;
    while fine + wrong < HISTORIES {
        round += 1;
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(round));
        let history = random::history(&mut random);
        if !random::comparable(&history) {
            continue;
        }
        let searched = history.search(Search::Versioned).expect("few operations, no time");
        let mut checked = history.check();
        // The search knows nothing of repeats.
        if matches!(checked, Err(Violation::RepeatForgotten { .. })) {
            continue;
        }
        if searched {
            fine += 1;
        } else {
            wrong += 1;
            let hidden = |write: &Write| {
                write.outcome == Outcome::Unknown && matches!(write.action, Action::Put(_))
            };
            if checked.is_ok() && history.writes.iter().any(hidden) {
                lenient += 1;
                checked = Err(Violation::InventedVersion { version: 0 });
            }
        }
        let seed = seed.wrapping_add(round - 1);
        assert_eq!(checked.is_ok(), searched, "SEED={seed}: {checked:?}\n{history:#?}");
    }
    println!("{fine} fine, {wrong} wrong, {lenient} let pass in the lenient corner");
    assert!(fine > HISTORIES / 4 && wrong > HISTORIES / 10, "both kinds are tried");
    assert!(lenient < HISTORIES / 100, "the corner is small: {lenient}");
}

/// Steps of a model that counts.
mod counted {
    use crate::harness::steps::{Event, Miscount, check};

    fn event(id: u64, (sent, answered): (u64, u64), answers: &[(u64, u64)]) -> Event {
        Event { id, sent, answered: Some(answered), answers: answers.to_vec() }
    }

    fn open(id: u64, sent: u64) -> Event {
        Event { id, sent, answered: None, answers: Vec::new() }
    }

    #[test]
    fn every_step_counts_once_and_in_time() {
        let one = || event(1, (1, 2), &[(1, 10), (1, 10)]);
        assert_eq!(check(&[one(), event(2, (3, 4), &[(2, 20)])], 2), Ok(()));
        assert_eq!(check(&[one(), open(2, 1), event(3, (3, 4), &[(3, 30)])], 3), Ok(()));
        let twice = event(1, (1, 2), &[(1, 10), (2, 20)]);
        let (first, second) = ((1, 10), (2, 20));
        assert_eq!(check(&[twice], 2), Err(Miscount::TwoEffects { id: 1, first, second }));
        let same = event(2, (3, 4), &[(1, 20)]);
        let shared = Miscount::SharedRank { rank: 1, first: 1, second: 2 };
        assert_eq!(check(&[one(), same], 2), Err(shared));
        let early = event(2, (3, 4), &[(2, 9)]);
        let order = Miscount::VersionOrder { id: 2, rank: 2, version: 9 };
        assert_eq!(check(&[one(), early], 2), Err(order));
        let late = event(2, (5, 6), &[(1, 10)]);
        let passed = event(1, (1, 2), &[(2, 20)]);
        let time = Miscount::OutOfTime { id: 1, rank: 2 };
        assert_eq!(check(&[passed, late], 2), Err(time));
        let lost = Miscount::Count { count: 0, acknowledged: 1, all: 1 };
        assert_eq!(check(&[one()], 0), Err(lost));
        let extra = Miscount::Count { count: 2, acknowledged: 1, all: 1 };
        assert_eq!(check(&[one()], 2), Err(extra));
    }
}
