//! What a service sees of a request, and a visitor of an answer. Pure.
//!
//! Rules kept here: the visitor's cookie and link never reach a service; nobody but the gateway says who was verified or
//! where a request came from; what concerns one connection only is not passed on; a service cannot set cookies for other
//! dev hosts nor replace the visitor's.

use envforge_api::{
    dev_host::ProxyMode,
    link::{LINK_HEADER, USER_HEADER},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::net::IpAddr;

/// Names of the gateway's own cookie: the one in use depends on whether there is TLS, neither is ever a service's.
pub(crate) const COOKIES: [&str; 2] = ["__Host-envforge", "envforge"];

/// Concern one connection (RFC 9110, 7.6.1), beside what `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::UPGRADE,
];

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const USER: HeaderName = HeaderName::from_static(USER_HEADER);

/// How requests are presented to a service.
#[derive(Debug)]
pub(crate) struct Presented<'a> {
    pub(crate) mode: ProxyMode,
    /// `http://web--a--b.dev.localhost:8080`.
    pub(crate) origin: &'a str,
    /// The service's port.
    pub(crate) port: u16,
    /// Who was verified.
    pub(crate) user: &'a str,
    /// Whose connection it is.
    pub(crate) client: IpAddr,
}

/// Whether only the gateway may say this, in any spelling: some services take `_` for `-`.
fn is_ours(name: &str) -> bool {
    let same = |a: u8, b: u8| a == b || (a == b'_' && b == b'-');
    let begins = |with: &str| {
        name.len() >= with.len() && name.bytes().zip(with.bytes()).all(|(given, wanted)| same(given, wanted))
    };
    match name.as_bytes().first() {
        Some(b'x') => begins("x-envforge-") || begins("x-forwarded-") || begins("x-real-ip"),
        Some(b'f') => name == "forwarded",
        Some(_) | None => false,
    }
}

/// Takes out what a server behind the gateway is not to see of a visitor's headers, whichever server it is.
pub(crate) fn strip_for_server(headers: &mut HeaderMap) {
    strip_hops(headers);
    headers.remove(header::TE);
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name.as_str())).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    // The gateway says itself when the body may come.
    headers.remove(header::EXPECT);
}

