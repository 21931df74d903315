//! What we say: the gRPC services and messages of `statehouse.v1`, generated from the `.proto`
//! files beside this crate.
//!
//! No logic lives here, but for the codec that puts them on the wire. Generated types stop at
//! the `convert.rs` of the crate that speaks them: nothing inside a node passes them on.

pub mod codec;

/// Version 1 of the public protocol.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod v1 {
    tonic::include_proto!("statehouse.v1");
}

/// What the load generator measures gRPC itself with.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod bench {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("statehouse.bench.v1");
    }

    /// What it speaks to etcd.
    pub mod etcd {
        tonic::include_proto!("etcdserverpb");
    }
}

/// The file descriptors of the services that a node serves to its clients, for reflection: what
/// nodes say to each other and what the load generator speaks is not among them.
pub const SERVED_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/served.bin"));
