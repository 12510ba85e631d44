//! AWS Signature Version 4, as far as S3 needs it.
//!
//! Three parties use it: the host's own client signs requests; a gateway writes down what a presigned address says was
//! signed, which takes no secret and proves nothing; the host that has the secret says whether the signature is right.
//! Rules kept here: signatures are compared in constant time, and neither they nor secrets print.

use crate::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The only algorithm.
pub const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// In the place of a body's digest: the signature says nothing about the body.
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// What was signed with what, as somebody says who has no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presigned {
    /// Names the secret.
    pub access_key: String,
    /// `20261127/us-east-1/s3/aws4_request`.
    pub scope: String,
    /// The text that the signature is of.
    pub string_to_sign: String,
    /// 64 hexadecimal digits.
    pub signature: Secret,
}

impl Presigned {
    /// Whether it was signed with this secret.
    #[must_use]
    pub fn is_signed_with(&self, secret: &Secret) -> bool {
        let given = data_encoding::HEXLOWER.decode(self.signature.expose().as_bytes());
        let (Ok(given), Some(mac)) = (given, mac(secret, &self.scope, &self.string_to_sign)) else { return false };
        mac.verify_slice(&given).is_ok()
    }
}

/// A request, as far as its signature speaks of it.
#[derive(Debug)]
pub struct Request<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Path as it is sent, percent-encoded.
    pub path: &'a str,
    /// Names and values of the query, decoded; without `X-Amz-Signature`.
    pub query: Vec<(String, String)>,
    /// Signed headers: names in lower case, values as they are sent.
    pub headers: Vec<(String, String)>,
    /// Digest of the body, or [`UNSIGNED`].
    pub payload: &'a str,
}

impl Request<'_> {
    /// The names of the signed headers, as they stand in the signature.
    #[must_use]
    pub fn signed_headers(&self) -> String {
        let mut names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.join(";")
    }

    /// The text that is signed.
    #[must_use]
    pub fn string_to_sign(&self, time: &str, scope: &str) -> String {
        let mut query: Vec<(String, String)> = self
            .query
            .iter()
            .map(|(name, value)| (encode(name.as_bytes(), ""), encode(value.as_bytes(), "")))
            .collect();
        query.sort_unstable();
        let query: Vec<String> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut headers: Vec<&(String, String)> = self.headers.iter().collect();
        headers.sort_unstable();
        let one = |(name, value): &(String, String)| {
            let words: Vec<&str> = value.split_ascii_whitespace().collect();
            format!("{name}:{}\n", words.join(" "))
        };
        let headers: String = headers.into_iter().map(one).collect();
        let (path, signed) = (encode(&decode(self.path), "/"), self.signed_headers());
        let canonical = format!("{}\n{path}\n{}\n{headers}\n{signed}\n{}", self.method, query.join("&"), self.payload);
        format!("{ALGORITHM}\n{time}\n{scope}\n{}", digest(canonical.as_bytes()))
    }
}

/// The signature of a text; `None` for a scope that is none.
#[must_use]
pub fn signature(secret: &Secret, scope: &str, string_to_sign: &str) -> Option<Secret> {
    let signature = mac(secret, scope, string_to_sign)?.finalize().into_bytes();
    Some(Secret::new(data_encoding::HEXLOWER.encode(&signature)))
}

fn mac(secret: &Secret, scope: &str, text: &str) -> Option<Hmac<Sha256>> {
    let keyed = |key: &[u8], text: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
        mac.update(text.as_bytes());
        Some(mac)
    };
    let mut parts = scope.split('/');
    let first = format!("AWS4{}", secret.expose());
    let mut key = keyed(first.as_bytes(), parts.next()?)?.finalize().into_bytes();
    let mut count = 1;
    for part in parts {
        key = keyed(&key, part)?.finalize().into_bytes();
        count += 1;
    }
    if count == 4 && scope.ends_with("/aws4_request") { keyed(&key, text) } else { None }
}

/// SHA-256 in hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Percent-encodes everything but the unreserved characters and those of `also`.
#[must_use]
pub fn encode(bytes: &[u8], also: &str) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) || also.as_bytes().contains(byte);
        if plain { text.push(char::from(*byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    text
}

/// Takes percent-encoding away. What is none stays as it is.
#[must_use]
pub fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut found) = (text.as_bytes(), Vec::with_capacity(text.len()));
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        match pair.and_then(|pair| data_encoding::HEXUPPER_PERMISSIVE.decode(pair).ok()) {
            Some(one) => {
                found.extend(one);
                at += 3;
            }
            None => {
                found.push(*byte);
                at += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the AWS documentation for query authentication.
    #[test]
    fn a_presigned_address_is_verified_as_aws_documents_it_and_any_change_is_noticed() {
        let scope = "20130524/us-east-1/s3/aws4_request";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let request = |path| Request {
            method: "GET",
            path,
            query: vec![
                pair("X-Amz-SignedHeaders", "host"),
                pair("X-Amz-Expires", "86400"),
                pair("X-Amz-Algorithm", ALGORITHM),
                pair("X-Amz-Credential", "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"),
                pair("X-Amz-Date", "20130524T000000Z"),
            ],
            headers: vec![pair("host", "examplebucket.s3.amazonaws.com")],
            payload: UNSIGNED,
        };
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into());
        let presigned = |path, scope: &str, signature: &str| Presigned {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            scope: scope.into(),
            string_to_sign: request(path).string_to_sign("20130524T000000Z", scope),
            signature: Secret::new(signature.into()),
        };
        let right = "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";
        assert!(presigned("/test.txt", scope, right).is_signed_with(&secret));
        assert!(presigned("/%74est.txt", scope, right).is_signed_with(&secret), "the same path, written otherwise");
        assert!(!presigned("/test.tx", scope, right).is_signed_with(&secret));
        assert!(!presigned("/test.txt", scope, right).is_signed_with(&Secret::new("other".into())));
        assert!(!presigned("/test.txt", scope, &right.replace('a', "b")).is_signed_with(&secret));
        for bad in ["", "x", &right[1..]] {
            assert!(!presigned("/test.txt", scope, bad).is_signed_with(&secret), "{bad}");
        }
        for none in ["", "20130524/us-east-1/s3", "20130524/us-east-1/s3/x", "a/20130524/us-east-1/s3/aws4_request"] {
            assert!(signature(&secret, none, "text").is_none(), "{none}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_to_the_same_octets() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all, "/")), all);
        assert_eq!(encode(b"a b/\xc3\xbc+%", "/"), "a%20b/%C3%BC%2B%25");
        assert_eq!(decode("%zz%4"), b"%zz%4");
    }
}
