//! Dev hosts: `<service>--<workspace>--<organization>.<base>`, one DNS label below one wildcard.
//!
//! Labels are made and stored once, under a unique index, and from then on only looked up: nothing is ever read back
//! out of one. What is checked here is merely whether a text can be one at all, before anything is asked about it.

use crate::{
    names::{ServiceName, Slug, short_hash},
    states::words,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Longest DNS label, in octets.
const DNS_LABEL_MAX: usize = 63;
/// Longest part for a service, a workspace and an organization, in octets.
const SERVICE_MAX: usize = 16;
const WORKSPACE_MAX: usize = 27;
const ORGANIZATION_MAX: usize = 16;
/// Service part of the host that serves presigned storage addresses and nothing else.
pub const STORAGE: &str = "storage";
/// Everything below it belongs to the gateway, on every dev host.
pub const RESERVED_PATH: &str = "/.envforge/";

words!(
    /// How the gateway presents requests to a service.
    ProxyMode, "way of proxying" {
        /// As if they came from `localhost`.
        Localhost = "localhost",
        /// With the public host and `X-Forwarded-*`.
        Forwarded = "forwarded",
    }
);

/// The name itself where it is short enough, else a prefix, `-` and six digits of its digest.
fn part(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let head: String = name.chars().take(max - 7).collect();
    format!("{}-{}", head.trim_end_matches('-'), short_hash(name))
}

/// A service's part.
#[must_use]
pub fn service_part(service: &ServiceName) -> String {
    part(service.as_str(), SERVICE_MAX)
}

/// The part of a further named port of a service.
#[must_use]
pub fn port_part(service: &ServiceName, port: &ServiceName) -> String {
    part(&format!("{service}-{port}"), SERVICE_MAX)
}

/// A workspace's part.
#[must_use]
pub fn workspace_part(workspace: &Slug) -> String {
    part(workspace.as_str(), WORKSPACE_MAX)
}

/// An organization's part.
#[must_use]
pub fn organization_part(organization: &Slug) -> String {
    part(organization.as_str(), ORGANIZATION_MAX)
}

/// A text that cannot be the label of a dev host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not the label of a dev host: three parts of a-z, 0-9 and single `-`, joined by `--`")]
pub struct BadLabel;

/// The label of a dev host, well-formed and in lower case; whether it exists is for the control plane to say.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct HostLabel(String);

impl HostLabel {
    /// Joins three stored parts.
    ///
    /// # Errors
    /// When one of them is none.
    pub fn join(service: &str, workspace: &str, organization: &str) -> Result<Self, BadLabel> {
        format!("{service}--{workspace}--{organization}").parse()
    }

    /// The label as it stands in a host name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The three parts: service (or service and port), workspace, organization.
    #[must_use]
    pub fn parts(&self) -> [&str; 3] {
        let mut parts = self.0.split("--");
        [parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default)
    }

    /// Reads the label from a request's host (`label.base`, port and a final dot aside, letters of either case).
    ///
    /// # Errors
    /// When the host is not below the base or its label is none.
    pub fn of_host(host: &str, base: &str) -> Result<Self, BadLabel> {
        let host = bare(host).ok_or(BadLabel)?;
        let base = bare(base).ok_or(BadLabel)?;
        let (label, rest) = host.split_once('.').ok_or(BadLabel)?;
        if !rest.eq_ignore_ascii_case(base) || label.len() > DNS_LABEL_MAX {
            return Err(BadLabel);
        }
        label.to_ascii_lowercase().parse()
    }
}

/// A host without its port and final dot.
fn bare(host: &str) -> Option<&str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) => return None,
        None => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty()).then_some(name)
}

impl FromStr for HostLabel {
    type Err = BadLabel;

    fn from_str(given: &str) -> Result<Self, BadLabel> {
        let parts: Vec<&str> = given.split("--").collect();
        let sound = given.len() <= DNS_LABEL_MAX && parts.len() == 3 && parts.iter().all(|p| p.parse::<Slug>().is_ok());
        if sound && parts[0] != "xn" { Ok(Self(given.to_owned())) } else { Err(BadLabel) }
    }
}

impl TryFrom<String> for HostLabel {
    type Error = BadLabel;

    fn try_from(given: String) -> Result<Self, BadLabel> {
        given.parse()
    }
}

impl From<HostLabel> for String {
    fn from(label: HostLabel) -> Self {
        label.0
    }
}

impl fmt::Display for HostLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HostLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_fit_one_dns_label() {
        let service = service_part(&"s".repeat(60).parse().expect("a service"));
        let workspace = workspace_part(&"w".repeat(63).parse().expect("a slug"));
        let organization = organization_part(&"o".repeat(63).parse().expect("a slug"));
        let label = HostLabel::join(&service, &workspace, &organization).expect("a label");
        assert_eq!(label.as_str().len(), DNS_LABEL_MAX);
        assert_eq!(label.parts(), [service.as_str(), workspace.as_str(), organization.as_str()]);
        assert_eq!(workspace_part(&"signed-links".parse().expect("a slug")), "signed-links");
        assert!(!part("aaaaaaaa-bbbbbbbbbbb", SERVICE_MAX).contains("--"));
    }

    #[test]
    fn a_host_is_read_whatever_its_case_port_and_final_dot() {
        let read = |host: &str, base: &str| HostLabel::of_host(host, base).map(String::from);
        for host in ["web--a--b.dev.localhost", "WEB--a--B.Dev.Localhost:8080", "web--a--b.dev.localhost."] {
            assert_eq!(read(host, "dev.localhost:8080"), Ok("web--a--b".into()), "{host}");
        }
        for host in [
            "dev.localhost",
            "web--a.dev.localhost",
            "web--a--b.c.dev.localhost",
            "web--a--b.localhost",
            "xn--a--b.dev.localhost",
            "web--a---b.dev.localhost",
            "web--a--b.dev.localhost:80a",
            "",
            ".",
            "web--a--b",
        ] {
            assert_eq!(read(host, "dev.localhost"), Err(BadLabel), "{host}");
        }
    }
}
