//! A token bucket: how much may be spent now, and when more comes.

use std::time::{Duration, Instant};

const NANOS: u128 = 1_000_000_000;

/// Tokens come at a steady rate up to a burst.
pub(super) struct Limit {
    burst: u64,
    per_second: u64,
    tokens: u64,
    filled: Instant,
}

impl Limit {
    /// A full bucket.
    pub(super) fn new(burst: u64, per_second: u64, now: Instant) -> Self {
        Self { burst, per_second, tokens: burst, filled: now }
    }

    /// Takes at most `wanted` tokens; 0 where the bucket holds neither that nor an eighth of the burst, so that a
    /// starved guest does not cause a wake-up per byte.
    pub(super) fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        self.fill(now);
        if self.tokens < wanted.min(self.burst / 8) {
            return 0;
        }
        let granted = wanted.min(self.tokens);
        self.tokens -= granted;
        granted
    }

    /// Puts back what was granted and not used.
    pub(super) fn give_back(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
    }

    /// Time until an eighth of the burst is there.
    pub(super) fn delay(&self) -> Duration {
        let missing = (self.burst / 8).saturating_sub(self.tokens);
        Duration::from_nanos(missing.saturating_mul(1_000_000_000) / self.per_second.max(1))
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        let earned = elapsed.as_nanos().saturating_mul(u128::from(self.per_second)) / NANOS;
        if earned == 0 {
            // The clock is kept, or a bucket that is asked often would never fill.
            return;
        }
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_bucket_grants_again_after_its_delay() {
        let now = Instant::now();
        let mut limit = Limit::new(800, 1000, now);
        assert_eq!(limit.take(1000, now), 800);
        assert_eq!(limit.take(1, now), 0);
        assert_eq!(limit.delay(), Duration::from_millis(100));
        assert_eq!(limit.take(1000, now + Duration::from_millis(100)), 100);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            asks in prop::collection::vec((0u64..5000, 0u64..2_000_000), 1..50),
        ) {
            let start = Instant::now();
            let mut limit = Limit::new(1000, 500, start);
            let mut now = start;
            let mut granted = 0;
            for (wanted, micros) in asks {
                now += Duration::from_micros(micros);
                granted += limit.take(wanted, now);
            }
            let earned = (now - start).as_nanos() * 500 / NANOS;
            prop_assert!(u128::from(granted) <= 1000 + earned);
        }
    }
}
