//! What a port of a workspace is called by who forwards it to a machine of their own, and what there is to know about it.
//!
//! Nothing here is secret: how a password is seen is another command's business.

use crate::{
    names::ServiceName,
    problem::{Problem, ProblemKind},
    resource::ResourceKind,
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A service, one of its ports, or a data service. A data service's word always means that one: a service of the same name
/// is reached as `SERVICE.PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The data service of a kind.
    Resource(ResourceKind),
    /// A service; without a port its main one.
    Service {
        /// Which.
        name: ServiceName,
        /// The name of its port.
        port: Option<ServiceName>,
    },
}

impl FromStr for Target {
    type Err = Problem;

    fn from_str(given: &str) -> Result<Self, Problem> {
        if let Ok(kind) = given.parse() {
            return Ok(Self::Resource(kind));
        }
        let name = |text: &str| {
            text.parse::<ServiceName>().map_err(|error| {
                let hint =
                    "a service, SERVICE.PORT, database, cache, queue, storage or mail; `envforge status` lists them";
                Problem::new(ProblemKind::Usage, error.to_string(), hint)
            })
        };
        Ok(match given.split_once('.') {
            Some((service, port)) => Self::Service { name: name(service)?, port: Some(name(port)?) },
            None => Self::Service { name: name(given)?, port: None },
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(kind) => write!(f, "{kind}"),
            Self::Service { name, port: Some(port) } => write!(f, "{name}.{port}"),
            Self::Service { name, port: None } => write!(f, "{name}"),
        }
    }
}

/// What a target leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// The port inside the workspace.
    pub port: u16,
    /// Of a database: who connects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of a database, its name; of a cache or queue, its number; of storage, its bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a data service that needs one: a service whose environment holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<ServiceName>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_service_a_port_of_it_or_a_data_service() {
        for text in ["web", "web.admin", "database", "cache", "queue", "storage", "mail", "mail.http"] {
            assert_eq!(text.parse::<Target>().expect("read").to_string(), text);
        }
        assert_eq!("mail".parse(), Ok(Target::Resource(ResourceKind::Mail)));
        assert!(matches!("mail.http".parse(), Ok(Target::Service { .. })));
        for bad in ["", "Web", "web.", ".http", "a.b.c", "3000/x"] {
            assert_eq!(bad.parse::<Target>().expect_err(bad).kind, ProblemKind::Usage);
        }
    }
}
