use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Serialize};

use super::desk::{Desk, Refusal};
use super::store::StoreError;
use crate::fleet::rollout::Report;
use crate::http::{
    Manners, Peer, Problem, Segments, Tokens, blocking, json, self_contained, too_large,
};

/// Of a request's body.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Of an operator's words.
const MAX_WORDS: usize = 500;

const PAGE: &str = include_str!("page.html");

/// What every handler gets.
pub(super) struct Shop {
    pub(super) desk: Mutex<Desk>,
    pub(super) operators: Vec<String>,
    pub(super) tokens: Option<Tokens>,
    pub(super) timeout: Duration,
}

type Shared = Arc<Shop>;

impl Shop {
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operator's name.
#[derive(Clone)]
struct Operator(String);

/// For devices and operators.
pub(super) fn router(shared: Shared) -> Router {
    let operators = Router::new()
        .route("/v1/fleet", get(fleet))
        .route("/v1/rollouts/{counter}/pause", post(pause))
        .route("/v1/rollouts/{counter}/resume", post(resume))
        .route("/v1/devices/{id}", delete(forget))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), let_in));
    let all = Router::new()
        .route("/v1/reports", post(report))
        .route("/", get(page))
        .merge(operators)
        .fallback(nothing_here)
        .method_not_allowed_fallback(another_method);
    Manners::new(None, true).before(all.with_state(shared))
}

/// For whoever is on this machine: to look, and no more.
pub(super) fn page_router(shared: Shared) -> Router {
    let all = Router::new()
        .route("/", get(page))
        .route("/v1/fleet", get(fleet))
        .fallback(nothing_here)
        .method_not_allowed_fallback(another_method);
    // A page from elsewhere in a browser on this machine must not read along under a name of its own.
    Manners::new(None, false).before(all.with_state(shared))
}

async fn page() -> Response<Body> {
    self_contained(PAGE)
}

async fn nothing_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
}

async fn another_method() -> Problem {
    let error = "this path does not take this method; Allow tells which it takes";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", error)
}

/// Lets in whoever shows an operator's certificate or token.
async fn let_in(State(shared): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let by_certificate = peer.0.iter().find(|name| shared.operators.contains(name)).cloned();
    let by_token = || shared.tokens.as_ref()?.bearer(request.headers()).map(str::to_owned);
    let Some(name) = by_certificate.or_else(by_token) else {
        return Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send a known token as Authorization: Bearer TOKEN, or show an operator's certificate",
        )
        .into_response();
    };
    request.extensions_mut().insert(Operator(name));
    next.run(request).await
}

async fn report(
    State(shared): State<Shared>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let peer = peer.map(|Extension(peer)| peer).unwrap_or_default();
    if peer.0.is_empty() {
        let error = "show the device's certificate; it must hold the device's id as DNS name (SAN)";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "no_certificate", error));
    }
    let report: Report = read(&shared, request).await?;
    report.check().map_err(unreadable)?;
    // Names in certificates are in lower case here: no device is two for its spelling.
    if !peer.0.contains(&report.device) {
        tracing::warn!(certificate = ?peer.0, device = report.device, "a device spoke for another");
        let error =
            format!("the certificate is that of {}, not of {}", peer.0.join(", "), report.device);
        return Err(Problem::new(StatusCode::FORBIDDEN, "not_yourself", error));
    }
    let answer = blocking(move || shared.desk().hear(report)).await?;
    Ok(answered(&answer))
}

async fn fleet(State(shared): State<Shared>, uri: Uri) -> Result<Response<Body>, Problem> {
    let counter = uri
        .query()
        .map(|query| query.strip_prefix("counter=").and_then(|counter| counter.parse().ok()))
        .map(|counter| counter.ok_or_else(|| unreadable("only counter=NUMBER can be asked".into())))
        .transpose()?;
    let fleet = blocking(move || shared.desk().fleet(counter)).await;
    fleet.map(|fleet| answered(&fleet)).ok_or_else(no_release)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    words: String,
}

async fn pause(
    State(shared): State<Shared>,
    Extension(Operator(name)): Extension<Operator>,
    Segments(counter): Segments<u64>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let Words { words } = read(&shared, request).await?;
    if words.len() > MAX_WORDS || words.chars().any(char::is_control) {
        return Err(unreadable(format!("words must be at most {MAX_WORDS} bytes on one line")));
    }
    let done = blocking(move || shared.desk().pause(counter, &name, &words)).await?;
    if done { Ok(answered(&serde_json::json!({ "paused": true }))) } else { Err(no_release()) }
}

async fn resume(
    State(shared): State<Shared>,
    Extension(Operator(name)): Extension<Operator>,
    Segments(counter): Segments<u64>,
) -> Result<Response<Body>, Problem> {
    let done = blocking(move || shared.desk().resume(counter, &name)).await?;
    if done { Ok(answered(&serde_json::json!({ "paused": false }))) } else { Err(no_release()) }
}

async fn forget(
    State(shared): State<Shared>,
    Extension(Operator(name)): Extension<Operator>,
    Segments(id): Segments<String>,
) -> Result<Response<Body>, Problem> {
    let done = blocking(move || shared.desk().forget(&id, &name)).await?;
    let unknown =
        || Problem::new(StatusCode::NOT_FOUND, "no_device", "no device of this id is known");
    if done { Ok(answered(&serde_json::json!({ "forgotten": true }))) } else { Err(unknown()) }
}

/// A JSON body, bounded in size and time.
async fn read<T: serde::de::DeserializeOwned>(
    shared: &Shop,
    request: Request,
) -> Result<T, Problem> {
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let body = tokio::time::timeout(shared.timeout, body).await.map_err(|_| {
        let error = "the body did not come in time; send the request again";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", error)
    })?;
    let bytes: Bytes = match body {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(too_large(format!("the body is larger than {MAX_BODY_BYTES} bytes")));
        }
        Err(_) => return Err(Problem::bad_request("the body broke off")),
    };
    serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))
}

fn answered(value: &impl Serialize) -> Response<Body> {
    let value = serde_json::to_value(value).expect("answers are plain data");
    json(StatusCode::OK, &value)
}

fn unreadable(problem: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unreadable", problem)
}

fn no_release() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no_release", "no release of this counter is known")
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the collector cannot keep what it heard");
        Self::unavailable("the collector's database cannot be used now; try again")
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooSoon(wait) => {
                let error = "reports come too fast; slow down";
                let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_soon", error);
                Self { retry_after: Some(wait.as_secs() as u32 + 1), ..problem }
            }
            Refusal::Full(devices) => Self::unavailable(format!(
                "{devices} devices are known, max_devices of the collector; no other is taken"
            )),
            Refusal::Store(error) => error.into(),
        }
    }
}
