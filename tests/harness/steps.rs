//! The verdict on the steps of one key: each event that was acknowledged was counted exactly
//! once, in an order that agrees with time.
//!
//! The model counts (`counter.rs`), so an answer tells the step's rank among all that the key
//! took. Rules: an event has one rank and one version, however often it was sent; no two events
//! share a rank; ranks and versions are in the same order, and that order agrees with time; the
//! count in the end is at least the number of acknowledged events and at most that of all.

use super::history::Nanos;

/// One event, sent until it was answered, or not answered at all.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: u64,
    /// When it was first sent.
    pub sent: Nanos,
    /// When it was first answered; `None`: it may or may not have happened.
    pub answered: Option<Nanos>,
    /// Rank and version of each answer.
    pub answers: Vec<(u64, u64)>,
}

/// Why steps are not those of a store that keeps its promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Miscount {
    #[error("event {id} was counted as {first:?} and as {second:?}, rank and version")]
    TwoEffects { id: u64, first: (u64, u64), second: (u64, u64) },
    #[error("events {first} and {second} were both counted as number {rank}")]
    SharedRank { rank: u64, first: u64, second: u64 },
    #[error("event {id}, number {rank}, has version {version}, not above those before it")]
    VersionOrder { id: u64, rank: u64, version: u64 },
    #[error("event {id}, number {rank}, was answered before one counted earlier was sent")]
    OutOfTime { id: u64, rank: u64 },
    #[error("{count} were counted in the end, of {acknowledged} acknowledged and {all} sent")]
    Count { count: u64, acknowledged: u64, all: u64 },
}

/// Holds the steps of one key to the rules; `count` is what the state says in the end.
pub fn check(events: &[Event], count: u64) -> Result<(), Miscount> {
    let mut ranked = Vec::new();
    for event in events {
        let Some(first) = event.answers.first() else { continue };
        if let Some(second) = event.answers.iter().find(|answer| *answer != first) {
            let (id, first, second) = (event.id, *first, *second);
            return Err(Miscount::TwoEffects { id, first, second });
        }
        ranked.push((first.0, first.1, event));
    }
    ranked.sort_by_key(|(rank, _, _)| *rank);
    for pair in ranked.windows(2) {
        let [(rank, version, one), (next_rank, next_version, other)] = pair else { continue };
        if rank == next_rank {
            let (first, second) = (one.id, other.id);
            return Err(Miscount::SharedRank { rank: *rank, first, second });
        }
        if next_version <= version {
            let (id, rank, version) = (other.id, *next_rank, *next_version);
            return Err(Miscount::VersionOrder { id, rank, version });
        }
    }
    let mut sent = 0;
    for (rank, _, event) in &ranked {
        if event.answered.is_some_and(|answered| answered < sent) {
            return Err(Miscount::OutOfTime { id: event.id, rank: *rank });
        }
        sent = sent.max(event.sent);
    }
    let (acknowledged, all) = (ranked.len() as u64, events.len() as u64);
    let highest = ranked.last().map_or(0, |(rank, _, _)| *rank);
    if count < acknowledged.max(highest) || count > all {
        return Err(Miscount::Count { count, acknowledged, all });
    }
    Ok(())
}
