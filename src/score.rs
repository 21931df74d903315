//! The Score use case, top to bottom: locate, read, infer, commit, answer.
//!
//! A PEEK reads what is committed and leaves it alone. A STEP also writes the model's new state
//! back, in one conditional patch, and answers once that is committed. Steps of one key run one
//! after another (`../chain.rs`), each on the state that the one before made, without waiting for
//! its commit; should a commit not go through, every step that built on it is run again.

mod answer;
mod bind;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse_cluster::catalog::Collection;
use statehouse_cluster::raft::Group;
use statehouse_inference as inference;
use statehouse_inference::{Request, Tensor};
use statehouse_store::{Command, Condition, Edit, ModelTag, Patch, RequestTag};

use crate::admission::Charge;
use crate::chain::{Tail, Turn};
use crate::failure::{Failure, Reason};
use crate::metrics::CallKind;
use crate::models::{Models, Version};
use crate::states::{
    self, Attempt, Freshness, SizeWarning, StateKey, States, WriteOptions, Written,
};

/// How often a step is run when the state changes under it.
const STEP_ATTEMPTS_MAX: u32 = 16;

/// How often a row's states are in memory while it is scored: as they are read, in a batch, in the
/// batch's result, and on their way to the log.
pub const STATE_COPIES: u64 = 4;

/// What to score.
#[derive(Debug, Clone)]
pub struct ScoreQuery {
    /// The model's name.
    pub model: String,
    /// 0: the active version.
    pub model_version: u64,
    /// Whose state.
    pub target: StateKey,
    /// By name, one row each.
    pub inputs: Vec<(String, Tensor)>,
    /// Leave the state, or step it.
    pub mode: Mode,
    /// Of a PEEK: how fresh the state must be.
    pub freshness: Freshness,
    /// Empty: none.
    pub request_id: Bytes,
    /// Which outputs to answer; empty: all.
    pub outputs: Vec<String>,
    /// When the answer is worthless.
    pub deadline: Option<Instant>,
}

/// What happens to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Stays as it is.
    Peek,
    /// Becomes the model's new state.
    Step,
}

/// What a score answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// By name.
    pub outputs: Vec<(String, Tensor)>,
    /// PEEK: the version read. STEP: the version written. 0: there was none.
    pub state_version: u64,
    /// Which version of the model answered.
    pub model_version: u64,
    /// There was no state.
    pub from_initial_state: bool,
    /// The request id had been seen: the first answer again.
    pub repeated: bool,
    /// How it ran; zero in a repeated answer.
    pub ran: Ran,
    /// How far behind the replica was whose state was scored.
    pub lag: Duration,
    /// Of a STEP: the state is above what its collection warns of.
    pub warning: Option<SizeWarning>,
}

/// How a row ran on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// Rows of its batch.
    pub batch_rows: u32,
    /// From the queue to the device.
    pub queued: Duration,
    /// On the device.
    pub took: Duration,
}

impl Ran {
    fn of(answer: &inference::Answer) -> Self {
        Ran { batch_rows: answer.batch_rows, queued: answer.queued, took: answer.ran }
    }
}

/// Scores events on one node.
#[derive(Clone)]
pub struct Scorer {
    states: States,
    models: Arc<Models>,
    writers: Arc<AtomicU64>,
}

/// What one score works on, found once.
struct Job {
    model: Version,
    collection: Arc<Collection>,
    target: StateKey,
    /// This node's replica of the shard that holds it.
    group: Arc<Group>,
    freshness: Freshness,
    inputs: Vec<Tensor>,
    outputs: Vec<usize>,
    deadline: Option<Instant>,
    request: Option<RequestTag>,
    charge: Arc<Charge>,
}

impl Scorer {
    /// Over the states and models of a node.
    pub fn new(states: States, models: Arc<Models>) -> Self {
        // Writer tokens differ between runs of the node, so that none of a former one matches.
        let first = rand::random::<u64>() | 1;
        let writers = Arc::new(AtomicU64::new(first));
        Scorer { states, models, writers }
    }

