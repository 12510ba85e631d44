//! What lies in the directory of certificates.

use crate::tls::Files;
use envforge_api::time::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// What matters of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) names: Vec<String>,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

impl Certificate {
    /// The one in these files, when its key is there too.
    pub(super) fn read(files: &Files) -> Option<Self> {
        PrivateKeyDer::from_pem_file(&files.key).ok()?;
        let own = CertificateDer::pem_file_iter(&files.certificate).ok()?.next()?.ok()?;
        let (_, parsed) = X509Certificate::from_der(&own).ok()?;
        let names = parsed.subject_alternative_name().ok()??.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        let moment = |seconds: i64| Timestamp::from_second(seconds).ok();
        let validity = parsed.validity();
        Some(Self {
            names: names.collect(),
            from: moment(validity.not_before.timestamp())?,
            until: moment(validity.not_after.timestamp())?,
        })
    }

    /// Whether the share page's host and all dev hosts are among its names.
    pub(super) fn covers(&self, base: &str) -> bool {
        let has = |wanted: &str| self.names.iter().any(|name| name.eq_ignore_ascii_case(wanted));
        has(base) && has(&format!("*.{base}"))
    }
}

/// Makes the directory; nobody else may look into it.
pub(super) fn ensure(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file as a whole, for the gateway's user alone.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_certificate_with_its_key_is_read_back_and_one_of_other_names_or_without_a_key_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("certificate.pem");
        let files = Files { certificate: path.clone(), key: path.clone() };
        assert_eq!(Certificate::read(&files), None);
        let made = rcgen::generate_simple_self_signed(["dev.test", "*.dev.test"].map(ToOwned::to_owned).to_vec());
        let made = made.expect("a certificate");
        write(&path, &made.cert.pem()).expect("written");
        assert_eq!(Certificate::read(&files), None, "its key is missing");
        write(&path, &(made.signing_key.serialize_pem() + &made.cert.pem())).expect("written");
        let certificate = Certificate::read(&files).expect("both are there");
        assert!(certificate.covers("dev.test") && certificate.covers("Dev.Test") && !certificate.covers("v.test"));
        assert!(certificate.from < certificate.until);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
