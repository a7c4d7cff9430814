//! What stands before every route: who is let in, what a request must look like, who gets a place, and what every answer
//! says of itself.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;

use super::connections::{Line, Places};
use super::encoding;
use super::origin::Names;
use super::outgoing::Outgoing;
use super::problem::Problem;
use super::{Config, HttpError, Tokens};
use crate::telemetry;

pub(super) struct Door {
    /// `None`: whoever can connect is let in.
    tokens: Option<Tokens>,
    manners: Arc<Manners>,
    places: Arc<Places>,
}

/// The name of the token that let a request in.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) String);

/// The connection of a request.
#[derive(Debug, Clone)]
pub(super) struct OnLine(pub(super) Arc<Line>);

impl Door {
    /// Reads the credentials. `bound` is the address that is listened on.
    pub(super) fn open(config: &Config, bound: IpAddr) -> Result<Arc<Self>, HttpError> {
        let tokens = config.tokens.as_deref().map(Tokens::read).transpose()?;
        let is_guarded = tokens.is_some() || config.tls.is_some();
        let names = Names { configured: config.names.clone(), bound: Some(bound), is_guarded };
        let (most, of_address) = (config.max_connections, config.max_connections_per_address);
        let places = Arc::new(Places::new(most, of_address, config.head_timeout));
        Ok(Arc::new(Self { tokens, manners: Arc::new(Manners { names }), places }))
    }

    /// Routes that need a token where tokens are configured.
    pub(super) fn guard<S: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        routes: Router<S>,
    ) -> Router<S> {
        routes.route_layer(middleware::from_fn_with_state(Arc::clone(self), let_in))
    }

    /// Routes whose requests need a place.
    pub(super) fn seat<S: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        routes: Router<S>,
    ) -> Router<S> {
        routes.route_layer(middleware::from_fn_with_state(Arc::clone(&self.places), take_place))
    }

    /// All of a server's routes, with this before them.
    pub(super) fn before(self: Arc<Self>, routes: Router) -> Router {
        Arc::clone(&self.manners).before(routes).layer(middleware::from_fn(count))
    }
}

/// What holds for every request and answer of every server, whoever is let in.
#[derive(Debug)]
pub struct Manners {
    names: Names,
}

impl Manners {
    /// Of a server on `bound`; `is_guarded`: tokens or certificates tell who comes, so that any host name will do.
    #[must_use]
    pub fn new(bound: Option<IpAddr>, is_guarded: bool) -> Arc<Self> {
        Arc::new(Self { names: Names { configured: Vec::new(), bound, is_guarded } })
    }

    /// `routes` with these rules before them.
    pub fn before(self: Arc<Self>, routes: Router) -> Router {
        // A layer of `routes` themselves would not see which methods a path takes: `Allow` is set behind it.
        Router::new()
            .fallback_service(routes)
            .layer(middleware::from_fn(encoding::unpack))
            .layer(middleware::from_fn_with_state(self, behave))
    }

    /// # Errors
    /// If the request is malformed, meant for another server, or sent by another site's page.
    fn check(&self, request: &Request) -> Result<(), Problem> {
        self.names.check(request)?;
        if request.method() == Method::CONNECT {
            let error = "this server is no proxy";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", error));
        }
        let mut expected = request.headers().get_all(header::EXPECT).iter();
        if !expected.all(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
            let error =
                "the only expectation that is met here is 100-continue (RFC 9110 section 10.1.1)";
            return Err(Problem::new(StatusCode::EXPECTATION_FAILED, "expectation_failed", error));
        }
        self.names.check_origin(request)
    }
}

async fn behave(
    State(manners): State<Arc<Manners>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let is_question = request.method() == Method::OPTIONS;
    let is_of_server = is_question && request.uri().path() == "*";
    let mut answer = match manners.check(&request) {
        Ok(()) if is_of_server => allowed("GET,HEAD,POST"),
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if is_question
        && answer.status() == StatusCode::METHOD_NOT_ALLOWED
        && let Some(methods) = answer.headers().get(header::ALLOW).and_then(|m| m.to_str().ok())
    {
        answer = allowed(methods);
    }
    let headers = answer.headers_mut();
    // No answer is taken for another kind of thing, or shown inside another site's page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}

/// The answer to `OPTIONS` (RFC 9110 section 9.3.7).
fn allowed(methods: &str) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let methods = HeaderValue::from_str(&format!("{methods},OPTIONS"));
    answer.headers_mut().insert(header::ALLOW, methods.expect("they are methods"));
    answer
}

async fn count(request: Request, next: Next) -> Response<Body> {
    let response = next.run(request).await;
    telemetry::metrics().request(response.status().as_u16());
    response
}

/// Lets in whoever shows a token, where tokens are configured.
async fn let_in(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response<Body> {
    let Some(tokens) = &door.tokens else { return next.run(request).await };
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

/// Gives the request a place until its answer is taken.
async fn take_place(
    State(places): State<Arc<Places>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let Some(OnLine(line)) = request.extensions().get::<OnLine>().cloned() else {
        return next.run(request).await;
    };
    let Some(place) = places.take(&line).await else {
        let error = "too many requests at once, from everywhere or from this address (http.max_connections, \
                     http.max_connections_per_address); try again";
        return Problem { code: "busy", ..Problem::unavailable(error) }.into_response();
    };
    next.run(request).await.map(|body| Body::new(Outgoing::new(body, place)))
}
