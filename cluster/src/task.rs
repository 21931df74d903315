//! A change of one shard as a task: steps that each may be taken twice. Pure.
//!
//! ```text
//! Reserved -> Created -> Learning -> Caught up -> Joined -> Recorded -> Destroyed -> done
//!      \________\___________\___________/  cancel: undone   |
//!                                                 (no way back: finish)
//! ```
//!
//! The controller carries a step out, then writes the next one down; whoever takes over after it
//! dies takes the step written last once more. Nothing here talks to anybody.

use serde::{Deserialize, Serialize};

use crate::format::Format;

/// Which task. Given out by the cluster, counts up, never used again.
pub type TaskId = u64;

/// What a task is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Somebody asked for this very move.
    Asked,
    /// The planner mends a shard.
    Mend,
    /// The planner balances nodes.
    Balance,
    /// A node is emptied.
    Drain {
        /// Which node.
        node: u64,
    },
}

/// How far a change has come: the step that is to be taken next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Make the empty replica where it goes to.
    Create,
    /// Have the shard's leader feed it.
    Learn,
    /// Wait until it has nearly everything.
    CatchUp,
    /// Change the group's members, old and new in one.
    Join,
    /// Write down where the shard's replicas are now.
    Record,
    /// Destroy the replica that left.
    Destroy,
    /// Nothing.
    End,
}

/// How a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Steps are taken.
    Running,
    /// It is being undone.
    Undoing,
    /// It did what it was for.
    Done,
    /// It was undone, as asked.
    Canceled,
    /// It was undone, since it could not be done.
    Failed,
}

/// A replica that comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// The replica's id.
    pub replica: u64,
    /// Its node.
    pub node: u64,
}

/// A change of one shard: a replica that comes, one that goes, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The format of this row.
    pub(crate) format: Format<1>,
    /// Which task.
    pub id: TaskId,
    /// Which shard.
    pub shard: u16,
    /// What comes.
    pub add: Option<Side>,
    /// What goes.
    pub remove: Option<Side>,
    /// Why.
    pub purpose: Purpose,
    /// What is to be done next.
    pub step: Step,
    /// How it's doing.
    pub state: State,
    /// Somebody asked to undo it.
    pub cancel: bool,
    /// Unix milliseconds.
    pub created_at_ms: u64,
    /// Unix milliseconds of the last step or try.
    pub changed_at_ms: u64,
    /// Entries of the log that the new replica has, and that there are.
    pub entries: (u64, u64),
    /// Bytes of the shard when the task began; about what is moved.
    pub bytes: u64,
    /// How often the current step went wrong.
    pub tries: u32,
    /// What went wrong last.
    pub error: Option<String>,
}

/// Tries of one step before a task that can be undone is.
pub const TRIES_MAX: u32 = 60;

impl Task {
    /// A task about to take its first step.
    pub fn new(
        id: TaskId,
        shard: u16,
        (add, remove): (Option<Side>, Option<Side>),
        purpose: Purpose,
        now_ms: u64,
    ) -> Self {
        let step = if add.is_some() { Step::Create } else { Step::Join };
        Task {
            format: Format,
            id,
            shard,
            add,
            remove,
            purpose,
            step,
            state: State::Running,
            cancel: false,
            created_at_ms: now_ms,
            changed_at_ms: now_ms,
            entries: (0, 0),
            bytes: 0,
            tries: 0,
            error: None,
        }
    }

    /// Whether anything is left to do.
    pub fn is_over(&self) -> bool {
        !matches!(self.state, State::Running | State::Undoing)
    }

    /// Whether it may still be undone: the group's members are as they were.
    pub fn can_cancel(&self) -> bool {
        self.state == State::Running && self.step < Step::Join
    }

    /// The current step is done: what comes next.
    pub fn advance(&mut self, now_ms: u64) {
        (self.tries, self.changed_at_ms, self.error) = (0, now_ms, None);
        if self.state == State::Undoing {
            self.step = Step::End;
            self.state = if self.cancel { State::Canceled } else { State::Failed };
            return;
        }
        self.step = match self.step {
            Step::Create => Step::Learn,
            Step::Learn => Step::CatchUp,
            Step::CatchUp => Step::Join,
            Step::Join => Step::Record,
            Step::Record if self.remove.is_some() => Step::Destroy,
            Step::Record | Step::Destroy | Step::End => Step::End,
        };
        if self.step == Step::End {
            self.state = State::Done;
        } else if self.cancel && self.can_cancel() {
            self.state = State::Undoing;
        }
    }

