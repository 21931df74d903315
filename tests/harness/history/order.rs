//! The order of a key's writes as versions and trails tell it, and the gaps where there may have
//! been no state. Holds the rules 1 to 4 of `check.rs` on the way.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::check::Violation;
use super::{Action, Condition, History, Look, NEVER, Nanos, Outcome, Seen, Write};

/// A place in the order, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Before everything.
    Start,
    /// A write by its id.
    Write(u64),
    /// A delete by its id.
    Delete(u64),
    /// A look at a version.
    Look(u64),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Start => write!(f, "the start"),
            Place::Write(id) => write!(f, "write {id}"),
            Place::Delete(id) => write!(f, "delete {id}"),
            Place::Look(version) => write!(f, "a look at version {version}"),
        }
    }
}

/// One operation in the order.
pub struct Moment {
    pub what: Place,
    pub sent: Nanos,
    pub answered: Nanos,
}

/// Where there was no state, or may have been none.
pub struct Gap {
    /// Before the stage of this number.
    pub at: usize,
    /// Only if a delete of unknown outcome happened, which was sent then.
    pub maybe_since: Option<Nanos>,
}

/// The order of everything that has a version or is in a trail.
pub struct Order<'a> {
    /// Operations of one stage commute; stages follow one another.
    pub stages: Vec<Vec<Moment>>,
    /// In order.
    pub gaps: Vec<Gap>,
    writes: HashMap<u64, &'a Write>,
    /// Whose version.
    owners: BTreeMap<u64, u64>,
    versions: HashMap<u64, u64>,
    /// For a version seen: its trail up to it.
    trails: HashMap<u64, Vec<u64>>,
    /// Writes without a version of their own that trails tell of, before the version after them.
    before: HashMap<u64, Vec<u64>>,
    stage_of: HashMap<u64, usize>,
    /// Puts of unknown outcome that nobody saw, the last sent first.
    hidden_puts: Vec<&'a Write>,
    hidden_since: Nanos,
}

/// What the last write left.
struct Left<'a> {
    after: Place,
    /// The version, where there is a state that has a known one.
    version: Option<u64>,
    missing: bool,
    /// The delete of unknown outcome that may have removed it, sent first.
    maybe: Option<&'a Write>,
}

impl<'a> Order<'a> {
    pub fn of(history: &'a History) -> Result<Self, Violation> {
        let mut order = Order {
            stages: Vec::new(),
            gaps: Vec::new(),
            writes: history.writes.iter().map(|write| (write.id, write)).collect(),
            owners: BTreeMap::new(),
            versions: HashMap::new(),
            trails: HashMap::new(),
            before: HashMap::new(),
            stage_of: HashMap::new(),
            hidden_puts: Vec::new(),
            hidden_since: NEVER,
        };
        order.learn_versions(history)?;
        order.learn_trails(history)?;
        order.find_hidden(history);
        order.lay_out(history)?;
        Ok(order)
    }

    pub fn is_known(&self, version: u64) -> bool {
        self.owners.contains_key(&version)
    }

    pub fn version_of(&self, id: u64) -> Option<u64> {
        self.versions.get(&id).copied()
    }

    pub fn stage_of(&self, id: u64) -> Option<usize> {
        self.stage_of.get(&id).copied()
    }

    pub fn stage_of_version(&self, version: u64) -> Option<usize> {
        self.owners.get(&version).and_then(|id| self.stage_of(*id))
    }

    pub fn known_before(&self, version: u64) -> Option<u64> {
        self.owners.range(..version).next_back().map(|(known, _)| *known)
    }

    pub fn known_after(&self, version: u64) -> Option<u64> {
        self.owners.range(version + 1..).next().map(|(known, _)| *known)
    }

    /// Whether a write that may have made a version that nobody owns had been sent by then: one of
    /// unknown outcome that nobody saw, or that only trails tell of, before the next known version.
    pub fn maker_sent_by(&self, version: u64, moment: Nanos) -> bool {
        let next = self.known_after(version).and_then(|next| self.before.get(&next));
        let told = next.into_iter().flatten().any(|id| self.writes[id].sent <= moment);
        told || self.hidden_since <= moment
    }

    fn learn_versions(&mut self, history: &History) -> Result<(), Violation> {
        for write in &history.writes {
            if let Outcome::Done { versions, .. } = &write.outcome {
                for version in versions {
                    self.own(*version, write.id)?;
                }
            }
        }
        for look in &history.looks {
            let Seen::State { version, trail } = &look.seen else { continue };
            let fault = "is empty";
            let last = trail.last().ok_or(Violation::Trail {
                version: *version,
                trail: Vec::new(),
                fault,
            })?;
            for id in trail {
                match self.writes.get(id).map(|write| (&write.outcome, write.action)) {
                    None | Some((_, Action::Delete(_))) => {
                        return Err(Violation::Invented { id: *id });
                    }
                    Some((Outcome::Nothing, _)) => {
                        return Err(Violation::RefusedYetSeen { id: *id });
                    }
                    Some((Outcome::Done { .. } | Outcome::Unknown, _)) => {}
                }
            }
            self.own(*version, *last)?;
        }
        Ok(())
    }

