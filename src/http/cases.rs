//! `POST /v1/cases`: files in, jobs out.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use multer::{Constraints, Multipart, SizeLimit};
use tokio::time::timeout;

use super::Context;
use super::problem::{Problem, json, too_large};
use super::routes::{Caller, Shared};
use super::serve::blocking;
use crate::durable::{Incoming, Synced};
use crate::ingest::Refusal;
use crate::spool::JobId;

/// Of one file, at most this much is held in memory.
const BUFFER_BYTES: usize = 1 << 20;

/// Files in one request.
const MAX_FILES: usize = 10_000;

/// The body is one file, or several as the parts of a multipart body (`multipart/form-data` or `multipart/related`).
/// What a file is decides its content. Answers 202 when all of them are safe.
pub(super) async fn post(
    State(shared): State<Shared>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let limits =
        Limits { bytes: shared.config.max_body_bytes, silence: shared.config.body_timeout };
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limits.bytes) {
        return Err(limits.exceeded());
    }
    let boundary = boundary(request.headers())?;
    let caller = request.extensions().get::<Caller>();
    let caller = caller.map_or_else(|| "http".to_owned(), |caller| format!("http {}", caller.0));
    let body = request.into_body();
    let files = match boundary {
        Some(boundary) => parts(&shared, limits, body, boundary).await?,
        None => vec![whole(&shared, limits, body).await?],
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

#[derive(Clone, Copy)]
struct Limits {
    bytes: u64,
    silence: Duration,
}

impl Limits {
    fn exceeded(self) -> Problem {
        too_large(format!("the request is larger than http.max_body_bytes = {}", self.bytes))
    }

    fn too_slow(self) -> Problem {
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("nothing came for {} s; send the request again", self.silence.as_secs_f32()),
        )
    }
}

/// Of a multipart body; `None` for any other.
fn boundary(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/octet-stream");
    let mut parameters = content_type.split(';').map(str::trim);
    let kind = parameters.next().unwrap_or_default().to_ascii_lowercase();
    if !kind.starts_with("multipart/") {
        return Ok(None);
    }
    let boundary = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"').to_owned())
    });
    match boundary {
        Some(boundary) if !boundary.is_empty() => Ok(Some(boundary)),
        _ => Err(Problem::bad_request("the Content-Type is multipart without a boundary")),
    }
}

async fn whole(shared: &Shared, limits: Limits, mut body: Body) -> Result<Synced, Problem> {
    let mut left = limits.bytes;
    let mut file = Spooling::new(shared);
    loop {
        let frame = timeout(limits.silence, body.frame()).await.map_err(|_| limits.too_slow())?;
        let Some(frame) = frame else { return file.finish().await };
        let frame = frame.map_err(|_| Problem::bad_request("the body broke off"))?;
        if let Ok(chunk) = frame.into_data() {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| limits.exceeded())?;
            file.push(&chunk).await?;
        }
    }
}

async fn parts(
    shared: &Shared,
    limits: Limits,
    body: Body,
    boundary: String,
) -> Result<Vec<Synced>, Problem> {
    let size = SizeLimit::new().whole_stream(limits.bytes);
    let constraints = Constraints::new().size_limit(size);
    let mut parts = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
    let refused = |error: multer::Error| match error {
        multer::Error::StreamSizeExceeded { .. } => limits.exceeded(),
        error => Problem::bad_request(format!("the multipart body cannot be read: {error}")),
    };
    let mut files = Vec::new();
    loop {
        let part = timeout(limits.silence, parts.next_field()).await;
        let Some(mut part) = part.map_err(|_| limits.too_slow())?.map_err(refused)? else { break };
        if files.len() == MAX_FILES {
            return Err(too_large(format!("more than {MAX_FILES} files in one request")));
        }
        let mut file = Spooling::new(shared);
        loop {
            let chunk = timeout(limits.silence, part.chunk()).await;
            match chunk.map_err(|_| limits.too_slow())?.map_err(refused)? {
                Some(chunk) => file.push(&chunk).await?,
                None => break,
            }
        }
        files.push(file.finish().await?);
    }
    if files.is_empty() {
        return Err(Problem::bad_request(
            "the multipart body has no parts; send at least one file",
        ));
    }
    Ok(files)
}

/// A file on its way to the disk.
struct Spooling {
    context: Arc<Context>,
    /// Made when the first megabyte is full, or at the end.
    file: Option<Incoming>,
    buffer: Vec<u8>,
}

impl Spooling {
    fn new(shared: &Shared) -> Self {
        Self { context: Arc::clone(&shared.context), file: None, buffer: Vec::new() }
    }

    async fn push(&mut self, chunk: &[u8]) -> Result<(), Problem> {
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() >= BUFFER_BYTES {
            let (file, buffer) = (self.file.take(), std::mem::take(&mut self.buffer));
            let context = Arc::clone(&self.context);
            self.file = Some(blocking(move || append(&context, file, &buffer)).await?);
        }
        Ok(())
    }

    async fn finish(self) -> Result<Synced, Problem> {
        let Self { context, file, buffer } = self;
        if file.is_none() && buffer.is_empty() {
            return Err(Problem::bad_request("a file is empty; send an image"));
        }
        Ok(blocking(move || Ok::<_, Refusal>(append(&context, file, &buffer)?.sync()?)).await?)
    }
}

fn append(context: &Context, file: Option<Incoming>, bytes: &[u8]) -> Result<Incoming, Refusal> {
    let mut file = match file {
        Some(file) => file,
        None => context.intake.begin()?,
    };
    file.write(bytes)?;
    Ok(file)
}
