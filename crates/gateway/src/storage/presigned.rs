//! Reads a presigned request: what it says was signed, with which key, and until when. Pure.
//!
//! Whoever has the secret says whether that is true. What is refused here is what no right signature would make right:
//! another way of authentication, a date that is over, and everything that is more than one object read or written. What
//! a server might act on without its being signed (`x-amz-…` headers) is refused too, as AWS does.

use envforge_api::{
    secret::Secret,
    sigv4::{self, ALGORITHM, Presigned, UNSIGNED},
    time::Timestamp,
};
use http::{HeaderMap, Method, Uri, header};
use std::collections::BTreeMap;

/// Longest life of an address, in seconds.
const LONGEST: i64 = 7 * 24 * 60 * 60;
/// A signer's clock may be so far ahead, in seconds.
const AHEAD: i64 = 15 * 60;

/// It is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotPresigned;

/// What the request says.
///
/// # Errors
/// When it is no presigned request for one object, or not any more.
pub(super) fn read(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    host: &str,
    now: Timestamp,
) -> Result<Presigned, NotPresigned> {
    if !matches!(*method, Method::GET | Method::HEAD | Method::PUT) || headers.contains_key(header::AUTHORIZATION) {
        return Err(NotPresigned);
    }
    if !is_object(uri.path()) {
        return Err(NotPresigned);
    }
    let mut query = pairs(uri.query().unwrap_or_default())?;
    let mut take = |name: &str| query.remove(name).ok_or(NotPresigned);
    let signature = take("X-Amz-Signature")?;
    let query_left = query.clone();
    let mut take = |name: &str| query.remove(name).ok_or(NotPresigned);
    if take("X-Amz-Algorithm")? != ALGORITHM {
        return Err(NotPresigned);
    }
    let (date, expires, signed) = (take("X-Amz-Date")?, take("X-Amz-Expires")?, take("X-Amz-SignedHeaders")?);
    let credential = take("X-Amz-Credential")?;
    is_now(&date, &expires, now)?;
    let (access_key, scope) = credential.split_once('/').ok_or(NotPresigned)?;
    let parts: Vec<&str> = scope.split('/').collect();
    let [day, _region, "s3", "aws4_request"] = parts.as_slice() else { return Err(NotPresigned) };
    if access_key.is_empty() || date.get(..8) != Some(*day) {
        return Err(NotPresigned);
    }
    let said = query.remove("X-Amz-Content-Sha256");
    // What is left asks for something of the object.
    if query.keys().any(|name| !may_ask(method, name)) {
        return Err(NotPresigned);
    }
    let names: Vec<&str> = signed.split(';').collect();
    if !names.contains(&"host") {
        return Err(NotPresigned);
    }
    let unsigned = |name: &str| name.starts_with("x-amz-") && !names.contains(&name);
    if headers.keys().any(|name| unsigned(name.as_str()) || name == "x-amz-copy-source") {
        return Err(NotPresigned);
    }
    let values: Option<Vec<(String, String)>> = names
        .iter()
        .map(|name| Some(((*name).to_owned(), if *name == "host" { host.to_owned() } else { value(headers, name)? })))
        .collect();
    let request = sigv4::Request {
        method: method.as_str(),
        path: uri.path(),
        query: query_left.into_iter().collect(),
        headers: values.ok_or(NotPresigned)?,
        payload: said.as_deref().unwrap_or(UNSIGNED),
    };
    if request.signed_headers() != signed {
        return Err(NotPresigned);
    }
    Ok(Presigned {
        access_key: access_key.to_owned(),
        scope: scope.to_owned(),
        string_to_sign: request.string_to_sign(&date, scope),
        signature: Secret::new(signature),
    })
}

/// Whether a path names one object: a bucket and a key that no server reads as another one.
fn is_object(path: &str) -> bool {
    let Some((bucket, key)) = path.strip_prefix('/').and_then(|rest| rest.split_once('/')) else { return false };
    let Ok(key) = String::from_utf8(sigv4::decode(key)) else { return false };
    let encoded_slash = path.as_bytes().windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f"));
    let dots = key.split('/').any(|segment| matches!(segment, "." | ".."));
    !bucket.is_empty() && !bucket.contains('%') && !key.is_empty() && !key.contains('\0') && !encoded_slash && !dots
}

