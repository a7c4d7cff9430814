use serde::{Deserialize, Serialize};

use super::Proof;
use crate::telemetry::audit::End;

/// So long a device may tell of lines that it does not show.
const PATIENCE_MS: u64 = 3_600_000;

/// What is known of a device's audit trail.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trail {
    /// Up to here every line was seen to follow the one before it; the first end of all is taken on trust.
    pub seq: u64,
    pub seal: String,
    /// Since when the device tells of lines that it has not shown.
    pub behind_since_ms: Option<u64>,
    /// It was last found broken at this time.
    pub alarm_ms: Option<u64>,
}

pub(super) struct Heard {
    pub(super) trail: Trail,
    pub(super) alarm: Option<String>,
}

/// Takes what a device shows of its trail. After an alarm the trail is taken from where it is said to end, so that a
/// further break shows again.
pub(super) fn hear(known: Option<&Trail>, told: &Proof, now_ms: u64) -> Heard {
    let told_end = End { seq: told.seq, seal: told.seal.clone() };
    let Some(known) = known else {
        let trail = Trail { seq: told.seq, seal: told.seal.clone(), ..Trail::default() };
        return Heard { trail, alarm: None };
    };
    let end = End { seq: known.seq, seal: known.seal.clone() };
    let (end, mut alarm) = match follow(end, &told_end, &told.lines) {
        Ok(end) => (end, None),
        Err(what) => (told_end.clone(), Some(what)),
    };
    let is_behind = end.seq < told_end.seq;
    let mut behind_since_ms =
        is_behind.then(|| known.behind_since_ms.filter(|_| end.seq == known.seq).unwrap_or(now_ms));
    if behind_since_ms.is_some_and(|since| now_ms.saturating_sub(since) >= PATIENCE_MS) {
        behind_since_ms = Some(now_ms);
        alarm = Some(format!(
            "the audit trail is said to end at line {}, but nothing after line {} is shown",
            told_end.seq, end.seq
        ));
    }
    let alarm_ms = alarm.as_ref().map(|_| now_ms).or(known.alarm_ms);
    Heard { trail: Trail { seq: end.seq, seal: end.seal, behind_since_ms, alarm_ms }, alarm }
}

/// Follows the lines as far as they go.
fn follow(known: End, told: &End, lines: &[String]) -> Result<End, String> {
    if told.seq < known.seq {
        let (told, known) = (told.seq, known.seq);
        return Err(format!("the audit trail ends at line {told}, it had {known}: it was cut"));
    }
    // What was shown already is shown again where an answer was lost.
    let is_new = |line: &&String| seq_of(line).is_none_or(|seq| seq > known.seq);
    let mut end = known.clone();
    for line in lines.iter().filter(is_new) {
        end = end
            .extend(line)
            .map_err(|problem| format!("line {} of the audit trail {problem}", end.seq + 1))?;
    }
    if end.seq > told.seq || (end.seq == told.seq && end.seal != told.seal) {
        return Err(format!("line {} of the audit trail is another one than before", told.seq));
    }
    Ok(end)
}

fn seq_of(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_str::<Numbered>(line).ok().map(|line| line.seq)
}
