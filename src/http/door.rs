//! What stands before every route: who is let in, and the count of answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;

use super::problem::Problem;
use super::{Config, HttpError, Tokens};
use crate::telemetry;

pub(super) struct Door {
    /// `None`: whoever can connect is let in.
    tokens: Option<Tokens>,
    /// Who connects has checked that this is the right server.
    encrypted: bool,
}

/// The name of the token that let a request in.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) String);

impl Door {
    /// Reads the credentials.
    pub(super) fn open(config: &Config) -> Result<Arc<Self>, HttpError> {
        let tokens = config.tokens.as_deref().map(Tokens::read).transpose()?;
        Ok(Arc::new(Self { tokens, encrypted: config.tls.is_some() }))
    }

    /// Routes that need a token where tokens are configured.
    pub(super) fn guard<S: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        routes: Router<S>,
    ) -> Router<S> {
        routes.route_layer(middleware::from_fn_with_state(Arc::clone(self), let_in))
    }

    /// All of a server's routes, with this before them.
    pub(super) fn before<S: Clone + Send + Sync + 'static>(
        self: Arc<Self>,
        routes: Router<S>,
    ) -> Router<S> {
        routes
            .layer(middleware::from_fn_with_state(self, addressed_here))
            .layer(middleware::from_fn(count))
    }
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

/// Without tokens, who may connect is known only by the loopback interface; a page from elsewhere in a browser on this
/// machine could come through it under a name of its own (DNS rebinding).
async fn addressed_here(
    State(door): State<Arc<Door>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let is_known = door.tokens.is_some() || door.encrypted;
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
