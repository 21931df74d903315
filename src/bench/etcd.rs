//! A lane to an etcd member: Put and a linearizable Range, one gRPC call each.

use std::pin::Pin;

use anyhow::bail;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use statehouse_proto::bench::etcd::kv_client::KvClient;
use statehouse_proto::bench::etcd::{PutRequest, RangeRequest};
use tonic::transport::Channel;

use super::lane::Done;
use super::workload::{Call, Kind};

type CallUnderWay = Pin<Box<dyn Future<Output = Done> + Send>>;

/// One connection.
pub struct EtcdLane {
    client: KvClient<Channel>,
    value: Bytes,
    pub(super) under_way: FuturesUnordered<CallUnderWay>,
}

impl EtcdLane {
    pub(super) fn new(channel: Channel, value: Bytes) -> Self {
        EtcdLane { client: KvClient::new(channel), value, under_way: FuturesUnordered::new() }
    }

    /// Starts a call.
    pub fn start(&mut self, id: u64, call: Call) -> anyhow::Result<()> {
        let (mut client, value) = (self.client.clone(), self.value.clone());
        let key = call.keys.into_iter().next().unwrap_or_default();
        let answer: CallUnderWay = match call.kind {
            Kind::Put => Box::pin(async move {
                let answer = client.put(PutRequest { key, value }).await;
                (id, answer.map(|_| 0).map_err(|status| status.message().to_owned()))
            }),
            Kind::Get => Box::pin(async move {
                let answer = client.range(RangeRequest { key }).await;
                let found = answer.map_err(|status| status.message().to_owned());
                let value = found.and_then(|found| {
                    let found = found.into_inner().kvs.into_iter().next();
                    found.map(|row| row.value.len() as u64).ok_or("the key is missing".to_owned())
                });
                (id, value)
            }),
            Kind::BatchGet | Kind::BatchPut | Kind::Peek | Kind::Step => {
                bail!("etcd is compared by get and put alone")
            }
        };
        self.under_way.push(answer);
        Ok(())
    }
}
