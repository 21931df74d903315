//! Steps through a file of events: each becomes a score of its key, in order per key.
//!
//! `map.rs` says how a row becomes a request, `events.rs` reads rows, `shape.rs` and `number.rs`
//! make them what the model takes, `run.rs` sends and measures, `report.rs` draws the page,
//! `generate.rs` makes up a file.

mod dates;
mod events;
pub mod generate;
mod map;
mod number;
mod report;
mod run;
mod shape;

pub use events::{Event, Events};
pub use map::Map;
pub use report::write_report;
pub use run::{Options, Outcome, Slice, Surprise, run};
