//! For whom a request is meant and where it comes from: the `Host` rules of RFC 9112 section 3.2, and the checks against
//! other sites' pages in a browser on this machine or in this network.
//!
//! A page elsewhere can make a browser send requests here: with its own name for this address (DNS rebinding), which the
//! host's name shows, or across sites (`<form>`, `fetch`), which `Sec-Fetch-Site` and `Origin` show. Programs send neither.

use std::net::IpAddr;
use std::str::FromStr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

use super::problem::Problem;

/// Names under which a server is reached.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// As configured: host names and addresses.
    pub(super) configured: Vec<String>,
    /// The address that it listens on; an unspecified one names nothing.
    pub(super) bound: Option<IpAddr>,
    /// Whoever comes is known by a token or a certificate, or has checked the server's: where no names are configured, any
    /// name will do.
    pub(super) is_guarded: bool,
}

impl Names {
    /// # Errors
    /// If `request` is not meant for this server, or does not say for whom it is meant.
    pub(super) fn check(&self, request: &Request) -> Result<(), Problem> {
        let Some(authority) = authority(request)? else { return Ok(()) };
        let is_open = self.is_guarded && self.configured.is_empty();
        if is_open || self.include(authority.host()) {
            return Ok(());
        }
        let error = if self.is_guarded {
            "this server does not go by that name; http.names lists the names it goes by"
        } else {
            "without tokens only requests to localhost are answered; set http.tokens or http.names"
        };
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", error))
    }

    fn include(&self, host: &str) -> bool {
        let bare = host.trim_matches(['[', ']']);
        let is_bound = |address: IpAddr| self.bound == Some(address) && !address.is_unspecified();
        is_loopback(host)
            || bare.parse().is_ok_and(is_bound)
            || self.configured.iter().any(|name| name.eq_ignore_ascii_case(bare))
    }

    /// # Errors
    /// If a page of another site had a browser send `request`, and it would change something.
    pub(super) fn check_origin(&self, request: &Request) -> Result<(), Problem> {
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
            return Ok(());
        }
        let headers = request.headers();
        // https://www.w3.org/TR/fetch-metadata/: `none` is a person's own doing, such as a bookmark. A page on another port
        // of the same host is `same-site`, and not one of this server's.
        let fetched = headers.get_all("sec-fetch-site").iter();
        let is_own_fetch =
            fetched.map(HeaderValue::as_bytes).all(|site| matches!(site, b"same-origin" | b"none"));
        let mut origins = headers.get_all(header::ORIGIN).iter();
        if is_own_fetch && origins.all(|origin| self.is_own(origin.to_str().ok(), request)) {
            return Ok(());
        }
        let error = "a page of another site must not do this; a program sends neither Origin nor Sec-Fetch-Site";
        Err(Problem::new(StatusCode::FORBIDDEN, "cross_site", error))
    }

    /// Whether `origin` is this server as the request names it, or one of the configured names (of a proxy before it).
    fn is_own(&self, origin: Option<&str>, request: &Request) -> bool {
        let Some((scheme, rest)) = origin.and_then(|origin| origin.split_once("://")) else {
            return false; // `null` too: a page that hides where it comes from
        };
        let Ok(origin) = Authority::from_str(rest) else { return false };
        let bare = origin.host().trim_matches(['[', ']']);
        if self.configured.iter().any(|name| name.eq_ignore_ascii_case(bare)) {
            return true;
        }
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let host = authority(request).ok().flatten();
        host.is_some_and(|host| is_same(&origin, &host, port))
    }
}

/// Whom a request is meant for: the authority of its target, else its `Host`; `None` for HTTP/1.0 without one.
fn authority(request: &Request) -> Result<Option<Authority>, Problem> {
    let host = host(request.headers())?;
    if host.is_none() && request.version() >= Version::HTTP_11 {
        return Err(Problem::bad_request("the request has no Host header (RFC 9112 section 3.2)"));
    }
    let uri = request.uri();
    let Some(target) = uri.authority() else { return Ok(host) };
    let port = match uri.scheme_str() {
        Some("http") | None => 80,
        Some("https") => 443,
        Some(_) => {
            return Err(Problem::bad_request("the request's target is no http or https URI"));
        }
    };
    if host.is_some_and(|host| !is_same(target, &host, port)) {
        let error = "the request's target and its Host header name different servers (RFC 9112 section 3.2.2)";
        return Err(Problem::bad_request(error));
    }
    Ok(Some(target.clone()))
}

