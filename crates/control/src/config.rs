//! The state directory: this replica's secrets, made on first start, readable by their owner alone.

use data_encoding::BASE64;
use envforge_api::{capability::SigningKey, problem::Problem, secret::Secret};
use pasetors::{
    keys::SymmetricKey,
    token::UntrustedToken,
    version4::{LocalToken, V4},
};
use std::{
    fs,
    io::{ErrorKind, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// What the state directory holds.
#[derive(Debug)]
pub(crate) struct Secrets {
    /// Bearer token of the local owner.
    pub(crate) owner: Secret,
    /// Bearer token of the local host.
    pub(crate) host: Secret,
    /// Bearer token of the local gateway.
    pub(crate) gateway: Secret,
    /// The first key that signs.
    pub(crate) signing: SigningKey,
    /// Seals those after it.
    pub(crate) sealing: Sealing,
}

/// Seals signing keys under the master key.
#[derive(Debug)]
pub(crate) struct Sealing(SymmetricKey<V4>);

impl Sealing {
    /// Seals a key.
    ///
    /// # Errors
    /// `internal` without randomness.
    pub(crate) fn seal(&self, key: &SigningKey) -> Result<String, Problem> {
        // As text, since a token's payload is one.
        let text = Secret::new(BASE64.encode(&key.to_bytes()));
        LocalToken::encrypt(&self.0, text.expose().as_bytes(), None, Some(SIGNING))
            .map_err(|_| Problem::internal("a signing key could not be sealed"))
    }

    /// Opens what was sealed under the same master key.
    pub(crate) fn unseal(&self, sealed: &str) -> Option<SigningKey> {
        let token = UntrustedToken::<pasetors::Local, V4>::try_from(sealed).ok()?;
        let opened = LocalToken::decrypt(&self.0, &token, None, Some(SIGNING)).ok()?;
        SigningKey::from_bytes(&BASE64.decode(opened.payload().as_bytes()).ok()?).ok()
    }
}

/// Keeps what is sealed as a signing key apart from whatever else the master key may seal one day.
const SIGNING: &[u8] = b"envforge signing key v1";

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Problem {
    move |error| {
        Problem::invalid(
            format!("{what} {} failed: {error}", path.display()),
            "give the control plane a state directory that it may write and nobody else may read",
        )
    }
}

/// Opens the directory and makes what is missing in it.
///
/// # Errors
/// `invalid` when the directory cannot be used; `internal` when a key in it is broken.
pub(crate) fn open(state: &Path) -> Result<Secrets, Problem> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed("making", state))?;
    let master = text(&state.join("master.key"), || Ok(Secret::random(32)))?;
    let sealing = sealing_key(&master)?;
    let sealed = text(&state.join("signing.key"), || {
        let key = SigningKey::generate().map_err(|_| Problem::internal("no randomness for a signing key"))?;
        Ok(Secret::new(sealing.seal(&key)?))
    })?;
    let signing = sealing.unseal(sealed.expose()).ok_or_else(|| {
        Problem::internal("signing.key cannot be opened with master.key; without both, capabilities cannot be signed")
    })?;
    Ok(Secrets {
        owner: text(&state.join("owner.token"), || Ok(Secret::random(32)))?,
        host: text(&state.join("host.token"), || Ok(Secret::random(32)))?,
        gateway: text(&state.join("gateway.token"), || Ok(Secret::random(32)))?,
        signing,
        sealing,
    })
}

fn sealing_key(master: &Secret) -> Result<Sealing, Problem> {
    use sha2::Digest;
    let bytes = sha2::Sha256::digest(master.expose().as_bytes());
    SymmetricKey::<V4>::from(&bytes).map(Sealing).map_err(|_| Problem::internal("the master key cannot be used"))
}

/// Reads a small file, made with `make` when it is missing. Two replicas that start at once agree: the file
/// appears whole under its name or not at all, and the first one wins.
pub(crate) fn text(path: &Path, make: impl FnOnce() -> Result<Secret, Problem>) -> Result<Secret, Problem> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(Secret::new(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading", path)(error)),
    }
    let made = make()?;
    let partial = path.with_extension(format!("new-{}", std::process::id()));
    write(&partial, made.expose()).map_err(failed("writing", &partial))?;
    let linked = fs::hard_link(&partial, path);
    fs::remove_file(&partial).map_err(failed("removing", &partial))?;
    match linked {
        Ok(()) => Ok(made),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let text = fs::read_to_string(path).map_err(failed("reading", path))?;
            Ok(Secret::new(text.trim().to_owned()))
        }
        Err(error) => Err(failed("making", path)(error)),
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// Writes the bound address where the command line looks for it; readers see the old or the new one, never half.
///
/// # Errors
/// `invalid` when the directory cannot be written.
pub(crate) fn publish_address(state: &Path, address: SocketAddr) -> Result<(), Problem> {
    let path = state.join("address");
    let partial = state.join(format!("address.new-{}", std::process::id()));
    write(&partial, &format!("http://{address}")).map_err(failed("writing", &partial))?;
    fs::rename(&partial, &path).map_err(failed("renaming to", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_made_once_and_only_their_owner_reads_them() {
        let dir = std::env::temp_dir().join(format!("envforge-config-{}", Secret::random(8).expose()));
        let first = open(&dir).expect("first start");
        let second = open(&dir).expect("second start");
        assert_eq!(first.owner.expose(), second.owner.expose());
        assert_eq!(first.host.expose(), second.host.expose());
        assert_eq!(first.gateway.expose(), second.gateway.expose());
        assert_eq!(first.signing.verify_key(), second.signing.verify_key());
        assert_ne!(first.owner.expose(), first.host.expose());
        assert_ne!(first.gateway.expose(), first.host.expose());
        for entry in fs::read_dir(&dir).expect("the directory") {
            let mode = entry.expect("an entry").metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
