//! Bodies as they come: into memory, or onto the disk as one file or as the parts of a multipart body.
//!
//! A body that is silent, or comes more slowly than the least rate, is given up; one that is larger than its limit, too.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use super::Config;
use super::encoding::Damaged;
use super::multipart::{Event, Splitter};
use super::pace::Pace;
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
    pace: Pace,
}

/// A body that is being read.
pub(super) struct Reading {
    body: Body,
    pace: Pace,
}

impl Reading {
    pub(super) fn new(body: Body, config: &Config) -> Self {
        Self { body, pace: pace(config) }
    }

    /// What came next; `None` at its end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let begun = Instant::now();
            let frame = timeout(self.pace.left(), self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| too_slow())? else { return Ok(None) };
            let frame = frame.map_err(|error| match Damaged::of(&error) {
                Some(damaged) => Problem::bad_request(damaged.to_string()),
                None => Problem::bad_request("the body broke off"),
            })?;
            if let Ok(chunk) = frame.into_data() {
                self.pace.moved(begun.elapsed(), chunk.len());
                return Ok(Some(chunk));
            }
        }
    }

    /// All of it, in memory; `is_large` tells that it has more than `limit` bytes.
    pub(super) async fn text(mut self, limit: usize, is_large: &str) -> Result<Vec<u8>, Problem> {
        if HttpBody::size_hint(&self.body).lower() > limit as u64 {
            return Err(too_large(is_large));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large(is_large));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

fn pace(config: &Config) -> Pace {
    Pace::new(config.body_timeout, config.min_bytes_per_second)
}

fn too_slow() -> Problem {
    let error = "the body came too slowly (http.body_timeout, http.min_bytes_per_second); send the request again";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", error)
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
        Self { begin: Arc::new(begin), bytes: config.max_body_bytes, pace: pace(config) }
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

    fn read(&self, body: Body) -> Reading {
        Reading { body, pace: self.pace }
    }

    /// The whole body as one file.
    pub(super) async fn whole(&self, body: Body) -> Result<Synced, Problem> {
        let (mut body, mut left) = (self.read(body), self.bytes);
        let mut file = Spooling::new(&self.begin);
        while let Some(chunk) = body.chunk().await? {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| self.exceeded())?;
            file.push(&chunk).await?;
        }
        file.finish().await
    }

    /// The whole body, which may have `limit` bytes, in memory.
    pub(super) async fn text(&self, body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
        self.read(body).text(limit, &format!("the body is larger than {limit} bytes")).await
    }

    /// Each part of a multipart body as one file; `accept` says of a part's headers whether it is wanted.
    pub(super) async fn parts(
        &self,
        body: Body,
        boundary: &str,
        accept: impl Fn(&HeaderMap) -> Result<(), Problem>,
    ) -> Result<Vec<Synced>, Problem> {
        let (mut body, mut left) = (self.read(body), self.bytes);
        let (mut splitter, mut ended) = (Splitter::new(boundary), false);
        let (mut files, mut file) = (Vec::new(), Spooling::new(&self.begin));
        loop {
            let event = splitter.next(ended).map_err(|problem| {
                Problem::bad_request(format!("the multipart body cannot be read: {problem}"))
            })?;
            match event {
                Event::Part(headers) => {
                    if files.len() == MAX_FILES {
                        return Err(too_large(format!(
                            "more than {MAX_FILES} files in one request"
                        )));
                    }
                    accept(&headers)?;
                }
                Event::Content(bytes) => file.push(&bytes).await?,
                Event::EndOfPart => {
                    let whole = std::mem::replace(&mut file, Spooling::new(&self.begin));
                    files.push(whole.finish().await?);
                }
                Event::More | Event::End => match body.chunk().await? {
                    Some(chunk) => {
                        left =
                            left.checked_sub(chunk.len() as u64).ok_or_else(|| self.exceeded())?;
                        if event == Event::More {
                            splitter.push(&chunk);
                        }
                    }
                    None if event == Event::End => break,
                    None => ended = true,
                },
            }
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
