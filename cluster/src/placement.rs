//! Where replicas should be: a picture of the cluster in, moves out. Pure.
//!
//! Two jobs. *Mending*: a shard with too few replicas, or with some on nodes that are dead or
//! drain, gets them elsewhere; a replica that has stopped is replaced, on its own node if that
//! takes one. *Balancing*: the fullest node gives to the emptiest, move by move, as long as a move
//! brings the extremes closer; leaders are balanced by transfers, which cost nothing. Never two
//! replicas of a shard on one node that both take part. Does not carry anything out.

mod refusal;

use std::collections::{BTreeMap, BTreeSet};

use crate::{META_SHARD, NodeId, ShardId};

pub use refusal::Refusal;

/// What is even in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Bytes on disk.
    Bytes,
    /// Shards led.
    Leaders,
    /// Commands per second.
    Load,
}

/// A node as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Which node.
    pub id: NodeId,
    /// It answers.
    pub alive: bool,
    /// It may have replicas: it's a member and does not drain.
    pub open: bool,
    /// Its disk is short of space: it keeps what it has, and gets neither replicas nor leads.
    pub short: bool,
}

impl NodeView {
    /// Whether replicas may be here.
    fn fits(&self) -> bool {
        self.alive && self.open
    }

    /// Whether replicas may come here.
    fn takes(&self) -> bool {
        self.fits() && !self.short
    }
}

/// A shard as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardView {
    /// Which shard.
    pub id: ShardId,
    /// Where its voters are.
    pub nodes: BTreeSet<NodeId>,
    /// Those of them whose replica takes no part any more, though the node answers.
    pub stopped: BTreeSet<NodeId>,
    /// Which of them leads, if any does.
    pub leader: Option<NodeId>,
    /// Bytes on disk of one replica.
    pub bytes: u64,
    /// Commands per second.
    pub load: u64,
    /// A change is under way: none may be planned.
    pub busy: bool,
}

/// The cluster as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Replicas that each shard should have, if there are as many nodes.
    pub replicas: usize,
    /// All members.
    pub nodes: Vec<NodeView>,
    /// All shards.
    pub shards: Vec<ShardView>,
}

/// One change of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// A replica more.
    Add {
        /// Of which shard.
        shard: ShardId,
        /// Where.
        to: NodeId,
    },
    /// A replica elsewhere.
    Replace {
        /// Of which shard.
        shard: ShardId,
        /// Where it goes from.
        from: NodeId,
        /// Where it goes to.
        to: NodeId,
    },
    /// A replica that has stopped is replaced by a new one on the same node.
    Rebuild {
        /// The shard's number.
        shard: ShardId,
        /// The node that has the stopped replica.
        at: NodeId,
    },
    /// A replica less.
    Remove {
        /// Of which shard.
        shard: ShardId,
        /// Where.
        from: NodeId,
    },
    /// Another leader.
    Lead {
        /// Of which shard.
        shard: ShardId,
        /// Who leads then.
        to: NodeId,
    },
}

impl Move {
    /// The shard that changes.
    pub fn shard(self) -> ShardId {
        match self {
            Move::Add { shard, .. }
            | Move::Replace { shard, .. }
            | Move::Rebuild { shard, .. }
            | Move::Remove { shard, .. }
            | Move::Lead { shard, .. } => shard,
        }
    }
}

/// The most moves of one plan: a plan is made anew when these are done.
pub const MOVES_MAX: usize = 1_024;

