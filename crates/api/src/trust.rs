//! TLS for whoever dials: which authorities are trusted. Those of the machine (`SSL_CERT_FILE` and `SSL_CERT_DIR` name
//! others), and further ones where a file names them.

use crate::problem::Problem;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    fmt, io,
    path::Path,
    sync::{Arc, OnceLock},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Authorities that are trusted.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// The machine's, read once.
    ///
    /// # Errors
    /// `unavailable` when the machine has none.
    pub fn of_machine() -> Result<Self, Problem> {
        static READ: OnceLock<Result<Trust, Problem>> = OnceLock::new();
        READ.get_or_init(|| Self::new(RootCertStore::empty())).clone()
    }

    /// The machine's where it has any, and those in a file (PEM).
    ///
    /// # Errors
    /// `invalid` when the file holds none.
    pub fn with_root(file: &Path) -> Result<Self, Problem> {
        let bad = |why: String| {
            let hint = "give the authorities' certificates as PEM";
            Problem::invalid(format!("{} cannot be used: {why}", file.display()), hint)
        };
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(file).map_err(|e| bad(e.to_string()))? {
            roots.add(root.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("there is no certificate in it".into()));
        }
        Self::new(roots)
    }

    fn new(mut roots: RootCertStore) -> Result<Self, Problem> {
        // What is broken among them is left out, as everywhere.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            let hint = "install the package ca-certificates";
            return Err(Problem::unavailable("this machine trusts no authority, so that TLS proves nothing", hint));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions();
        let config = config.map_err(|e| Problem::internal(format!("TLS cannot be set up: {e}")))?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Agrees on TLS with the server at the other end.
    ///
    /// # Errors
    /// When its certificate is not one for `host` by a trusted authority, or the connection breaks.
    pub async fn agree(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_certificate_for_that_name_by_a_trusted_authority_is_agreed_on() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("root.pem");
        std::fs::write(&file, made.cert.pem()).expect("written");
        let trusting = Trust::with_root(&file).expect("a root");
        let other = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
        std::fs::write(&file, other.cert.pem()).expect("written");
        let doubting = Trust::with_root(&file).expect("a root");
        std::fs::write(&file, "no certificate").expect("written");
        assert!(Trust::with_root(&file).expect_err("none").message.contains("root.pem"));

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = config.expect("versions").with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key).expect("a certificate with its key");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(acceptor.accept(stream).await);
            }
        });
        for (trust, name, agreed) in
            [(&trusting, "a.example", true), (&trusting, "b.example", false), (&doubting, "a.example", false)]
        {
            let stream = TcpStream::connect(address).await.expect("connected");
            assert_eq!(trust.agree(name, stream).await.is_ok(), agreed, "{name}");
        }
    }
}
