//! A workspace that begins as a copy of another: on the same host, at the same revision of the project, on a branch of its
//! own. It is there as a whole or not at all: a copy that fails takes the new workspace with it.

use super::ForkOrder;
use crate::{
    app::App,
    audit,
    commands::{
        self,
        store::{Body, NewCommand},
    },
    db, dev_hosts, hosts,
    http::{
        auth::Allowed,
        errors::{Failure, not_found},
    },
    workspaces::{
        act,
        lifecycle::{Desired, Request},
        store::{self, New, Row},
        view,
    },
};
use envforge_api::{
    command::CommandKind,
    copy::{ForkRequest, Forked},
    generation::Generation,
    host::{DesiredRuntime, DesiredShell, WorkspaceReport},
    ids::{CommandId, PrincipalId, ProjectId, WorkspaceId},
    names::{Branch, Slug},
    problem::{Problem, ProblemKind},
    states::{CommandState, RuntimeState},
};
use sqlx::PgConnection;

/// Forks.
///
/// # Errors
/// `invalid` for a name that is none; `conflict` when name or branch are taken, or the source is being deleted.
pub(crate) async fn fork(app: &App, allowed: &Allowed, source: &Row, request: ForkRequest) -> Result<Forked, Failure> {
    let bad =
        |error: &dyn std::fmt::Display| Problem::invalid(error.to_string(), "name it as a branch, such as `try-2`");
    let branch = match &request.branch {
        Some(branch) => branch.clone(),
        None => request.name.parse::<Branch>().map_err(|error| bad(&error))?,
    };
    let slug = match (request.name.parse::<Slug>(), request.name.parse::<Branch>()) {
        (Ok(slug), _) => slug,
        (Err(_), Ok(named)) => Slug::from_branch(&named),
        (Err(error), Err(_)) => return Err(bad(&error).into()),
    };
    let mut projects = crate::projects::store::find(&app.pool, &source.organization, Some(&source.project)).await?;
    let project = projects.pop().ok_or_else(|| not_found("the project"))?.id;
    let making = Making { owner: allowed.person()?, by: allowed.name(), project, slug, branch, request };
    let (id, of) = (making.request.id.clone(), source.id.clone());
    let (host, workspace, order) =
        db::write(&app.pool, move |tx| Box::pin(async move { making.make(tx, &of).await })).await?;
    app.bells.ring_host(&host);
    app.bells.ring_workspace(&source.id);
    let command = commands::store::view(&app.pool, &id).await?;
    let made = store::by_id(&app.pool, &workspace).await?;
    let made = made.ok_or_else(|| {
        let reason = command.reason.clone().unwrap_or_else(|| "it was deleted".into());
        Problem::new(ProblemKind::Failed, format!("the fork failed: {reason}"), "fork again, with a new id")
    })?;
    Ok(Forked {
        id: workspace,
        workspace: made.slug,
        source: source.slug.clone(),
        branch: made.branch,
        wakes: order.wakes,
        command,
    })
}

struct Making {
    owner: PrincipalId,
    by: String,
    project: ProjectId,
    slug: Slug,
    branch: Branch,
    request: ForkRequest,
}

fn conflict(message: String, hint: &str) -> Failure {
    Problem::new(ProblemKind::Conflict, message, hint).into()
}

impl Making {
    /// Makes the workspace; or finds the one that this very request made before.
    async fn make(
        &self,
        tx: &mut PgConnection,
        source: &WorkspaceId,
    ) -> Result<(envforge_api::ids::HostId, WorkspaceId, ForkOrder), Failure> {
        let source = store::lock(&mut *tx, source).await?.ok_or_else(|| not_found("that workspace"))?;
        if let Some((of, kind, body)) = commands::store::belongs(&mut *tx, &self.request.id).await? {
            let same = |order: &ForkOrder| order.name == self.request.name && order.branch == self.request.branch;
            return match body.fork.filter(same) {
                Some(order) if of == source.id && kind == CommandKind::ForkWorkspace => {
                    Ok((source.host, order.workspace.clone(), order))
                }
                Some(_) | None => {
                    Err(conflict("the id belongs to another request already".into(), "make a new id for each fork"))
                }
            };
        }
        if source.desired.shell == DesiredShell::Absent {
            return Err(conflict(format!("workspace `{}` is being deleted", source.slug), ""));
        }
        self.insert(tx, source).await
    }

