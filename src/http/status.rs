//! The status page, and what it asks for.

use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::jobs::{self, not_found};
use super::problem::{self, Problem, Segments};
use super::routes::Shared;
use super::serve::blocking;
use super::{Context, Vitals};
use crate::spool::{Queue, Spool, SpoolError};
use crate::telemetry::sensors::{self, Reading};

/// Jobs that are shown.
const RECENT: u32 = 60;

const PAGE: &str = include_str!("page.html");

/// Nothing from elsewhere is loaded or sent there, and no other page may frame this one.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src 'self' blob: data:; form-action 'none'; frame-ancestors 'none'; \
                      base-uri 'none'";

pub(super) async fn page() -> Response<Body> {
    self_contained(PAGE)
}

/// A page that loads nothing but what it asks of its own server.
#[must_use]
pub fn self_contained(page: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(page));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

pub(super) async fn get(State(shared): State<Shared>) -> Result<Response<Body>, Problem> {
    let context = Arc::clone(&shared.context);
    let describe = async {
        let status = blocking(move || describe(&context)).await?;
        Ok::<_, SpoolError>(Bytes::from(status.to_string()))
    };
    Ok(problem::json_text(StatusCode::OK, shared.status.get(describe).await?))
}

fn describe(context: &Context) -> Result<Value, SpoolError> {
    let Vitals { serving, working, destinations } = (context.vitals)();
    let spool = &context.spool;
    let count = spool.count()?;
    let shared =
        context.shared.as_ref().map(|shared| describe_shared(shared, spool)).transpose()?;
    let counted = match &context.shared {
        Some(shared) if shared.is_reached() => shared.destinations().unwrap_or_default(),
        _ => spool.destinations()?,
    };
    let destinations: Vec<_> = destinations
        .into_iter()
        .map(|(name, kind)| {
            let found = counted.iter().find(|d| d.destination == name).cloned().unwrap_or_default();
            json!({
                "name": name, "kind": kind, "pending": found.pending, "sent": found.sent,
                "dead": found.dead, "reason": found.reason,
            })
        })
        .collect();
    let jobs: Vec<_> = spool
        .recent_jobs(RECENT)?
        .iter()
        .map(|report| {
            let mut job = jobs::describe(report);
            let pictures = context.gallery.of(report.computed_as());
            job["pictures"] = pictures.is_some().into();
            job["preview"] = pictures.and_then(|pictures| pictures.preview).into();
            job
        })
        .collect();
    let model = context.model.as_ref().map(|model| {
        let about = model.describe();
        json!({
            "name": about.name, "version": about.version, "digest": about.digest,
            "labels": about.labels, "votes": about.votes, "configuration": about.revision,
            "engine": {
                "provider": about.engine.provider, "wanted": about.engine.wanted,
                "progress": about.engine.progress, "reason": about.engine.reason,
            },
        })
    });
    let device: Vec<_> = sensors::read(Path::new("/sys"))
        .into_iter()
        .map(|sensor| match sensor.reading {
            Reading::Celsius(value) => json!({ "name": sensor.name, "celsius": value }),
            Reading::Watts(value) => json!({ "name": sensor.name, "watts": value }),
        })
        .collect();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "serving": serving,
        "working_ms": working.map(|time| time.as_millis() as u64),
        "model": model,
        "spool": {
            "received": count.received,
            "ready": count.ready,
            "running": count.running,
            "quarantined": count.quarantined,
            "pending_deliveries": count.pending_deliveries,
            "dead_deliveries": count.dead_deliveries,
            "free_bytes": spool.usage()?.free_bytes,
        },
        "shared": shared,
        "updates": context.updates.as_ref().and_then(|updates| updates.describe()),
        "destinations": destinations,
        "jobs": jobs,
        "device": device,
    }))
}

/// How the queue is that devices share. While its server is out of reach, nothing is known of it.
fn describe_shared(shared: &crate::spool::Shared, spool: &Spool) -> Result<Value, SpoolError> {
    let count = if shared.is_reached() { shared.count().ok() } else { None };
    Ok(json!({
        "device": shared.device(),
        "reached": count.is_some(),
        "unreplicated_bytes": spool.unreplicated_bytes()?,
        "ready": count.map(|count| count.ready),
        "running": count.map(|count| count.running),
        "failed": count.map(|count| count.failed),
        "quarantined": count.map(|count| count.quarantined),
        "pending_deliveries": count.map(|count| count.pending_deliveries),
        "dead_deliveries": count.map(|count| count.dead_deliveries),
    }))
}

/// `layer`: `image`, `mask` or `disagreement`.
pub(super) async fn picture(
    State(shared): State<Shared>,
    Segments((id, layer)): Segments<(String, String)>,
) -> Result<Response<Body>, Problem> {
    let report = jobs::report(&shared, &id).await?;
    let pictures = shared.context.gallery.of(report.computed_as());
    let pictures = pictures.ok_or_else(|| not_found("pictures are kept of the last cases only"))?;
    let bytes = match layer.as_str() {
        "image" => pictures.image.clone(),
        "mask" => pictures.mask.clone(),
        "disagreement" => pictures.disagreement.clone(),
        _ => return Err(not_found("the layers are image, mask and disagreement")),
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("image/png"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}
