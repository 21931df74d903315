//! Histories with bounded reads: those that are as old as they say, and those that are older.

use super::*;

#[test]
fn a_bounded_look_is_old_but_not_made_up() {
    let two = || told().put(1, (1, 2), 10).put(2, (3, 4), 20);
    two().get((5, 6), 10, &[1]).bounded(9).fine();
    let early = two().get((1, 2), 20, &[2]).bounded(9);
    assert!(matches!(early.wrong(), Violation::OutOfTime { .. }));
    assert_eq!(two().get((5, 6), 30, &[3]).bounded(9).wrong(), Violation::Invented { id: 3 });
}

#[test]
fn a_bounded_look_is_no_older_than_it_says() {
    let two = || told().put(1, (1, 2), 10).put(2, (30, 40), 20);
    let seen = |lag| two().get((100, 101), 10, &[1]).bounded(lag);
    seen(60).fine();
    let too_old = Violation::TooOld { version: 10, sent: 100, lag: 59, followed: 40 };
    assert_eq!(seen(59).wrong(), too_old);
    assert!(matches!(seen(0).wrong(), Violation::TooOld { .. }));
    // What a leader answered to a read counts as what it acknowledged to a writer.
    let read = two().get((31, 35), 20, &[2]).get((100, 101), 10, &[1]).bounded(64);
    assert!(matches!(read.wrong(), Violation::TooOld { followed: 35, .. }));
    // Other looks at the same state say nothing against it, nor do bounded ones at a newer.
    let calm = told().put(1, (1, 2), 10).get((3, 4), 10, &[1]);
    calm.clone().get((100, 101), 10, &[1]).bounded(0).fine();
    let unknown = calm.write(2, Action::Put(Any), 5, Outcome::Unknown).get((20, 21), 20, &[2]);
    unknown.bounded(9).get((100, 101), 10, &[1]).bounded(0).fine();
}

#[test]
fn a_bounded_look_that_finds_nothing_is_no_older_than_it_says() {
    let put = || told().put(1, (10, 40), 10);
    put().missing((100, 101)).bounded(60).fine();
    let late = put().missing((100, 101)).bounded(59);
    assert_eq!(late.wrong(), Violation::NotMissing { sent: 41, answered: 101 });
    // A state that was deleted longer ago than the lag is not served any more.
    let deleted = |lag| {
        let history = put().delete(2, (45, 50), 10);
        history.get((100, 101), 10, &[1]).bounded(lag)
    };
    deleted(50).fine();
    assert!(matches!(deleted(49).wrong(), Violation::TooOld { followed: 50, .. }));
    // Nothing again since the delete.
    put().delete(2, (45, 50), 10).missing((100, 101)).bounded(0).fine();
    let early = told().put(1, (1, 2), 10).missing((5, 6)).bounded(2);
    let early = early.delete(2, (60, 70), 10);
    assert_eq!(early.wrong(), Violation::NotMissing { sent: 3, answered: 6 });
}
