//! Load: who asks what how often, and what it cost.
//!
//! `workload.rs` decides the calls (pure, seeded), a *lane* carries them over one connection
//! (`lane.rs`: unary, pipelined, Redis, etcd, echo), `drive.rs` runs lanes open-loop (at a rate,
//! latency from the moment a call was due) or closed-loop (so many under way), `report.rs` says
//! what came of it. `large.rs` has loads of its own, for large states. The clock of a call stops
//! at the last byte of its answer.

mod drive;
mod echo;
mod etcd;
mod lane;
pub mod large;
mod machine;
mod redis;
mod report;
mod setup;
mod workload;

pub use drive::{Pace, Plan, drive};
pub use echo::serve_echo;
pub use lane::{Lane, Target};
pub use machine::{busy_share, describe};
pub use report::{Figures, print_figures};
pub use setup::{COLLECTION, connect, load, load_peer, prepare};
pub use workload::{Call, Kind, Mix, Payload, Workload};