    /// Rule 1.
    fn own(&mut self, version: u64, id: u64) -> Result<(), Violation> {
        let first = *self.owners.entry(version).or_insert(id);
        if first != id {
            return Err(Violation::SharedVersion { version, first, second: id });
        }
        let first = *self.versions.entry(id).or_insert(version);
        if first != version {
            return Err(Violation::TwoEffects { id, first, second: version });
        }
        Ok(())
    }

    fn learn_trails(&mut self, history: &History) -> Result<(), Violation> {
        let mut placed = HashMap::new();
        for look in &history.looks {
            let Seen::State { version, trail } = &look.seen else { continue };
            if self.trails.get(version) == Some(trail) {
                continue;
            }
            self.learn_trail(trail, &mut placed).map_err(|fault| Violation::Trail {
                version: *version,
                trail: trail.clone(),
                fault,
            })?;
        }
        Ok(())
    }

    /// Rule 3, but for deletes. `placed` says before which version each write without one lies.
    fn learn_trail(
        &mut self,
        trail: &[u64],
        placed: &mut HashMap<u64, u64>,
    ) -> Result<(), &'static str> {
        let mut named = HashSet::new();
        let mut run = Vec::new();
        let mut previous = None;
        for (at, id) in trail.iter().enumerate() {
            match (at, self.writes[id].action) {
                (0, Action::Put(_)) | (1.., Action::Patch(_)) => {}
                _ => return Err("does not begin with its only put"),
            }
            if !named.insert(id) {
                return Err("names a write twice");
            }
            let Some(&version) = self.versions.get(id) else {
                run.push(*id);
                continue;
            };
            if let Some(previous) = previous
                && self.known_after(previous) != Some(version)
            {
                return Err("leaves out a version, or is out of order");
            }
            let past = trail[..=at].to_vec();
            if *self.trails.entry(version).or_insert_with(|| past.clone()) != past {
                return Err("is not the past that another look saw");
            }
            if run.iter().any(|id| *placed.entry(*id).or_insert(version) != version) {
                return Err("is not the past that another look saw");
            }
            self.before.insert(version, std::mem::take(&mut run));
            previous = Some(version);
        }
        Ok(())
    }

    /// Writes of unknown outcome that no version and no trail tells of.
    fn find_hidden(&mut self, history: &'a History) {
        let told: HashSet<u64> = self.before.values().flatten().copied().collect();
        let hidden = history.writes.iter().filter(|write| {
            write.outcome == Outcome::Unknown
                && !matches!(write.action, Action::Delete(_))
                && !self.versions.contains_key(&write.id)
                && !told.contains(&write.id)
        });
        for write in hidden {
            self.hidden_since = self.hidden_since.min(write.sent);
            // One whose condition is a version does not help where there is no state.
            if matches!(write.action, Action::Put(Condition::Any | Condition::Absent)) {
                self.hidden_puts.push(write);
            }
        }
        self.hidden_puts.sort_by_key(|write| std::cmp::Reverse(write.sent));
    }

    fn lay_out(&mut self, history: &'a History) -> Result<(), Violation> {
        let mut looks: HashMap<u64, Vec<&Look>> = HashMap::new();
        for look in history.looks.iter().filter(|look| look.lag.is_none()) {
            match &look.seen {
                Seen::State { version, .. } | Seen::Version(version) => {
                    looks.entry(*version).or_default().push(look);
                }
                Seen::Missing => {}
            }
        }
        let mut deletes: BTreeMap<u64, Vec<&'a Write>> = BTreeMap::new();
        for write in &history.writes {
            if let Action::Delete(version) = write.action {
                deletes.entry(version).or_default().push(write);
            }
        }
        self.gaps.push(Gap { at: 0, maybe_since: None });
        let mut left = Left { after: Place::Start, version: None, missing: true, maybe: None };
        let owners: Vec<(u64, u64)> = self.owners.iter().map(|(v, id)| (*v, *id)).collect();
        for (version, id) in owners {
            for id in self.before.get(&version).cloned().unwrap_or_default() {
                self.step(id, None, &mut left)?;
            }
            self.step(id, Some(version), &mut left)?;
            let seen = looks.remove(&version).unwrap_or_default();
            self.stages.push(seen.into_iter().map(|look| moment_of_look(version, look)).collect());
            self.delete(version, &deletes, &mut left)?;
        }
        Ok(())
    }

    /// Takes a write after what is left; rule 4, and rule 3 for deletes.
    fn step(
        &mut self,
        id: u64,
        version: Option<u64>,
        left: &mut Left<'a>,
    ) -> Result<(), Violation> {
        let write = self.writes[&id];
        if self.rules_out_delete(write, version, left) {
            left.maybe = None;
            let at = self.stages.len();
            while self.gaps.pop_if(|gap| gap.at == at && gap.maybe_since.is_some()).is_some() {}
        }
        match write.action {
            Action::Put(condition) => self.hold(write, version, condition, left)?,
            Action::Patch(condition) => {
                if left.missing {
                    self.revive(write, version, left)?;
                }
                self.hold(write, version, condition, left)?;
            }
            Action::Delete(_) => return Err(Violation::Invented { id }),
        }
        self.stage_of.insert(id, self.stages.len());
        self.stages.push(vec![moment_of_write(write)]);
        let after = Place::Write(id);
        *left = Left { after, version, missing: false, maybe: None };
        Ok(())
    }

    /// Whether a write shows that the state before it was not deleted.
    fn rules_out_delete(&self, write: &Write, version: Option<u64>, left: &Left<'_>) -> bool {
        let on_it = |condition| match condition {
            Condition::Version(expected) => left.version == Some(expected),
            Condition::Any | Condition::Absent => false,
        };
        left.maybe.is_some()
            && match write.action {
                Action::Put(condition) => on_it(condition),
                // A trail that goes on tells; without one, unless a put may have come between.
                Action::Patch(condition) => {
                    on_it(condition)
                        || version.is_none_or(|version| self.trails.contains_key(&version))
                        || self.hidden_puts.is_empty()
                }
                Action::Delete(_) => false,
            }
    }

    /// A patch where there was no state: there must have been a put that nobody saw.
    fn revive(
        &mut self,
        patch: &Write,
        version: Option<u64>,
        left: &mut Left<'a>,
    ) -> Result<(), Violation> {
        let nothing = || Violation::PatchOfNothing { id: patch.id, after: left.after.clone() };
        if let Some(trail) = version.and_then(|version| self.trails.get(&version)) {
            let (fault, trail) = ("goes on across a delete", trail.clone());
            let version = version.unwrap_or(0);
            return Err(Violation::Trail { version, trail, fault });
        }
        let put = self.hidden_puts.pop().ok_or_else(nothing)?;
        self.stage_of.insert(put.id, self.stages.len());
        self.stages.push(vec![moment_of_write(put)]);
        *left = Left { after: Place::Write(put.id), version: None, missing: false, maybe: None };
        Ok(())
    }

    /// Whether a write's condition held.
    fn hold(
        &mut self,
        write: &Write,
        version: Option<u64>,
        condition: Condition,
        left: &mut Left<'a>,
    ) -> Result<(), Violation> {
        let holds = match condition {
            Condition::Any => true,
            Condition::Absent if left.missing => true,
            Condition::Absent => match left.maybe.take() {
                Some(delete) => {
                    self.stages.push(vec![moment_of_delete(delete)]);
                    true
                }
                None => false,
            },
            // Made by a hidden write, between the last known version and this one.
            Condition::Version(expected) if !self.is_known(expected) => {
                version.is_none_or(|version| expected < version)
                    && self.maker_sent_by(expected, write.done_at())
            }
            Condition::Version(expected) => !left.missing && left.version == Some(expected),
        };
        let (id, after) = (write.id, left.after.clone());
        if holds { Ok(()) } else { Err(Violation::Condition { id, after, condition }) }
    }

    /// What deletes did to a version, and to those unknown ones before the next known one.
    fn delete(
        &mut self,
        version: u64,
        deletes: &BTreeMap<u64, Vec<&'a Write>>,
        left: &mut Left<'a>,
    ) -> Result<(), Violation> {
        let until = self.known_after(version).unwrap_or(u64::MAX);
        for (deleted, writes) in deletes.range(version..until) {
            let mut done =
                writes.iter().filter(|write| matches!(write.outcome, Outcome::Done { .. }));
            if let Some(delete) = done.next() {
                if done.next().is_some() {
                    return Err(Violation::DeletedTwice { version: *deleted });
                }
                self.stage_of.insert(delete.id, self.stages.len());
                self.stages.push(vec![moment_of_delete(delete)]);
                self.gaps.push(Gap { at: self.stages.len(), maybe_since: None });
                let after = Place::Delete(delete.id);
                *left = Left { after, version: None, missing: true, maybe: None };
                continue;
            }
            let unknown = writes.iter().filter(|write| write.outcome == Outcome::Unknown);
            let Some(first) = unknown.min_by_key(|write| write.sent) else { continue };
            if !left.missing {
                let maybe_since = Some(first.sent);
                self.gaps.push(Gap { at: self.stages.len(), maybe_since });
                left.maybe = Some(first);
            }
        }
        Ok(())
    }
}

fn moment_of_write(write: &Write) -> Moment {
    Moment { what: Place::Write(write.id), sent: write.sent, answered: write.done_at() }
}

fn moment_of_delete(write: &Write) -> Moment {
    Moment { what: Place::Delete(write.id), sent: write.sent, answered: write.done_at() }
}

fn moment_of_look(version: u64, look: &Look) -> Moment {
    Moment { what: Place::Look(version), sent: look.sent, answered: look.answered }
}
