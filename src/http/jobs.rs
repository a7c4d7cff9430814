//! `GET /v1/jobs/{id}` and what it made.

use std::fmt::Write;
use std::fs::File;
use std::io::Seek;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::Context;
use super::outgoing::FileBody;
use super::problem::{self, Problem, Segments};
use super::routes::Shared;
use super::serve::blocking;
use crate::durable;
use crate::spool::{JobId, JobReport, JobState, Place, ProductReport, SpoolError};

pub(super) async fn get(
    State(shared): State<Shared>,
    Segments(id): Segments<String>,
) -> Result<Response<Body>, Problem> {
    let report = report(&shared, &id).await?;
    let mut job = describe(&report);
    let pictures = shared.context.gallery.of(report.computed_as());
    let is_running = |_: &usize| report.state == JobState::Running;
    let preview = pictures.and_then(|pictures| pictures.preview).filter(is_running);
    job["preview"] = preview.map_or(
        Value::Null,
        |votes| json!({ "votes": votes, "href": format!("/v1/jobs/{}/pictures/mask", report.id) }),
    );
    Ok(problem::json(StatusCode::OK, &job))
}

/// The first product of a job: the DICOM SEG of a series, the mask of any other image.
pub(super) async fn mask(
    State(shared): State<Shared>,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let report = report(&shared, &id).await?;
    let product = report.products.first().cloned();
    send(&shared, product.ok_or_else(|| without_result(&report))?, &headers).await
}

/// One product by its name.
pub(super) async fn result(
    State(shared): State<Shared>,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let report = report(&shared, &id).await?;
    let product = report.products.iter().find(|product| product.name == name).cloned();
    let unknown = || {
        if report.products.is_empty() {
            without_result(&report)
        } else {
            not_found("the job has no result of this name")
        }
    };
    send(&shared, product.ok_or_else(unknown)?, &headers).await
}

pub(super) async fn report(shared: &Shared, id: &str) -> Result<JobReport, Problem> {
    let unknown =
        || not_found("there is no such job; it is named by `jobs[].id` of POST /v1/cases");
    let id = JobId::parse(id).ok_or_else(unknown)?;
    let context = Arc::clone(&shared.context);
    blocking(move || find(&context, &id)).await?.ok_or_else(unknown)
}

/// A job that was handed over is what became of it on the shared queue, under the number that it got here; where that cannot
/// be asked now it is `Shared`, and where it has removed the job, without a number there. A job of the queue has that number on
/// every device: so webhooks name it.
fn find(context: &Context, id: &JobId) -> Result<Option<JobReport>, SpoolError> {
    // Who asks is not made to wait for a server that is away: the worker asks for it all the time.
    let queue = context.shared.as_ref().filter(|queue| queue.is_reached());
    let here = context.spool.job(id)?;
    let there = match (queue, &here) {
        (Some(queue), None) => queue.job(id),
        (Some(queue), Some(JobReport { shared_as: Some(number), .. })) => queue.job(number),
        _ => return Ok(here),
    };
    match (there, here) {
        (Ok(there), None) => Ok(there),
        (Ok(Some(there)), Some(JobReport { id, shared_as, .. })) => {
            Ok(Some(JobReport { id, shared_as, ..there }))
        }
        (Ok(None), Some(here)) => Ok(Some(JobReport { shared_as: None, ..here })),
        (Err(error), here) if error.is_outage() => Ok(here),
        (Err(error), _) => Err(error),
    }
}

pub(super) fn not_found(error: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", error)
}

/// Why there is nothing to fetch.
fn without_result(report: &JobReport) -> Problem {
    let conflict = |code, error: String| Problem::new(StatusCode::CONFLICT, code, error);
    let reason = report.reason.as_deref().unwrap_or("no reason is recorded");
    match report.state {
        JobState::Received | JobState::Ready | JobState::Running => Problem {
            retry_after: Some(1),
            ..conflict(
                "not_ready",
                format!("the job is {}; ask again until it is done", report.state.as_str()),
            )
        },
        JobState::Failed => conflict("failed", format!("the job failed: {reason}")),
        JobState::Quarantined => conflict("quarantined", format!("the job is held: {reason}")),
        JobState::Shared if report.shared_as.is_none() => {
            Problem::new(StatusCode::GONE, "gone", "the shared queue keeps the job no more")
        }
        JobState::Shared => Problem {
            retry_after: Some(5),
            ..conflict(
                "shared",
                format!("the job is {reason}, which cannot be asked now; ask again"),
            )
        },
        JobState::Done => not_found("the job left no result"),
        JobState::Superseded => {
            conflict("superseded", "a later revision of the series covers the job".to_owned())
        }
        JobState::Dropped => conflict("dropped", "an operator gave the job up".to_owned()),
    }
}

/// The result, if it is still what was recorded; nothing of it if `asked` says that the client has it already.
async fn send(
    shared: &Shared,
    product: ProductReport,
    asked: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let ProductReport { name, sha256, bytes, place } = product;
    let tag = format!("\"{sha256}\"");
    let is_known = has_already(asked, &tag)?;
    let is_kept = move |place: &Place| !matches!(place, Place::File(path) if !path.exists());
    let context = Arc::clone(&shared.context);
    let body = blocking(move || {
        if is_known && is_kept(&place) {
            Ok(None)
        } else {
            read(&context, &place, &sha256, bytes).map(Some)
        }
    });
    let mut response = match body.await? {
        None => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        Some(kept) => {
            let mut response = Response::new(Body::from(kept));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(&name)));
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("none"));
            headers.insert(header::CONTENT_DISPOSITION, disposition(&name));
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(header::ETAG, HeaderValue::from_str(&tag).expect("a hash is plain text"));
    Ok(response)
}

