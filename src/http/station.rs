//! The receiving side: STOW-RS (PS3.18 section 10.5) and webhooks into a folder.
//!
//! A request is read to its end onto the disk, or nothing of it is kept. Then each instance is kept or refused for
//! itself, and the answer says which; what it says is stored survives a power cut, as after a C-STORE response. The same
//! instance, or the same event, again changes nothing.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::post;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Config;
use super::accept::Accept;
use super::body::{BodyReader, MediaType};
use super::door::Door;
use super::problem::{Problem, Segments};
use super::serve::blocking;
use crate::codec::stow::{self, Answer};
use crate::domain::Uid;
use crate::durable::{Synced, hex, is_file_name};
use crate::ingest::{FolderSink, Refusal, Unkept};

/// Of an event. The daemon's own take some 300 bytes.
const MAX_EVENT_BYTES: usize = 64 << 10;

/// Of an event's id: a prefix and a part of a hash are put beside it, and a file name has 128.
const MAX_ID: usize = 80;

/// What every handler gets.
pub(super) struct Station {
    reader: BodyReader,
    sink: Arc<FolderSink>,
}

type Shared = Arc<Station>;

impl Station {
    pub(super) fn new(config: &Config, sink: Arc<FolderSink>) -> Self {
        let place = Arc::clone(&sink);
        Self { reader: BodyReader::new(config, move || place.begin_file()), sink }
    }
}

pub(super) fn router(door: Arc<Door>, station: Shared) -> Router {
    let routes = Router::new()
        .route("/studies", post(store))
        .route("/studies/{study}", post(store_into))
        .route("/events", post(event));
    let all = door
        .guard(door.seat(routes))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method);
    door.before(all.with_state(station))
}

async fn unknown_path() -> Problem {
    let error = "POST /studies takes instances (STOW-RS), POST /events what a webhook tells";
    Problem::new(StatusCode::NOT_FOUND, "not_found", error)
}

async fn unknown_method() -> Problem {
    let error = "this path takes POST alone; nothing is to be read here";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", error)
}

async fn store(State(station): State<Shared>, request: Request) -> Result<Response<Body>, Problem> {
    take(&station, None, request).await
}

async fn store_into(
    State(station): State<Shared>,
    Segments(study): Segments<String>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let study = Uid::parse(&study);
    let study = study.map_err(|error| Problem::bad_request(format!("the study: {error}")))?;
    take(&station, Some(study), request).await
}

async fn take(
    station: &Shared,
    study: Option<Uid>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let form = Form::wanted(request.headers())?;
    let boundary = boundary(request.headers())?;
    station.reader.check_length(request.headers())?;
    let files = station.reader.parts(request.into_body(), &boundary, is_instance).await?;
    let mut answer = Answer::default();
    for file in files {
        match keep(station, study.clone(), file).await {
            Ok(object) => answer.stored.push(object),
            Err(Unkept { object, refusal }) => {
                tracing::warn!(%refusal, "an instance is refused");
                match object {
                    Some(object) => answer.failed.push((object, refusal.status())),
                    None => answer.nameless.push(refusal.status()),
                }
            }
        }
    }
    Ok(form.write(&answer))
}

async fn keep(
    station: &Shared,
    study: Option<Uid>,
    file: Synced,
) -> Result<crate::domain::SopReference, Unkept> {
    let sink = Arc::clone(&station.sink);
    let kept = tokio::task::spawn_blocking(move || sink.keep(file, study.as_ref())).await;
    // A panic in it, as of a parser on hostile bytes, refuses the instance.
    kept.unwrap_or_else(|_| {
        Err(Unkept { object: None, refusal: Refusal::NotUnderstood("reading it failed") })
    })
}

/// Of `multipart/related; type="application/dicom"`, which alone is taken.
fn boundary(headers: &HeaderMap) -> Result<String, Problem> {
    let media = MediaType::of(headers);
    let is_dicom = media.parameter("type").is_none_or(is_dicom);
    match media.boundary()? {
        Some(boundary) if media.essence == "multipart/related" && is_dicom => Ok(boundary),
        _ => Err(unsupported("send multipart/related; type=\"application/dicom\"")),
    }
}

