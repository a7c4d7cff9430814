//! STOW-RS (PS3.18 section 10.5): one instance in one request.

use hyper::StatusCode;

use super::{HttpConfig, Outcome, http};
use crate::codec::stow::{self, Failure};
use crate::spool::Delivery;

/// Failure Reasons (PS3.18 table I.2-2, PS3.4 table B.2-1), and what common servers add to them.
mod reason {
    pub const PROCESSING_FAILURE: u16 = 0x0110;
    pub const DUPLICATE_SOP_INSTANCE: u16 = 0x0111;
    /// Azure's DICOM service: the instance has already been stored.
    pub const AZURE_ALREADY_STORED: u16 = 0xB00E;
    /// Azure's DICOM service: another request is storing the instance.
    pub const AZURE_BEING_STORED: u16 = 0xB00F;
}

/// So often a failure without a telling reason is tried again. Archives give it for passing trouble as well as for what
/// will never change.
const VAGUE_ATTEMPTS: u32 = 5;

pub(super) async fn send(config: &HttpConfig, delivery: &Delivery, file: &[u8]) -> Outcome {
    if delivery.dicom.is_none() {
        return Outcome::Never("the product is not a DICOM file".to_owned());
    }
    let boundary = &delivery.sha256; // stands in no file that has this hash
    let head = format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n");
    let tail = format!("\r\n--{boundary}--\r\n");
    let message = http::Message {
        content_type: format!(
            "multipart/related; type=\"application/dicom\"; boundary=\"{boundary}\""
        ),
        accept: "application/dicom+json",
        key: format!("{}-{}", delivery.job, &delivery.sha256[..16]),
        body: [head.as_bytes(), file, tail.as_bytes()].concat(),
    };
    match http::post(config, message).await {
        Ok((status, body)) => match judge(status, &body, delivery.attempts) {
            Verdict::Exists => {
                let (job, destination) = (&delivery.job, delivery.destination.as_str());
                tracing::info!(%job, destination, "the destination holds the object already");
                Outcome::Sent
            }
            Verdict::Other(outcome) => outcome,
        },
        Err(outcome) => outcome,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is there, from an attempt whose answer was lost: its UID stands for the same bytes.
    Exists,
    Other(Outcome),
}

/// 200: stored. 202: some stored, some failed, or stored with warnings. 409: none stored. But only one instance was sent,
/// so that any failure in the body is of this one, whatever the status; without one the status decides.
fn judge(status: StatusCode, body: &[u8], attempts: u32) -> Verdict {
    if let Some(failure) = stow::failures(body).first() {
        return judge_failure(*failure, attempts);
    }
    if status == StatusCode::CONFLICT && stow::says_exists(&String::from_utf8_lossy(body)) {
        return Verdict::Exists;
    }
    Verdict::Other(http::judge(status))
}

fn judge_failure(Failure { reason, says_exists }: Failure, attempts: u32) -> Verdict {
    let code = reason.map_or("none".to_owned(), |code| format!("{code:04X}"));
    let text = format!("STOW failure reason {code}");
    Verdict::Other(match reason {
        _ if says_exists => return Verdict::Exists,
        Some(reason::DUPLICATE_SOP_INSTANCE | reason::AZURE_ALREADY_STORED) => {
            return Verdict::Exists;
        }
        // Out of resources, or busy: of the moment.
        Some(0xA700..=0xA7FF | reason::AZURE_BEING_STORED) => Outcome::Later(text),
        None | Some(reason::PROCESSING_FAILURE) if attempts + 1 < VAGUE_ATTEMPTS => {
            Outcome::Later(text)
        }
        None | Some(reason::PROCESSING_FAILURE) => Outcome::Never(format!(
            "{text}, {VAGUE_ATTEMPTS} times; look there: the object may be stored already"
        )),
        Some(_) => Outcome::Never(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vague_failure_is_tried_again_a_few_times_only() {
        let failure = |attempts| {
            let failure = Failure { reason: Some(0x0110), says_exists: false };
            judge_failure(failure, attempts)
        };
        assert!(matches!(failure(0), Verdict::Other(Outcome::Later(_))));
        assert!(matches!(failure(VAGUE_ATTEMPTS - 2), Verdict::Other(Outcome::Later(_))));
        assert!(matches!(failure(VAGUE_ATTEMPTS - 1), Verdict::Other(Outcome::Never(_))));
    }
}
