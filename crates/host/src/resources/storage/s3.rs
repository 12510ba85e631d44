//! A small S3 client: requests signed by [`sigv4`], answers as they are. A connection each: what is asked is asked
//! seldom, and whoever hands connections out (the keeper) is on the same machine.

use super::{Keys, Place, keeper, keys::REGION};
use envforge_api::{
    sigv4::{self, Request},
    time::Timestamp,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    StatusCode,
    body::Bytes,
    header::{HeaderMap, HeaderValue},
};
use hyper_util::rt::TokioIo;
use std::{borrow::Cow, fmt, io, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// Largest answer that is read, in octets.
const MOST: usize = 64 << 20;
/// How long a server may take: copying a large object is one request.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why a request was not done. Names no key and no address.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// No answer.
    #[error("the storage server cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    /// It says no.
    #[error("the storage server answers {status} {code}")]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// S3's word, such as `NoSuchBucket`; empty where there is none.
        code: String,
    },
    /// It says something else than was asked.
    #[error("the storage server's answer is not understood: {0}")]
    Unreadable(&'static str),
}

impl Failed {
    /// Whether it was refused with this status.
    #[must_use]
    pub fn is(&self, status: StatusCode) -> bool {
        matches!(self, Self::Refused { status: with, .. } if *with == status)
    }
}

/// How a server is reached.
#[derive(Debug, Clone)]
enum Way {
    Keeper(Place),
    Address(String),
}

/// One who asks.
#[derive(Clone)]
pub struct Client {
    way: Way,
    keys: Keys,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// What is asked.
#[derive(Debug, Default)]
pub struct Call {
    /// `GET` where it is empty.
    pub method: &'static str,
    /// Path, percent-encoded, with its first slash.
    pub path: String,
    /// Names and values.
    pub query: Vec<(&'static str, String)>,
    /// Further headers; all of them are signed. Names in lower case.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// `s3` where it is empty.
    pub service: &'static str,
}

impl Call {
    /// One about a bucket, or about an object in it.
    #[must_use]
    pub fn on(method: &'static str, bucket: &str, key: Option<&str>) -> Self {
        let path = match key {
            Some(key) => format!("/{bucket}/{}", sigv4::encode(key.as_bytes(), "/")),
            None => format!("/{bucket}"),
        };
        Self { method, path, ..Self::default() }
    }

    /// The same with a part of the query.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// What is answered.
#[derive(Debug)]
pub struct Answer {
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// One that reaches the host's server through its keeper.
    #[must_use]
    pub fn by_keeper(place: &Place, keys: Keys) -> Self {
        Self { way: Way::Keeper(place.clone()), keys }
    }

    /// One that reaches a server at `host:port`.
    #[must_use]
    pub fn at(address: impl Into<String>, keys: Keys) -> Self {
        Self { way: Way::Address(address.into()), keys }
    }

    /// The same server with other keys.
    #[must_use]
    pub fn with_keys(&self, keys: &Keys) -> Self {
        Self { way: self.way.clone(), keys: keys.clone() }
    }

    /// Its secret, where a server has it encrypt something with.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        match &self.way {
            Way::Keeper(place) => {
                let socket = keeper::dial(place).await.map_err(|why| io::Error::other(why.to_string()))?;
                TcpStream::from_std(socket)
            }
            Way::Address(address) => TcpStream::connect(address.as_str()).await,
        }
    }

