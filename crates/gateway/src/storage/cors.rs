//! Which pages may use presigned addresses across origins: those of the same workspace. Pure.
//!
//! It is decided by the names alone, so that nobody learns from it which of them exist.

use crate::body::Answer;
use envforge_api::dev_host::{HostLabel, STORAGE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

/// What a page may read beside the body and the few headers that every page may.
const EXPOSED: &str = "ETag, Content-Length, Content-Range, Accept-Ranges, Content-Disposition, Content-Encoding, Last-Modified, \
     x-amz-version-id, x-amz-request-id, x-amz-checksum-crc32, x-amz-checksum-crc32c, x-amz-checksum-sha256";

/// The origin of a page that may read what `storage` answers.
pub(super) fn allowed(headers: &HeaderMap, storage: &HostLabel, scheme: &str, base: &str) -> Option<HeaderValue> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
    let host = origin.to_str().ok()?.strip_prefix(scheme)?.strip_prefix("://")?;
    let label: HostLabel = host.strip_suffix(base)?.strip_suffix('.')?.parse().ok()?;
    let ([page, ours @ ..], [_, theirs @ ..]) = (label.parts(), storage.parts());
    (ours == theirs && page != STORAGE).then(|| origin.clone())
}

/// The answer to a page that asks whether it may, if what it asks for is carried at all.
pub(super) fn preflight(headers: &HeaderMap) -> Option<Response<Answer>> {
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    if !matches!(method.as_bytes(), b"GET" | b"HEAD" | b"PUT") {
        return None;
    }
    let mut response = Response::new(Answer::own(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let to = response.headers_mut();
    to.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, PUT"));
    if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        to.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    to.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Some(response)
}

/// Lets the page read the answer.
pub(super) fn add(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_same_workspace_may_and_no_others() {
        let storage: HostLabel = "storage--w--acme".parse().expect("a label");
        let may = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).expect("a header"));
            allowed(&headers, &storage, "http", "dev.localhost:7080").is_some()
        };
        assert!(may("http://web--w--acme.dev.localhost:7080") && may("http://web-admin--w--acme.dev.localhost:7080"));
        for origin in [
            "http://web--v--acme.dev.localhost:7080",
            "http://web--w--other.dev.localhost:7080",
            "http://storage--w--acme.dev.localhost:7080",
            "https://web--w--acme.dev.localhost:7080",
            "http://web--w--acme.dev.localhost",
            "http://web--w--acme.dev.localhost:7081",
            "http://web--w--acme.dev.localhost:7080.evil.example",
            "http://evil.example/web--w--acme.dev.localhost:7080",
            "http://x.web--w--acme.dev.localhost:7080",
            "http://dev.localhost:7080",
            "null",
            "",
        ] {
            assert!(!may(origin), "{origin}");
        }
    }

    #[test]
    fn a_preflight_is_answered_for_what_is_carried() {
        let asked = |method: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static(method));
            headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("content-type"));
            preflight(&headers)
        };
        let answer = asked("PUT").expect("carried");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], "content-type");
        for method in ["DELETE", "POST", "OPTIONS", "put", ""] {
            assert!(asked(method).is_none(), "{method}");
        }
    }
}
