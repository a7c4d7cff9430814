use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Time to wait after `attempts` failures: doubles from `first` to `max`, less up to a quarter by chance, so that
/// many senders do not come back at once.
pub(super) fn delay(attempts: u32, first: Duration, max: Duration) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempts.min(20)));
    let full = doubled.min(max);
    let chance = RandomState::new().hash_one(0) as u32;
    full.mul_f64(1.0 - f64::from(chance) / f64::from(u32::MAX) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_with_some_jitter() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(10));
        for (attempts, full) in [(0, 100), (1, 200), (4, 1600), (9, 10_000), (1000, 10_000)] {
            let delay = delay(attempts, first, max);
            let full = Duration::from_millis(full);
            assert!(delay <= full && delay >= full * 3 / 4, "{attempts}: {delay:?}");
        }
    }
}
