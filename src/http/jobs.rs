//! `GET /v1/jobs/{id}` and what it made.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Context;
use super::problem::{self, Problem};
use super::routes::Shared;
use super::serve::blocking;
use crate::durable;
use crate::spool::{JobId, JobReport, JobState, Place, ProductReport, SpoolError};

pub(super) async fn get(
    State(shared): State<Shared>,
    Path(id): Path<String>,
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
    Path(id): Path<String>,
) -> Result<Response<Body>, Problem> {
    let report = report(&shared, &id).await?;
    let product = report.products.first().cloned();
    send(&shared, product.ok_or_else(|| without_result(&report))?).await
}

/// One product by its name.
pub(super) async fn result(
    State(shared): State<Shared>,
    Path((id, name)): Path<(String, String)>,
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
    send(&shared, product.ok_or_else(unknown)?).await
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

/// The result, if it is still what was recorded.
async fn send(shared: &Shared, product: ProductReport) -> Result<Response<Body>, Problem> {
    let ProductReport { name, sha256, bytes, place } = product;
    let media_type = media_type(&name);
    let tag = format!("\"{sha256}\"");
    let context = Arc::clone(&shared.context);
    let bytes = blocking(move || read(&context, &place, &sha256, bytes)).await?;
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    let disposition = format!("attachment; filename=\"{name}\"");
    for (key, value) in [(header::ETAG, tag), (header::CONTENT_DISPOSITION, disposition)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(key, value);
        }
    }
    Ok(response)
}

fn read(context: &Context, place: &Place, sha256: &str, bytes: u64) -> Result<Vec<u8>, Problem> {
    let gone = || Problem::new(StatusCode::GONE, "gone", "the result is no longer kept");
    let damaged = || {
        let error = "the result is damaged where it is kept; send the case again";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged", error)
    };
    match place {
        Place::File(path) => {
            let bytes = std::fs::read(path).map_err(|_| gone())?;
            let is_whole = durable::hex(&Sha256::digest(&bytes)) == sha256;
            is_whole.then_some(bytes).ok_or_else(damaged)
        }
        Place::Day(day) => {
            let queue = context.shared.as_ref().ok_or_else(gone)?;
            queue.payload(day, sha256, bytes).map_err(|error| match error {
                SpoolError::Damaged { .. } => damaged(),
                _ => error.into(),
            })
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
                "href": format!("/v1/jobs/{id}/results/{}", product.name),
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
