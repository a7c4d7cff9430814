use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Collector, Unreachable};
use crate::fleet::rollout::{Proof, Report};
use crate::telemetry::audit::Tail;

/// A little more than collectors ask for by default: reports that leave so far apart may arrive closer together.
const FIRST_GAP: Duration = Duration::from_millis(1250);
/// Status of the collector's answer to a report that came too soon after the one before.
const TOO_SOON: u16 = 429;
const LONGEST_GAP: Duration = Duration::from_mins(5);

/// Of the audit trail, so much goes with one report; the rest with the next ones.
const MAX_TRAIL_BYTES: usize = 32 << 10;

/// Whether a device begins with updates while it cannot reach its collector.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutCollector {
    #[default]
    GoOn,
    Hold,
}

/// The collector's last word, or what holds without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Go,
    /// Why the device has to wait.
    Hold(String),
}

/// The device's side: posts its reports and remembers what it was told.
#[derive(Debug)]
pub struct Reporter {
    collector: Collector,
    without: WithoutCollector,
    trail: Option<Tail>,
    /// Up to this line the collector knows the trail; nothing was heard yet.
    known_seq: Option<u64>,
    standing: Option<Standing>,
    gap: Duration,
    is_refused: bool,
}

impl Reporter {
    /// `trail`: the device's audit trail, where it keeps one.
    #[must_use]
    pub fn new(collector: Collector, without: WithoutCollector, trail: Option<PathBuf>) -> Self {
        let trail = trail.map(Tail::new);
        let (known_seq, standing) = (None, None);
        let (gap, is_refused) = (FIRST_GAP, false);
        Self { collector, without, trail, known_seq, standing, gap, is_refused }
    }

    /// With the reason why the device had to wait when it last knew, kept over a restart.
    #[must_use]
    pub fn held(self, reason: Option<String>) -> Self {
        Self { standing: reason.map(Standing::Hold).or(self.standing), ..self }
    }

    /// The shortest time between two reports, from what the collector refused so far.
    #[must_use]
    pub fn gap(&self) -> Duration {
        self.gap
    }

    /// Whether the last report came too soon for the collector and has to be sent again.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Posts `report` with the end of the trail, and what the device should do now. A pause that was heard holds until the
    /// collector takes it back: who can cut the line must not be able to end it.
    pub async fn report(&mut self, mut report: Report) -> Standing {
        report.audit = self.proof();
        self.is_refused = false;
        match self.collector.report(&report).await {
            Ok(answer) => {
                self.known_seq = Some(answer.audit_seq);
                let reason = || answer.reason.unwrap_or_else(|| "the collector says so".to_owned());
                let standing = if answer.go { Standing::Go } else { Standing::Hold(reason()) };
                self.standing = Some(standing.clone());
                standing
            }
            Err(error @ Unreachable::Refused { status: TOO_SOON, .. }) => {
                self.gap = self.gap.saturating_mul(2).min(LONGEST_GAP);
                self.is_refused = true;
                tracing::debug!(gap = ?self.gap, "the collector wants reports further apart");
                // It is there and has taken nothing back.
                self.standing.clone().unwrap_or_else(|| self.alone(&error))
            }
            Err(error) => {
                tracing::warn!(%error, "not reported");
                self.alone(&error)
            }
        }
    }

    fn alone(&self, error: &Unreachable) -> Standing {
        match (&self.standing, self.without) {
            (Some(Standing::Hold(reason)), _) => Standing::Hold(reason.clone()),
            (_, WithoutCollector::GoOn) => Standing::Go,
            (_, WithoutCollector::Hold) => Standing::Hold(error.to_string()),
        }
    }

    /// The trail's end, and the lines that the collector does not know once it has said which it knows.
    fn proof(&mut self) -> Proof {
        let Some(trail) = &mut self.trail else { return Proof::default() };
        let max = if self.known_seq.is_some() { MAX_TRAIL_BYTES } else { 0 };
        match trail.after(self.known_seq.unwrap_or(0), max) {
            Ok((end, lines)) => Proof { seq: end.seq, seal: end.seal, lines },
            Err(error) => {
                tracing::error!(%error, "the audit trail cannot be read");
                Proof::default()
            }
        }
    }
}
