//! STOW-RS (PS3.18 section 10.5): one instance in one request.

use hyper::StatusCode;
use serde_json::Value;

use super::{HttpConfig, Outcome, http};
use crate::spool::Delivery;

/// FailedSOPSequence and the FailureReason in its items (PS3.18 annex I).
const FAILED_SOP_SEQUENCE: &str = "00081198";
const FAILURE_REASON: &str = "00081197";

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
        Ok((status, body)) => judge(status, &body),
        Err(outcome) => outcome,
    }
}

/// 200: stored. 202: some stored, some failed, or stored with warnings. 409: none stored. The answer says of each
/// instance what became of it, and only one was sent.
fn judge(status: StatusCode, body: &[u8]) -> Outcome {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let failed = &answer[FAILED_SOP_SEQUENCE]["Value"][0];
    if failed.is_null() || !matches!(status.as_u16(), 200 | 202 | 409) {
        return http::judge(status);
    }
    let code = failed[FAILURE_REASON]["Value"][0].as_u64().unwrap_or(0);
    let reason = format!("STOW failure reason {code:04X}");
    match code {
        // Processing failure and out of resources, of the moment.
        0x0110 | 0xA700..=0xA7FF => Outcome::Later(reason),
        _ => Outcome::Never(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_tells_of_the_instance_whatever_its_status() {
        let answer = |code: u64| {
            serde_json::json!({
                "00081190": { "vr": "UR", "Value": ["http://x"] },
                FAILED_SOP_SEQUENCE: { "vr": "SQ", "Value": [{ FAILURE_REASON: { "vr": "US", "Value": [code] } }] },
            })
            .to_string()
        };
        let ok = StatusCode::OK;
        assert_eq!(judge(ok, b"{\"00081199\":{}}"), Outcome::Sent);
        assert_eq!(judge(ok, b""), Outcome::Sent);
        assert_eq!(judge(StatusCode::ACCEPTED, b"{}"), Outcome::Sent);
        assert!(matches!(judge(ok, answer(0xC000).as_bytes()), Outcome::Never(_)));
        assert!(matches!(
            judge(StatusCode::ACCEPTED, answer(0x0122).as_bytes()),
            Outcome::Never(_)
        ));
        assert!(matches!(
            judge(StatusCode::CONFLICT, answer(0xA700).as_bytes()),
            Outcome::Later(_)
        ));
        assert!(matches!(judge(StatusCode::CONFLICT, b"no"), Outcome::Never(_)));
        assert!(matches!(judge(StatusCode::BAD_GATEWAY, b""), Outcome::Unreachable(_)));
    }
}
