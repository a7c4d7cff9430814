//! `POST /v1/cases`: files in, jobs out.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};

use super::body::{BodyReader, MediaType};
use super::door::Caller;
use super::problem::{Problem, json};
use super::routes::Shared;
use super::serve::blocking;
use crate::spool::JobId;

/// The body is one file, or several as the parts of a multipart body (`multipart/form-data` or `multipart/related`).
/// What a file is decides its content. Answers 202 when all of them are safe.
pub(super) async fn post(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let context = Arc::clone(&shared.context);
    let reader = BodyReader::new(&shared.config, move || context.intake.begin());
    reader.check_length(request.headers())?;
    let boundary = MediaType::of(request.headers()).boundary()?;
    let caller = request.extensions().get::<Caller>();
    let caller = caller.map_or_else(|| "http".to_owned(), |caller| format!("http {}", caller.0));
    let body = request.into_body();
    let files = match boundary {
        Some(boundary) => reader.parts(body, &boundary, |_| Ok(())).await?,
        None => vec![reader.whole(body).await?],
    };
    let context = Arc::clone(&shared.context);
    let jobs = blocking(move || context.intake.accept(files, &caller)).await?;
    let href = |job: &JobId| format!("/v1/jobs/{job}");
    let list: Vec<_> = jobs
        .iter()
        .map(|accepted| {
            serde_json::json!({
                "id": accepted.job.as_str(), "href": href(&accepted.job), "new_files": accepted.new_files,
            })
        })
        .collect();
    let mut response = json(StatusCode::ACCEPTED, &serde_json::json!({ "jobs": list }));
    if let [only] = jobs.as_slice()
        && let Ok(location) = HeaderValue::from_str(&href(&only.job))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