/// Names and values of a query, decoded; none is named twice.
fn pairs(query: &str) -> Result<BTreeMap<String, String>, NotPresigned> {
    let mut found = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = |text: &str| String::from_utf8(sigv4::decode(&text.replace('+', "%20"))).map_err(|_| NotPresigned);
        if found.insert(text(name)?, text(value)?).is_some() {
            return Err(NotPresigned);
        }
    }
    Ok(found)
}

/// What of a query leaves the request one that reads or writes one object. Names of the signature were taken out.
fn may_ask(method: &Method, name: &str) -> bool {
    match name {
        "partNumber" | "x-id" => true,
        "uploadId" => *method == Method::PUT,
        "versionId" => *method != Method::PUT,
        _ if name.starts_with("response-") => *method != Method::PUT,
        // Headers of S3 that a signer put into the address.
        _ => {
            let name = name.to_ascii_lowercase();
            name.starts_with("x-amz-checksum-")
                || name.starts_with("x-amz-meta-")
                || matches!(name.as_str(), "x-amz-sdk-checksum-algorithm" | "x-amz-storage-class" | "x-amz-user-agent")
        }
    }
}

fn is_now(date: &str, expires: &str, now: Timestamp) -> Result<(), NotPresigned> {
    let at = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).map_err(|_| NotPresigned)?;
    let at = jiff::tz::TimeZone::UTC.to_timestamp(at).map_err(|_| NotPresigned)?;
    let lasts: i64 = expires.parse().map_err(|_| NotPresigned)?;
    let age = now.as_second().saturating_sub(at.as_second());
    let sound = (1..=LONGEST).contains(&lasts) && age >= -AHEAD && age < lasts;
    if sound { Ok(()) } else { Err(NotPresigned) }
}

