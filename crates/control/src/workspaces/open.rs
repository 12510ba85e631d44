//! `POST /v1/workspaces/open`: from a name to a workspace, an attach grant and, if asked, a wake.
//!
//! An existing slug is one look-up. Any other name is a branch; whether a repository has it only a host can say.

use super::{
    act, grant,
    lifecycle::{Desired, Request},
    placement,
    store::{self, New, Row},
};
use crate::{
    app::App,
    audit,
    commands::{self, store::NewCommand},
    db, dev_hosts, hosts,
    http::{
        auth::{Allowed, Caller},
        errors::{Failure, not_found},
    },
    projects::store::Project,
};
use envforge_api::{
    command::{ActAnswer, CommandKind, LeasedAct},
    generation::Generation,
    ids::{CommandId, HostId, OrganizationId, PrincipalId, WorkspaceId},
    names::{Branch, Slug},
    problem::{Problem, ProblemKind},
    public::{OpenWorkspace, Opened},
    states::{CommandState, ShellState},
};

/// Opens.
pub(crate) async fn open(app: &App, allowed: &Allowed, request: OpenWorkspace) -> Result<Opened, Failure> {
    let organization = allowed.caller.organization().clone();
    let named = by_name(app, &organization, &request.name).await?;
    if let Some(row) = named {
        // A slug names one workspace; another project or branch asked for is a contradiction, not a new one.
        let other_project = request.project.as_ref().is_some_and(|project| *project != row.project);
        let other_branch = request.branch.as_ref().is_some_and(|branch| *branch != row.branch);
        if allowed.reaches(&row) && !other_branch && !other_project {
            return existing(app, allowed, row, request.wake).await;
        }
        if other_branch && !other_project && allowed.reaches(&row) {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("workspace `{}` exists and is of branch `{}`", row.slug, row.branch),
                "leave --branch out to open it, or choose another name",
            )
            .into());
        }
    }
    if let Caller::Workspace { .. } = allowed.caller {
        return Err(not_found(format!("workspace `{}`", short(&request.name))));
    }
    let branch = match &request.branch {
        Some(branch) => branch.clone(),
        None => request.name.parse::<Branch>().map_err(|error| {
            Problem::invalid(error.to_string(), "name a workspace that `envforge ls` shows, or a branch")
        })?,
    };
    let project = project(app, &organization, request.project.as_ref()).await?;
    if let Some(row) = store::by_branch(&app.pool, &project.id, &branch).await? {
        return existing(app, allowed, row, request.wake).await;
    }
    let host = place(app, &organization).await?;
    if !request.create {
        find_branch(app, &organization, &host, &project, &branch).await?;
    }
    let (row, created) = make(app, allowed, &project, host, branch, &request).await?;
    if !created {
        return existing(app, allowed, row, request.wake).await;
    }
    let wake = commands::store::under_way(&app.pool, &row.id).await?;
    let wake = wake.into_iter().find(|command| command.kind == CommandKind::StartRuntime).map(|command| command.id);
    opened(app, allowed, &row, true, wake).await
}

fn short(name: &str) -> String {
    name.chars().take(80).collect()
}

async fn by_name(app: &App, organization: &OrganizationId, name: &str) -> Result<Option<Row>, Failure> {
    match name.parse::<WorkspaceId>() {
        Ok(id) => Ok(store::by_id(&app.pool, &id).await?.filter(|row| row.organization == *organization)),
        Err(_) => store::by_slug(&app.pool, organization, name).await,
    }
}

async fn existing(app: &App, allowed: &Allowed, row: Row, wake: bool) -> Result<Opened, Failure> {
    if !allowed.reaches(&row) {
        return Err(not_found(format!("workspace `{}`", row.slug)));
    }
    let failed = row.report.as_ref().is_some_and(|report| report.shell.stated.state == ShellState::Failed);
    if failed {
        // Opening is what prepares a shell, so opening again tries again.
        act::act(app, &row.id, Request::Prepare, allowed.name()).await?;
    }
    let wake = if wake {
        let request = Request::Wake { trigger: "up".into() };
        Some(act::act(app, &row.id, request, allowed.name()).await?.id)
    } else {
        None
    };
    opened(app, allowed, &row, false, wake).await
}

async fn opened(
    app: &App,
    allowed: &Allowed,
    row: &Row,
    created: bool,
    wake: Option<CommandId>,
) -> Result<Opened, Failure> {
    let grant = grant::grant(app, allowed, row, &grant::OPENING, None).await?;
    Ok(Opened { id: row.id.clone(), workspace: row.slug.clone(), created, wake, grant })
}

async fn project(app: &App, organization: &OrganizationId, wanted: Option<&Slug>) -> Result<Project, Failure> {
    let mut all = crate::projects::store::find(&app.pool, organization, wanted).await?;
    match (all.len(), wanted) {
        (1, _) => all.pop().ok_or_else(|| not_found("the project")),
        (0, Some(wanted)) => Err(not_found(format!("project `{wanted}`"))),
        (0, None) => Err(Problem::invalid(
            "there is no project yet, so there is nothing a workspace could be of",
            "envforge project apply -f FILE",
        )
        .into()),
        (_, _) => {
            let names = all.iter().map(|project| project.view.project.to_string()).collect();
            Err(Problem::invalid("there are several projects", "name one with --project or ENVFORGE_PROJECT")
                .with_candidates(names)
                .into())
        }
    }
}

