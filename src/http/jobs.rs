//! `GET /v1/jobs/{id}` and what it made.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::problem::{self, Problem};
use super::routes::Shared;
use super::serve::blocking;
use crate::durable;
use crate::spool::{JobId, JobReport, JobState, ProductFile};

pub(super) async fn get(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response<Body>, Problem> {
    let report = report(&shared, &id).await?;
    let mut job = describe(&report);
    let pictures = shared.context.gallery.of(&report.id);
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
    send(product.ok_or_else(|| without_result(&report))?).await
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
    send(product.ok_or_else(unknown)?).await
}

pub(super) async fn report(shared: &Shared, id: &str) -> Result<JobReport, Problem> {
    let unknown =
        || not_found("there is no such job; it is named by `jobs[].id` of POST /v1/cases");
    let id = JobId::parse(id).ok_or_else(unknown)?;
    let context = Arc::clone(&shared.context);
    blocking(move || context.spool.job(&id)).await?.ok_or_else(unknown)
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
        JobState::Shared => conflict(
            "shared",
            format!("the job is {reason}; its results go to the destinations from there"),
        ),
        JobState::Done => not_found("the job left no result"),
        JobState::Superseded => {
            conflict("superseded", "a later revision of the series covers the job".to_owned())
        }
        JobState::Dropped => conflict("dropped", "an operator gave the job up".to_owned()),
    }
}

/// The file, if it is still what was recorded.
async fn send(product: ProductFile) -> Result<Response<Body>, Problem> {
    let ProductFile { name, path, sha256, .. } = product;
    let media_type = media_type(&name);
    let tag = format!("\"{sha256}\"");
    let bytes = blocking(move || match std::fs::read(&path) {
        Ok(bytes) if durable::hex(&Sha256::digest(&bytes)) == sha256 => Ok(bytes),
        Ok(_) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "damaged",
            "the result is damaged on the disk; send the case again",
        )),
        Err(_) => Err(Problem::new(StatusCode::GONE, "gone", "the result is no longer kept")),
    })
    .await?;
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
        "received_ms": report.last_received_ms,
        "finished_ms": report.finished_ms,
        "queue_ms": report.queue_ms,
        "compute_ms": report.compute_ms,
        "results": results,
        "deliveries": deliveries,
    })
}
