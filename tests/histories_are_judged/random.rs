//! Random histories of a store that keeps its promises, some of them bent afterwards.

use super::*;

/// Operations of one history: few enough to be searched in no time.
const OPERATIONS: u64 = 11;

/// Moments that operations fall on.
const MOMENTS: u64 = 1_000_000;

#[derive(Clone)]
struct State {
    version: u64,
    trail: Vec<u64>,
}

pub fn history(random: &mut StdRng) -> History {
    let mut spans: Vec<(u64, u64, u64)> = (0..OPERATIONS)
        .map(|_| {
            let at = random.random_range(0..MOMENTS);
            let reach = MOMENTS / 4;
            let sent = at.saturating_sub(random.random_range(1..reach));
            (at, sent, at + random.random_range(1..reach))
        })
        .collect();
    spans.sort_unstable();
    let mut history = History::default();
    let mut state: Option<State> = None;
    let mut version = 0;
    for (id, (_, sent, answered)) in spans.into_iter().enumerate() {
        let id = id as u64 + 1;
        version += random.random_range(1..5);
        operate(random, &mut history, &mut state, (id, version), (sent, answered));
    }
    if random.random_bool(0.7) {
        bend(random, &mut history);
    }
    history
}

fn operate(
    random: &mut StdRng,
    history: &mut History,
    state: &mut Option<State>,
    (id, version): (u64, u64),
    (sent, answered): (u64, u64),
) {
    let current = state.as_ref().map(|state| state.version);
    // Now and then of a version that is no more.
    let some_version = match current {
        Some(version) if random.random_bool(0.8) => version,
        _ => random.random_range(1..=version),
    };
    let condition = match random.random_range(0..6) {
        0 => Absent,
        1 => Version(some_version),
        _ => Any,
    };
    let action = match random.random_range(0..10) {
        0..3 => Action::Put(condition),
        3..5 => Action::Patch(condition),
        5 => Action::Delete(some_version),
        _ => {
            let seen = see(state.as_ref());
            history.looks.push(Look { sent, answered, seen, of: None, lag: None });
            return;
        }
    };
    // Of unknown outcome, and never happened.
    if random.random_bool(0.1) {
        history.writes.push(Write { id, action, sent, outcome: Outcome::Unknown });
        return;
    }
    let outcome = match apply(state, action, id, version) {
        _ if random.random_bool(0.2) => Outcome::Unknown,
        true => {
            let delete = matches!(action, Action::Delete(_));
            let versions = if delete { Vec::new() } else { vec![version] };
            Outcome::Done { versions, at: answered }
        }
        false => {
            let seen = current.map_or(Seen::Missing, Seen::Version);
            history.looks.push(Look { sent, answered, seen, of: Some(id), lag: None });
            Outcome::Nothing
        }
    };
    history.writes.push(Write { id, action, sent, outcome });
}

fn apply(state: &mut Option<State>, action: Action, id: u64, version: u64) -> bool {
    let current = state.as_ref().map(|state| state.version);
    let holds = |condition| match condition {
        Any => true,
        Absent => current.is_none(),
        Version(version) => current == Some(version),
    };
    match (action, &mut *state) {
        (Action::Put(condition), _) if holds(condition) => {
            *state = Some(State { version, trail: vec![id] });
        }
        (Action::Patch(condition), Some(state)) if holds(condition) => {
            state.version = version;
            state.trail.push(id);
        }
        (Action::Delete(version), _) if holds(Version(version)) => *state = None,
        _ => return false,
    }
    true
}

fn see(state: Option<&State>) -> Seen {
    state.map_or(Seen::Missing, |state| Seen::State {
        version: state.version,
        trail: state.trail.clone(),
    })
}

/// Makes one answer another one's, or moves an operation in time.
fn bend(random: &mut StdRng, history: &mut History) {
    let looks = history.looks.len();
    let shift = random.random_range(0..MOMENTS / 2);
    match random.random_range(0..4) {
        0 if looks > 1 => {
            let (from, to) = (random.random_range(0..looks), random.random_range(0..looks));
            history.looks[to].seen = history.looks[from].seen.clone();
        }
        1 if looks > 0 => history.looks[random.random_range(0..looks)].seen = Seen::Missing,
        2 if looks > 0 => {
            let look = &mut history.looks[random.random_range(0..looks)];
            (look.sent, look.answered) = (look.sent + shift, look.answered + shift);
        }
        _ if !history.writes.is_empty() => {
            let at = random.random_range(0..history.writes.len());
            let write = &mut history.writes[at];
            write.sent += shift;
            if let Outcome::Done { at, .. } = &mut write.outcome {
                *at += shift;
            }
        }
        _ => {}
    }
}

/// Whether every version that is named is known to belong to a write, no time is there
/// twice, and no refusal is bent: only then do both checkers judge the same.
pub fn comparable(history: &History) -> bool {
    let mut known: Vec<u64> = Vec::new();
    let mut named: Vec<u64> = Vec::new();
    let mut times: Vec<u64> = Vec::new();
    for write in &history.writes {
        if let Outcome::Done { versions, .. } = &write.outcome {
            known.extend(versions);
        }
        match write.action {
            Action::Put(Version(version))
            | Action::Patch(Version(version))
            | Action::Delete(version) => named.push(version),
            Action::Put(_) | Action::Patch(_) => {}
        }
        times.push(write.sent);
        times.extend(Some(write.done_at()).filter(|at| *at != NEVER));
    }
    for look in &history.looks {
        match &look.seen {
            Seen::State { version, .. } => known.push(*version),
            Seen::Version(version) => named.push(*version),
            Seen::Missing => {}
        }
        times.extend([look.sent, look.answered]);
    }
    let all = times.len();
    times.sort_unstable();
    times.dedup();
    named.iter().all(|version| known.contains(version)) && times.len() == all
}