async fn place(app: &App, organization: &OrganizationId) -> Result<HostId, Failure> {
    let mut connection = app.pool.acquire().await?;
    let candidates = hosts::store::candidates(&mut connection, organization).await?;
    placement::choose(&candidates).cloned().ok_or_else(|| {
        Problem::unavailable("no host has joined this organization", "`envforge local start` starts one here").into()
    })
}

/// Passes when a repository of the project has the branch.
async fn find_branch(
    app: &App,
    organization: &OrganizationId,
    host: &HostId,
    project: &Project,
    branch: &Branch,
) -> Result<(), Failure> {
    let repos = project.view.spec.checkouts().into_iter().map(|checkout| checkout.repo).collect();
    let act = LeasedAct::FindBranch { repos, branch: branch.clone() };
    match hosts::ask::ask(app, organization, host, act).await? {
        ActAnswer::Branches { found } if found.iter().any(|has| *has) => Ok(()),
        ActAnswer::Branches { .. } => Err(Problem::new(
            ProblemKind::Confirm,
            format!("branch `{branch}` exists in no repository of project `{}`", project.view.project),
            "add -c to create it",
        )
        .into()),
        ActAnswer::Work { .. } | ActAnswer::Copied { .. } => {
            Err(Problem::internal("the host answered another question").into())
        }
    }
}

/// What the transaction that makes a workspace needs.
struct Making {
    organization: OrganizationId,
    owner: PrincipalId,
    by: String,
    project: Project,
    host: HostId,
    branch: Branch,
    from: Option<String>,
    wake: bool,
    name: Option<Slug>,
}

/// Makes it; or gives the one that someone else made of the same branch meanwhile.
async fn make(
    app: &App,
    allowed: &Allowed,
    project: &Project,
    host: HostId,
    branch: Branch,
    request: &OpenWorkspace,
) -> Result<(Row, bool), Failure> {
    let making = Making {
        organization: allowed.caller.organization().clone(),
        owner: allowed.person()?,
        by: allowed.name(),
        project: project.clone(),
        host: host.clone(),
        branch,
        from: request.from.clone(),
        wake: request.wake,
        // `up NAME --branch B` names the workspace.
        name: request.branch.as_ref().and_then(|_| request.name.parse().ok()),
    };
    let made = db::write(&app.pool, move |tx| Box::pin(async move { making.insert(tx).await })).await?;
    app.bells.ring_host(&host);
    Ok(made)
}

impl Making {
    async fn insert(&self, tx: &mut sqlx::PgConnection) -> Result<(Row, bool), Failure> {
        let id = WorkspaceId::generate();
        let seq = hosts::store::next_intent(&mut *tx, &self.host).await?;
        let mut desired = Desired::new(self.project.view.revision);
        if self.wake {
            desired.runtime = envforge_api::host::DesiredRuntime::Awake { trigger: "up".into() };
        }
        let candidates = Slug::candidates(&self.branch, &self.project.view.project);
        for slug in self.name.iter().chain(&candidates) {
            let new = New {
                id: &id,
                organization: &self.organization,
                project: &self.project.id,
                host: &self.host,
                owner: &self.owner,
                slug,
                label: &envforge_api::dev_host::workspace_part(slug),
                branch: &self.branch,
                from: self.from.as_deref(),
                fork_of: None,
                intent_seq: seq,
                desired: &desired,
            };
            if store::insert(&mut *tx, new).await? {
                self.record(&mut *tx, &id, slug).await?;
                let row = store::by_id(&mut *tx, &id).await?.ok_or_else(|| not_found("that workspace"))?;
                dev_hosts::ensure(&mut *tx, &row, &row.spec, &[]).await?;
                let row = store::by_id(&mut *tx, &id).await?.ok_or_else(|| not_found("that workspace"))?;
                return Ok((row, true));
            }
            if let Some(row) = store::by_branch(&mut *tx, &self.project.id, &self.branch).await? {
                return Ok((row, false));
            }
        }
        Err(Problem::new(
            ProblemKind::Conflict,
            format!("every name that branch `{}` could get is taken", self.branch),
            "name the workspace yourself: envforge up NAME --branch BRANCH",
        )
        .into())
    }

    async fn record(&self, tx: &mut sqlx::PgConnection, id: &WorkspaceId, slug: &Slug) -> Result<(), Failure> {
        let wake = self.wake.then_some(CommandKind::StartRuntime);
        for kind in std::iter::once(CommandKind::PrepareShell).chain(wake) {
            let new = NewCommand {
                id: &CommandId::generate(),
                workspace: id,
                kind,
                state: CommandState::Queued,
                generation: Generation(1),
                by: &self.by,
                trigger: "up",
                service: None,
                body: commands::store::Body::default(),
            };
            commands::store::insert(&mut *tx, new).await?;
        }
        let details = [("branch", self.branch.to_string()), ("project", self.project.view.project.to_string())];
        audit::store::add(tx, &self.organization, &self.by, "workspace.create", slug.as_str(), &details).await
    }
}
