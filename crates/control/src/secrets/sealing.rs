//! The keys that secrets are sealed with: `secrets.key` of the state directory, a line `ID KEY` for each. The first one
//! seals, all of them open, so that a new key is put before the old one, and the old one goes when nothing is sealed with
//! it any more.
//!
//! A sealed value is a PASETO `v4.local` token (XChaCha20 with a keyed BLAKE2b), whose implicit assertion says where it
//! belongs: organization, project and name. Decision 0020 has the reasons.

use crate::config::text;
use data_encoding::BASE64;
use envforge_api::{
    ids::{OrganizationId, ProjectId},
    names::SecretName,
    problem::Problem,
    secret::Secret,
};
use pasetors::{
    keys::{Generate, SymmetricKey},
    token::UntrustedToken,
    version4::{LocalToken, V4},
};
use std::{fmt, fs, os::unix::fs::PermissionsExt, path::Path};

/// The keys of this replica.
pub(crate) struct Ring(Vec<(String, SymmetricKey<V4>)>);

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(id, _)| id)).finish()
    }
}

/// Where a value belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Belongs<'a> {
    pub(crate) organization: &'a OrganizationId,
    pub(crate) project: Option<&'a ProjectId>,
    pub(crate) name: &'a SecretName,
}

impl Belongs<'_> {
    /// What is authenticated with the value. None of its parts can hold a NUL.
    fn assertion(&self, key: &str) -> String {
        let project = self.project.map_or("", ProjectId::as_str);
        format!("envforge secret v1\0{key}\0{}\0{project}\0{}", self.organization, self.name)
    }
}

impl Ring {
    /// Reads the keys; makes the first one where the file is missing.
    ///
    /// # Errors
    /// `invalid` for a file that others can read or that holds something else.
    pub(crate) fn open(state: &Path) -> Result<Self, Problem> {
        let path = state.join("secrets.key");
        let lines = text(&path, new_line)?;
        let mode = fs::metadata(&path).map_or(0, |about| about.permissions().mode());
        if mode & 0o077 != 0 {
            return Err(Problem::invalid(
                format!("{} can be read by others than its owner", path.display()),
                format!("chmod 600 {}; set every secret again if someone else may have read it", path.display()),
            ));
        }
        let keys: Option<Vec<_>> = lines
            .expose()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(key_of)
            .collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Self(keys)),
            Some(_) | None => Err(Problem::invalid(
                format!("{} does not hold keys", path.display()),
                "each line is `ID KEY`, KEY being 32 random octets in base64; put back the one from your backup",
            )),
        }
    }

    /// Id of the key that seals.
    pub(crate) fn first(&self) -> &str {
        self.0.first().map_or("", |(id, _)| id)
    }

    /// Seals a value with the first key.
    ///
    /// # Errors
    /// `internal` without randomness.
    pub(crate) fn seal(&self, value: &Secret, belongs: Belongs<'_>) -> Result<String, Problem> {
        let failed = || Problem::internal("a secret could not be sealed");
        let (id, key) = self.0.first().ok_or_else(failed)?;
        let assertion = belongs.assertion(id);
        LocalToken::encrypt(key, value.expose().as_bytes(), None, Some(assertion.as_bytes())).map_err(|_| failed())
    }

    /// Opens what was sealed for the same place with the key of that id.
    pub(crate) fn unseal(&self, key: &str, sealed: &str, belongs: Belongs<'_>) -> Option<Secret> {
        let (id, key) = self.0.iter().find(|(id, _)| id == key)?;
        let token = UntrustedToken::<pasetors::Local, V4>::try_from(sealed).ok()?;
        let assertion = belongs.assertion(id);
        let opened = LocalToken::decrypt(key, &token, None, Some(assertion.as_bytes())).ok()?;
        Some(Secret::new(opened.payload().to_owned()))
    }
}

fn new_line() -> Result<Secret, Problem> {
    let key = SymmetricKey::<V4>::generate().map_err(|_| Problem::internal("no randomness for a key"))?;
    let bytes = Secret::new(BASE64.encode(key.as_bytes()));
    Ok(Secret::new(format!("k{} {}", Secret::random(5).expose(), bytes.expose())))
}

fn key_of(line: &str) -> Option<(String, SymmetricKey<V4>)> {
    let (id, key) = line.split_once(char::is_whitespace)?;
    let bytes = zeroize::Zeroizing::new(BASE64.decode(key.trim().as_bytes()).ok()?);
    Some((id.to_owned(), SymmetricKey::<V4>::from(&bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Of(OrganizationId, Option<ProjectId>, SecretName);

    impl Of {
        fn new(name: &str) -> Self {
            Self(OrganizationId::generate(), Some(ProjectId::generate()), name.parse().expect("a name"))
        }

        fn belongs(&self) -> Belongs<'_> {
            Belongs { organization: &self.0, project: self.1.as_ref(), name: &self.2 }
        }
    }

    fn write(dir: &Path, lines: &str) {
        let path = dir.join("secrets.key");
        fs::write(&path, lines).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("its owner's alone");
    }

    #[test]
    fn a_value_opens_only_where_it_belongs_and_never_lies_there_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let ring = Ring::open(dir.path()).expect("made");
        let (value, of) = (Secret::new("hunter2 \u{e9}\n".into()), Of::new("stripe_key"));
        let sealed = ring.seal(&value, of.belongs()).expect("sealed");
        assert!(!sealed.contains("hunter2") && sealed != ring.seal(&value, of.belongs()).expect("sealed"));
        let again = Ring::open(dir.path()).expect("read");
        assert_eq!(again.unseal(ring.first(), &sealed, of.belongs()), Some(value));
        let others = [
            Of(OrganizationId::generate(), of.1.clone(), of.2.clone()),
            Of(of.0.clone(), Some(ProjectId::generate()), of.2.clone()),
            Of(of.0.clone(), None, of.2.clone()),
            Of(of.0.clone(), of.1.clone(), "other".parse().expect("a name")),
        ];
        for other in &others {
            assert_eq!(ring.unseal(ring.first(), &sealed, other.belongs()), None);
        }
        assert_eq!(ring.unseal("k0", &sealed, of.belongs()), None, "of another key");
    }

    #[test]
    fn a_new_key_is_put_before_the_old_one_which_opens_what_it_sealed() {
        let dir = tempfile::tempdir().expect("a directory");
        let old = Ring::open(dir.path()).expect("made");
        let (value, of) = (Secret::new("hunter2".into()), Of::new("stripe_key"));
        let sealed = old.seal(&value, of.belongs()).expect("sealed");
        let line = fs::read_to_string(dir.path().join("secrets.key")).expect("there");
        write(dir.path(), &format!("# since today\nnew {}\n\n{line}", BASE64.encode(&[7; 32])));
        let both = Ring::open(dir.path()).expect("two keys");
        assert_eq!(both.first(), "new");
        assert_eq!(both.unseal(old.first(), &sealed, of.belongs()), Some(value));
    }

    #[test]
    fn a_file_that_others_can_read_or_that_holds_no_keys_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        for bad in ["", "# none", "k1", "k1 abc", "k1 AAAA"] {
            write(dir.path(), bad);
            let problem = Ring::open(dir.path()).expect_err(bad);
            assert!(problem.message.contains("does not hold keys"), "{problem}");
        }
        write(dir.path(), &format!("k1 {}", BASE64.encode(&[7; 32])));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a group's too");
        assert!(Ring::open(dir.path()).expect_err("readable").hint.contains("chmod 600"));
    }
}
