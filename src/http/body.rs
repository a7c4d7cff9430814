//! Bodies on their way to the disk: one file, or several as the parts of a multipart body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use multer::{Constraints, Multipart, SizeLimit};
use tokio::time::timeout;

use super::Config;
use super::problem::{Problem, too_large};
use super::serve::blocking;
use crate::durable::{Incoming, Synced};
use crate::ingest::Refusal;

/// Of one file, at most this much is held in memory.
const BUFFER_BYTES: usize = 1 << 20;

/// Files in one request.
const MAX_FILES: usize = 10_000;

/// Makes a temporary file where files are to stay. Blocks on the disk.
type Begin = Arc<dyn Fn() -> Result<Incoming, Refusal> + Send + Sync>;

/// Reads bodies within the configured limits. Of a body that breaks off or goes beyond them nothing is left.
#[derive(Clone)]
pub(super) struct BodyReader {
    begin: Begin,
    bytes: u64,
    silence: Duration,
}

/// A `Content-Type`.
pub(super) struct MediaType {
    /// Type and subtype, in lower case.
    pub(super) essence: String,
    parameters: Vec<(String, String)>,
}

impl MediaType {
    /// `application/octet-stream` where none is given.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let mut parts = given.unwrap_or("application/octet-stream").split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameter = |text: &str| {
            let (name, value) = text.split_once('=')?;
            let value = value.trim().trim_matches('"').to_owned();
            Some((name.trim().to_ascii_lowercase(), value))
        };
        Self { essence, parameters: parts.filter_map(parameter).collect() }
    }

    /// `name` is in lower case.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Of a multipart body; `None` for any other.
    pub(super) fn boundary(&self) -> Result<Option<String>, Problem> {
        if !self.essence.starts_with("multipart/") {
            return Ok(None);
        }
        match self.parameter("boundary") {
            Some(boundary) if !boundary.is_empty() => Ok(Some(boundary.to_owned())),
            _ => Err(Problem::bad_request("the Content-Type is multipart without a boundary")),
        }
    }
}

impl BodyReader {
    pub(super) fn new(
        config: &Config,
        begin: impl Fn() -> Result<Incoming, Refusal> + Send + Sync + 'static,
    ) -> Self {
        Self { begin: Arc::new(begin), bytes: config.max_body_bytes, silence: config.body_timeout }
    }

    /// Refuses a body that says beforehand that it is too large.
    pub(super) fn check_length(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let declared = headers.get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > self.bytes) {
            return Err(self.exceeded());
        }
        Ok(())
    }

    /// The whole body as one file.
    pub(super) async fn whole(&self, mut body: Body) -> Result<Synced, Problem> {
        let mut left = self.bytes;
        let mut file = Spooling::new(&self.begin);
        while let Some(chunk) = self.chunk(&mut body).await? {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| self.exceeded())?;
            file.push(&chunk).await?;
        }
        file.finish().await
    }

    /// The whole body, which may have `limit` bytes, in memory.
    pub(super) async fn text(&self, mut body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large(format!("the body is larger than {limit} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn chunk(&self, body: &mut Body) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = timeout(self.silence, body.frame()).await.map_err(|_| self.too_slow())?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| Problem::bad_request("the body broke off"))?;
            if let Ok(chunk) = frame.into_data() {
                return Ok(Some(chunk));
            }
        }
    }

    /// Each part of a multipart body as one file; `accept` says of a part's headers whether it is wanted.
    pub(super) async fn parts(
        &self,
        body: Body,
        boundary: String,
        accept: impl Fn(&HeaderMap) -> Result<(), Problem>,
    ) -> Result<Vec<Synced>, Problem> {
        let size = SizeLimit::new().whole_stream(self.bytes);
        let constraints = Constraints::new().size_limit(size);
        let mut parts = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);
        let refused = |error: multer::Error| match error {
            multer::Error::StreamSizeExceeded { .. } => self.exceeded(),
            error => Problem::bad_request(format!("the multipart body cannot be read: {error}")),
        };
        let mut files = Vec::new();
        loop {
            let part = timeout(self.silence, parts.next_field()).await;
            let part = part.map_err(|_| self.too_slow())?.map_err(refused)?;
            let Some(mut part) = part else { break };
            if files.len() == MAX_FILES {
                return Err(too_large(format!("more than {MAX_FILES} files in one request")));
            }
            accept(part.headers())?;
            let mut file = Spooling::new(&self.begin);
            loop {
                let chunk = timeout(self.silence, part.chunk()).await;
                match chunk.map_err(|_| self.too_slow())?.map_err(refused)? {
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

    fn exceeded(&self) -> Problem {
        too_large(format!("the request is larger than max_body_bytes = {}", self.bytes))
    }

    fn too_slow(&self) -> Problem {
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            format!("nothing came for {} s; send the request again", self.silence.as_secs_f32()),
        )
    }
}

/// A file on its way to the disk.
struct Spooling {
    begin: Begin,
    /// Made when the first megabyte is full, or at the end.
    file: Option<Incoming>,
    buffer: Vec<u8>,
}

impl Spooling {
    fn new(begin: &Begin) -> Self {
        Self { begin: Arc::clone(begin), file: None, buffer: Vec::new() }
    }

    async fn push(&mut self, chunk: &[u8]) -> Result<(), Problem> {
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() >= BUFFER_BYTES {
            let (file, buffer) = (self.file.take(), std::mem::take(&mut self.buffer));
            let begin = Arc::clone(&self.begin);
            self.file = Some(blocking(move || append(&begin, file, &buffer)).await?);
        }
        Ok(())
    }

    async fn finish(self) -> Result<Synced, Problem> {
        let Self { begin, file, buffer } = self;
        if file.is_none() && buffer.is_empty() {
            return Err(Problem::bad_request("a file is empty; send an image"));
        }
        Ok(blocking(move || Ok::<_, Refusal>(append(&begin, file, &buffer)?.sync()?)).await?)
    }
}

fn append(begin: &Begin, file: Option<Incoming>, bytes: &[u8]) -> Result<Incoming, Refusal> {
    let mut file = match file {
        Some(file) => file,
        None => begin()?,
    };
    file.write(bytes)?;
    Ok(file)
}