fn is_instance(part: &HeaderMap) -> Result<(), Problem> {
    if part.contains_key(header::CONTENT_TYPE) && !is_dicom(&MediaType::of(part).essence) {
        return Err(unsupported("every part must be application/dicom: a whole file (PS3.10)"));
    }
    Ok(())
}

fn is_dicom(media_type: &str) -> bool {
    media_type.eq_ignore_ascii_case("application/dicom")
}

fn unsupported(error: &str) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", error)
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Xml,
}

impl Form {
    /// What `Accept` wants most of what can be written; JSON where it says nothing, or wants both alike.
    fn wanted(headers: &HeaderMap) -> Result<Self, Problem> {
        let accept = Accept::of(headers);
        if accept.is_empty() {
            return Ok(Self::Json);
        }
        let quality = |kinds: [&str; 3]| {
            let wanted = kinds.iter().filter_map(|kind| Some(accept.wants(kind, &[])?.quality));
            wanted.reduce(f32::max)
        };
        let json = quality([stow::JSON, "application/json", "text/json"]);
        let xml = quality([stow::XML, "application/xml", "text/xml"]);
        match (json, xml) {
            (None, None) => {
                let error =
                    "the answer is application/dicom+json or application/dicom+xml; accept one";
                Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", error))
            }
            (json, Some(xml)) if json.is_none_or(|json| xml > json) => Ok(Self::Xml),
            _ => Ok(Self::Json),
        }
    }

    fn write(self, answer: &Answer) -> Response<Body> {
        let (media, text) = match self {
            Self::Json => (stow::JSON, answer.json()),
            Self::Xml => (stow::XML, answer.xml()),
        };
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status(answer);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// All, some or none are stored (PS3.18 table 10.5.3-1).
fn status(answer: &Answer) -> StatusCode {
    match (answer.stored.is_empty(), answer.failed.is_empty() && answer.nameless.is_empty()) {
        (_, true) => StatusCode::OK,
        (false, false) => StatusCode::ACCEPTED,
        (true, false) => StatusCode::CONFLICT,
    }
}

/// Keeps what is told as it came. Its id is the `Idempotency-Key`, or follows from what is told.
async fn event(State(station): State<Shared>, request: Request) -> Result<Response<Body>, Problem> {
    // Pages of other sites cannot send this kind without asking first, and nobody answers them.
    if MediaType::of(request.headers()).essence != "application/json" {
        return Err(unsupported("send the event as application/json"));
    }
    let key = key(request.headers())?;
    let body = station.reader.text(request.into_body(), MAX_EVENT_BYTES).await?;
    let unreadable =
        |error: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unreadable", error);
    let event: Value =
        serde_json::from_slice(&body).map_err(|error| unreadable(error.to_string()))?;
    if !event["event"].is_string() {
        return Err(unreadable("an event is an object with a text \"event\"".to_owned()));
    }
    let id = key.unwrap_or_else(|| hex(&Sha256::digest(&body))[..32].to_owned());
    let sink = Arc::clone(&station.sink);
    blocking(move || sink.keep_event(&id, &body)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default().trim_matches('"');
    if is_file_name(key) && key.len() <= MAX_ID {
        return Ok(Some(key.to_owned()));
    }
    Err(Problem::bad_request(format!(
        "Idempotency-Key must be 1 to {MAX_ID} letters, digits, \".\", \"-\" or \"_\", not a dot first"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_that_is_wanted_most_is_written() {
        let wanted = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
            Form::wanted(&headers).map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(Form::wanted(&HeaderMap::new()), Ok(Form::Json));
        for accept in [
            "*/*",
            "application/dicom+json",
            "text/html, application/json;q=0.9",
            "application/dicom+xml;q=0.5, application/dicom+json",
            "application/dicom+xml, application/dicom+json",
        ] {
            assert_eq!(wanted(accept), Ok(Form::Json), "{accept}");
        }
        for accept in ["application/dicom+xml", "Application/DICOM+xml; q=1, */*;q=0.1", "text/xml"]
        {
            assert_eq!(wanted(accept), Ok(Form::Xml), "{accept}");
        }
        for accept in ["text/html", "application/dicom+json;q=0"] {
            assert_eq!(wanted(accept), Err(406), "{accept}");
        }
    }
}
