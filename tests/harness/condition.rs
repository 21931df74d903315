//! Waiting for a condition: looked for again and again, for so long and no longer.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::PATIENCE;

/// Between two looks at something that is waited for.
const PERIOD: Duration = Duration::from_millis(50);

/// Waits until a look finds what it looks for; panics with what the last one said instead.
pub async fn await_some<T>(what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
    await_some_for(PATIENCE, what, look).await
}

/// As `await_some`, with a patience of its own.
pub async fn await_some_for<T>(
    patience: Duration,
    what: &str,
    look: impl AsyncFn() -> Result<T, String>,
) -> T {
    let mut last = String::from("nothing");
    let looking = async {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match look().await {
                Ok(found) => return found,
                Err(said) => last = said,
            }
        }
    };
    match timeout(patience, looking).await {
        Ok(found) => found,
        Err(_) => panic!("waited {patience:?} until {what}; last: {last}"),
    }
}
