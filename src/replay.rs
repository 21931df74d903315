//! Steps through a file of events: each becomes a score of its key, in order per key.
//!
//! `map.rs` says how a row becomes a request, `events.rs` reads rows, `run.rs` sends and measures,
//! `report.rs` draws the page, `generate.rs` makes up a file.

mod dates;
mod events;
pub mod generate;
mod map;
mod report;
mod run;

pub use events::{Event, Events};
pub use map::Map;
pub use report::write_report;
pub use run::{Options, Outcome, Slice, Surprise, run};
