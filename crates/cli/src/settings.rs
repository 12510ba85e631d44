//! Which EnvForge is meant: a remote one, the host of the workspace one is in, or the installation on this machine.

use envforge_api::{
    client::Endpoint,
    names::Slug,
    problem::{Problem, ProblemKind},
    secret::Secret,
};
use std::path::PathBuf;

/// The host's socket inside a workspace.
pub(crate) const INSIDE_SOCKET: &str = "/run/envforge/host.sock";

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `ENVFORGE_SERVER`.
    Remote {
        /// Address.
        endpoint: Endpoint,
        /// `ENVFORGE_TOKEN`.
        token: Option<Secret>,
    },
    /// In a workspace: its host's socket; the host knows the caller by it.
    Inside {
        /// Slug of the workspace.
        workspace: String,
    },
    /// The installation at [`Settings::home`].
    Local,
}

/// Everything the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where requests go.
    pub(crate) target: Target,
    /// Home of the local installation.
    pub(crate) home: PathBuf,
    /// `ENVFORGE_PROJECT`.
    pub(crate) project: Option<Slug>,
    /// Directory of what may be lost.
    pub(crate) cache: Option<PathBuf>,
}

impl Settings {
    /// Reads settings from variables; `in_workspace` says whether [`INSIDE_SOCKET`] exists, `root` who runs this.
    ///
    /// # Errors
    /// [`ProblemKind::Usage`] for a value that is not valid.
    pub(crate) fn read(
        variable: impl Fn(&str) -> Option<String>,
        in_workspace: bool,
        root: bool,
    ) -> Result<Self, Problem> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home_directory = variable("HOME").map(PathBuf::from);
        let home = match (variable("ENVFORGE_HOME"), root, &home_directory) {
            (Some(home), _, _) => PathBuf::from(home),
            (None, false, Some(directory)) => directory.join(".local/share/envforge"),
            (None, true, _) | (None, false, None) => PathBuf::from("/var/lib/envforge"),
        };
        let home = std::path::absolute(&home).unwrap_or(home);
        let target = match (variable("ENVFORGE_SERVER"), variable("ENVFORGE_WORKSPACE")) {
            (Some(server), _) => Target::Remote {
                endpoint: server.parse().map_err(|problem: Problem| {
                    Problem::new(ProblemKind::Usage, format!("ENVFORGE_SERVER: {}", problem.message), problem.hint)
                })?,
                token: variable("ENVFORGE_TOKEN").map(Secret::new),
            },
            (None, Some(workspace)) if in_workspace => Target::Inside { workspace },
            (None, _) => Target::Local,
        };
        let project = match variable("ENVFORGE_PROJECT") {
            None => None,
            Some(given) => Some(given.parse().map_err(|error: envforge_api::names::BadName| {
                Problem::new(ProblemKind::Usage, format!("ENVFORGE_PROJECT: {error}"), "name a project")
            })?),
        };
        let cache = variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| home_directory.map(|directory| directory.join(".cache")))
            .map(|directory| directory.join("envforge"));
        Ok(Self { target, home, project, cache })
    }

    /// Names the EnvForge that is meant, also while it does not answer.
    pub(crate) fn key(&self) -> String {
        match &self.target {
            Target::Remote { endpoint, .. } => endpoint.to_string(),
            Target::Inside { .. } => "inside".to_owned(),
            Target::Local => format!("home:{}", self.home.display()),
        }
    }

    /// The workspace one is in.
    pub(crate) fn inside(&self) -> Option<&str> {
        match &self.target {
            Target::Inside { workspace } => Some(workspace),
            Target::Remote { .. } | Target::Local => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)], in_workspace: bool, root: bool) -> Result<Settings, Problem> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let look = move |name: &str| pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        Settings::read(look, in_workspace, root)
    }

    #[test]
    fn a_server_comes_before_the_workspace_one_is_in_and_that_before_the_local_installation() {
        let server = [("ENVFORGE_SERVER", "http://a:1"), ("ENVFORGE_WORKSPACE", "w"), ("ENVFORGE_TOKEN", "t")];
        let remote = read(&server, true, true).expect("read");
        assert!(matches!(&remote.target, Target::Remote { token: Some(token), .. } if token.expose() == "t"));
        assert_eq!(remote.key(), "http://a:1");
        let inside = read(&[("ENVFORGE_WORKSPACE", "w")], true, true).expect("read");
        assert_eq!(inside.inside(), Some("w"));
        assert_eq!(read(&[("ENVFORGE_WORKSPACE", "w")], false, true).expect("read").target, Target::Local);
        assert_eq!(read(&[("ENVFORGE_SERVER", "")], false, true).expect("read").target, Target::Local);
    }

    #[test]
    fn the_home_depends_on_who_runs_this() {
        let home = |pairs: &[(&str, &str)], root| read(pairs, false, root).expect("read").home;
        assert_eq!(home(&[("HOME", "/u")], true), PathBuf::from("/var/lib/envforge"));
        assert_eq!(home(&[("HOME", "/u")], false), PathBuf::from("/u/.local/share/envforge"));
        assert_eq!(home(&[("HOME", "/u"), ("ENVFORGE_HOME", "/x")], false), PathBuf::from("/x"));
    }

    #[test]
    fn a_server_that_is_no_address_is_wrong_usage() {
        let problem = read(&[("ENVFORGE_SERVER", "ftp://a")], false, true).expect_err("refused");
        assert_eq!(problem.kind, ProblemKind::Usage);
    }
}
