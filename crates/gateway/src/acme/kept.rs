//! What lies in the directory of certificates. Nothing of its content reaches an error.

use super::broken;
use crate::tls::{self, Files};
use envforge_api::{problem::Problem, secret::Secret, time::Timestamp};
use instant_acme::AccountCredentials;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// The first line of a certificate's file, before the address of the server's directory. Who reads PEM passes over it.
const HAD_FROM: &str = "# EnvForge had this from ";

const HINT: &str = "look at the directory given with --acme-dir; what was kept before is as it was";

/// What matters of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// Directory of the server that gave it.
    pub(super) directory: String,
    pub(super) names: Vec<String>,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

/// An account is known to one server only, and shown to no other.
#[derive(Serialize, Deserialize)]
struct Kept<A> {
    directory: String,
    account: A,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Dir(PathBuf);

impl Dir {
    /// Makes it; nobody else may look into it.
    ///
    /// # Errors
    /// When it cannot be made, or others may look into one that is there.
    pub(super) fn open(dir: PathBuf) -> Result<Self, Problem> {
        let own = "give a directory of the gateway's own with --acme-dir";
        let bad = |why: String, hint| Problem::invalid(format!("{} cannot be used: {why}", dir.display()), hint);
        let mode = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).and_then(|()| fs::metadata(&dir));
        let mode = mode.map_err(|e| bad(e.to_string(), own.to_owned()))?.permissions().mode();
        if mode & 0o077 != 0 {
            // Not changed here: it may be meant to be open, for something else that lies in it.
            let hint = format!("`chmod 700 {}`, or {own}", dir.display());
            return Err(bad("others than its owner may look into it".into(), hint));
        }
        Ok(Self(dir))
    }

    /// Certificate and key, in one file.
    pub(super) fn files(&self) -> Files {
        let both = self.0.join("certificate.pem");
        Files { certificate: both.clone(), key: both }
    }

    /// The certificate, when its key is there too.
    ///
    /// # Errors
    /// Why there is none that visitors could be served with.
    pub(super) fn certificate(&self) -> Result<Certificate, String> {
        let files = self.files();
        let text = match fs::read_to_string(&files.certificate) {
            Ok(text) => Secret::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err("there is none yet".into()),
            Err(error) => return Err(format!("{} cannot be read: {error}", files.certificate.display())),
        };
        tls::read(&files).map_err(|problem| problem.message)?;
        let strange = || format!("{} says nothing of names and times", files.certificate.display());
        Certificate::parse(text.expose()).ok_or_else(strange)
    }

    /// Keeps a certificate with its key, once visitors can be served with them.
    ///
    /// # Errors
    /// When they do not belong together, or of the disk.
    pub(super) fn keep_certificate(&self, directory: &str, chain: &str, key: &Secret) -> Result<(), Problem> {
        let text = Secret::new(format!("{HAD_FROM}{directory}\n{}\n{chain}", key.expose().trim_end()));
        let usable = |fresh: &Path| {
            let read = tls::read(&Files { certificate: fresh.to_owned(), key: fresh.to_owned() });
            read.map(drop).map_err(|problem| io::Error::other(problem.message))
        };
        write(&self.files().certificate, &text, usable).map_err(|e| broken("keep a certificate", e, HINT))
    }

    fn account_file(&self) -> PathBuf {
        self.0.join("account.json")
    }

    /// The account at this server, if there is one.
    ///
    /// # Errors
    /// When it cannot be read: its key is not thrown away unseen.
    pub(super) fn account(&self, directory: &str) -> Result<Option<AccountCredentials>, Problem> {
        let path = self.account_file();
        let bad = |why: String| {
            let hint = format!("mend it, or move {} away: then another account is made", path.display());
            Problem::unavailable(format!("{} cannot be used: {why}", path.display()), hint)
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => Secret::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(error.to_string())),
        };
        // The reader's own words would quote what it read.
        let kept: Kept<AccountCredentials> = serde_json::from_str(text.expose())
            .map_err(|e| bad(format!("line {}, column {} is not of an account", e.line(), e.column())))?;
        Ok((kept.directory == directory).then_some(kept.account))
    }

    /// # Errors
    /// Of the disk.
    pub(super) fn keep_account(&self, directory: &str, account: &AccountCredentials) -> Result<(), Problem> {
        let kept = Kept { directory: directory.to_owned(), account };
        let text = serde_json::to_string(&kept).map(Secret::new).map_err(io::Error::other);
        let written = text.and_then(|text| write(&self.account_file(), &text, |_| Ok(())));
        written.map_err(|e| broken("keep the ACME account", e, HINT))
    }
}

