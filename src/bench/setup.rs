//! What a load needs before it starts: a collection, a model, states under every key.

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use statehouse_client::v1::pipeline_request::Call;
use statehouse_client::v1::pipeline_response::Result as Answer;
use statehouse_client::v1::{self, DataType};
use statehouse_client::{Client, Config};

use super::lane::{Lane, Target};
use super::workload::{self, Kind, Payload, key};

/// The collection that loads use.
pub const COLLECTION: &str = "bench";

/// Most states written by one call while loading.
const LOAD_BATCH_MAX: usize = 64;

/// Most loading calls under way.
const LOAD_CALLS_MAX: usize = 16;

/// Most bytes of states under way while loading, if one state is not more: a node keeps a part of
/// its `memory_max` for calls and refuses what is beyond it.
const LOAD_BYTES_MAX: usize = 16 << 20;

/// How a load is cut into calls.
#[derive(Debug, PartialEq)]
struct LoadPlan {
    /// Calls under way at a time.
    calls: usize,
    /// States written by each.
    batch: u64,
}

impl LoadPlan {
    fn of(state_bytes: usize) -> LoadPlan {
        let states = LOAD_BYTES_MAX / state_bytes.max(1);
        let calls = states.clamp(1, LOAD_CALLS_MAX);
        LoadPlan { calls, batch: (states / calls).clamp(1, LOAD_BATCH_MAX) as u64 }
    }
}

/// Payloads of `state_bytes`, with the state fields and inputs of `model` if one is named.
pub async fn prepare(
    client: Option<&Client>,
    model: Option<&str>,
    state_bytes: usize,
    seed: u64,
) -> anyhow::Result<Payload> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut value = BytesMut::zeroed(state_bytes);
    random.fill_bytes(&mut value);
    let value = value.freeze();
    let (mut fields, mut inputs) = (Vec::new(), Vec::new());
    if let Some(name) = model {
        let client = client.context("scores need a node")?;
        let version = describe(client, name).await?;
        for state in &version.states {
            fields.push(v1::Field {
                name: state.field.clone(),
                value: Some(v1::field::Value::Tensor(zeros(state.dtype, &state.shape)?)),
                expiry: None,
            });
        }
        for input in &version.inputs {
            let tensor = Some(random_tensor(&mut random, input)?);
            inputs.push(v1::NamedTensor { name: input.name.clone(), tensor });
        }
    }
    let taken: usize = fields.iter().map(field_bytes).sum();
    let Some(rest) = state_bytes.checked_sub(taken) else {
        bail!("a state of {state_bytes} bytes is less than the {taken} that the model keeps");
    };
    if rest > 0 {
        let rest = v1::field::Value::Bytes(value.slice(..rest));
        fields.push(v1::Field { name: "value".to_owned(), value: Some(rest), expiry: None });
    }
    Ok(Payload { fields, value, model: model.unwrap_or_default().to_owned(), inputs })
}

async fn describe(client: &Client, name: &str) -> anyhow::Result<v1::ModelVersion> {
    let model = client.describe_model(name).await?;
    let active = model.versions.into_iter().find(|v| v.version == model.active_version && v.loaded);
    active.with_context(|| format!("model {name:?} has no active version that is loaded"))
}

fn axes(shape: &[i64]) -> Vec<u64> {
    shape.iter().map(|axis| u64::try_from(*axis).unwrap_or(1)).collect()
}

fn zeros(dtype: i32, shape: &[i64]) -> anyhow::Result<v1::Tensor> {
    let shape = axes(shape);
    let bytes = shape.iter().product::<u64>() as usize * size_of_dtype(dtype)?;
    Ok(v1::Tensor { dtype, shape, data: Bytes::from(vec![0; bytes]) })
}

fn random_tensor(random: &mut SmallRng, spec: &v1::TensorSpec) -> anyhow::Result<v1::Tensor> {
    let mut tensor = zeros(spec.dtype, &spec.shape)?;
    if spec.dtype == DataType::F32 as i32 {
        let count = tensor.data.len() / 4;
        let mut data = BytesMut::with_capacity(count * 4);
        for _ in 0..count {
            data.put_f32_le(random.random_range(0.0..4.0));
        }
        tensor.data = data.freeze();
    }
    Ok(tensor)
}

