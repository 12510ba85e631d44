//! Names that people write: slugs, branches, services. Checked once, when they enter.

use crate::resource::ResourceKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// A name that could not be accepted: what was given, why not, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{given}` {reason}")]
pub struct BadName {
    kind: &'static str,
    given: String,
    reason: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// The name as written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(given: &str) -> Result<Self, BadName> {
                match $check(given) {
                    Ok(()) => Ok(Self(given.to_owned())),
                    Err(reason) => {
                        Err(BadName { kind: $kind, given: given.chars().take(80).collect(), reason })
                    }
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(given: String) -> Result<Self, BadName> {
                given.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

/// Longest slug kept whole. Host labels are derived from it separately.
pub const SLUG_MAX: usize = 63;

fn check_slug(given: &str) -> Result<(), &'static str> {
    let bytes = given.as_bytes();
    if bytes.is_empty() {
        return Err("is empty: use lower-case letters, digits and single hyphens");
    }
    if bytes.len() > SLUG_MAX {
        return Err("is longer than 63 characters: shorten it");
    }
    if !bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err("has other characters than a-z, 0-9 and `-`: use only those");
    }
    if bytes.first() == Some(&b'-') || bytes.last() == Some(&b'-') {
        return Err("begins or ends with `-`: begin and end with a letter or digit");
    }
    if given.contains("--") {
        return Err("has `--` in it: use single hyphens");
    }
    Ok(())
}

fn check_service(given: &str) -> Result<(), &'static str> {
    check_slug(given)?;
    if given == "xn" {
        return Err("is reserved (it would make an internationalised host name): choose another");
    }
    Ok(())
}

/// The rules of `git check-ref-format` that matter for a branch given to a program.
fn check_branch(given: &str) -> Result<(), &'static str> {
    if given.is_empty() || given.len() > 244 {
        return Err("is empty or longer than 244 octets");
    }
    if given.starts_with('-') || given.starts_with('/') || given.ends_with('/') || given.ends_with('.') {
        return Err("begins with `-` or `/`, or ends with `/` or `.`: git does not accept such a branch");
    }
    if given == "@" || given.contains("..") || given.contains("@{") || given.contains("//") {
        return Err("is `@` or has `..`, `@{` or `//` in it: git does not accept such a branch");
    }
    if given.chars().any(|c| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\')) {
        return Err("has a space, a control character or one of ~^:?*[\\: git does not accept such a branch");
    }
    if given.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock")) {
        return Err("has a part that begins with `.` or ends with `.lock`: git does not accept such a branch");
    }
    Ok(())
}

name_type!(
    /// Lower-case name of an organization, project or workspace: `[a-z0-9]([a-z0-9-]*[a-z0-9])?` without `--`.
    Slug, "name", check_slug
);
name_type!(
    /// Name of a service, worker, port, setup step, test, input or output.
    ServiceName, "service", check_service
);
name_type!(
    /// A Git branch.
    Branch, "branch", check_branch
);
name_type!(
    /// Name of a secret: one that services declare (`stripe_key`), a field of a resource that the organization provides
    /// (`resource.database.url`; `resource.database.SERVICE.url` where each service has its own), or a setting of a
    /// provisioner (`provisioner.database.url`).
    SecretName, "secret", check_secret
);

impl SecretName {
    /// The field of a provided resource.
    ///
    /// # Errors
    /// For a field that the kind has not.
    pub fn of_resource(kind: ResourceKind, service: Option<&ServiceName>, field: &str) -> Result<Self, BadName> {
        match service {
            Some(service) => format!("resource.{kind}.{service}.{field}").parse(),
            None => format!("resource.{kind}.{field}").parse(),
        }
    }

    /// The name of the setting, where this is one of the provisioner of `kind`.
    #[must_use]
    pub fn setting_of(&self, kind: ResourceKind) -> Option<&str> {
        self.0.strip_prefix("provisioner.")?.strip_prefix(kind.as_str())?.strip_prefix('.')
    }
}

/// Longest part of a secret's name.
const LONGEST_PART: usize = 100;

fn check_secret(given: &str) -> Result<(), &'static str> {
    let word = |part: &str| {
        let first = |b: u8| b.is_ascii_alphabetic() || b == b'_' || b == b'-';
        part.bytes().next().is_some_and(first)
            && part.len() <= LONGEST_PART
            && part.bytes().all(|b| first(b) || b.is_ascii_digit())
    };
    let kind = |name: &str| name.parse::<ResourceKind>().map_err(|_| "names no kind of resource");
    let field = |name: &str, field: &str| match kind(name)?.fields().contains(&field) {
        true => Ok(()),
        false => Err("names no field of that resource: for a database there is `url`, for instance"),
    };
    match *given.split('.').collect::<Vec<_>>() {
        [name] if word(name) => Ok(()),
        ["resource", of, name] => field(of, name),
        ["resource", of, service, name] => check_service(service).and_then(|()| field(of, name)),
        ["provisioner", of, name] if word(name) => kind(of).map(drop),
        _ => Err("is not one: use letters, digits, hyphens and underscores, not beginning with a digit, or write \
                  `resource.KIND.FIELD` or `provisioner.KIND.NAME`"),
    }
}

