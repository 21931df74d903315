//! ONNX graphs at run time: parse, plan once, run many times.
//!
//! `wire` names the protobuf fields that are read, `graph` turns the message into a checked graph,
//! `op` turns each node into a typed operator, `plan` orders, folds and frees, and `run` executes
//! over any Burn backend. Only `run` knows Burn.

pub mod fast_math;
pub mod fault;
pub mod graph;
pub mod host;
pub mod linear;
pub mod op;
pub mod plan;
pub mod run;
pub mod supported;
pub mod trees;
mod wire;