    /// The models.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// Scores one event, on this node's replica of the key's shard.
    pub async fn score(
        &self,
        group: &Arc<Group>,
        query: ScoreQuery,
        charge: &Arc<Charge>,
    ) -> Result<Scored, Failure> {
        let mode = query.mode;
        let job = self.locate(group, query, charge.clone()).await?;
        match mode {
            Mode::Peek => self.peek(&job).await,
            Mode::Step => self.step(&job).await,
        }
    }

    async fn locate(
        &self,
        group: &Arc<Group>,
        query: ScoreQuery,
        charge: Arc<Charge>,
    ) -> Result<Job, Failure> {
        states::check_key(&query.target.key)?;
        let collection = self.states.collection(&query.target.collection).await?;
        let model = self.models.find(&query.model, query.model_version).await?;
        let fingerprint = bind::fingerprint(&query);
        let inputs = model.loaded.check_inputs(query.inputs)?;
        let outputs = bind::wanted_outputs(&model.loaded, &query.outputs)?;
        if query.mode == Mode::Peek && !query.request_id.is_empty() {
            let message = "a request id belongs to a STEP: a PEEK has no effect to repeat";
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        let request =
            states::request_tag(&collection, &query.target.key, &query.request_id, fingerprint)?;
        Ok(Job {
            model,
            collection,
            target: query.target,
            group: group.clone(),
            freshness: query.freshness,
            inputs,
            outputs,
            deadline: query.deadline,
            request,
            charge,
        })
    }

    async fn peek(&self, job: &Job) -> Result<Scored, Failure> {
        let lag = job.freshness.reached_by(&job.group).await?;
        let base = self.read(job).await?;
        let answer = self.infer(job, base.states).await?;
        Ok(Scored {
            ran: Ran::of(&answer),
            outputs: bind::outputs(&job.model.loaded, &job.outputs, answer.outputs),
            state_version: base.version,
            model_version: job.model.version,
            from_initial_state: base.initial,
            repeated: false,
            lag,
            warning: None,
        })
    }

    async fn step(&self, job: &Job) -> Result<Scored, Failure> {
        if job.model.loaded.states().is_empty() {
            let message = format!("model {:?} has no state to step", job.model.loaded.name());
            return Err(Failure::new(Reason::InvalidRequest, message));
        }
        for _ in 0..STEP_ATTEMPTS_MAX {
            let turn = self.states.chains().enter(job.collection.id, &job.target.key)?.await?;
            match self.attempt(job, turn).await {
                Err(failure) if failure.reason == Reason::VersionConflict => {}
                done => return done,
            }
            if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let message = "the state kept changing until the deadline";
                return Err(Failure::new(Reason::DeadlineExceeded, message));
            }
        }
        let message = format!("the state changed under {STEP_ATTEMPTS_MAX} attempts");
        Err(Failure::overloaded(message))
    }

    /// One run of a step, from the state that the step before left.
    async fn attempt(&self, job: &Job, mut turn: Turn) -> Result<Scored, Failure> {
        if let Some(first) = self.first_answer(job)? {
            return Ok(first);
        }
        let tail = turn.tail_of(job.model.loaded.name(), job.model.version);
        let (condition, states, expires, initial) = match tail {
            Some(tail) => {
                let expires = vec![None; tail.states.len()];
                (Condition::Writer(tail.writer), tail.states, expires, false)
            }
            None => {
                turn.settled().await?;
                // Read without asking a quorum whether this node still leads: the patch holds only
                // for the version read. If that is old, or the node does not lead any more, the
                // patch is refused and the step runs again, here or where the leader is.
                let base = self.read(job).await?;
                let condition = match base.version {
                    0 => Condition::Absent,
                    version => Condition::Version(version),
                };
                (condition, base.states, base.expires, base.initial)
            }
        };
        let answer = self.infer(job, states).await?;
        let scored = Scored {
            ran: Ran::of(&answer),
            outputs: bind::outputs(&job.model.loaded, &job.outputs, answer.outputs),
            state_version: 0,
            model_version: job.model.version,
            from_initial_state: initial,
            repeated: false,
            lag: Duration::ZERO,
            warning: None,
        };
        let bytes = answer.states.iter().map(|state| state.data.len() as u64).sum();
        let attempt = Attempt::new(CallKind::Score, bytes);
        let writer = self.next_writer();
        let edits = bind::edits(&job.model.loaded, &answer.states, &expires).map(Edit::Set);
        let command = self.patch(job, condition, writer, edits.collect(), &scored)?;
        // Proposed before the next step may start: entries keep the order of the steps.
        let commit = states::propose(&job.group, command, turn.begin(), &job.charge);
        // Nobody looks at a tail's expiry: where a field has its own, the next step reads it.
        let lasts = expires.iter().all(Option::is_none);
        turn.leave(lasts.then(|| Tail {
            model: job.model.loaded.name().to_owned(),
            model_version: job.model.version,
            states: answer.states,
            writer,
        }));
        let committed = states::written(commit.await?)?;
        let (collection, key) = (&job.collection, &job.target.key);
        let warning = self.states.size_warning(collection, key, attempt, committed.bytes);
        finish(scored, Written { warning, ..committed.written }, &committed.attached)
    }