impl Slug {
    /// The slug a branch gets: lower-cased, every other run of characters a single `-`.
    ///
    /// A branch without a single letter or digit becomes `w-` and six characters of its digest.
    #[must_use]
    pub fn from_branch(branch: &Branch) -> Self {
        let mut slug = String::new();
        for c in branch.as_str().to_lowercase().chars() {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                slug.push(c);
            } else if !slug.is_empty() && !slug.ends_with('-') {
                slug.push('-');
            }
        }
        let slug = slug.trim_end_matches('-');
        if slug.is_empty() {
            return Self(format!("w-{}", short_hash(branch.as_str())));
        }
        if slug.len() > SLUG_MAX {
            let head = slug[..SLUG_MAX - 7].trim_end_matches('-');
            return Self(format!("{head}-{}", short_hash(branch.as_str())));
        }
        Self(slug.to_owned())
    }

    /// The slugs to try, in order, when earlier ones are taken: plain, with the project, with a hash.
    #[must_use]
    pub fn candidates(branch: &Branch, project: &Slug) -> Vec<Self> {
        let plain = Self::from_branch(branch);
        let mut all = vec![plain.clone()];
        if let Ok(with_project) = format!("{plain}-{project}").parse() {
            all.push(with_project);
        }
        let head: String = plain.0.chars().take(SLUG_MAX - 7).collect();
        let hashed = format!("{}-{}", head.trim_end_matches('-'), short_hash(&format!("{project}/{branch}")));
        all.push(Self(hashed));
        all
    }
}

/// Six base32 digits of the SHA-256 of a text; lower case.
#[must_use]
pub fn short_hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    data_encoding::BASE32_NOPAD.encode(&digest[..4]).to_lowercase()[..6].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug_of(branch: &str) -> String {
        Slug::from_branch(&branch.parse().expect("a branch")).to_string()
    }

    #[test]
    fn a_secret_is_one_that_services_declare_a_field_of_a_resource_or_a_setting_of_a_provisioner() {
        for good in [
            "stripe_key",
            "STRIPE-KEY_2",
            "resource.database.url",
            "resource.mail.smtp_url",
            "resource.cache.web-b.port",
            "provisioner.database.url",
        ] {
            assert_eq!(good.parse::<SecretName>().expect(good).as_str(), good);
        }
        for bad in [
            "",
            "2fa",
            "a b",
            "a.b",
            "a/b",
            "resource.database",
            "resource.cache.password",
            "resource.nothing.url",
            "resource.cache.Web.url",
            "provisioner.nothing.url",
            "provisioner.database.2",
            "é",
        ] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
        let setting: SecretName = "provisioner.database.url".parse().expect("a name");
        assert_eq!(setting.setting_of(ResourceKind::Database), Some("url"));
        assert_eq!(setting.setting_of(ResourceKind::Cache), None);
    }

    #[test]
    fn a_slug_is_the_branch_lower_cased_with_runs_of_others_as_one_hyphen() {
        assert_eq!(slug_of("signed-links"), "signed-links");
        assert_eq!(slug_of("Feature/ABC_12--x"), "feature-abc-12-x");
        assert_eq!(slug_of("__x__"), "x");
        assert!(slug_of("日本").starts_with("w-"));
        assert!(slug_of(&"a".repeat(200)).len() <= SLUG_MAX);
    }

    #[test]
    fn every_candidate_is_a_slug() {
        let branch = "a/".repeat(40) + "end";
        for slug in Slug::candidates(&branch.parse().expect("a branch"), &"scheduler".parse().expect("a slug")) {
            assert_eq!(slug.as_str().parse::<Slug>(), Ok(slug.clone()));
        }
    }

    #[test]
    fn names_that_would_be_options_or_paths_are_refused() {
        for bad in ["-x", "a..b", "a b", "x.lock", "/x", "x/", "", "a\u{7}"] {
            assert!(bad.parse::<Branch>().is_err(), "{bad:?}");
        }
        for bad in ["A", "a--b", "-a", "a-", "", "a_b"] {
            assert!(bad.parse::<Slug>().is_err(), "{bad:?}");
        }
        assert!("xn".parse::<ServiceName>().is_err());
    }
}