/// Takes out what concerns the connection alone.
pub(crate) fn strip_hops(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            // Lengths and the host are what framing and routing stand on: nobody may have them dropped.
            if !matches!(name, header::HOST | header::CONTENT_LENGTH | header::TRANSFER_ENCODING) {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Turns a visitor's headers into a service's. `socket` keeps what asks for an upgrade.
pub(crate) fn to_service(headers: &mut HeaderMap, as_: &Presented<'_>, socket: bool) {
    let trailers = headers.get_all(header::TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    strip_for_server(headers);
    debug_assert!(!headers.contains_key(LINK_HEADER));
    if trailers {
        // Whoever takes trailers here takes them over there.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    strip_cookie(headers);
    match as_.mode {
        ProxyMode::Localhost => {
            let local = format!("localhost:{}", as_.port);
            if headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes() == as_.origin.as_bytes()) {
                set(headers, header::ORIGIN, &format!("http://{local}"));
            }
            let referer = headers.get(header::REFERER).and_then(|referer| referer.to_str().ok());
            if let Some(rest) = referer.and_then(|referer| below(referer, as_.origin)) {
                let mapped = format!("http://{local}{rest}");
                set(headers, header::REFERER, &mapped);
            }
            set(headers, header::HOST, &local);
        }
        ProxyMode::Forwarded => {
            let (scheme, host) = as_.origin.split_once("://").unwrap_or(("http", as_.origin));
            set(headers, header::HOST, host);
            set(headers, FORWARDED_HOST, host);
            set(headers, FORWARDED_PROTO, scheme);
            set(headers, FORWARDED_FOR, &as_.client.to_string());
        }
    }
    set(headers, USER, as_.user);
    if socket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// Turns a service's headers into a visitor's. `socket` keeps what agrees to an upgrade.
pub(crate) fn to_visitor(headers: &mut HeaderMap, as_: &Presented<'_>, socket: bool) {
    strip_hops(headers);
    // Another way to the service would be one past the gateway.
    headers.remove(header::ALT_SVC);
    if headers.contains_key(header::SET_COOKIE) {
        let kept: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().filter_map(own_cookie).collect();
        headers.remove(header::SET_COOKIE);
        for cookie in kept {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
    if as_.mode == ProxyMode::Localhost {
        for name in [header::LOCATION, header::CONTENT_LOCATION, header::ACCESS_CONTROL_ALLOW_ORIGIN] {
            let given = headers.get(&name).and_then(|value| value.to_str().ok());
            let mapped = given.and_then(|given| from_local(given, as_));
            if let Some(mapped) = mapped {
                set(headers, name, &mapped);
            }
        }
    }
    if socket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
}

/// What follows an origin in an address of it.
fn below<'a>(address: &'a str, origin: &str) -> Option<&'a str> {
    let rest = address.strip_prefix(origin)?;
    (rest.is_empty() || rest.starts_with(['/', '?', '#'])).then_some(rest)
}

/// An address that the service made of the host it was shown.
fn from_local(given: &str, as_: &Presented<'_>) -> Option<String> {
    ["http://localhost", "https://localhost", "http://127.0.0.1", "http://[::1]"].iter().find_map(|host| {
        let rest = below(given, &format!("{host}:{}", as_.port))?;
        Some(format!("{}{rest}", as_.origin))
    })
}

/// Without `Domain`, and not at all where it would replace the visitor's.
fn own_cookie(cookie: &HeaderValue) -> Option<HeaderValue> {
    let octets = cookie.as_bytes();
    let name = octets.split(|octet| *octet == b'=' || *octet == b';').next().unwrap_or_default().trim_ascii();
    if COOKIES.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes())) {
        return None;
    }
    let is_domain = |part: &&[u8]| {
        let name = part.split(|octet| *octet == b'=').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"domain")
    };
    let mut parts = octets.split(|octet| *octet == b';');
    let first = parts.next().unwrap_or_default();
    if !parts.clone().any(|part| is_domain(&part)) {
        return Some(cookie.clone());
    }
    let mut kept = first.to_vec();
    for part in parts.filter(|part| !is_domain(part)) {
        kept.push(b';');
        kept.extend_from_slice(part);
    }
    HeaderValue::from_bytes(&kept).ok()
}

/// The values of the visitor's cookie: more than one when another dev host's page put one of the same name beside it.
pub(crate) fn visit_cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).filter_map(move |pair| {
        let (given, value) = pair.trim().split_once('=')?;
        (given == name).then_some(value)
    })
}

fn strip_cookie(headers: &mut HeaderMap) {
    if !headers.contains_key(header::COOKIE) {
        return;
    }
    let is_ours = |pair: &[u8]| {
        let name = pair.split(|octet| *octet == b'=').next().unwrap_or_default().trim_ascii();
        COOKIES.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
    };
    let mut kept: Vec<u8> = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        for pair in value.as_bytes().split(|octet| *octet == b';').filter(|pair| !is_ours(pair)) {
            let pair = pair.trim_ascii();
            if !pair.is_empty() {
                if !kept.is_empty() {
                    kept.extend_from_slice(b"; ");
                }
                kept.extend_from_slice(pair);
            }
        }
    }
    headers.remove(header::COOKIE);
    if let Ok(kept) = HeaderValue::from_bytes(&kept)
        && !kept.is_empty()
    {
        headers.insert(header::COOKIE, kept);
    }
}