impl Certificate {
    /// The first one of a file.
    fn parse(text: &str) -> Option<Self> {
        let own = CertificateDer::pem_slice_iter(text.as_bytes()).next()?.ok()?;
        let (_, parsed) = X509Certificate::from_der(&own).ok()?;
        let names = parsed.subject_alternative_name().ok()??.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let moment = |seconds: i64| Timestamp::from_second(seconds).ok();
        let validity = parsed.validity();
        Some(Self {
            directory: text.lines().next().and_then(|line| line.strip_prefix(HAD_FROM)).unwrap_or_default().to_owned(),
            names: names.collect(),
            from: moment(validity.not_before.timestamp())?,
            until: moment(validity.not_after.timestamp())?,
        })
    }
}

/// Writes a file as a whole, for the gateway's user alone, when it proves `usable` beside its place.
fn write(path: &Path, text: &Secret, usable: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let written = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.expose().as_bytes())?;
        file.sync_all()?;
        usable(&fresh)?;
        fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    // The half of one would take space, and keep a key.
    written().inspect_err(|_| drop(fs::remove_file(&fresh)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: &str = "https://ca.test/directory";

    fn made(names: &[&str]) -> (String, Secret) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        (made.cert.pem(), Secret::new(made.signing_key.serialize_pem()))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    #[test]
    fn a_certificate_is_kept_with_its_key_for_one_user_and_what_cannot_be_served_with_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = Dir::open(dir.path().join("deep/acme")).expect("made");
        assert_eq!(dir.certificate(), Err("there is none yet".into()));
        let (chain, key) = made(&["Dev.test", "*.dev.test"]);
        dir.keep_certificate(DIRECTORY, &chain, &key).expect("kept");
        let certificate = dir.certificate().expect("both are there");
        assert_eq!(
            (&*certificate.directory, &certificate.names[..]),
            (DIRECTORY, &["dev.test", "*.dev.test"].map(ToOwned::to_owned)[..])
        );
        assert!(certificate.from < certificate.until);
        let file = dir.files().certificate;
        assert_eq!((mode(&dir.0), mode(&file)), (0o700, 0o600));
        let (_, of_another) = made(&["dev.test"]);
        for (chain, key) in [(&*chain, &of_another), ("no certificate", &key)] {
            let told = dir.keep_certificate(DIRECTORY, chain, key).expect_err("refused").message;
            assert!(!told.contains("BEGIN"), "{told}");
        }
        assert_eq!(dir.certificate(), Ok(certificate));
        assert_eq!(fs::read_dir(&dir.0).expect("a directory").count(), 1, "nothing is left beside it");
        for text in [&*chain, key.expose(), &chain[..chain.len() / 2]] {
            fs::write(&file, text).expect("written");
            assert!(dir.certificate().expect_err("a half").contains("certificate.pem"));
        }
    }

    #[test]
    fn a_directory_that_others_may_look_into_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).expect("set");
        let problem = Dir::open(dir.path().to_owned()).expect_err("refused");
        assert!(problem.hint.contains("chmod 700"), "{problem}");
    }

    #[test]
    fn an_account_is_shown_to_its_own_server_alone_and_a_broken_one_is_neither_quoted_nor_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = Dir::open(dir.path().join("kept")).expect("made");
        assert!(dir.account(DIRECTORY).expect("none").is_none());
        let key = rcgen::KeyPair::generate().expect("a key").serialize_der();
        let key = data_encoding::BASE64URL_NOPAD.encode(&key);
        let text = format!(r#"{{"id": "https://ca.test/1", "key_pkcs8": "{key}", "directory": "{DIRECTORY}"}}"#);
        dir.keep_account(DIRECTORY, &serde_json::from_str(&text).expect("an account")).expect("kept");
        assert_eq!(mode(&dir.account_file()), 0o600);
        assert!(dir.account(DIRECTORY).expect("read").is_some());
        assert!(dir.account("https://another.test/directory").expect("read").is_none());
        let broken = format!(r#"{{"directory": "{DIRECTORY}", "account": "{key}"}}"#);
        fs::write(dir.account_file(), broken).expect("written");
        let problem = dir.account(DIRECTORY).err().expect("refused");
        assert!(problem.message.contains("line 1") && !problem.message.contains(&key), "{problem}");
    }
}
