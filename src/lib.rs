//! Statehouse: a stateful model-state store that scores where the state lies.
//!
//! This crate is how a node runs: the process, its services and its command line. Read `node.rs`
//! first; `score.rs` reads top to bottom as the product's main use case.
//!
//! | module | concept |
//! |---|---|
//! | `node` | composes the rooms in order, stops them in reverse |
//! | `config` | what a node is told: file, environment, flags |
//! | `memory` | one limit for all of a node's memory, and its parts |
//! | `admission` | a call's share of it, taken before the work |
//! | `size` | sizes as people write them |
//! | `router` | which node serves a call |
//! | `states` | the State use case |
//! | `chain` | keeps the writes and steps of a key in order |
//! | `score` | the Score use case |
//! | `models` | the models a node has loaded |
//! | `large` | the log of large requests |
//! | `scheduling` | how threads take turns |
//! | `failure` | every reason a caller can be given |
//! | `grpc` | the services; generated types stop there |
//! | `http` | `/metrics`, `/livez`, `/readyz` |
//! | `replay` | steps through a file of events |
//! | `bench` | load and what it cost |
//! | `cli` | one file per subcommand |
//!
//! Not done: TLS.

pub mod admission;
pub mod bench;
pub mod chain;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dtype;
pub mod failure;
pub mod grpc;
pub mod http;
pub mod large;
mod leave;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod node;
pub mod replay;
pub mod router;
pub mod scheduling;
pub mod score;
pub mod scrub;
pub mod size;
pub mod states;
mod stream_threads;
pub mod svg;
mod sweep;
pub mod telemetry;
