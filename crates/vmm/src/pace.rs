//! Owns the bound on how fast bytes from a VM are taken in: a token bucket.
//! What is not taken in stays in the socket or pipe, so the writer waits instead of us.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A reader's allowance: `rate` bytes a second, after a burst.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: u32,
    burst: Duration,
    /// When everything read so far would have been due at exactly `rate`.
    due: Instant,
}

impl Pace {
    /// `rate` bytes a second, with `burst` bytes taken at once after a pause.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        Self { rate, burst: Duration::from_secs(1) * burst / rate, due: Instant::now() }
    }

    /// Accounts for `bytes` just read, and waits until the next may be.
    pub(crate) async fn spent(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let cost = Duration::from_secs_f64(f64::from(bytes) / f64::from(self.rate));
        self.due = self.due.max(Instant::now()) + cost;
        if let Some(start) = self.due.checked_sub(self.burst) {
            sleep_until(start).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_is_paced() {
        let begin = Instant::now();
        let mut pace = Pace::new(1000, 500);
        pace.spent(500).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        pace.spent(2000).await;
        let taken = begin.elapsed().as_millis();
        assert!((2000..2010).contains(&taken), "{taken} ms");
    }
}
