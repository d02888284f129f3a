//! Who may call: services of the fleet with its token, operators with their key, and no page of somebody else.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use muster_shared::control::Leave;
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::serve::{self, presented_key};
use tokio::net::TcpListener;

use crate::config::Config;
use crate::service::Service;

/// What callers must show.
#[derive(Debug)]
pub(crate) struct Keys {
    fleet: Option<Secret>,
    admin: Option<Secret>,
}

impl Keys {
    pub(crate) fn new(config: &Config) -> Self {
        Self { fleet: config.token.clone(), admin: config.admin_key.clone() }
    }

    /// Whether a service of the fleet calls.
    ///
    /// # Errors
    /// [`Kind::BadKey`] without the fleet token, where there is one.
    pub(crate) fn check_fleet(&self, headers: &HeaderMap) -> Result<(), Problem> {
        serve::check_token(self.fleet.as_ref(), headers)
    }

    /// Whether somebody calls who may look at the fleet: one who has its token, or an operator.
    ///
    /// # Errors
    /// [`Kind::BadKey`] without either, where there is a fleet token.
    pub(crate) fn check_any(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.is_admin(headers) { Ok(()) } else { self.check_fleet(headers) }
    }

    /// Whether the caller may change whether a worker gets requests: the worker itself, which tells its incarnation and
    /// has the fleet token, or an operator.
    ///
    /// # Errors
    /// [`Kind::BadKey`] without the admin key, where there is one; [`Kind::UnsupportedCoding`] unless the body is said to
    /// be JSON, which pages of others cannot say without being asked whether they may.
    pub(crate) fn check_leave(&self, leave: &Leave, headers: &HeaderMap) -> Result<(), Problem> {
        check_json(headers)?;
        if leave.incarnation.is_some() { Ok(()) } else { self.check_admin(headers) }
    }

    /// Whether an operator calls.
    ///
    /// # Errors
    /// [`Kind::BadKey`] without the admin key, where there is one; [`Kind::UnsupportedCoding`] as above.
    pub(crate) fn check_operator(&self, headers: &HeaderMap) -> Result<(), Problem> {
        check_json(headers)?;
        self.check_admin(headers)
    }

    fn check_admin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.admin.is_none() || self.is_admin(headers) {
            return Ok(());
        }
        let message = match presented_key(headers) {
            Some(_) => {
                "the key is not the controller's admin key, which an operator needs; the fleet token is not enough"
            }
            None => "this controller wants its admin key of operators: send `Authorization: Bearer KEY`",
        };
        Err(Problem::new(Kind::BadKey, message))
    }

    fn is_admin(&self, headers: &HeaderMap) -> bool {
        let admin = self.admin.as_ref();
        admin.zip(presented_key(headers)).is_some_and(|(admin, given)| admin.matches(given))
    }
}

/// Middleware: lets pass whoever may look at the fleet.
pub(crate) async fn require_any(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    service.keys.check_any(request.headers())?;
    Ok(next.run(request).await)
}

/// Middleware: lets a call pass if it names this machine, where the controller is for that alone, and, where it may change
/// something, if no page of somebody else has made it.
pub(crate) async fn require_own_page(
    State(reach): State<Reach>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    reach.check_host(request.headers(), request.uri())?;
    if request.method() != Method::GET && request.method() != Method::HEAD {
        check_page(request.headers(), request.uri())?;
    }
    Ok(next.run(request).await)
}

/// Who can reach the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Programs on its own machine, without a token.
    Machine,
    /// Others too, or those who have a token.
    Network,
}

impl Reach {
    /// That of a controller which listens there.
    pub(crate) fn of(config: &Config, listener: &TcpListener) -> Self {
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        if is_local && config.token.is_none() { Self::Machine } else { Self::Network }
    }

    /// Whether a call names the controller as programs on its own machine do. The page of a site whose name is made to
    /// lead here (DNS rebinding) is to a browser a page of ours, but the name is that site's.
    ///
    /// # Errors
    /// [`Kind::Forbidden`] for another name.
    pub(crate) fn check_host(self, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
        let Some(host) = host(headers, uri).filter(|_| self == Self::Machine) else { return Ok(()) };
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name);
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let is_local = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
        if is_local {
            return Ok(());
        }
        let message = format!(
            "this controller has no fleet token and listens to its own machine alone: call it as localhost or by its \
             number, not as `{name}`"
        );
        Err(Problem::new(Kind::Forbidden, message))
    }
}

