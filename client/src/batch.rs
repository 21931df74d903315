//! Batches by their items: taken apart to be sent to many nodes, put together again. Pure.

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;
use statehouse_proto::v1::pipeline_response::Result as Answer;
use v1::{batch_get_response, batch_put_response, prefetch_response, score_batch_response};

use crate::retry::Effect;

/// A batch whose items may be sent one by one.
#[derive(Debug, Clone)]
pub enum Batch {
    /// Keys of one collection.
    Get(v1::BatchGetRequest),
    /// Keys of one collection, whose states are brought into memory.
    Prefetch(v1::PrefetchRequest),
    /// States to replace.
    Put(Vec<v1::PutRequest>),
    /// Events to score.
    Score(Vec<v1::ScoreRequest>),
}

/// What one item of a batch is answered with.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A state that was read.
    State(v1::StoredState),
    /// A state that was replaced.
    Written(v1::WriteResponse),
    /// An event that was scored.
    Scored(v1::ScoreResponse),
    /// A state that was brought into memory, or is there.
    Warmth(v1::Warmth),
    /// Why this one item failed.
    Error(v1::Error),
}

/// Items and how far behind the replica was that answered, in milliseconds.
pub type Items = (Vec<Item>, u64);

impl Batch {
    /// The batch that a call is, or the call back if it's none.
    #[allow(clippy::result_large_err, reason = "a call that is no batch is no error")]
    pub fn of(call: Call) -> Result<Batch, Call> {
        match call {
            Call::BatchGet(get) => Ok(Batch::Get(get)),
            Call::Prefetch(prefetch) => Ok(Batch::Prefetch(prefetch)),
            Call::BatchPut(batch) => Ok(Batch::Put(batch.puts)),
            Call::ScoreBatch(batch) => Ok(Batch::Score(batch.scores)),
            Call::Get(_)
            | Call::Put(_)
            | Call::Patch(_)
            | Call::Delete(_)
            | Call::Score(_)
            | Call::Upload(_) => Err(call),
        }
    }

    /// How many items there are.
    pub fn items(&self) -> usize {
        match self {
            Batch::Get(get) => get.keys.len(),
            Batch::Prefetch(prefetch) => prefetch.keys.len(),
            Batch::Put(puts) => puts.len(),
            Batch::Score(scores) => scores.len(),
        }
    }

    /// Whose state an item is about.
    pub fn key(&self, at: usize) -> &Bytes {
        match self {
            Batch::Get(get) => &get.keys[at],
            Batch::Prefetch(prefetch) => &prefetch.keys[at],
            Batch::Put(puts) => &puts[at].key,
            Batch::Score(scores) => &scores[at].key,
        }
    }

    /// What a second run of an item would change.
    pub fn effect(&self, at: usize) -> Effect {
        match self {
            Batch::Get(_) | Batch::Prefetch(_) => Effect::None,
            Batch::Put(puts) => Effect::of_write(puts[at].options.as_ref()),
            Batch::Score(scores) => Effect::of_score(&scores[at]),
        }
    }

    /// The call of some items, in the order given.
    pub fn pick(&self, at: &[usize]) -> Call {
        match self {
            Batch::Get(get) => Call::BatchGet(v1::BatchGetRequest {
                collection: get.collection.clone(),
                keys: at.iter().map(|at| get.keys[*at].clone()).collect(),
                fields: get.fields.clone(),
                consistency: get.consistency,
                max_lag_ms: get.max_lag_ms,
            }),
            Batch::Prefetch(prefetch) => Call::Prefetch(v1::PrefetchRequest {
                collection: prefetch.collection.clone(),
                keys: at.iter().map(|at| prefetch.keys[*at].clone()).collect(),
                fields: prefetch.fields.clone(),
                consistency: prefetch.consistency,
                max_lag_ms: prefetch.max_lag_ms,
            }),
            Batch::Put(puts) => {
                let puts = at.iter().map(|at| puts[*at].clone()).collect();
                Call::BatchPut(v1::BatchPutRequest { puts })
            }
            Batch::Score(scores) => {
                let scores = at.iter().map(|at| scores[*at].clone()).collect();
                Call::ScoreBatch(v1::ScoreBatchRequest { scores })
            }
        }
    }

    /// What a call of `expected` items was answered with; `None` if it is not the answer of such
    /// a batch.
    pub fn taken_apart(&self, answer: Answer, expected: usize) -> Option<Items> {
        let (items, lag_ms): (Option<Vec<Item>>, u64) = match (self, answer) {
            (Batch::Get(_), Answer::BatchGet(answer)) => {
                (answer.items.into_iter().map(Item::of_get).collect(), answer.lag_ms)
            }
            (Batch::Prefetch(_), Answer::Prefetch(answer)) => {
                (answer.items.into_iter().map(Item::of_prefetch).collect(), 0)
            }
            (Batch::Put(_), Answer::BatchPut(answer)) => {
                (answer.items.into_iter().map(Item::of_put).collect(), 0)
            }
            (Batch::Score(_), Answer::ScoreBatch(answer)) => {
                (answer.items.into_iter().map(Item::of_score).collect(), 0)
            }
            _ => (None, 0),
        };
        items.filter(|items| items.len() == expected).map(|items| (items, lag_ms))
    }

