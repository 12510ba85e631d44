//! What every command works with: output, settings, and a client that is made when it is first needed.

use crate::{
    args::words::Known,
    local,
    output::Output,
    settings::{INSIDE_SOCKET, Settings, Target},
};
use envforge_api::{
    client::{Client, Endpoint},
    names::{Branch, Slug},
    problem::{Problem, ProblemKind},
    public::{WorkspaceList, WorkspaceView},
};
use std::{path::Path, time::Duration};
use tokio::sync::OnceCell;

/// How long a part of this machine's installation that was killed may take until its keeper has it back.
pub(crate) const RESTART: Duration = Duration::from_secs(10);

/// Output, settings and the way to the control plane.
#[derive(Debug)]
pub(crate) struct Context {
    /// The only way to print.
    pub(crate) out: Output,
    /// Where requests go.
    pub(crate) settings: Settings,
    client: OnceCell<Client>,
}

impl Context {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// [`ProblemKind::Usage`] for a variable that is not valid.
    pub(crate) fn from_process(out: Output) -> Result<Self, Problem> {
        let in_workspace = Path::new(INSIDE_SOCKET).exists();
        let root = nix::unistd::geteuid().is_root();
        let settings = Settings::read(|name| std::env::var(name).ok(), in_workspace, root)?;
        Ok(Self::new(out, settings))
    }

    /// A context from its parts.
    pub(crate) fn new(out: Output, settings: Settings) -> Self {
        Self { out, settings, client: OnceCell::new() }
    }

    /// A client of the control plane; a local installation is started if none runs.
    ///
    /// # Errors
    /// When a local installation cannot be started.
    pub(crate) async fn client(&self) -> Result<&Client, Problem> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client, Problem> {
        Ok(match &self.settings.target {
            Target::Remote { endpoint, token } => Client::new(endpoint.clone(), token.clone()),
            Target::Inside { .. } => Client::new(Endpoint::Unix(INSIDE_SOCKET.into()), None).with_patience(RESTART),
            Target::Local => {
                let server = local::ensure(&self.settings.home, &|text| self.out.say(text)).await?;
                Client::new(server.endpoint, Some(server.token)).with_patience(RESTART)
            }
        })
    }

    /// Looks after a local installation whose parts may have gone: one of its commands brings them back.
    pub(crate) async fn revive(&self) {
        if self.settings.target == Target::Local {
            // A failure shows itself in the attempt that follows.
            let _ = local::ensure(&self.settings.home, &|_| {}).await;
        }
    }

    /// The slug of the workspace that is meant: the one named, the one one is in, or one that a person picks.
    ///
    /// # Errors
    /// [`ProblemKind::Usage`] with candidates where nobody can be asked.
    pub(crate) async fn workspace(&self, given: Option<&str>) -> Result<Slug, Problem> {
        if let Some(given) = given {
            return slug(given);
        }
        if let Some(current) = self.settings.inside() {
            return slug(current);
        }
        let candidates: Vec<String> =
            self.workspaces().await?.iter().map(|ws| ws.workspace.as_str().to_owned()).collect();
        if !candidates.is_empty() && self.out.can_ask() {
            return slug(&self.out.choose("Which workspace?", candidates)?);
        }
        let hint = if candidates.is_empty() {
            "there is none yet: `envforge up BRANCH` opens one"
        } else {
            "name it after the command"
        };
        Err(Problem::new(ProblemKind::Usage, "which workspace is meant?", hint).with_candidates(candidates))
    }

    /// Every workspace the caller can see.
    ///
    /// # Errors
    /// As the request.
    pub(crate) async fn workspaces(&self) -> Result<Vec<WorkspaceView>, Problem> {
        Ok(self.client().await?.get::<WorkspaceList>("/v1/workspaces").await?.workspaces)
    }

    /// A workspace as it is now.
    ///
    /// # Errors
    /// As the request.
    pub(crate) async fn view(&self, workspace: &Slug) -> Result<WorkspaceView, Problem> {
        self.client().await?.get(&format!("/v1/workspaces/{workspace}")).await
    }

    /// What is needed to read `[WS] [NAME…]`.
    ///
    /// # Errors
    /// As the requests.
    pub(crate) async fn known(&self) -> Result<Known, Problem> {
        let all = self.workspaces().await?;
        let current = self.settings.inside().map(str::to_owned);
        let services = all
            .iter()
            .filter(|ws| Some(ws.workspace.as_str()) == current.as_deref())
            .flat_map(|ws| {
                let services = ws.services.iter().map(|s| s.name.clone());
                services.chain(ws.resources.iter().map(|r| r.kind.to_string()))
            })
            .collect();
        Ok(Known { workspaces: all.iter().map(|ws| ws.workspace.to_string()).collect(), current, services })
    }
}

/// Reads the name of a workspace; a branch is taken as the slug it has.
///
/// # Errors
/// [`ProblemKind::NotFound`]: what cannot be a name cannot exist.
pub(crate) fn slug(given: &str) -> Result<Slug, Problem> {
    if let Ok(slug) = given.parse() {
        return Ok(slug);
    }
    match given.parse::<Branch>() {
        Ok(branch) => Ok(Slug::from_branch(&branch)),
        Err(_) => Err(Problem::not_found(format!("workspace `{given}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_taken_as_its_slug() {
        assert_eq!(slug("Feature/New_Thing").expect("slug").as_str(), "feature-new-thing");
        assert_eq!(slug("a b").expect_err("no name").kind, ProblemKind::NotFound);
    }
}
