//! HTTP to the ACME server. The library brings a client too; this one has an end to its patience, remembers when a server
//! that refuses wants to be asked again, and takes any number of private authorities.

use bytes::Bytes;
use envforge_api::{problem::Problem, time::Timestamp};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long one answer may take, to its last octet.
const PATIENCE: Duration = Duration::from_secs(60);
/// Octets of an answer at most.
const LARGEST: usize = 1 << 20;

/// How the server is asked.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    later: Arc<Mutex<Option<Duration>>>,
}

impl Http {
    /// Trusts the authorities in the file alone, else those of the system.
    ///
    /// # Errors
    /// When there are none.
    pub(super) fn new(root: Option<&Path>) -> Result<Self, Problem> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config
            .with_safe_default_protocol_versions()
            .map_err(|e| Problem::internal(format!("TLS to the ACME server: {e}")))?;
        let config = match root {
            Some(file) => config.with_root_certificates(roots(file)?),
            None => config.with_native_roots().map_err(|e| {
                let hint = "install the package ca-certificates, or give --acme-root";
                Problem::invalid(format!("the system trusts no authority: {e}"), hint)
            })?,
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(config.with_no_client_auth());
        let connector = connector.https_only().enable_http1().build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), later: Arc::default() })
    }

    /// When the server that refused last wants to be asked again. Said once.
    pub(super) fn later(&self) -> Option<Duration> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn roots(file: &Path) -> Result<RootCertStore, Problem> {
    let bad = |why: String| {
        let hint = "give certificates of authorities as PEM with --acme-root";
        Problem::invalid(format!("{} cannot be used: {why}", file.display()), hint)
    };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(file).map_err(|e| bad(e.to_string()))? {
        roots.add(root.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() { Err(bad("no certificate is in it".into())) } else { Ok(roots) }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (client, later) = (self.client.clone(), Arc::clone(&self.later));
        Box::pin(async move {
            let answered = tokio::time::timeout(PATIENCE, async {
                let (parts, body) = client.request(request).await.map_err(|e| Error::Other(Box::new(e)))?.into_parts();
                let body = Limited::new(body, LARGEST).collect().await.map_err(Error::Other)?.to_bytes();
                Ok(BytesResponse { parts, body: Box::new(body) })
            });
            let late = |_| Err(Error::Other(format!("no answer within {} s", PATIENCE.as_secs()).into()));
            let answer = answered.await.unwrap_or_else(late)?;
            let (status, headers) = (answer.parts.status, &answer.parts.headers);
            if status.is_client_error() || status.is_server_error() {
                *later.lock().unwrap_or_else(PoisonError::into_inner) = retry_after(headers, Timestamp::now());
                let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                if !kind.is_some_and(|kind| kind.contains("json")) {
                    // Not the server's own words but those of something in between.
                    return Err(Error::Other(format!("the answer was {status}").into()));
                }
            }
            Ok(answer)
        })
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(now.duration_until(at)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_in_seconds_or_by_a_date_when_it_wants_to_be_asked_again() {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let said = |value: &'static str| {
            let headers = [(header::RETRY_AFTER, header::HeaderValue::from_static(value))];
            retry_after(&headers.into_iter().collect(), now).map(|later| later.as_secs())
        };
        assert_eq!(said("120"), Some(120));
        assert_eq!(said("Thu, 01 Jan 2026 01:00:00 GMT"), Some(3600));
        assert_eq!(said("Wed, 31 Dec 2025 23:00:00 GMT"), None, "that is past");
        assert_eq!(said("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_file_without_an_authority_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("root.pem");
        for text in [None, Some("no certificate")] {
            text.inspect(|text| std::fs::write(&file, text).expect("written"));
            let problem = Http::new(Some(&file)).expect_err("refused");
            assert!(problem.message.contains("root.pem") && problem.hint.contains("--acme-root"), "{problem}");
        }
    }
}
