//! Waits for something of the cluster to come about, and shows how far it is.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use statehouse_client::Error;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Code;

use super::super::text;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// How long a wait without a limit of its own goes on.
const FOR_EVER: &str = "3650d";

/// Whether to wait.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Wait {
    /// Wait until it's done (`status`: until all is well), for this long at most if a time such
    /// as 10m is given.
    #[arg(
        long = "wait",
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = FOR_EVER,
        value_parser = text::duration,
    )]
    limit: Option<Duration>,
}

/// How far something is.
pub enum Progress {
    /// It came about.
    Over,
    /// It is still going on.
    Going {
        /// What is going on, in a few words.
        now: String,
        /// Of all there is to do, from 0 to 1, where that is known.
        share: Option<f64>,
    },
}

impl Wait {
    /// Whether waiting was asked for.
    pub fn wanted(self) -> bool {
        self.limit.is_some()
    }

    /// Looks until it's over. Nodes that do not answer meanwhile are asked again.
    pub async fn until_over(
        self,
        look: impl AsyncFn() -> anyhow::Result<Progress>,
    ) -> anyhow::Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        until_over(limit, look).await
    }
}

/// Looks until it's over or the time is up.
pub async fn until_over(
    limit: Duration,
    look: impl AsyncFn() -> anyhow::Result<Progress>,
) -> anyhow::Result<()> {
    let give_up = Instant::now() + limit;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = Shown::new();
    loop {
        ticks.tick().await;
        let now = match look().await {
            Ok(Progress::Over) => {
                shown.end();
                return Ok(());
            }
            Ok(Progress::Going { now, share }) => {
                shown.show(&now, share);
                now
            }
            Err(error) if passes(&error) => {
                shown.show(&format!("{error:#}"), None);
                format!("{error:#}")
            }
            Err(error) => {
                shown.end();
                return Err(error);
            }
        };
        if Instant::now() >= give_up {
            shown.end();
            return Err(timed_out(limit, &now).into());
        }
    }
}

/// Whether a look may succeed by and by: nobody answered, or not now.
fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| match error {
        Error::Unreachable { .. } => true,
        Error::Refused { code, .. } => {
            matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
        }
        Error::Unexpected(_) => false,
    })
}

/// Refused for now: whoever waited may wait on.
fn timed_out(limit: Duration, now: &str) -> Error {
    Error::Refused {
        code: Code::DeadlineExceeded,
        reason: "DEADLINE_EXCEEDED".to_owned(),
        message: format!("after {limit:?} still: {now}"),
        metadata: std::collections::HashMap::new(),
        retry_after: None,
    }
}

/// A bar on a terminal, else a line on standard error whenever the words change.
struct Shown {
    bar: Option<ProgressBar>,
    last: String,
}

/// Steps of a bar.
const BAR_STEPS: u64 = 1_000;

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("[{elapsed}] {bar:30} {msg}")
                .expect("the template is valid");
            ProgressBar::new(BAR_STEPS).with_style(style)
        });
        Shown { bar, last: String::new() }
    }

    fn show(&mut self, now: &str, share: Option<f64>) {
        if let Some(bar) = &self.bar {
            bar.set_message(now.to_owned());
            bar.set_position((share.unwrap_or(0.0).clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
        } else if self.last != now {
            eprintln!("{now}");
        }
        now.clone_into(&mut self.last);
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
