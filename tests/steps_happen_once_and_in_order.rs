//! STEP moves a state exactly once per event, in the order sent; PEEK leaves it alone.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod harness;

use futures::future::join_all;
use harness::{
    House, bank_model, bank_score, bytes_field, create, field_bytes, get, push, put, reason,
};
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::{self, ScoreMode};
use statehouse_client::{Client, Error};

async fn bank(house: &House) -> (harness::Node, Client) {
    let node = house.start();
    let client = node.client().await;
    create(&client, "accounts").await;
    push(&client, &bank_model()).await.unwrap();
    (node, client)
}

fn number(scored: &v1::ScoreResponse) -> f32 {
    let tensor = scored.outputs.iter().find(|output| output.name == "score").unwrap();
    f32::from_le_bytes(tensor.tensor.as_ref().unwrap().data[..4].try_into().unwrap())
}

#[tokio::test]
async fn a_peek_leaves_the_state_and_a_step_moves_it() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    let peek = || bank_score("a", 700.0, ScoreMode::Peek);
    let first = client.score(peek()).await.unwrap();
    assert!(first.from_initial_state && first.state_version == 0);
    assert_eq!(reason(client.get(get("accounts", "a")).await), "STATE_NOT_FOUND");
    assert_eq!(number(&client.score(peek()).await.unwrap()), number(&first));

    let step = client.score(bank_score("a", 700.0, ScoreMode::Step)).await.unwrap();
    assert!((number(&step) - number(&first)).abs() < 1e-4);
    let state = client.get(get("accounts", "a")).await.unwrap();
    assert_eq!(state.version, step.state_version);
    assert_eq!((state.model.as_str(), state.model_version), ("bank-gru", 1));
    assert_eq!(field_bytes(&state, "h").len(), 64 * 4);
    let after = client.score(peek()).await.unwrap();
    assert_eq!(after.state_version, step.state_version);
    assert_ne!(number(&after), number(&first), "the state has moved");
}

#[tokio::test]
async fn a_step_keeps_the_fields_that_the_model_does_not_bind() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    client.put(put("accounts", "a", vec![bytes_field("name", "Ada")])).await.unwrap();
    let step = client.score(bank_score("a", 5.0, ScoreMode::Step)).await.unwrap();
    assert!(!step.from_initial_state);
    let state = client.get(get("accounts", "a")).await.unwrap();
    assert_eq!(field_bytes(&state, "name"), "Ada");
    assert_eq!(field_bytes(&state, "h").len(), 64 * 4);
}

/// Sent without waiting for answers, steps of one key give what one after the other gives.
#[tokio::test(flavor = "multi_thread")]
async fn steps_sent_together_run_in_the_order_sent() {
    const STEPS: u32 = 200;
    let house = House::new();
    let (_node, client) = bank(&house).await;
    let amount = |step: u32| (step * 37 % 911) as f32;
    let mut slow = Vec::new();
    for step in 0..STEPS {
        slow.push(client.score(bank_score("slow", amount(step), ScoreMode::Step)).await.unwrap());
    }
    let mut answers = Vec::new();
    for step in 0..STEPS {
        let call = Call::Score(bank_score("fast", amount(step), ScoreMode::Step));
        answers.push(client.send(call).await.unwrap());
    }
    let answers: Result<Vec<Answer>, Error> = join_all(answers).await.into_iter().collect();
    let mut last = 0;
    for (step, answer) in answers.unwrap().into_iter().enumerate() {
        let Answer::Score(scored) = answer else { panic!("{answer:?}") };
        assert!(scored.state_version > last, "step {step}: versions grow in the order sent");
        last = scored.state_version;
        let difference = (number(&scored) - number(&slow[step])).abs();
        assert!(difference < 1e-3, "step {step}: off by {difference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_steps_once_and_answers_the_same() {
    let house = House::new();
    let (node, client) = bank(&house).await;
    let step = || v1::ScoreRequest {
        request_id: "event-1".into(),
        ..bank_score("a", 99.0, ScoreMode::Step)
    };
    // Five at once, then again, then after a crash.
    let together = join_all((0..5).map(|_| client.score(step()))).await;
    let together: Vec<_> = together.into_iter().map(Result::unwrap).collect();
    assert_eq!(together.iter().filter(|scored| !scored.repeated_request).count(), 1);
    let first = together.iter().find(|scored| !scored.repeated_request).unwrap().clone();
    let same = |scored: &v1::ScoreResponse| {
        (scored.outputs.clone(), scored.state_version, scored.from_initial_state)
    };
    assert!(together.iter().all(|scored| same(scored) == same(&first)));
    node.kill();
    let node = house.start();
    let client = node.client().await;
    let again = client.score(step()).await.unwrap();
    assert!(again.repeated_request);
    assert_eq!(same(&again), same(&first));
    let other = v1::ScoreRequest {
        request_id: "event-1".into(),
        ..bank_score("a", 100.0, ScoreMode::Step)
    };
    assert_eq!(reason(client.score(other).await), "REQUEST_ID_REUSED");
}

/// Puts race with steps: every step that is acknowledged was on the state it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_never_overwrites_a_put_that_it_did_not_see() {
    let house = House::new();
    let (_node, client) = bank(&house).await;
    let steps = async {
        for step in 0..100 {
            client.score(bank_score("a", step as f32, ScoreMode::Step)).await.unwrap();
        }
    };
    let puts = async {
        let mut last = 0;
        for n in 0..100u32 {
            let fields = vec![bytes_field("n", n.to_le_bytes().to_vec())];
            last = client.put(put("accounts", "a", fields)).await.unwrap().version;
        }
        last
    };
    let ((), last) = tokio::join!(steps, puts);
    let state = client.get(get("accounts", "a")).await.unwrap();
    assert!(state.version >= last);
    assert_eq!(field_bytes(&state, "n"), 99u32.to_le_bytes().as_slice(), "no put was lost");
}
