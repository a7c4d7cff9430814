//! How queries are put to what is measured: one after the other, or at times of their own.
//!
//! A closed loop asks again when it has the answer. While the subject stalls it asks nothing, so that one slow query
//! stands for all those that would have come meanwhile (coordinated omission). An open loop asks at times fixed
//! beforehand, and a query's latency counts from when it was meant to start, however late it did.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stats::uniforms;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "loop")]
pub enum Load {
    Closed,
    Open { per_second: f64, arrivals: Arrivals },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Equal times between arrivals.
    Fixed,
    /// Exponential times between arrivals, as of many independent senders; the same in every run.
    Poisson,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("closed loop"),
            Self::Open { per_second, arrivals } => {
                let arrivals = match arrivals {
                    Arrivals::Fixed => "fixed",
                    Arrivals::Poisson => "Poisson",
                };
                write!(f, "open loop, {per_second} a second, {arrivals} arrivals")
            }
        }
    }
}

impl Load {
    /// When each of `queries` is meant to start, after the beginning; `None` in a closed loop.
    #[must_use]
    pub fn schedule(self, queries: usize) -> Option<Vec<Duration>> {
        let Self::Open { per_second, arrivals } = self else { return None };
        let mut at = 0.0;
        let gaps = uniforms(0, u32::MAX, queries).map(|uniform| match arrivals {
            Arrivals::Fixed => 1.0,
            Arrivals::Poisson => -(-uniform).ln_1p(),
        });
        let starts = gaps.map(|gap| {
            let start = Duration::from_secs_f64(at / per_second);
            at += gap;
            start
        });
        Some(starts.collect())
    }
}

/// Time since some beginning. The tests have one of their own.
pub trait Clock {
    fn now(&self) -> Duration;
    /// Returns at once where `at` has passed.
    fn wait_until(&self, at: Duration);
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct Monotonic(Instant);

impl Monotonic {
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait_until(&self, at: Duration) {
        std::thread::sleep(at.saturating_sub(self.now()));
    }
}

/// A query and its answer, in time since the loop began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered<T> {
    pub intended: Duration,
    pub started: Duration,
    pub ended: Duration,
    pub answer: T,
}

impl<T> Answered<T> {
    /// From when it was meant to start.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.intended)
    }
}

/// Asks `query` for 0, 1, … `queries` - 1 on this thread: the subject answers one at a time.
///
/// # Errors
/// The first of `query`.
pub fn drive<T, E>(
    load: Load,
    clock: &impl Clock,
    queries: usize,
    mut query: impl FnMut(usize) -> Result<T, E>,
) -> Result<Vec<Answered<T>>, E> {
    let schedule = load.schedule(queries);
    let beginning = clock.now();
    (0..queries)
        .map(|number| {
            let intended = schedule.as_ref().map(|starts| starts[number]);
            if let Some(intended) = intended {
                clock.wait_until(beginning + intended);
            }
            let started = clock.now().saturating_sub(beginning);
            let answer = query(number)?;
            let ended = clock.now().saturating_sub(beginning);
            Ok(Answered { intended: intended.unwrap_or(started), started, ended, answer })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use crate::bench::stats::{median, percentile, sorted};

    /// Passes when told to.
    #[derive(Default)]
    struct Told(Cell<Duration>);

    impl Clock for Told {
        fn now(&self) -> Duration {
            self.0.get()
        }

        fn wait_until(&self, at: Duration) {
            self.0.set(self.0.get().max(at));
        }
    }

    const OPEN: Load = Load::Open { per_second: 100.0, arrivals: Arrivals::Fixed };

    /// Latencies in ms of a subject that takes 1 ms, but stalls for 2 s at query 500 of 1000.
    fn stalling(load: Load) -> Vec<f64> {
        let clock = Told::default();
        let answered = drive(load, &clock, 1000, |number| {
            let takes = Duration::from_millis(if number == 500 { 2000 } else { 1 });
            clock.0.set(clock.0.get() + takes);
            Ok::<_, Infallible>(())
        });
        answered.unwrap().iter().map(|query| query.latency().as_secs_f64() * 1e3).collect()
    }

    #[test]
    fn a_stall_counts_for_every_query_that_it_kept_waiting() {
        let closed = stalling(Load::Closed);
        assert_eq!(percentile(&sorted(&closed), 0.99).value, Some(1.0), "one slow query of 1000");
        let open = stalling(OPEN);
        assert_eq!(median(&open), Some(1.0));
        // 200 queries were due in those 2 s; the k-th after the stall waits 9 ms less than the one before it.
        let p99 = percentile(&sorted(&open), 0.99).value.unwrap();
        assert!((p99 - 1910.0).abs() < 10.0, "{p99}");
        let waited = open.iter().filter(|&&latency| latency > 1.5).count();
        assert!((220..=224).contains(&waited), "2000 ms / 9 ms: {waited}");
        assert!((open[501] - 1991.0).abs() < 1e-6, "{}", open[501]);
    }

    #[test]
    fn arrivals_keep_their_rate() {
        let fixed = OPEN.schedule(3).unwrap();
        assert_eq!(fixed, [0, 10, 20].map(Duration::from_millis));
        let poisson = Load::Open { per_second: 100.0, arrivals: Arrivals::Poisson };
        let times = poisson.schedule(20_000).unwrap();
        let last = times.last().unwrap().as_secs_f64();
        assert!((last - 200.0).abs() < 6.0, "four standard deviations of 1.4: {last}");
        let gaps: Vec<f64> =
            times.windows(2).map(|w| w[1].as_secs_f64() - w[0].as_secs_f64()).collect();
        let longer = gaps.iter().filter(|gap| **gap > 0.01).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.02, "exponential: {longer}");
        assert_eq!(times, poisson.schedule(20_000).unwrap());
        assert_eq!(Load::Closed.schedule(5), None);
    }
}