    /// The current step went wrong: it's tried again, or the task is undone. One that is over stays
    /// as it is: whoever took the step was late.
    pub fn failed(&mut self, error: String, now_ms: u64) {
        if self.is_over() {
            return;
        }
        self.tries += 1;
        self.changed_at_ms = now_ms;
        if self.tries >= TRIES_MAX && self.can_cancel() {
            self.state = State::Undoing;
            self.tries = 0;
        }
        self.error = Some(error);
    }

    /// The current step can never be done: the task is undone, if that is still possible.
    pub fn give_up(&mut self, error: String, now_ms: u64) {
        self.tries = TRIES_MAX;
        self.failed(error, now_ms);
    }

    /// Undoes it, if that's still possible; answers whether it is.
    pub fn cancel(&mut self, now_ms: u64) -> bool {
        if !self.can_cancel() {
            return self.state == State::Undoing;
        }
        (self.cancel, self.state, self.tries) = (true, State::Undoing, 0);
        self.changed_at_ms = now_ms;
        true
    }

    /// About how long the new replica still takes to catch up, by how far it has come so far.
    pub fn eta_ms(&self, now_ms: u64) -> Option<u64> {
        let (have, all) = self.entries;
        let took = now_ms.saturating_sub(self.created_at_ms);
        match have {
            _ if self.step != Step::CatchUp || self.is_over() => None,
            0 => None,
            have => Some(took.saturating_mul(all.saturating_sub(have)) / have),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(replica: u64, node: u64) -> Option<Side> {
        Some(Side { replica, node })
    }

    fn task(add: Option<Side>, remove: Option<Side>) -> Task {
        Task::new(7, 3, (add, remove), Purpose::Asked, 100)
    }

    fn steps(mut task: Task) -> Vec<Step> {
        let mut taken = Vec::new();
        while !task.is_over() {
            taken.push(task.step);
            task.advance(200);
        }
        assert_eq!(task.state, State::Done);
        taken
    }

    #[test]
    fn every_kind_of_change_has_its_steps() {
        use Step::{CatchUp, Create, Destroy, Join, Learn, Record};
        let whole = [Create, Learn, CatchUp, Join, Record, Destroy];
        assert_eq!(steps(task(side(9, 2), side(1, 1))), whole);
        assert_eq!(steps(task(side(9, 2), None)), whole[..5]);
        assert_eq!(steps(task(None, side(1, 1))), [Join, Record, Destroy]);
    }

    #[test]
    fn it_can_be_undone_until_the_members_change() {
        let mut task = task(side(9, 2), side(1, 1));
        for step in [Step::Create, Step::Learn, Step::CatchUp] {
            assert_eq!(task.step, step);
            let mut canceled = task.clone();
            assert!(canceled.cancel(150) && canceled.cancel(151), "twice is as good as once");
            assert_eq!(canceled.state, State::Undoing);
            canceled.advance(160);
            assert_eq!((canceled.state, canceled.is_over()), (State::Canceled, true));
            task.advance(150);
        }
        assert!(!task.cancel(170), "the members may have changed");
        assert_eq!(task.state, State::Running);
    }

    #[test]
    fn a_step_that_never_works_is_undone_and_one_past_the_change_is_tried_for_ever() {
        let mut early = task(side(9, 2), None);
        for _ in 0..TRIES_MAX {
            assert_eq!(early.state, State::Running);
            early.failed("no answer".into(), 150);
        }
        assert_eq!((early.state, early.error.as_deref()), (State::Undoing, Some("no answer")));
        early.advance(160);
        assert_eq!(early.state, State::Failed);
        let mut late = task(None, side(1, 1));
        for _ in 0..3 * TRIES_MAX {
            late.failed("no answer".into(), 150);
        }
        assert_eq!(late.state, State::Running);
    }

    #[test]
    fn the_time_left_goes_by_what_was_done() {
        let mut task = task(side(9, 2), None);
        task.step = Step::CatchUp;
        assert_eq!(task.eta_ms(1_100), None);
        task.entries = (250, 1_000);
        assert_eq!(task.eta_ms(1_100), Some(3_000));
    }
}