/// Whether the client says that it has what `tag` names.
///
/// # Errors
/// If it wants something else (RFC 9110 section 13.1).
fn has_already(asked: &HeaderMap, tag: &str) -> Result<bool, Problem> {
    let lists = |name| asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut wanted = lists(header::IF_MATCH).peekable();
    if wanted.peek().is_some() && !wanted.any(|tags| names_tag(tags, tag, false)) {
        let error = "the result is another than If-Match names (RFC 9110 section 13.1.1)";
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "changed", error));
    }
    Ok(lists(header::IF_NONE_MATCH).any(|tags| names_tag(tags, tag, true)))
}

/// Whether a list of entity tags names `tag`, or any there is (`*`); `weakly`: the mark of a weak tag does not matter
/// (RFC 9110 section 8.8.3.2). `tag` has no comma.
fn names_tag(tags: &str, tag: &str, weakly: bool) -> bool {
    tags.split(',').map(str::trim).any(|named| {
        let strong = if weakly { named.strip_prefix("W/").unwrap_or(named) } else { named };
        named == "*" || strong == tag
    })
}

/// `attachment`, with a name that every client reads and, where that is another, the exact one (RFC 6266).
fn disposition(name: &str) -> HeaderValue {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " .-_+=@#()[]".contains(c);
    let plain: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let exact =
        if plain == name { String::new() } else { format!("; filename*=UTF-8''{}", escaped(name)) };
    HeaderValue::from_str(&format!("attachment; filename=\"{plain}\"{exact}"))
        .expect("it is plain text")
}

/// `name` as one segment of a path (RFC 3986 section 2).
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to a string succeeds");
        }
    }
    text
}

/// The result, found to be what was recorded.
fn read(context: &Context, place: &Place, sha256: &str, bytes: u64) -> Result<Kept, Problem> {
    let gone = || Problem::new(StatusCode::GONE, "gone", "the result is no longer kept");
    let damaged = || {
        let error = "the result is damaged where it is kept; send the case again";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged", error)
    };
    match place {
        Place::File(path) => {
            let mut file = File::open(path).map_err(|_| gone())?;
            let (found, bytes) = durable::sha256_of(&file).map_err(|_| damaged())?;
            file.rewind().map_err(|_| damaged())?;
            if found == sha256 { Ok(Kept::File(file, bytes)) } else { Err(damaged()) }
        }
        Place::Day(day) => {
            let queue = context.shared.as_ref().ok_or_else(gone)?;
            let payload = queue.payload(day, sha256, bytes).map_err(|error| match error {
                SpoolError::Damaged { .. } => damaged(),
                _ => error.into(),
            });
            payload.map(Kept::Bytes)
        }
    }
}

/// A result.
enum Kept {
    /// Here, with its length.
    File(File, u64),
    /// From the shared queue.
    Bytes(Vec<u8>),
}

impl From<Kept> for Body {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::File(file, bytes) => Self::new(FileBody::new(file, bytes)),
            Kept::Bytes(bytes) => Self::from(bytes),
        }
    }
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("dcm") => "application/dicom",
        Some("gz") => "application/gzip",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

pub(super) fn describe(report: &JobReport) -> Value {
    let id = report.id.as_str();
    let results: Vec<_> = report
        .products
        .iter()
        .map(|product| {
            json!({
                "name": product.name,
                "media_type": media_type(&product.name),
                "bytes": product.bytes,
                "sha256": product.sha256,
                "href": format!("/v1/jobs/{id}/results/{}", escaped(&product.name)),
            })
        })
        .collect();
    let deliveries: Vec<_> = report
        .deliveries
        .iter()
        .map(|delivery| {
            json!({
                "destination": delivery.destination,
                "state": delivery.state.as_str(),
                "attempts": delivery.attempts,
                "reason": delivery.reason,
            })
        })
        .collect();
    json!({
        "id": id,
        "state": report.state.as_str(),
        "revision": report.revision,
        "attempts": report.attempts,
        "objects": report.objects,
        "reason": report.reason,
        "shared_as": report.shared_as.as_ref().map(JobId::as_str),
        "received_ms": report.last_received_ms,
        "finished_ms": report.finished_ms,
        "queue_ms": report.queue_ms,
        "compute_ms": report.compute_ms,
        "results": results,
        "deliveries": deliveries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_compared_as_the_condition_asks() {
        for tags in ["\"a\"", "\"b\", \"a\"", "*"] {
            assert!(names_tag(tags, "\"a\"", true) && names_tag(tags, "\"a\"", false), "{tags}");
        }
        assert!(names_tag("W/\"a\"", "\"a\"", true) && !names_tag("W/\"a\"", "\"a\"", false));
        for tags in ["", "a", "\"b\"", "\"aa\""] {
            assert!(!names_tag(tags, "\"a\"", true), "{tags}");
        }
    }

    #[test]
    fn any_name_of_a_file_can_be_told_in_a_header_and_in_a_path() {
        assert_eq!(disposition("a b.png"), "attachment; filename=\"a b.png\"");
        let odd = "attachment; filename=\"_f_.png\"; filename*=UTF-8''%22f%C3%A9.png";
        assert_eq!(disposition("\"fé.png"), odd);
        assert_eq!(escaped("a/b?.png"), "a%2Fb%3F.png");
    }
}
