use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::de::DeserializeOwned;

use crate::ingest::Refusal;
use crate::spool::SpoolError;

/// What went wrong, as the client gets it: `{"code": …, "error": …}`. `error` is a sentence for people that says what to
/// do (and the member that the Open Inference Protocol asks for), `code` a word for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub error: String,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
}

impl Problem {
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, error: impl Into<String>) -> Self {
        Self { status, code, error: error.into(), retry_after: None }
    }

    #[must_use]
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    /// The same request may do better later.
    #[must_use]
    pub fn unavailable(error: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error);
        Self { retry_after: Some(5), ..problem }
    }
}

impl From<SpoolError> for Problem {
    fn from(error: SpoolError) -> Self {
        tracing::error!(%error, "a request failed on the spool");
        match error {
            SpoolError::LowDisk { .. } => Self {
                retry_after: Some(60),
                ..Self::new(
                    StatusCode::INSUFFICIENT_STORAGE,
                    "low_disk",
                    "there is no room for more cases now; nothing was kept, try again later",
                )
            },
            SpoolError::Shared { .. } => {
                Self::unavailable("the shared queue cannot be used now; try again")
            }
            _ => Self::unavailable("the disk cannot be used now; nothing was kept, try again"),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::OutOfResources(error) => error.into(),
            Refusal::TooLarge { .. } => too_large(refusal.to_string()),
            Refusal::NotAnImage(_) => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported", refusal.to_string())
            }
            Refusal::Mismatch(_) | Refusal::NotUnderstood(_) | Refusal::Broken(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unreadable", refusal.to_string())
            }
        }
    }
}

#[must_use]
pub fn too_large(error: impl Into<String>) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let body = serde_json::json!({ "code": self.code, "error": self.error });
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON answer that no cache keeps.
#[must_use]
pub fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    json_text(status, value.to_string().into())
}

/// The same of JSON that is written already.
pub(super) fn json_text(status: StatusCode, text: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What stands in the path of a request; a path that cannot be read is a [`Problem`].
#[derive(Debug)]
pub struct Segments<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(error) => Err(Problem::bad_request(format!("the path: {}", error.body_text()))),
        }
    }
}