    /// The answer of the first request with this id, if it was answered.
    fn first_answer(&self, job: &Job) -> Result<Option<Scored>, Failure> {
        let Some(tag) = &job.request else { return Ok(None) };
        let reader = job.group.reader();
        let Some(first) = reader.answer(tag, job.group.now_ms())? else { return Ok(None) };
        match first {
            statehouse_store::Reply::Written { version, answer, .. } => {
                let written = Written { version, repeated: true, warning: None };
                finish(Scored::blank(), written, &answer).map(Some)
            }
            other => Err(states::reply_failure(other)),
        }
    }

    async fn read(&self, job: &Job) -> Result<bind::Base, Failure> {
        let names = bind::field_names(&job.model.loaded);
        let key = (&job.target.key, &*job.group);
        let found = self.states.read_present(&job.collection, key, names, &job.charge).await?;
        bind::base(&job.model.loaded, found)
    }

    async fn infer(&self, job: &Job, states: Vec<Tensor>) -> Result<inference::Answer, Failure> {
        let state_bytes: usize = states.iter().map(|state| state.data.len()).sum();
        job.charge.states(STATE_COPIES * state_bytes as u64)?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.models.worker().submit(Request {
            model: job.model.loaded.clone(),
            inputs: job.inputs.clone(),
            states,
            deadline: job.deadline,
            // The caller may have given up meanwhile.
            done: Box::new(move |answer| drop(sender.send(answer))),
        })?;
        let answer = receiver.await;
        Ok(answer.map_err(|_| Failure::new(Reason::Unavailable, "the node is stopping"))??)
    }

    fn patch(
        &self,
        job: &Job,
        condition: Condition,
        writer: u64,
        edits: Vec<Edit>,
        scored: &Scored,
    ) -> Result<Command, Failure> {
        let options = WriteOptions { condition, expiry: None, request_id: Bytes::new() };
        let mut write = self.states.change(&job.collection, &job.target.key, &options, 0)?;
        write.writer = writer;
        write.model =
            Some(ModelTag { name: job.model.loaded.name().to_owned(), version: job.model.version });
        if let Some(tag) = job.request {
            write.request = Some(tag);
            write.answer = answer::encode(scored)?;
        }
        Ok(Command::Patch(Patch { write, edits }))
    }

    fn next_writer(&self) -> u64 {
        // 0 means no writer.
        loop {
            let writer = self.writers.fetch_add(1, Ordering::Relaxed);
            if writer != 0 {
                return writer;
            }
        }
    }
}

impl Scored {
    fn blank() -> Self {
        Scored {
            outputs: Vec::new(),
            state_version: 0,
            model_version: 0,
            from_initial_state: false,
            repeated: false,
            ran: Ran::default(),
            lag: Duration::ZERO,
            warning: None,
        }
    }
}

/// The answer of a committed step: its own, or the first one's if it was a repeat.
fn finish(scored: Scored, written: Written, attached: &Bytes) -> Result<Scored, Failure> {
    let scored = if written.repeated { answer::decode(attached)? } else { scored };
    let Written { version, repeated, warning } = written;
    Ok(Scored { state_version: version, repeated, warning, ..scored })
}
