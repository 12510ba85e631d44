//! TLS for visitors, with a certificate that lies in files and may be renewed there at any time.
//!
//! A certificate that cannot be read takes nothing away: the one before it goes on, and the log says why.

use envforge_api::problem::Problem;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Where the certificate and its key lie, as PEM.
#[derive(Debug, Clone)]
pub struct Files {
    /// The chain, the host's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How often the files are looked at. Those who renew certificates replace files, links to them, or whole directories: no
/// watch on one of these hears of all.
const LOOK: Duration = Duration::from_secs(2);

/// What is served with at the moment.
pub(crate) struct Tls {
    files: Files,
    now: RwLock<(TlsAcceptor, [Option<SystemTime>; 2])>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they are not a certificate with its key.
    pub(crate) fn open(files: Files) -> Result<Self, Problem> {
        let stamps = stamps(&files);
        let acceptor = read(&files)?;
        Ok(Self { files, now: RwLock::new((acceptor, stamps)) })
    }

    /// For one connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.now.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Takes renewed files, until `stop`.
    pub(crate) async fn follow(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => self.look(),
            }
        }
    }

    fn look(&self) {
        let stamps = stamps(&self.files);
        if self.now.read().unwrap_or_else(PoisonError::into_inner).1 == stamps {
            return;
        }
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        now.1 = stamps;
        match read(&self.files) {
            Ok(acceptor) => {
                now.0 = acceptor;
                tracing::info!("a renewed certificate is used");
            }
            // Half of a renewal: the other half changes the stamps again.
            Err(problem) => tracing::warn!(reason = %problem.message, "a renewed certificate is not used"),
        }
    }
}

fn stamps(files: &Files) -> [Option<SystemTime>; 2] {
    let stamp = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    [stamp(&files.certificate), stamp(&files.key)]
}

/// Reads a certificate with its key, as visitors are served with them.
///
/// # Errors
/// When they are none, or do not belong together.
pub(crate) fn read(files: &Files) -> Result<TlsAcceptor, Problem> {
    let bad = |path: &Path, why: String| {
        let hint = "give the chain with --tls-certificate and its key with --tls-key, both as PEM";
        Problem::invalid(format!("{} cannot be used: {why}", path.display()), hint)
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|e| bad(&files.certificate, e.to_string()))?;
    // Its reader's words name no part of a key.
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| bad(&files.key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| bad(&files.certificate, e.to_string()))?.with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).map_err(|e| bad(&files.certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_at_the_start_and_later_takes_nothing_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files { certificate: dir.path().join("chain.pem"), key: dir.path().join("key.pem") };
        let told = Tls::open(files.clone()).err().expect("nothing is there").message;
        assert!(told.contains("chain.pem"), "{told}");
        let write = |name: &str| {
            let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
            std::fs::write(&files.certificate, made.cert.pem()).expect("written");
            std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        };
        write("a.example");
        let tls = Tls::open(files.clone()).expect("a certificate with its key");
        let config = || Arc::as_ptr(tls.acceptor().config());
        let first = config();
        tls.look();
        assert_eq!(config(), first, "nothing is new");
        std::fs::write(&files.certificate, "no certificate").expect("written");
        tls.look();
        assert_eq!(config(), first, "the one before goes on");
        write("b.example");
        tls.look();
        assert_ne!(config(), first);
        std::fs::write(&files.key, "no key").expect("written");
        let told = Tls::open(files).err().expect("no key").message;
        assert!(told.contains("key.pem") && !told.contains("BEGIN"), "{told}");
    }
}
