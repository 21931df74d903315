//! The verdict of a checker that searches: porcupine's, which is told nothing of versions unless
//! asked to hold them to their order.
//!
//! Two uses. On small random histories the two checkers must agree, so each vouches for the
//! other. On what a cluster answered, without versions, it shows that a version that lies hides
//! nothing from `check.rs`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

use super::{Action, Condition, History, NEVER, Outcome, Seen, Write};

/// How long a search may take: of a key with much of unknown outcome it may take for ever.
const PATIENCE: Duration = Duration::from_secs(3);

/// What has to hold, with versions told as the ids of their writes.
#[derive(Debug, Clone, Copy)]
enum Needs {
    Nothing,
    Absent,
    Last(u64),
}

#[derive(Debug, Clone)]
enum Step {
    Put { id: u64, needs: Needs, version: Option<u64>, sure: bool },
    Patch { id: u64, needs: Needs, version: Option<u64>, sure: bool },
    Delete { of: u64, sure: bool },
    Trail(Vec<u64>),
    Last(u64),
}

/// One key: its trail (empty: no state), and the last version that was told.
#[derive(Clone)]
struct Key;

impl Model for Key {
    type State = (Vec<u64>, u64);
    type Op = Step;
    type Metadata = ();

    fn init() -> Self::State {
        (Vec::new(), 0)
    }

    fn step((trail, told): &Self::State, step: &Step) -> (bool, Self::State) {
        let holds = |needs: &Needs| match needs {
            Needs::Nothing => true,
            Needs::Absent => trail.is_empty(),
            Needs::Last(id) => trail.last() == Some(id),
        };
        let grows = |version: &Option<u64>| version.is_none_or(|version| version > *told);
        let next = |version: &Option<u64>| version.unwrap_or(*told);
        let same = || (trail.clone(), *told);
        match step {
            Step::Put { id, needs, version, sure } => {
                let happens = holds(needs) && grows(version);
                let after = if happens { (vec![*id], next(version)) } else { same() };
                (happens || !sure, after)
            }
            Step::Patch { id, needs, version, sure } => {
                let happens = holds(needs) && !trail.is_empty() && grows(version);
                let longer = || trail.iter().copied().chain([*id]).collect();
                let after = if happens { (longer(), next(version)) } else { same() };
                (happens || !sure, after)
            }
            Step::Delete { of, sure } => {
                let happens = trail.last() == Some(of);
                let after = if happens { (Vec::new(), *told) } else { same() };
                (happens || !sure, after)
            }
            Step::Trail(seen) => (seen == trail, same()),
            Step::Last(id) => (trail.last() == Some(id), same()),
        }
    }
}

/// Which writes of unknown outcome a search takes along, and whether versions count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// All, in the order of versions: as `History::check`.
    Versioned,
    /// Only those that somebody saw, and puts that an unseen patch may have gone on from, as each
    /// of the others doubles the search; versions only name writes.
    Bare,
}

impl History {
    /// Whether some order of the operations explains the answers; `None`: the search took too
    /// long, or an acknowledged write needed a version that no write is known to have. Bounded
    /// looks, and looks at such versions, are left out.
    pub fn search(&self, search: Search) -> Option<bool> {
        let mut ids = HashMap::new();
        let mut seen = HashSet::new();
        for write in &self.writes {
            if let Outcome::Done { versions, .. } = &write.outcome {
                ids.extend(versions.iter().map(|version| (*version, write.id)));
            }
        }
        for look in &self.looks {
            if let Seen::State { version, trail } = &look.seen {
                ids.extend(trail.last().map(|id| (*version, *id)));
                seen.extend(trail.iter().copied());
            }
        }
        let unseen_patch = |write: &Write| {
            matches!((write.action, &write.outcome), (Action::Patch(_), Outcome::Done { .. }))
                && !seen.contains(&write.id)
        };
        let hidden_puts = self.writes.iter().any(unseen_patch);
        let own: HashMap<u64, u64> = ids.iter().map(|(version, id)| (*id, *version)).collect();
        let mut operations = Vec::new();
        for write in &self.writes {
            let unseen = write.outcome == Outcome::Unknown && !seen.contains(&write.id);
            let needed = match write.action {
                Action::Put(_) => hidden_puts,
                Action::Patch(_) => false,
                Action::Delete(_) => true,
            };
            if write.outcome == Outcome::Nothing || search == Search::Bare && unseen && !needed {
                continue;
            }
            let version = own.get(&write.id).copied().filter(|_| search == Search::Versioned);
            let sure = matches!(write.outcome, Outcome::Done { .. });
            match step_of(write.id, write.action, (version, sure), &ids) {
                Some(step) => operations.push(operation(write.sent, write.done_at(), step)),
                None if sure => return None,
                None => {}
            }
        }
        for look in self.looks.iter().filter(|look| look.lag.is_none()) {
            let step = match &look.seen {
                Seen::Missing => Step::Trail(Vec::new()),
                Seen::State { trail, .. } => Step::Trail(trail.clone()),
                Seen::Version(version) => match ids.get(version) {
                    Some(id) => Step::Last(*id),
                    None => continue,
                },
            };
            operations.push(operation(look.sent, look.answered, step));
        }
        match check_operations_timeout::<Key>(&operations, PATIENCE) {
            CheckResult::Ok => Some(true),
            CheckResult::Illegal => Some(false),
            CheckResult::Unknown => None,
        }
    }
}

/// `None`: it needs a version that no write is known to have.
fn step_of(
    id: u64,
    action: Action,
    (version, sure): (Option<u64>, bool),
    ids: &HashMap<u64, u64>,
) -> Option<Step> {
    let needs = |condition| match condition {
        Condition::Any => Some(Needs::Nothing),
        Condition::Absent => Some(Needs::Absent),
        Condition::Version(version) => ids.get(&version).map(|id| Needs::Last(*id)),
    };
    Some(match action {
        Action::Put(condition) => Step::Put { id, needs: needs(condition)?, version, sure },
        Action::Patch(condition) => Step::Patch { id, needs: needs(condition)?, version, sure },
        Action::Delete(version) => Step::Delete { of: *ids.get(&version)?, sure },
    })
}

fn operation(sent: u64, answered: u64, op: Step) -> Operation<Key> {
    let at = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    let return_time = if answered == NEVER { i64::MAX } else { at(answered) };
    Operation { client_id: None, call_time: at(sent), return_time, op, metadata: None }
}