    /// Asks and reads the whole answer.
    ///
    /// # Errors
    /// When there is no answer, or one that is no success.
    pub async fn call(&self, call: Call) -> Result<Answer, Failed> {
        let asked = async {
            let stream = self.connect().await.map_err(Failed::Unreachable)?;
            let request = self.signed(call)?;
            let broken = |e: hyper::Error| Failed::Unreachable(io::Error::other(e));
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(broken)?;
            let exchange = async {
                let response = sender.send_request(request).await.map_err(broken)?;
                let (parts, body) = response.into_parts();
                let body = Limited::new(body, MOST).collect().await;
                let body = body.map_err(|e| Failed::Unreachable(io::Error::other(e)))?.to_bytes();
                Ok((parts, body))
            };
            // The connection is driven here and nowhere else: dropped, nothing of it goes on.
            let (parts, body) = tokio::select! {
                answered = exchange => answered?,
                broke = connection => {
                    let error = broke.err().map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::other);
                    return Err(Failed::Unreachable(error));
                }
            };
            if parts.status.is_success() {
                return Ok(Answer { headers: parts.headers, body });
            }
            let text = String::from_utf8_lossy(&body);
            // The admin interface of MinIO answers in JSON.
            let json = || serde_json::from_str::<serde_json::Value>(&text).ok()?["Code"].as_str().map(str::to_owned);
            let code = first(&text, "Code").or_else(json).unwrap_or_default();
            Err(Failed::Refused { status: parts.status, code })
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(Failed::Unreachable(io::ErrorKind::TimedOut.into())))
    }

    fn signed(&self, call: Call) -> Result<hyper::Request<Full<Bytes>>, Failed> {
        let unreadable = |_| Failed::Unreadable("a request could not be written");
        let method = if call.method.is_empty() { "GET" } else { call.method };
        let service = if call.service.is_empty() { "s3" } else { call.service };
        // Whoever is in between changes nothing: it is the same on every way.
        let host = match &self.way {
            Way::Keeper(_) => "localhost:9000".to_owned(),
            Way::Address(address) => address.clone(),
        };
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let scope = format!("{}/{REGION}/{service}/aws4_request", time.get(..8).unwrap_or_default());
        let payload = sigv4::digest(&call.body);
        let mut headers: Vec<(String, String)> =
            call.headers.into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
        headers.extend([
            ("host".to_owned(), host),
            ("x-amz-content-sha256".to_owned(), payload.clone()),
            ("x-amz-date".to_owned(), time.clone()),
        ]);
        let query: Vec<(String, String)> =
            call.query.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let pairs: Vec<String> = query
            .iter()
            .map(|(name, value)| {
                format!("{}={}", sigv4::encode(name.as_bytes(), ""), sigv4::encode(value.as_bytes(), ""))
            })
            .collect();
        let target = if pairs.is_empty() { call.path.clone() } else { format!("{}?{}", call.path, pairs.join("&")) };
        let described = Request { method, path: &call.path, query, headers, payload: &payload };
        let text = described.string_to_sign(&time, &scope);
        let signature = sigv4::signature(&self.keys.secret_key, &scope, &text);
        let authorization = format!(
            "{} Credential={}/{scope}, SignedHeaders={}, Signature={}",
            sigv4::ALGORITHM,
            self.keys.access_key,
            described.signed_headers(),
            signature.ok_or(Failed::Unreadable("a request could not be signed"))?.expose(),
        );
        let mut request = hyper::Request::builder().method(method).uri(target);
        for (name, value) in &described.headers {
            request = request.header(name, value);
        }
        let mut authorization =
            HeaderValue::from_str(&authorization).map_err(|_| Failed::Unreadable("a request could not be signed"))?;
        authorization.set_sensitive(true);
        request.header("authorization", authorization).body(Full::new(call.body.into())).map_err(unreadable)
    }
}

/// The texts of all elements of a name, which hold no others. Enough for S3's answers, which have no attributes there.
pub(super) fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((text, later)) = after.split_once(&close) else { break };
        found.push(text);
        rest = later;
    }
    found
}

/// The text of the first one, with its entities read.
pub(super) fn first(xml: &str, name: &str) -> Option<String> {
    let text = all(xml, name).into_iter().next()?;
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&quot;", "\""), ("&#39;", "'"), ("&apos;", "'")];
    let text = pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    Some(text.replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_by_name() {
        let xml = "<A><Key>a%20b</Key><N>1</N></A><A><Key>&quot;x&quot; &amp;lt;</Key></A><Key>";
        assert_eq!(all(xml, "Key"), ["a%20b", "&quot;x&quot; &amp;lt;"]);
        assert_eq!(first(all(xml, "A")[1], "Key").as_deref(), Some("\"x\" &lt;"));
        assert_eq!(first(xml, "None"), None);
    }
}