    async fn insert(
        &self,
        tx: &mut PgConnection,
        source: Row,
    ) -> Result<(envforge_api::ids::HostId, WorkspaceId, ForkOrder), Failure> {
        if store::by_slug(&mut *tx, &source.organization, self.slug.as_str()).await?.is_some() {
            return Err(conflict(format!("there is a workspace `{}` already", self.slug), "choose another name"));
        }
        if let Some(other) = store::by_branch(&mut *tx, &self.project, &self.branch).await? {
            let message = format!("branch `{}` has a workspace already: `{}`", self.branch, other.slug);
            return Err(conflict(message, "choose another name, or another branch with --branch"));
        }
        let id = WorkspaceId::generate();
        let wakes = matches!(view::runtime(&source).state, RuntimeState::Waking | RuntimeState::Awake);
        let mut desired = Desired::new(source.desired.revision);
        if wakes {
            desired.runtime = DesiredRuntime::Awake { trigger: "fork".into() };
        }
        let seq = hosts::store::next_intent(&mut *tx, &source.host).await?;
        let new = New {
            id: &id,
            organization: &source.organization,
            project: &self.project,
            host: &source.host,
            owner: &self.owner,
            slug: &self.slug,
            label: &envforge_api::dev_host::workspace_part(&self.slug),
            branch: &self.branch,
            from: None,
            fork_of: Some(&source.id),
            intent_seq: seq,
            desired: &desired,
        };
        if !store::insert(&mut *tx, new).await? {
            let message = format!("`{}` or its branch was taken this very moment", self.slug);
            return Err(conflict(message, "choose another name"));
        }
        let row = store::by_id(&mut *tx, &id).await?.ok_or_else(|| not_found("that workspace"))?;
        // What the source's files say of further ports is so in the copy.
        dev_hosts::ensure(&mut *tx, &row, &row.spec, source.faces()).await?;
        let order = ForkOrder {
            workspace: id.clone(),
            name: self.request.name.clone(),
            branch: self.request.branch.clone(),
            wakes,
        };
        self.record(tx, &source, &id, order.clone()).await?;
        Ok((source.host, id, order))
    }

    async fn record(
        &self,
        tx: &mut PgConnection,
        source: &Row,
        id: &WorkspaceId,
        order: ForkOrder,
    ) -> Result<(), Failure> {
        let wake = order.wakes.then_some(CommandKind::StartRuntime);
        for kind in std::iter::once(CommandKind::PrepareShell).chain(wake) {
            let own = CommandId::generate();
            let new = NewCommand {
                id: &own,
                workspace: id,
                kind,
                state: CommandState::Queued,
                generation: Generation(1),
                by: &self.by,
                trigger: "fork",
                service: None,
                body: Body::default(),
            };
            commands::store::insert(&mut *tx, new).await?;
        }
        let new = NewCommand {
            id: &self.request.id,
            workspace: &source.id,
            kind: CommandKind::ForkWorkspace,
            state: CommandState::Queued,
            generation: source.generation,
            by: &self.by,
            trigger: "fork",
            service: None,
            body: Body { fork: Some(order), ..Body::default() },
        };
        commands::store::insert(&mut *tx, new).await?;
        store::touch(&mut *tx, &source.id).await?;
        let into = [("into", self.slug.to_string()), ("command", self.request.id.to_string())];
        audit::store::add(&mut *tx, &source.organization, &self.by, "workspace.fork", source.slug.as_str(), &into)
            .await?;
        let details = [
            ("branch", self.branch.to_string()),
            ("project", source.project.to_string()),
            ("fork_of", source.slug.to_string()),
        ];
        audit::store::add(tx, &source.organization, &self.by, "workspace.create", self.slug.as_str(), &details).await
    }
}

/// What a report on a new workspace means for the fork that makes it.
#[derive(Debug)]
pub(crate) struct Moved {
    /// Whose record it is.
    pub(crate) source: WorkspaceId,
    /// The new workspace is being removed again.
    pub(crate) removes: bool,
}

/// Moves the record of the fork that makes this workspace with that of its preparation.
pub(crate) async fn follow(
    tx: &mut PgConnection,
    row: &Row,
    state: CommandState,
    reason: Option<&str>,
    report: &WorkspaceReport,
) -> Result<Option<Moved>, Failure> {
    if row.fork_of.is_none() {
        return Ok(None);
    }
    let Some((fork, source)) = super::store::fork_into(&mut *tx, &row.id).await? else { return Ok(None) };
    commands::store::set(&mut *tx, &fork, state, None, reason).await?;
    if let Some(cost) = &report.copied {
        super::store::cost(&mut *tx, &fork, cost).await?;
    }
    store::touch(&mut *tx, &source).await?;
    let removes = state == CommandState::Failed && row.desired.shell == DesiredShell::Ready;
    if removes {
        act::within(tx, row, &Request::Delete, row.host.as_str()).await?;
    }
    Ok(Some(Moved { source, removes }))
}

/// The new workspace is gone before it was whole.
pub(crate) async fn gone(tx: &mut PgConnection, workspace: &WorkspaceId) -> Result<Option<WorkspaceId>, Failure> {
    let Some((fork, source)) = super::store::fork_into(&mut *tx, workspace).await? else { return Ok(None) };
    commands::store::set(&mut *tx, &fork, CommandState::Cancelled, None, Some("the copy was deleted")).await?;
    store::touch(tx, &source).await?;
    Ok(Some(source))
}