fn host(headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(None) };
    if hosts.next().is_some() {
        let error = "the request has more than one Host header (RFC 9112 section 3.2)";
        return Err(Problem::bad_request(error));
    }
    let parsed = host.to_str().ok().and_then(|host| Authority::from_str(host).ok());
    let is_host = |authority: &Authority| {
        let port = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, port)| port);
        let is_port = port
            .rsplit_once(':')
            .is_none_or(|(_, port)| port.is_empty() || authority.port_u16().is_some());
        !authority.host().is_empty() && !authority.as_str().contains('@') && is_port
    };
    parsed.filter(is_host).map(Some).ok_or_else(|| {
        Problem::bad_request("the Host header is not a host and a port (RFC 9110 section 7.2)")
    })
}

/// Whether both name the same host and port; `port` where one names none.
fn is_same(a: &Authority, b: &Authority, port: u16) -> bool {
    a.host().eq_ignore_ascii_case(b.host())
        && a.port_u16().unwrap_or(port) == b.port_u16().unwrap_or(port)
}

/// Whether `host` (`name`, `name:port`, `[::1]:port`) names the loopback interface.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn names(configured: &[&str], is_guarded: bool) -> Names {
        let configured = configured.iter().map(|&name| name.to_owned()).collect();
        Names { configured, bound: Some([10, 0, 0, 5].into()), is_guarded }
    }

    fn request(target: &str, headers: &[(&str, &str)]) -> Request {
        let request = Request::builder().method("POST").uri(target);
        let add = |request: axum::http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, add).body(Body::empty()).unwrap()
    }

    fn addressed(names: &Names, target: &str, hosts: &[&str]) -> u16 {
        let headers: Vec<_> = hosts.iter().map(|&host| ("host", host)).collect();
        names.check(&request(target, &headers)).map_or_else(|p| p.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_loopback_names_are_this_machine() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:80", "10.0.0.1", "[2001:db8::1]"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_request_names_one_server() {
        let local = names(&[], false);
        for (target, hosts, status) in [
            ("/", &["localhost:8080"][..], 200),
            ("/", &["[::1]:8080"], 200),
            ("/", &["10.0.0.5"], 200),
            ("/", &[], 400),
            ("/", &["localhost", "localhost"], 400),
            ("/", &[""], 400),
            ("/", &["user@localhost"], 400),
            ("/", &["localhost:x"], 400),
            ("/", &["local host"], 400),
            ("/", &["localhost/path"], 400),
            ("/", &["evil.example"], 421),
            ("http://localhost/", &["localhost"], 200),
            ("http://localhost:80/", &["LOCALHOST"], 200),
            ("http://localhost/", &[], 400),
            ("http://evil.example/", &["localhost"], 400),
            ("http://localhost/", &["evil.example"], 400),
            ("http://evil.example/", &["evil.example"], 421),
            ("ftp://localhost/", &["localhost"], 400),
        ] {
            assert_eq!(addressed(&local, target, hosts), status, "{target} {hosts:?}");
        }
        assert_eq!(addressed(&names(&[], true), "/", &["any.example"]), 200);
        let named = names(&["seg.example", "2001:db8::5"], true);
        assert_eq!(addressed(&named, "/", &["any.example"]), 421);
        assert_eq!(addressed(&named, "/", &["SEG.example:8443"]), 200);
        assert_eq!(addressed(&named, "/", &["[2001:db8::5]:8443"]), 200);
    }

    #[test]
    fn http_1_0_needs_no_host() {
        let mut old = request("/", &[]);
        *old.version_mut() = Version::HTTP_10;
        assert!(names(&[], false).check(&old).is_ok());
    }

    #[test]
    fn only_this_servers_own_pages_and_programs_change_anything() {
        let host = ("host", "localhost:8080");
        let allowed = |names: &Names, headers: &[(&str, &str)]| {
            let headers = [&[host], headers].concat();
            names.check_origin(&request("/", &headers)).is_ok()
        };
        let local = names(&[], false);
        for headers in [
            &[][..],
            &[("origin", "http://localhost:8080")],
            &[("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
        ] {
            assert!(allowed(&local, headers), "{headers:?}");
        }
        for headers in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "http://localhost")],
            &[("origin", "http://localhost:8080"), ("origin", "https://evil.example")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none"), ("origin", "https://evil.example")],
        ] {
            assert!(!allowed(&local, headers), "{headers:?}");
        }
        let behind_proxy = names(&["seg.example"], true);
        assert!(allowed(&behind_proxy, &[("origin", "https://seg.example")]));
        assert!(!allowed(&behind_proxy, &[("origin", "https://seg.example.evil.example")]));
    }
}