/// Whether no page of somebody else makes a browser call; programs say nothing of pages. A controller on somebody's own
/// machine has no token, and any page in the browser there could call it.
///
/// # Errors
/// [`Kind::Forbidden`] for such a page.
pub(crate) fn check_page(headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    let is_ours = site.is_none_or(|site| matches!(site, b"same-origin" | b"none"));
    match headers.get(header::ORIGIN) {
        None if is_ours => Ok(()),
        Some(origin) if is_ours && is_host(origin.to_str().unwrap_or_default(), headers, uri) => Ok(()),
        origin => {
            let who = origin.and_then(|origin| origin.to_str().ok()).unwrap_or("another site");
            let message = format!("a page of {who} may not call this controller; open the controller's own page");
            Err(Problem::new(Kind::Forbidden, message))
        }
    }
}

fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

fn is_host(origin: &str, headers: &HeaderMap, uri: &Uri) -> bool {
    let origin = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    origin.zip(host(headers, uri)).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
}

fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let told = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = told.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let given = if told.is_empty() { "nothing".to_owned() } else { format!("`{told}`") };
    let message = format!("the body is said to be {given}; send JSON with `Content-Type: application/json`");
    Err(Problem::new(Kind::UnsupportedCoding, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn only_programs_and_the_controllers_own_page_may_change_something() {
        let host = ("host", "127.0.0.1:21001");
        let uri = Uri::from_static("/drain");
        let fine: [&[(&str, &str)]; 4] = [
            &[],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:21001")],
            &[("origin", "https://127.0.0.1:21001")],
        ];
        for pairs in fine {
            check_page(&headers(&[pairs, &[host]].concat()), &uri).expect("it may");
        }
        let foreign: [&[(&str, &str)]; 7] = [
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "http://evil.example")],
            &[("origin", "http://127.0.0.1:8000")],
            &[("origin", "null")],
            &[("origin", "")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")],
        ];
        for pairs in foreign {
            let problem = check_page(&headers(&[pairs, &[host]].concat()), &uri).expect_err("somebody else's");
            assert_eq!((problem.kind, problem.kind.status()), (Kind::Forbidden, 403), "{pairs:?}");
        }
        let by_authority = Uri::from_static("http://127.0.0.1:21001/drain");
        check_page(&headers(&[("origin", "http://127.0.0.1:21001")]), &by_authority).expect("HTTP/2 names it there");
    }

    #[test]
    fn a_controller_for_one_machine_is_called_by_no_other_name() {
        let check = |reach: Reach, host: &str| reach.check_host(&headers(&[("host", host)]), &Uri::from_static("/"));
        for host in ["127.0.0.1:21001", "localhost", "LOCALHOST:1", "[::1]:21001", "192.168.0.7:80"] {
            check(Reach::Machine, host).expect(host);
        }
        for host in ["evil.example:21001", "localhost.evil.example", "127.0.0.1.evil.example:21001", ""] {
            assert_eq!(check(Reach::Machine, host).expect_err(host).kind, Kind::Forbidden);
            check(Reach::Network, host).expect(host);
        }
        Reach::Machine.check_host(&HeaderMap::new(), &Uri::from_static("/")).expect("a program that names nobody");
    }

    #[test]
    fn a_body_must_be_said_to_be_json() {
        for told in ["application/json", "Application/JSON; charset=utf-8"] {
            check_json(&headers(&[("content-type", told)])).expect("JSON");
        }
        for told in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
            let problem = check_json(&headers(&[("content-type", told)])).expect_err("something else");
            assert_eq!(problem.kind, Kind::UnsupportedCoding);
            assert!(problem.message.contains(told), "{problem}");
        }
        assert!(check_json(&HeaderMap::new()).expect_err("nothing").message.contains("nothing"));
    }
}
