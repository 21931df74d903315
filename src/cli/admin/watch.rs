//! Shows something again and again: in place on a terminal, else whenever it changed.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::{MissedTickBehavior, interval};

use super::super::output::print_json;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Moves the cursor to the top left and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// One look at something.
pub struct View {
    /// For people; ends with a line break.
    pub text: String,
    /// For programs.
    pub json: Json,
    /// What counts as a change: not what moves all the time.
    pub gist: String,
}

impl View {
    /// Prints it once.
    pub fn print(&self, json: bool) {
        if json {
            print_json(&self.json);
        } else {
            print!("{}", self.text);
        }
    }
}

/// Looks until the command is ended. A look that fails is shown and taken again.
pub async fn watch(json: bool, look: impl AsyncFn() -> anyhow::Result<View>) -> anyhow::Result<()> {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let in_place = std::io::stdout().is_terminal() && !json;
    let mut shown = None;
    loop {
        ticks.tick().await;
        let view = look().await.unwrap_or_else(|error| {
            let text = format!("{error:#}\n");
            View { json: serde_json::json!({ "error": text.trim() }), gist: text.clone(), text }
        });
        let mut out = std::io::stdout().lock();
        if in_place {
            write!(out, "{CLEAR}{}", view.text)?;
        } else if shown.as_ref() != Some(&view.gist) {
            match json {
                true => writeln!(out, "{}", view.json)?,
                false => writeln!(out, "{}", view.text)?,
            }
        }
        out.flush()?;
        shown = Some(view.gist);
    }
}