/// All values of a header, as they are signed.
fn value(headers: &HeaderMap, name: &str) -> Option<String> {
    let values: Option<Vec<&str>> = headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "storage--w--acme.dev.localhost:7080";
    const SIGNED: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=key%2F20261127%2Fus-east-1%2Fs3%2Faws4_request\
                          &X-Amz-Date=20261127T120000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host";

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    /// Signs what is read back, as a client does: with everything but the signature.
    fn signed(method: &str, path: &str, query: &str) -> Uri {
        let pairs = pairs(query).expect("a query").into_iter().collect();
        let headers = vec![("host".to_owned(), HOST.to_owned())];
        let request = sigv4::Request { method, path, query: pairs, headers, payload: UNSIGNED };
        let scope = "20261127/us-east-1/s3/aws4_request";
        let text = request.string_to_sign("20261127T120000Z", scope);
        let signature = sigv4::signature(&Secret::new("secret".into()), scope, &text).expect("a scope");
        format!("{path}?{query}&X-Amz-Signature={}", signature.expose()).parse().expect("an address")
    }

    fn is_right(method: &Method, uri: &Uri, headers: &HeaderMap, now: &str) -> Option<bool> {
        let read = read(method, uri, headers, HOST, at(now)).ok()?;
        Some(read.is_signed_with(&Secret::new("secret".into())) && read.access_key == "key")
    }

    const NOW: &str = "2026-11-27T12:00:30Z";

    #[test]
    fn what_a_client_signed_is_read_back_and_any_change_is_noticed() {
        let none = HeaderMap::new();
        for (method, path, more) in [
            (Method::GET, "/bucket/key", ""),
            (Method::HEAD, "/bucket/a/b%20c/%C3%BC%2B", ""),
            (Method::PUT, "/bucket/key", "&partNumber=2&uploadId=a.b_c"),
            (Method::GET, "/bucket/key", "&response-content-disposition=attachment%3B%20filename%3D%22a%20b%22"),
            (Method::PUT, "/bucket/key", "&x-id=PutObject&x-amz-checksum-crc32=AAAAAA%3D%3D"),
        ] {
            let uri = signed(method.as_str(), path, &format!("{SIGNED}{more}"));
            assert_eq!(is_right(&method, &uri, &none, NOW), Some(true), "{uri}");
            let other = uri.to_string().replace("key", "kez").parse().expect("uri");
            assert_ne!(is_right(&method, &other, &none, NOW), Some(true), "{other}");
            assert_ne!(
                is_right(
                    &method,
                    &uri.to_string().replace("Expires=60", "Expires=61").parse().expect("uri"),
                    &none,
                    NOW
                ),
                Some(true)
            );
        }
        let uri = signed("GET", "/bucket/key", SIGNED);
        assert_eq!(is_right(&Method::PUT, &uri, &none, NOW), Some(false), "another method");
        let elsewhere = read(&Method::GET, &uri, &none, "storage--v--acme.dev.localhost:7080", at(NOW)).expect("read");
        assert!(!elsewhere.is_signed_with(&Secret::new("secret".into())), "another host");
    }

    #[test]
    fn an_address_counts_from_its_date_until_it_ends() {
        let uri = signed("GET", "/bucket/key", SIGNED);
        let none = HeaderMap::new();
        for (now, counts) in [
            ("2026-11-27T11:44:59Z", false),
            ("2026-11-27T11:45:00Z", true),
            ("2026-11-27T12:00:59Z", true),
            ("2026-11-27T12:01:00Z", false),
        ] {
            assert_eq!(is_right(&Method::GET, &uri, &none, now).is_some(), counts, "{now}");
        }
        for bad in ["0", "-1", "604801", "x", ""] {
            let uri = signed("GET", "/bucket/key", &SIGNED.replace("Expires=60", &format!("Expires={bad}")));
            assert_eq!(is_right(&Method::GET, &uri, &none, NOW), None, "{bad}");
        }
    }

    #[test]
    fn nothing_but_one_object_is_read_or_written_however_well_it_is_signed() {
        let none = HeaderMap::new();
        for (method, path, more) in [
            (Method::DELETE, "/bucket/key", ""),
            (Method::POST, "/bucket/key", ""),
            (Method::GET, "/", ""),
            (Method::GET, "/bucket", ""),
            (Method::GET, "/bucket/", ""),
            (Method::GET, "/bucket/../other/key", ""),
            (Method::GET, "/bucket/a/%2e%2E/b", ""),
            (Method::GET, "/bucket/a%2fb", ""),
            (Method::GET, "/bu%63ket/key", ""),
            (Method::GET, "/bucket/key", "&acl"),
            (Method::PUT, "/bucket/key", "&tagging="),
            (Method::GET, "/bucket/key", "&uploadId=x"),
            (Method::PUT, "/bucket/key", "&x-amz-copy-source=%2Fbucket%2Fother"),
            (Method::PUT, "/bucket/key", "&x-amz-acl=public-read"),
            (Method::GET, "/bucket/key", "&X-Amz-Security-Token=x"),
        ] {
            let uri = signed(method.as_str(), path, &format!("{SIGNED}{more}"));
            assert_eq!(is_right(&method, &uri, &none, NOW), None, "{method} {uri}");
        }
        let uri = signed("PUT", "/bucket/key", SIGNED);
        assert_eq!(is_right(&Method::PUT, &uri, &none, NOW), Some(true));
        for name in ["authorization", "x-amz-copy-source", "x-amz-acl", "x-amz-content-sha256"] {
            let mut headers = HeaderMap::new();
            headers.insert(name, "x".parse().expect("a header"));
            assert_eq!(is_right(&Method::PUT, &uri, &headers, NOW), None, "{name} is not signed");
        }
        let twice: Uri = format!("{uri}&X-Amz-Expires=600").parse().expect("an address");
        assert_eq!(is_right(&Method::PUT, &twice, &none, NOW), None);
        for other in ["host;host", "", "x-y;host", "HOST"] {
            let uri =
                signed("PUT", "/bucket/key", &SIGNED.replace("SignedHeaders=host", &format!("SignedHeaders={other}")));
            assert_ne!(is_right(&Method::PUT, &uri, &none, NOW), Some(true), "{other}");
        }
        for other in
            ["key%2F20261128%2Fus-east-1%2Fs3%2Faws4_request", "key%2F20261127%2Fus-east-1%2Fiam%2Faws4_request", "key"]
        {
            let query = SIGNED.replace("key%2F20261127%2Fus-east-1%2Fs3%2Faws4_request", other);
            assert_eq!(is_right(&Method::PUT, &signed("PUT", "/bucket/key", &query), &none, NOW), None, "{other}");
        }
    }
}