fn size_of_dtype(dtype: i32) -> anyhow::Result<usize> {
    let dtype = crate::dtype::from_proto(dtype).context("the model has a tensor of no dtype")?;
    Ok(dtype.size_bytes())
}

fn field_bytes(field: &v1::Field) -> usize {
    match &field.value {
        Some(v1::field::Value::Tensor(tensor)) => tensor.data.len(),
        Some(v1::field::Value::Bytes(bytes)) => bytes.len(),
        None => 0,
    }
}

/// A client of the node, or of the cluster that it belongs to. A write with a request id costs more
/// than a plain one.
pub async fn client(endpoint: &str, request_ids: bool) -> anyhow::Result<Client> {
    let config = Config { request_ids, ..Config::new(endpoint) };
    Ok(Client::connect(config).await?)
}

/// A client of the node, with the load's collection made.
pub async fn connect(endpoint: &str) -> anyhow::Result<Client> {
    let client = client(endpoint, false).await?;
    let request = v1::CreateCollectionRequest {
        name: COLLECTION.to_owned(),
        settings: None,
        if_not_exists: true,
    };
    client.create_collection(request).await?;
    Ok(client)
}

/// Puts a state under every key of a node.
pub async fn load(client: &Client, payload: &Payload, keys: u64) -> anyhow::Result<()> {
    let plan = LoadPlan::of(payload.value.len());
    let mut under_way = std::collections::VecDeque::new();
    let mut next = 1;
    while next <= keys || !under_way.is_empty() {
        if next <= keys && under_way.len() < plan.calls {
            let until = (next + plan.batch).min(keys + 1);
            let put = |rank| v1::PutRequest {
                collection: COLLECTION.to_owned(),
                key: key(rank),
                fields: payload.fields.clone(),
                options: None,
            };
            let puts = (next..until).map(put).collect();
            let call = Call::BatchPut(v1::BatchPutRequest { puts });
            under_way.push_back(client.send(call).await?);
            next = until;
            continue;
        }
        let Some(answer) = under_way.pop_front() else { continue };
        let Answer::BatchPut(answer) = answer.await? else { bail!("not the answer of a put") };
        for item in answer.items {
            if let Some(v1::batch_put_response::item::Result::Error(error)) = item.result {
                bail!("load: {}: {}", error.reason, error.message);
            }
        }
    }
    Ok(())
}

/// Sets a value under every key of a peer, by as many calls at a time as a node is loaded with.
pub async fn load_peer(
    target: Target,
    endpoint: &str,
    payload: &Payload,
    keys: u64,
) -> anyhow::Result<()> {
    let plan = LoadPlan::of(payload.value.len());
    let mut lane = Lane::connect(target, endpoint, plan.calls, payload.clone()).await?;
    // etcd has no call for many keys of any size.
    let (kind, batch) = match target {
        Target::Etcd => (Kind::Put, 1),
        _ => (Kind::BatchPut, plan.batch),
    };
    let (mut next, mut under_way) = (1, 0);
    while next <= keys || under_way > 0 {
        if next <= keys && under_way < plan.calls {
            let until = (next + batch).min(keys + 1);
            let keys = (next..until).map(key).collect();
            lane.start(next, workload::Call { kind, keys }).await?;
            (next, under_way) = (until, under_way + 1);
            continue;
        }
        if let (_, Err(error)) = lane.next().await? {
            bail!("load: {error}");
        }
        under_way -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_of_large_states_has_few_bytes_under_way() {
        assert_eq!(LoadPlan::of(0), LoadPlan { calls: 16, batch: 64 });
        assert_eq!(LoadPlan::of(1 << 10), LoadPlan { calls: 16, batch: 64 });
        assert_eq!(LoadPlan::of(256 << 10), LoadPlan { calls: 16, batch: 4 });
        assert_eq!(LoadPlan::of(5 << 20), LoadPlan { calls: 3, batch: 1 });
        assert_eq!(LoadPlan::of(64 << 20), LoadPlan { calls: 1, batch: 1 });
    }
}
