use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{self, MethodRouter};
use tokio::sync::Semaphore;

use super::problem::Problem;
use super::{Config, Context, OPENAPI, Tokens, cases, inference, jobs, metrics, status};
use crate::telemetry;

/// What every handler gets.
pub(super) type Shared = Arc<Shop>;

pub(super) struct Shop {
    pub(super) config: Config,
    /// `None`: whoever can connect is let in.
    pub(super) tokens: Option<Tokens>,
    pub(super) context: Arc<Context>,
    /// Places for inference requests.
    pub(super) inferences: Arc<Semaphore>,
}

/// The name of the token that let a request in.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) String);

/// Who may call a route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Says nothing about cases.
    Open,
    /// Needs a token where tokens are configured.
    Token,
}

pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    access: Access,
    handler: MethodRouter<Shared>,
}

pub(super) fn table() -> Vec<Route> {
    use Access::{Open, Token};
    let get = |path, access, handler| Route { method: "get", path, access, handler };
    let post = |path, access, handler| Route { method: "post", path, access, handler };
    vec![
        post("/v1/cases", Token, routing::post(cases::post)),
        get("/v1/jobs/{id}", Token, routing::get(jobs::get)),
        get("/v1/jobs/{id}/mask", Token, routing::get(jobs::mask)),
        get("/v1/jobs/{id}/results/{name}", Token, routing::get(jobs::result)),
        get("/v2", Token, routing::get(inference::server)),
        get("/v2/health/live", Open, routing::get(inference::live)),
        get("/v2/health/ready", Open, routing::get(inference::ready)),
        get("/v2/models/{model}", Token, routing::get(inference::model)),
        get("/v2/models/{model}/ready", Token, routing::get(inference::model_ready)),
        post("/v2/models/{model}/infer", Token, routing::post(inference::infer)),
        get("/v2/models/{model}/versions/{version}", Token, routing::get(inference::model)),
        get(
            "/v2/models/{model}/versions/{version}/ready",
            Token,
            routing::get(inference::model_ready),
        ),
        post("/v2/models/{model}/versions/{version}/infer", Token, routing::post(inference::infer)),
        get("/", Open, routing::get(status::page)),
        get("/v1/status", Token, routing::get(status::get)),
        get("/v1/jobs/{id}/pictures/{layer}", Token, routing::get(status::picture)),
        get("/metrics", Token, routing::get(metrics::get)),
        get("/openapi.json", Open, routing::get(openapi)),
    ]
}

pub(super) fn router(shared: Shared) -> Router {
    let (open, guarded): (Vec<_>, Vec<_>) =
        table().into_iter().partition(|route| route.access == Access::Open);
    let add = |router: Router<Shared>, route: Route| router.route(route.path, route.handler);
    let guard = middleware::from_fn_with_state(Arc::clone(&shared), let_in);
    guarded
        .into_iter()
        .fold(Router::new(), add)
        .route_layer(guard)
        .merge(open.into_iter().fold(Router::new(), add))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), addressed_here))
        .layer(middleware::from_fn(count))
        .with_state(shared)
}

async fn count(request: Request, next: Next) -> Response<Body> {
    let response = next.run(request).await;
    telemetry::metrics().request(response.status().as_u16());
    response
}

async fn openapi() -> Response<Body> {
    let mut response = Response::new(Body::from(OPENAPI));
    let value = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

async fn unknown_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing here; GET /openapi.json describes what there is",
    )
}

async fn unknown_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method; GET /openapi.json tells which it takes",
    )
}

/// Lets in whoever shows a token, where tokens are configured.
async fn let_in(State(shared): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let Some(tokens) = &shared.tokens else { return next.run(request).await };
    match tokens.bearer(request.headers()).map(str::to_owned) {
        Some(name) => {
            request.extensions_mut().insert(Caller(name));
            next.run(request).await
        }
        None => Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send a known token as Authorization: Bearer TOKEN",
        )
        .into_response(),
    }
}

/// Without tokens, who may connect is known only by the loopback interface; a page from elsewhere in a browser on this
/// machine could come through it under a name of its own (DNS rebinding).
async fn addressed_here(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let is_known = shared.tokens.is_some() || shared.config.tls.is_some();
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
    if !is_known && !host.is_none_or(is_loopback) {
        return Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected",
            "without tokens only requests to localhost are answered; set http.tokens",
        )
        .into_response();
    }
    next.run(request).await
}

/// Whether `host` (`name`, `name:port`, `[::1]:port`) names the loopback interface.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_machine() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "10.0.0.1", "[2001:db8::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
