use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{self, MethodRouter};
use tokio::sync::Semaphore;

use super::door::Door;
use super::problem::Problem;
use super::{Config, Context, OPENAPI, cases, inference, jobs, metrics, status};

/// What every handler gets.
pub(super) type Shared = Arc<Shop>;

pub(super) struct Shop {
    pub(super) config: Config,
    pub(super) context: Arc<Context>,
    /// Places for inference requests.
    pub(super) inferences: Arc<Semaphore>,
}

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

pub(super) fn router(door: Arc<Door>, shared: Shared) -> Router {
    let (open, guarded): (Vec<_>, Vec<_>) =
        table().into_iter().partition(|route| route.access == Access::Open);
    let add = |router: Router<Shared>, route: Route| router.route(route.path, route.handler);
    let router = |routes: Vec<Route>| routes.into_iter().fold(Router::new(), add);
    let all = door
        .guard(router(guarded))
        .merge(router(open))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method);
    door.before(all).with_state(shared)
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
