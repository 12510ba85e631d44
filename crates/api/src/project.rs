//! A project as applied: services, bindings, resource modes. The checked result of a project file.

use crate::{
    names::{ServiceName, Slug},
    problem::Problem,
    resource::{ResourceKind, ResourceMode, ResourceScope},
    states::words,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

words!(
    /// How much of the machine a runtime may use.
    RuntimeSize, "runtime size" {
        /// 1 CPU, 2 GiB.
        Small = "small",
        /// 2 CPUs, 4 GiB.
        Medium = "medium",
        /// 4 CPUs, 8 GiB.
        Large = "large",
    }
);

impl RuntimeSize {
    /// CPU limit in thousandths of a core.
    #[must_use]
    pub const fn cpu_millis(self) -> u64 {
        match self {
            Self::Small => 1000,
            Self::Medium => 2000,
            Self::Large => 4000,
        }
    }

    /// Memory limit in bytes.
    #[must_use]
    pub const fn memory_bytes(self) -> u64 {
        match self {
            Self::Small => 2 << 30,
            Self::Medium => 4 << 30,
            Self::Large => 8 << 30,
        }
    }
}

/// A whole project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectSpec {
    /// The project's slug.
    pub project: Slug,
    /// Services in written order.
    pub services: Vec<ProjectService>,
    /// `{ web: { /api: backend } }`: paths of one service's origin that go to another service.
    #[serde(default)]
    pub routes: BTreeMap<ServiceName, BTreeMap<String, ServiceName>>,
    /// Values for declared inputs.
    #[serde(default)]
    pub inputs: Vec<InputBinding>,
    /// Resource modes; a kind that is not named is `managed` when a service declares it.
    #[serde(default)]
    pub resources: BTreeMap<ResourceKind, ResourceSetting>,
    /// Size and idle time of the runtime.
    #[serde(default)]
    pub runtime: RuntimeSetting,
}

impl ProjectSpec {
    /// Whether there is such a service.
    ///
    /// # Errors
    /// `invalid`, with those that there are.
    pub fn has(&self, wanted: &ServiceName) -> Result<(), Problem> {
        if self.services.iter().any(|service| service.name == *wanted) {
            return Ok(());
        }
        let names = self.services.iter().map(|service| service.name.to_string()).collect();
        let text = format!("project `{}` has no service `{wanted}`", self.project);
        Err(Problem::invalid(text, "choose one of its services").with_candidates(names))
    }
}

/// One service of a project: where its code is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectService {
    /// Its name.
    pub name: ServiceName,
    /// Git URL (`https://`, `ssh://`, `git@host:path`, `file://` or an absolute path).
    pub repo: String,
    /// Path of the service inside the repository, without leading slash; absent = the repository's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Ports that replace the declared ones, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<ServiceName, u16>,
}

/// `backend.public_site_url: web.url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InputBinding {
    /// The service that declares the input.
    pub service: ServiceName,
    /// The input's name (letters, digits, underscores).
    pub input: String,
    /// Where its value comes from.
    pub value: BindingValue,
}

/// Where an input's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum BindingValue {
    /// `route /api`: the public origin of the service that has the input, with the path.
    Route {
        /// The path, with its leading slash.
        path: String,
    },
    /// `S.url`: the public origin of a service.
    Url {
        /// The service.
        service: ServiceName,
    },
    /// `S.internal_url`: `http://localhost:<port>` of a service.
    InternalUrl {
        /// The service.
        service: ServiceName,
    },
    /// `S.<output>`: an output that a service declares.
    Output {
        /// The service.
        service: ServiceName,
        /// The output's name.
        output: String,
    },
}

/// Who provides a resource, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceSetting {
    /// Who provides it.
    pub mode: ResourceMode,
    /// Who shares it.
    pub scope: ResourceScope,
}

/// Size and idle time; absent = the largest and longest that a service declares, else medium and 15 minutes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RuntimeSetting {
    /// Size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<RuntimeSize>,
    /// Seconds without service work after which the runtime sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_after_seconds: Option<u64>,
}

impl RuntimeSetting {
    /// The size when neither project nor services say one.
    pub const DEFAULT_SIZE: RuntimeSize = RuntimeSize::Medium;
    /// The idle time when neither project nor services say one: 15 minutes.
    pub const DEFAULT_SLEEP_AFTER_SECONDS: u64 = 15 * 60;
}

impl ProjectSpec {
    /// The checkouts a workspace has: one directory name for each distinct repository, in written order.
    ///
    /// The name is the last part of the URL without `.git`, made unique with `-2`, `-3`, ….
    #[must_use]
    pub fn checkouts(&self) -> Vec<Checkout> {
        let mut found: Vec<Checkout> = Vec::new();
        for service in &self.services {
            if let Some(known) = found.iter_mut().find(|c| c.repo == service.repo) {
                known.services.push(service.name.clone());
                continue;
            }
            let base = repo_directory(&service.repo);
            let mut directory = base.clone();
            let mut n = 1;
            while found.iter().any(|c| c.directory == directory) {
                n += 1;
                directory = format!("{base}-{n}");
            }
            found.push(Checkout { directory, repo: service.repo.clone(), services: vec![service.name.clone()] });
        }
        found
    }
}

/// One repository of a workspace and the directory under `/workspace` it is checked out in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkout {
    /// Directory name under `/workspace`.
    pub directory: String,
    /// Git URL.
    pub repo: String,
    /// The services whose code it holds.
    pub services: Vec<ServiceName>,
}

fn repo_directory(repo: &str) -> String {
    let last = repo.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(repo);
    let last = last.strip_suffix(".git").unwrap_or(last);
    let clean: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' }).collect();
    let clean = clean.trim_start_matches(['.', '-']);
    if clean.is_empty() { "repo".into() } else { clean.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, repo: &str) -> ProjectService {
        ProjectService { name: name.parse().expect("name"), repo: repo.into(), path: None, ports: BTreeMap::new() }
    }

    #[test]
    fn services_of_one_repository_share_a_checkout_and_equal_names_are_told_apart() {
        let spec = ProjectSpec {
            project: "p".parse().expect("slug"),
            services: vec![
                service("a", "https://git.example/x/app.git"),
                service("b", "https://git.example/y/app.git"),
                service("c", "https://git.example/x/app.git"),
                service("d", "git@git.example:..hidden"),
            ],
            routes: BTreeMap::new(),
            inputs: vec![],
            resources: BTreeMap::new(),
            runtime: RuntimeSetting::default(),
        };
        let dirs: Vec<_> = spec.checkouts().into_iter().map(|c| (c.directory, c.services.len())).collect();
        assert_eq!(dirs, [("app".into(), 2), ("app-2".into(), 1), ("hidden".into(), 1)]);
    }
}