impl View {
    fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.id == id)
    }

    fn is_alive(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.alive)
    }

    fn shard(&self, id: ShardId) -> Option<&ShardView> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// Whether a move may be made now.
    pub fn check(&self, wanted: Move) -> Result<(), Refusal> {
        let shard = self.shard(wanted.shard()).ok_or(Refusal::UnknownShard(wanted.shard()))?;
        if shard.busy {
            return Err(Refusal::Busy(shard.id));
        }
        match wanted {
            Move::Add { to, .. } => self.check_target(shard, to),
            Move::Remove { from, .. } => {
                self.check_source(shard, from)?;
                self.check_rest(shard, from, None)
            }
            Move::Replace { from, to, .. } => {
                self.check_source(shard, from)?;
                self.check_target(shard, to)?;
                self.check_rest(shard, from, Some(to))
            }
            Move::Rebuild { at, .. } => {
                self.check_source(shard, at)?;
                self.check_majority(shard)?;
                let fits = self.node(at).is_some_and(NodeView::fits);
                if fits { Ok(()) } else { Err(Refusal::Closed(at)) }
            }
            Move::Lead { to, .. } => {
                self.check_source(shard, to)?;
                let leads = self.node(to).is_some_and(|node| node.alive && !node.short);
                let leads = leads && !shard.stopped.contains(&to);
                if leads { Ok(()) } else { Err(Refusal::Closed(to)) }
            }
        }
    }

    fn check_target(&self, shard: &ShardView, to: NodeId) -> Result<(), Refusal> {
        let node = self.node(to).ok_or(Refusal::UnknownNode(to))?;
        if shard.nodes.contains(&to) {
            return Err(Refusal::Occupied { shard: shard.id, node: to });
        }
        if node.takes() { Ok(()) } else { Err(Refusal::Closed(to)) }
    }

    fn check_source(&self, shard: &ShardView, from: NodeId) -> Result<(), Refusal> {
        self.node(from).ok_or(Refusal::UnknownNode(from))?;
        if shard.nodes.contains(&from) {
            return Ok(());
        }
        Err(Refusal::Absent { shard: shard.id, node: from })
    }

    fn check_rest(
        &self,
        shard: &ShardView,
        from: NodeId,
        to: Option<NodeId>,
    ) -> Result<(), Refusal> {
        let rest = shard.nodes.iter().copied().filter(|node| *node != from).chain(to);
        let rest: Vec<NodeId> = rest.collect();
        let alive = rest.iter().filter(|node| self.takes_part(shard, **node)).count();
        if alive * 2 > rest.len() {
            return Ok(());
        }
        Err(Refusal::LastGood { shard: shard.id, alive, left: rest.len() })
    }

    /// A majority of the voters takes part: without it nothing can be changed.
    fn check_majority(&self, shard: &ShardView) -> Result<(), Refusal> {
        let left = shard.nodes.len();
        let alive = shard.nodes.iter().filter(|node| self.takes_part(shard, **node)).count();
        if alive * 2 > left {
            return Ok(());
        }
        Err(Refusal::LastGood { shard: shard.id, alive, left })
    }

    /// Whether a node answers, and its replica of a shard, if it has one, takes part.
    fn takes_part(&self, shard: &ShardView, node: NodeId) -> bool {
        self.is_alive(node) && !shard.stopped.contains(&node)
    }

    /// Moves that bring every shard to its replicas, on nodes that are open and answer. A shard
    /// that can't be mended now is left as it is.
    pub fn mend(&self) -> Vec<Move> {
        let mut weights = self.weights(By::Bytes);
        let mut moves = Vec::new();
        for shard in self.shards.iter().filter(|shard| !shard.busy) {
            let wanted = self.mend_shard(shard, &weights);
            if let Some(wanted) = wanted.filter(|wanted| self.check(*wanted).is_ok()) {
                weigh(&mut weights, wanted, shard.bytes);
                moves.push(wanted);
            }
            if moves.len() == MOVES_MAX {
                break;
            }
        }
        moves
    }

    /// One step for one shard: replicas that have stopped first, then more, then better places,
    /// then fewer.
    fn mend_shard(&self, shard: &ShardView, weights: &BTreeMap<NodeId, u64>) -> Option<Move> {
        let fits = |node: &NodeId| self.node(*node).is_some_and(NodeView::fits);
        let takes = |node: &NodeId| self.node(*node).is_some_and(NodeView::takes);
        let target = || {
            let free =
                weights.iter().filter(|(node, _)| takes(node) && !shard.nodes.contains(node));
            free.min_by_key(|(node, weight)| (**weight, **node)).map(|(node, _)| *node)
        };
        let misplaced = shard.nodes.iter().find(|node| !fits(node)).copied();
        let id = shard.id;
        if let Some(stopped) = shard.stopped.iter().copied().find(|node| shard.nodes.contains(node))
        {
            // Its disk may be short because of what the stopped replica has: that goes first.
            return match (takes(&stopped), target()) {
                (false, Some(to)) => Some(Move::Replace { shard: id, from: stopped, to }),
                _ => Some(Move::Rebuild { shard: id, at: stopped }),
            };
        }
        if shard.nodes.len() < self.replicas
            && let Some(to) = target()
        {
            return Some(Move::Add { shard: id, to });
        }
        if let Some(from) = misplaced
            && let Some(to) = target()
        {
            return Some(Move::Replace { shard: id, from, to });
        }
        if shard.nodes.len() <= self.replicas {
            return None;
        }
        let fullest = || shard.nodes.iter().max_by_key(|node| weights.get(node).copied());
        let from = misplaced.or_else(|| fullest().copied())?;
        Some(Move::Remove { shard: id, from })
    }

    /// Moves that empty a node, one for each shard that has a replica there.
    pub fn drain(&self, node: NodeId) -> Result<Vec<Move>, Refusal> {
        self.node(node).ok_or(Refusal::UnknownNode(node))?;
        let mut view = self.clone();
        for found in view.nodes.iter_mut().filter(|found| found.id == node) {
            found.open = false;
        }
        let mut weights = view.weights(By::Bytes);
        let mut moves = Vec::new();
        for shard in view.shards.iter().filter(|shard| shard.nodes.contains(&node)) {
            let next = view.mend_shard(shard, &weights).ok_or(Refusal::NoRoom(shard.id))?;
            if !shard.busy {
                weigh(&mut weights, next, shard.bytes);
                moves.push(next);
            }
        }
        Ok(moves)
    }

    /// Moves that make nodes more even. None if they are even enough.
    pub fn balance(&self, by: By) -> Vec<Move> {
        let mut view = self.clone();
        let mut moves = Vec::new();
        while moves.len() < MOVES_MAX {
            let next = match by {
                By::Leaders => view.next_lead(),
                By::Bytes | By::Load => view.next_replace(by),
            };
            let Some(next) = next else { break };
            view.make(next);
            moves.push(next);
        }
        moves
    }

    /// What a plan would lead to.
    pub fn after(&self, moves: &[Move]) -> View {
        let mut view = self.clone();
        for next in moves {
            view.make(*next);
        }
        view
    }

    /// What each open node carries; of leads, each that may lead.
    pub fn weights(&self, by: By) -> BTreeMap<NodeId, u64> {
        let counts = |node: &&NodeView| match by {
            By::Leaders => node.takes(),
            By::Bytes | By::Load => node.fits(),
        };
        let mut weights: BTreeMap<NodeId, u64> =
            self.nodes.iter().filter(counts).map(|node| (node.id, 0)).collect();
        for shard in &self.shards {
            let carried = shard.nodes.iter().filter(|node| match by {
                By::Leaders => shard.leader == Some(**node),
                By::Bytes | By::Load => true,
            });
            for node in carried {
                if let Some(weight) = weights.get_mut(node) {
                    *weight += shard.weight(by);
                }
            }
        }
        weights
    }

    /// The move from the fullest node to the emptiest that evens them most.
    fn next_replace(&self, by: By) -> Option<Move> {
        let weights = self.weights(by);
        let taking = |node: &NodeId| self.node(*node).is_some_and(NodeView::takes);
        let targets = weights.iter().filter(|(node, _)| taking(node));
        let (to, least) = targets.min_by_key(|(node, weight)| (**weight, **node))?;
        let (from, most) = weights.iter().max_by_key(|(node, weight)| (**weight, **node))?;
        let gap = most - least;
        let movable = self.shards.iter().filter(|shard| {
            let next = Move::Replace { shard: shard.id, from: *from, to: *to };
            // Otherwise the two would only change places.
            shard.weight(by) < gap && self.check(next).is_ok()
        });
        let best = movable.min_by_key(|shard| (gap.abs_diff(2 * shard.weight(by)), shard.id))?;
        Some(Move::Replace { shard: best.id, from: *from, to: *to })
    }

    /// The transfer that takes a leader from whoever leads most to whoever leads least.
    fn next_lead(&self) -> Option<Move> {
        let weights = self.weights(By::Leaders);
        let lead = |node: &NodeId| weights.get(node).copied();
        let choices = self.shards.iter().filter(|shard| !shard.busy).filter_map(|shard| {
            let leader = shard.leader?;
            let others = shard.nodes.iter().filter(|node| **node != leader);
            let others = others.filter(|node| !shard.stopped.contains(node));
            let to = others.filter(|node| lead(node).is_some()).min_by_key(|node| lead(node))?;
            // A leader on a node that drains, is gone or may not lead counts as one too many.
            let gain = lead(&leader).unwrap_or(u64::MAX).checked_sub(lead(to)? + 2)?;
            Some((gain, Move::Lead { shard: shard.id, to: *to }))
        });
        // Shard 0 last: whoever leads it has the most to do with its going.
        let rank = |next: Move| (next.shard() != META_SHARD, std::cmp::Reverse(next));
        choices.max_by_key(|(gain, next)| (*gain, rank(*next))).map(|(_, next)| next)
    }

    fn make(&mut self, next: Move) {
        let Some(shard) = self.shards.iter_mut().find(|shard| shard.id == next.shard()) else {
            return;
        };
        match next {
            Move::Add { to, .. } => {
                shard.nodes.insert(to);
            }
            Move::Remove { from, .. } => {
                shard.nodes.remove(&from);
            }
            Move::Replace { from, to, .. } => {
                shard.nodes.remove(&from);
                shard.nodes.insert(to);
                if shard.leader == Some(from) {
                    shard.leader = shard.nodes.first().copied();
                }
            }
            Move::Rebuild { at, .. } => {
                shard.stopped.remove(&at);
            }
            Move::Lead { to, .. } => shard.leader = Some(to),
        }
    }
}

impl ShardView {
    fn weight(&self, by: By) -> u64 {
        match by {
            // Not nothing: an empty shard is one too, and will fill.
            By::Bytes => self.bytes.max(1),
            By::Load => self.load.max(1),
            By::Leaders => 1,
        }
    }
}

fn weigh(weights: &mut BTreeMap<NodeId, u64>, made: Move, bytes: u64) {
    let mut change = |node: NodeId, add: bool| {
        if let Some(weight) = weights.get_mut(&node) {
            *weight =
                if add { *weight + bytes.max(1) } else { weight.saturating_sub(bytes.max(1)) };
        }
    };
    match made {
        Move::Add { to, .. } => change(to, true),
        Move::Remove { from, .. } => change(from, false),
        Move::Replace { from, to, .. } => {
            change(from, false);
            change(to, true);
        }
        Move::Rebuild { .. } | Move::Lead { .. } => {}
    }
}

#[cfg(test)]
mod tests;
