//! Who may ask the [`api`](crate::admin::api), told from the head of a request alone.
//!
//! The request must name this machine (a page in a browser that rebinds its own name to it does not)
//! and must not come from a page of another site. Where a token is set, it must bring that; without
//! one, only whoever is on this machine is answered.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::watch;

use crate::admin::api::Problem;
use crate::domain::signature::Secret;

/// What a request to one address has to bring.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// Only who is on this machine can reach the address.
    pub(super) is_local: bool,
    /// What has to be brought, if something has.
    pub(super) token: Option<watch::Receiver<Secret>>,
}

impl Guard {
    /// Whether whoever sent this may ask at all.
    pub(super) fn may_ask(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.is_local && self.token.is_none() {
            return no("the API is off, for --admin is not a loopback address and there is no \
                 --admin-token-file; only /livez, /readyz and /metrics answer here");
        }
        names_this_machine(headers)?;
        comes_from_no_page(headers)?;
        match &self.token {
            Some(token) => proves(&token.borrow(), headers),
            None => Ok(()),
        }
    }
}

/// Whether what it says of its body is that it is JSON, which no form can.
pub(super) fn must_be_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "a POST has the content type application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

fn no(detail: &str) -> Result<(), Problem> {
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

fn names_this_machine(headers: &HeaderMap) -> Result<(), Problem> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return no("the request names no host");
    };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    no("the host in the request must be localhost or an address")
}

fn comes_from_no_page(headers: &HeaderMap) -> Result<(), Problem> {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let is_foreign = site.is_some_and(|site| site != b"same-origin" && site != b"none");
    // There is nothing to be had here that a page could come from.
    if headers.contains_key(ORIGIN) || is_foreign {
        return no("requests from pages of other sites are refused");
    }
    Ok(())
}

fn proves(token: &Secret, headers: &HeaderMap) -> Result<(), Problem> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    // Of several lines nobody can say which one is meant.
    let (brought, more) = (lines.next().and_then(bearer), lines.next());
    if more.is_none() && brought.is_some_and(|brought| token.is(brought)) {
        return Ok(());
    }
    let detail = match brought {
        None => "the API wants the admin token, as in `Authorization: Bearer …`",
        Some(_) => "this is not the admin token",
    };
    let problem = Problem::new(StatusCode::UNAUTHORIZED, detail);
    Err(problem.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
}

fn bearer(line: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = line.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Guard = Guard { is_local: true, token: None };

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("localhost:9464"));
        for (nth, (name, value)) in lines.iter().enumerate() {
            let value = HeaderValue::from_str(value).unwrap();
            if lines.iter().take(nth).any(|(before, _)| before == name) {
                headers.append(*name, value);
            } else {
                headers.insert(*name, value);
            }
        }
        headers
    }

    fn status(guard: &Guard, lines: &[(&'static str, &str)]) -> u16 {
        guard.may_ask(&headers(lines)).map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    fn with_token(is_local: bool) -> (watch::Sender<Secret>, Guard) {
        let (sender, token) = watch::channel(Secret::new("file:t", b"t0ken").unwrap());
        (sender, Guard { is_local, token: Some(token) })
    }

    #[test]
    fn an_operator_on_the_machine_is_answered() {
        for host in ["127.0.0.1:9464", "[::1]:9464", "[::1]", "LOCALHOST", "192.0.2.7"] {
            assert_eq!(status(&LOCAL, &[("host", host)]), 200, "{host}");
        }
        for site in ["same-origin", "none"] {
            assert_eq!(status(&LOCAL, &[("sec-fetch-site", site)]), 200, "{site}");
        }
    }

    #[test]
    fn no_page_of_another_site_is_answered() {
        for host in ["relay.example.com", "evil.test:9464", "localhost.evil.test", "a b", ""] {
            assert_eq!(status(&LOCAL, &[("host", host)]), 403, "{host}");
        }
        for origin in ["http://evil.test", "null", "http://localhost:9464"] {
            assert_eq!(status(&LOCAL, &[("origin", origin)]), 403, "{origin}");
        }
        for site in ["cross-site", "same-site", ""] {
            assert_eq!(status(&LOCAL, &[("sec-fetch-site", site)]), 403, "{site}");
        }
        assert_eq!(LOCAL.may_ask(&HeaderMap::new()).unwrap_err().status, 403, "without a host");
    }

    #[test]
    fn off_the_machine_nobody_is_answered_without_a_token() {
        let open = Guard { is_local: false, token: None };
        assert_eq!(status(&open, &[]), 403);
        assert_eq!(status(&open, &[("authorization", "Bearer t0ken")]), 403);
    }

    #[test]
    fn where_there_is_a_token_it_is_wanted_on_the_machine_and_off_it() {
        for is_local in [true, false] {
            let (_sender, guard) = with_token(is_local);
            for line in ["Bearer t0ken", "bearer t0ken", "BEARER  t0ken"] {
                assert_eq!(status(&guard, &[("authorization", line)]), 200, "{line}");
            }
            for line in
                ["", "Bearer", "Bearer ", "Bearer t0ke", "Bearer t0kenn", "Basic t0ken", "t0ken"]
            {
                assert_eq!(status(&guard, &[("authorization", line)]), 401, "{line}");
            }
            assert_eq!(status(&guard, &[]), 401);
            let twice = [("authorization", "Bearer t0ken"), ("authorization", "Bearer t0ken")];
            assert_eq!(status(&guard, &twice), 401);
            let from_a_page = [("authorization", "Bearer t0ken"), ("origin", "http://evil.test")];
            assert_eq!(status(&guard, &from_a_page), 403, "a token does not make up for that");
        }
    }

    #[test]
    fn the_token_in_force_counts_and_a_refusal_does_not_tell_it() {
        let (sender, guard) = with_token(true);
        sender.send_replace(Secret::new("file:t", b"n3xt").unwrap());
        assert_eq!(status(&guard, &[("authorization", "Bearer n3xt")]), 200);
        let refused = guard.may_ask(&headers(&[("authorization", "Bearer t0ken")])).unwrap_err();
        assert_eq!(refused.status, 401);
        let text = format!("{refused:?} {guard:?}");
        assert!(!text.contains("n3xt") && !text.contains("t0ken"), "{text}");
    }

    #[test]
    fn a_state_change_is_json() {
        let kind = |kind| must_be_json(&headers(&[("content-type", kind)])).is_ok();
        assert!(kind("application/json") && kind("Application/JSON; charset=utf-8"));
        assert!(!kind("text/plain") && !kind("application/x-www-form-urlencoded") && !kind(""));
        assert_eq!(must_be_json(&headers(&[])).unwrap_err().status, 415);
    }
}