    /// The answer of the whole batch.
    pub fn put_together(&self, (items, lag_ms): Items) -> Answer {
        match self {
            Batch::Get(_) => {
                let items = items.into_iter().map(Item::into_get).collect();
                Answer::BatchGet(v1::BatchGetResponse { items, lag_ms })
            }
            Batch::Prefetch(_) => {
                let items = items.into_iter().map(Item::into_prefetch).collect();
                Answer::Prefetch(v1::PrefetchResponse { items })
            }
            Batch::Put(_) => {
                let items = items.into_iter().map(Item::into_put).collect();
                Answer::BatchPut(v1::BatchPutResponse { items })
            }
            Batch::Score(_) => {
                let items = items.into_iter().map(Item::into_score).collect();
                Answer::ScoreBatch(v1::ScoreBatchResponse { items })
            }
        }
    }
}

impl Item {
    fn of_get(item: batch_get_response::Item) -> Option<Item> {
        use batch_get_response::item::Result;
        Some(match item.result? {
            Result::State(state) => Item::State(state),
            Result::Error(error) => Item::Error(error),
        })
    }

    fn of_prefetch(item: prefetch_response::Item) -> Option<Item> {
        use prefetch_response::item::Result;
        Some(match item.result? {
            Result::Warmth(warmth) => {
                Item::Warmth(v1::Warmth::try_from(warmth).unwrap_or_default())
            }
            Result::Error(error) => Item::Error(error),
        })
    }

    fn of_put(item: batch_put_response::Item) -> Option<Item> {
        use batch_put_response::item::Result;
        Some(match item.result? {
            Result::Written(written) => Item::Written(written),
            Result::Error(error) => Item::Error(error),
        })
    }

    fn of_score(item: score_batch_response::Item) -> Option<Item> {
        use score_batch_response::item::Result;
        Some(match item.result? {
            Result::Scored(scored) => Item::Scored(scored),
            Result::Error(error) => Item::Error(error),
        })
    }

    fn into_get(self) -> batch_get_response::Item {
        use batch_get_response::item::Result;
        let result = match self {
            Item::State(state) => Some(Result::State(state)),
            Item::Error(error) => Some(Result::Error(error)),
            Item::Written(_) | Item::Scored(_) | Item::Warmth(_) => None,
        };
        batch_get_response::Item { result }
    }

    /// As the answer of a prefetch has it.
    pub fn into_prefetch(self) -> prefetch_response::Item {
        use prefetch_response::item::Result;
        let result = match self {
            Item::Warmth(warmth) => Some(Result::Warmth(warmth as i32)),
            Item::Error(error) => Some(Result::Error(error)),
            Item::State(_) | Item::Written(_) | Item::Scored(_) => None,
        };
        prefetch_response::Item { result }
    }

    fn into_put(self) -> batch_put_response::Item {
        use batch_put_response::item::Result;
        let result = match self {
            Item::Written(written) => Some(Result::Written(written)),
            Item::Error(error) => Some(Result::Error(error)),
            Item::State(_) | Item::Scored(_) | Item::Warmth(_) => None,
        };
        batch_put_response::Item { result }
    }

    fn into_score(self) -> score_batch_response::Item {
        use score_batch_response::item::Result;
        let result = match self {
            Item::Scored(scored) => Some(Result::Scored(scored)),
            Item::Error(error) => Some(Result::Error(error)),
            Item::State(_) | Item::Written(_) | Item::Warmth(_) => None,
        };
        score_batch_response::Item { result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(call: &Call) -> Vec<&[u8]> {
        match call {
            Call::BatchGet(get) => get.keys.iter().map(|key| &key[..]).collect(),
            other => panic!("not a batch of gets: {other:?}"),
        }
    }

    #[test]
    fn a_batch_is_taken_apart_and_put_together_in_order() {
        let get = v1::BatchGetRequest {
            collection: "c".into(),
            keys: ["a", "b", "c"].map(|key| Bytes::from_static(key.as_bytes())).to_vec(),
            max_lag_ms: 7,
            ..Default::default()
        };
        let batch = Batch::of(Call::BatchGet(get)).unwrap();
        assert_eq!((batch.items(), &batch.key(1)[..]), (3, &b"b"[..]));
        let part = batch.pick(&[2, 0]);
        assert_eq!(keys(&part), [b"c", b"a"]);
        assert!(matches!(&part, Call::BatchGet(get) if get.max_lag_ms == 7));
        let state = |version| Item::State(v1::StoredState { version, ..Default::default() });
        let whole = batch.put_together((vec![state(1), state(2), state(3)], 9));
        let (items, lag_ms) = batch.taken_apart(whole.clone(), 3).unwrap();
        assert_eq!((items, lag_ms), (vec![state(1), state(2), state(3)], 9));
        assert!(batch.taken_apart(whole, 2).is_none(), "an answer of another size is none");
        assert!(batch.taken_apart(Answer::Get(v1::GetResponse::default()), 1).is_none());
    }
}
