use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{self, MethodRouter};
use tokio::sync::Semaphore;

use super::door::Door;
use super::fresh::Fresh;
use super::problem::Problem;
use super::{Config, Context, OPENAPI, cases, inference, jobs, metrics, status};

/// What every handler gets.
pub(super) type Shared = Arc<Shop>;

pub(super) struct Shop {
    pub(super) config: Config,
    pub(super) context: Arc<Context>,
    /// Places for inference requests.
    pub(super) inferences: Arc<Semaphore>,
    /// What many may ask at once.
    pub(super) status: Fresh<Bytes>,
    pub(super) metrics: Fresh<Bytes>,
}

impl Shop {
    pub(super) fn new(config: Config, context: Context) -> Self {
        let inferences = Arc::new(Semaphore::new(config.max_inferences));
        let (status, metrics) = (Fresh::default(), Fresh::default());
        Self { config, context: Arc::new(context), inferences, status, metrics }
    }
}

/// Who may call a route, and whether it is answered whatever else goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Says nothing about cases.
    Open,
    /// Needs a token where tokens are configured; is answered at any time.
    Watch,
    /// Needs a token where tokens are configured, and a place.
    Work,
}

pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    access: Access,
    handler: MethodRouter<Shared>,
}

pub(super) fn table() -> Vec<Route> {
    use Access::{Open, Watch, Work};
    let get = |path, access, handler| Route { method: "get", path, access, handler };
    let post = |path, access, handler| Route { method: "post", path, access, handler };
    vec![
        post("/v1/cases", Work, routing::post(cases::post)),
        get("/v1/jobs/{id}", Work, routing::get(jobs::get)),
        get("/v1/jobs/{id}/mask", Work, routing::get(jobs::mask)),
        get("/v1/jobs/{id}/results/{name}", Work, routing::get(jobs::result)),
        get("/v2", Watch, routing::get(inference::server)),
        get("/v2/health/live", Open, routing::get(inference::live)),
        get("/v2/health/ready", Open, routing::get(inference::ready)),
        get("/v2/models/{model}", Watch, routing::get(inference::model)),
        get("/v2/models/{model}/ready", Watch, routing::get(inference::model_ready)),
        post("/v2/models/{model}/infer", Work, routing::post(inference::infer)),
        get("/v2/models/{model}/versions/{version}", Watch, routing::get(inference::model)),
        get(
            "/v2/models/{model}/versions/{version}/ready",
            Watch,
            routing::get(inference::model_ready),
        ),
        post("/v2/models/{model}/versions/{version}/infer", Work, routing::post(inference::infer)),
        get("/", Open, routing::get(status::page)),
        get("/v1/status", Watch, routing::get(status::get)),
        get("/v1/jobs/{id}/pictures/{layer}", Work, routing::get(status::picture)),
        get("/metrics", Watch, routing::get(metrics::get)),
        get("/openapi.json", Open, routing::get(openapi)),
    ]
}

pub(super) fn router(door: Arc<Door>, shared: Shared) -> Router {
    let of = |access| {
        let routes = table().into_iter().filter(|route| route.access == access);
        routes.fold(Router::new(), |router, route| router.route(route.path, route.handler))
    };
    let all = door
        .guard(door.seat(of(Access::Work)).merge(of(Access::Watch)))
        .merge(of(Access::Open))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method);
    door.before(all.with_state(shared))
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
