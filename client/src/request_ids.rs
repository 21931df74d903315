//! Request ids for writes and steps that have none, so that they may be sent again.

use bytes::Bytes;
use statehouse_proto::v1;
use statehouse_proto::v1::pipeline_request::Call;

/// Bytes of an id: random ones of that many never meet.
const ID_BYTES: usize = 16;

/// The call, each write and step of it with a request id.
pub fn identified(mut call: Call) -> Call {
    match &mut call {
        Call::Get(_) | Call::BatchGet(_) | Call::Prefetch(_) | Call::Upload(_) => {}
        Call::Put(put) => identify(&mut put.options),
        Call::Patch(patch) => identify(&mut patch.options),
        Call::Delete(delete) => identify(&mut delete.options),
        Call::BatchPut(batch) => batch.puts.iter_mut().for_each(|put| identify(&mut put.options)),
        Call::Score(score) => identify_step(score),
        Call::ScoreBatch(batch) => batch.scores.iter_mut().for_each(identify_step),
    }
    call
}

fn identify(options: &mut Option<v1::WriteOptions>) {
    let options = options.get_or_insert_default();
    if options.request_id.is_empty() {
        options.request_id = random();
    }
}

fn identify_step(score: &mut v1::ScoreRequest) {
    if score.mode == v1::ScoreMode::Step as i32 && score.request_id.is_empty() {
        score.request_id = random();
    }
}

fn random() -> Bytes {
    Bytes::copy_from_slice(&rand::random::<[u8; ID_BYTES]>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::Effect;

    #[test]
    fn writes_and_steps_get_an_id_and_keep_their_own() {
        let id = |call| match identified(call) {
            Call::Put(put) => put.options.unwrap().request_id,
            Call::Score(score) => score.request_id,
            other => panic!("{other:?}"),
        };
        let (first, second) = (Call::Put(v1::PutRequest::default()), v1::PutRequest::default());
        let (first, second) = (id(first), id(Call::Put(second)));
        assert_eq!(first.len(), ID_BYTES);
        assert_ne!(first, second);
        let own = v1::WriteOptions { request_id: "own".into(), ..Default::default() };
        let put = v1::PutRequest { options: Some(own), ..Default::default() };
        assert_eq!(id(Call::Put(put)), "own");
        assert!(id(Call::Score(v1::ScoreRequest::default())).is_empty(), "a peek has no effect");
        let step = v1::ScoreRequest { mode: v1::ScoreMode::Step as i32, ..Default::default() };
        assert_eq!(Effect::of(&identified(Call::Score(step))), Effect::Repeatable);
    }
}