/// A value that came from a header or was made here; one that cannot be a value is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "http://web--a--b.dev.localhost:8080";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        headers
    }

    fn as_(mode: ProxyMode) -> Presented<'static> {
        Presented {
            mode,
            origin: ORIGIN,
            port: 3000,
            user: "link:lnk_1",
            client: "192.0.2.7".parse().expect("an address"),
        }
    }

    fn sent(mode: ProxyMode, pairs: &[(&str, &str)]) -> Vec<String> {
        let mut headers = headers(pairs);
        to_service(&mut headers, &as_(mode), false);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        lines.sort();
        lines
    }

    fn answered(mode: ProxyMode, pairs: &[(&str, &str)]) -> Vec<String> {
        let mut headers = headers(pairs);
        to_visitor(&mut headers, &as_(mode), false);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect()
    }

    #[test]
    fn the_visitors_cookie_and_link_never_reach_a_service() {
        let given = [
            ("cookie", "a=1; envforge=secret; b=2"),
            ("cookie", "__Host-envforge=secret"),
            ("cookie", "ENVFORGE=x; c=3"),
            ("x-envforge-link", "secret"),
        ];
        let lines = sent(ProxyMode::Localhost, &given);
        assert_eq!(lines, ["cookie: a=1; b=2; c=3", "host: localhost:3000", "x-envforge-user: link:lnk_1"]);
        assert!(sent(ProxyMode::Localhost, &[("cookie", "envforge=secret")]).iter().all(|l| !l.starts_with("cookie")));
    }

    #[test]
    fn nobody_else_says_who_was_verified_or_where_from() {
        let forged = [
            ("x-envforge-user", "root"),
            ("x_envforge_user", "root"),
            ("x-envforge_user", "root"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x_forwarded_for", "127.0.0.1"),
            ("x-forwarded-user", "root"),
            ("x-real-ip", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("x-other", "stays"),
        ];
        assert_eq!(
            sent(ProxyMode::Localhost, &forged),
            ["host: localhost:3000", "x-envforge-user: link:lnk_1", "x-other: stays"]
        );
        assert_eq!(
            sent(ProxyMode::Forwarded, &forged),
            [
                "host: web--a--b.dev.localhost:8080",
                "x-envforge-user: link:lnk_1",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: web--a--b.dev.localhost:8080",
                "x-forwarded-proto: http",
                "x-other: stays",
            ]
        );
    }

    #[test]
    fn its_own_origin_becomes_local_and_foreign_ones_stay() {
        let own = [("origin", ORIGIN), ("referer", "http://web--a--b.dev.localhost:8080/a?b"), ("host", "x")];
        assert_eq!(
            sent(ProxyMode::Localhost, &own)[..3],
            ["host: localhost:3000", "origin: http://localhost:3000", "referer: http://localhost:3000/a?b"]
        );
        let foreign = [("origin", "https://other.example"), ("referer", "http://web--a--b.dev.localhost:80801/")];
        let lines = sent(ProxyMode::Localhost, &foreign);
        assert!(lines.contains(&"origin: https://other.example".into()), "{lines:?}");
        assert!(lines.contains(&"referer: http://web--a--b.dev.localhost:80801/".into()), "{lines:?}");
        assert!(sent(ProxyMode::Forwarded, &own).contains(&format!("origin: {ORIGIN}")));
    }

    #[test]
    fn what_concerns_a_connection_stays_on_it() {
        let hops = [
            ("connection", "keep-alive, x-mine, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "x"),
            ("expect", "100-continue"),
            ("content-length", "3"),
        ];
        assert_eq!(
            sent(ProxyMode::Localhost, &hops),
            ["content-length: 3", "host: localhost:3000", "x-envforge-user: link:lnk_1"]
        );
    }

    #[test]
    fn redirects_and_allowed_origins_lead_back_to_the_public_origin() {
        for (given, expected) in [
            ("http://localhost:3000/login?next=/", format!("{ORIGIN}/login?next=/")),
            ("http://127.0.0.1:3000", ORIGIN.to_owned()),
            ("http://localhost:30001/", "http://localhost:30001/".to_owned()),
            ("http://localhost:3000.evil.example/", "http://localhost:3000.evil.example/".to_owned()),
            ("/relative", "/relative".to_owned()),
        ] {
            assert_eq!(answered(ProxyMode::Localhost, &[("location", given)]), [format!("location: {expected}")]);
        }
        let allowed = [("access-control-allow-origin", "http://localhost:3000")];
        assert_eq!(answered(ProxyMode::Localhost, &allowed), [format!("access-control-allow-origin: {ORIGIN}")]);
        assert_eq!(
            answered(ProxyMode::Forwarded, &allowed),
            ["access-control-allow-origin: http://localhost:3000".to_owned()]
        );
    }

    #[test]
    fn a_services_cookies_are_its_dev_hosts_alone() {
        let given = [
            ("set-cookie", "a=1; Path=/; Domain=dev.localhost; HttpOnly"),
            ("set-cookie", "b=2; domain = .localhost"),
            ("set-cookie", "c=domain; Path=/"),
            ("set-cookie", "envforge=stolen"),
            ("set-cookie", "__host-EnvForge=stolen; Path=/; Secure"),
        ];
        assert_eq!(
            answered(ProxyMode::Localhost, &given),
            ["set-cookie: a=1; Path=/; HttpOnly", "set-cookie: b=2", "set-cookie: c=domain; Path=/"]
        );
    }
}
