//! Carrying out a decision: desired state, command record, audit entry and notification in one transaction.

use super::{
    lifecycle::{self, Decision, Record, Request, ServiceOrder, Situation, UnderWay},
    store::{self, Row},
};
use crate::{
    app::App,
    audit,
    commands::{self, store::NewCommand},
    db, dev_hosts, hosts,
    http::errors::{Failure, not_found},
    links,
};
use envforge_api::{
    command::{CommandKind, CommandView},
    generation::Generation,
    ids::{CommandId, WorkspaceId},
    problem::Problem,
    public::{HoldRequest, ServiceVerb},
    states::CommandState,
    time::Timestamp,
};
use sqlx::PgConnection;

/// Longest hold: 7 days.
const MAX_HOLD_SECONDS: u64 = 7 * 24 * 3600;

impl Request {
    fn kind(&self) -> CommandKind {
        match self {
            Self::Prepare => CommandKind::PrepareShell,
            Self::Wake { .. } => CommandKind::StartRuntime,
            Self::Sleep { .. } => CommandKind::SleepRuntime,
            Self::Services { .. } => CommandKind::ControlService,
            Self::Delete => CommandKind::DeleteWorkspace,
        }
    }

    fn action(&self) -> &'static str {
        match self {
            Self::Prepare => "workspace.prepare",
            Self::Wake { .. } => "workspace.wake",
            Self::Sleep { .. } => "workspace.sleep",
            Self::Services { verb: ServiceVerb::Start, .. } => "workspace.services.start",
            Self::Services { verb: ServiceVerb::Stop, .. } => "workspace.services.stop",
            Self::Services { verb: ServiceVerb::Restart, .. } => "workspace.services.restart",
            Self::Delete => "workspace.delete",
        }
    }

    fn trigger(&self) -> &str {
        match self {
            Self::Prepare => "up",
            Self::Wake { trigger } => trigger,
            Self::Sleep { reason } => reason,
            Self::Services { .. } => "service",
            Self::Delete => "delete",
        }
    }

    fn order(&self) -> Option<ServiceOrder> {
        match self {
            Self::Services { verb, names } => Some(ServiceOrder { verb: *verb, names: names.clone() }),
            Self::Prepare | Self::Wake { .. } | Self::Sleep { .. } | Self::Delete => None,
        }
    }
}

/// Carries out a request on a workspace and returns its record.
///
/// # Errors
/// `not_found` when it is gone meanwhile; `conflict` when it is being deleted.
pub(crate) async fn act(app: &App, id: &WorkspaceId, request: Request, by: String) -> Result<CommandView, Failure> {
    let key = id.clone();
    let (host, command) = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let row = store::lock(&mut *tx, &key).await?.ok_or_else(|| not_found("that workspace"))?;
            let id = within(&mut *tx, &row, &request, &by).await?;
            Ok((row.host, id))
        })
    })
    .await?;
    app.bells.ring_host(&host);
    app.bells.ring_workspace(id);
    commands::store::view(&app.pool, &command).await
}

/// The same inside a transaction that holds the row's lock. The caller rings the bells after its commit.
pub(crate) async fn within(
    tx: &mut PgConnection,
    row: &Row,
    request: &Request,
    by: &str,
) -> Result<CommandId, Failure> {
    let under_way = commands::store::under_way(&mut *tx, &row.id).await?;
    let decision = lifecycle::decide(request, situation(row, &under_way))?;
    tracing::info!(workspace = %row.slug, ?request, record = ?decision.record, bump = decision.desired.is_some(), "decided");
    if let Record::Join(id) = decision.record {
        return Ok(id.clone());
    }
    let generation = match &decision.desired {
        Some(desired) => bump(&mut *tx, row, row.generation.next(), desired).await?,
        None => row.generation,
    };
    if decision.desired.as_ref().is_some_and(|desired| desired.revision != row.desired.revision) {
        // The newer revision may have services that the one before had not.
        let moved = store::by_id(&mut *tx, &row.id).await?.ok_or_else(|| not_found("that workspace"))?;
        dev_hosts::ensure(&mut *tx, &moved, &moved.spec, moved.faces()).await?;
    }
    if *request == Request::Delete {
        links::store::end_all(&mut *tx, &row.id).await?;
    }
    end_others(&mut *tx, row, &decision, &under_way).await?;
    let id = CommandId::generate();
    let order = request.order();
    let done = decision.record == Record::Reached;
    let record = NewCommand {
        id: &id,
        workspace: &row.id,
        kind: request.kind(),
        state: if done { CommandState::Succeeded } else { CommandState::Queued },
        generation,
        by,
        trigger: request.trigger(),
        service: order.as_ref().and_then(|order| order.names.first()),
        body: commands::store::Body { order: order.clone(), ..commands::store::Body::default() },
    };
    if decision.starts {
        let start = CommandId::generate();
        let body = commands::store::Body::default();
        let start = NewCommand { id: &start, kind: CommandKind::StartRuntime, body, ..record.clone() };
        commands::store::insert(&mut *tx, start).await?;
    }
    commands::store::insert(&mut *tx, record).await?;
    let details = [("trigger", request.trigger().to_owned()), ("command", id.to_string())];
    audit::store::add(tx, &row.organization, by, request.action(), row.slug.as_str(), &details).await?;
    Ok(id)
}

fn situation<'a>(row: &'a Row, under_way: &'a [UnderWay]) -> Situation<'a> {
    Situation {
        generation: row.generation,
        desired: &row.desired,
        newest: row.newest,
        report: row.report.as_ref(),
        under_way,
    }
}

async fn end_others(
    tx: &mut PgConnection,
    row: &Row,
    decision: &Decision<'_>,
    under_way: &[UnderWay],
) -> Result<(), Failure> {
    // The row is locked: nobody adds one meanwhile.
    if under_way.iter().any(|known| decision.supersedes.contains(&known.kind)) {
        commands::store::supersede(&mut *tx, &row.id, decision.supersedes).await?;
    }
    if decision.cancels_runs {
        for run in under_way.iter().filter(|known| known.kind == CommandKind::RunCommand) {
            commands::cancel::within(&mut *tx, row, &run.id).await?;
        }
    }
    Ok(())
}

/// Stores a new desired state and tells the host, in the caller's transaction.
pub(crate) async fn bump(
    tx: &mut PgConnection,
    row: &Row,
    generation: Generation,
    desired: &lifecycle::Desired,
) -> Result<Generation, Failure> {
    let seq = hosts::store::next_intent(&mut *tx, &row.host).await?;
    store::change(&mut *tx, &row.id, generation, seq, desired).await?;
    Ok(generation)
}

/// Sets or ends a hold.
///
/// # Errors
/// `invalid` past 7 days; `not_found`.
pub(crate) async fn hold(
    app: &App,
    id: &WorkspaceId,
    request: HoldRequest,
    by: String,
) -> Result<Option<Timestamp>, Failure> {
    if request.seconds > MAX_HOLD_SECONDS {
        return Err(Problem::invalid("a hold lasts at most 7 days", "ask for 168h or less").into());
    }
    let span = jiff::SignedDuration::from_secs(i64::try_from(request.seconds).unwrap_or(0));
    let until = if request.seconds == 0 { None } else { Some(Timestamp::now() + span) };
    let key = id.clone();
    let host = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let row = store::lock(&mut *tx, &key).await?.ok_or_else(|| not_found("that workspace"))?;
            if row.desired.hold_until == until {
                return Ok(row.host);
            }
            let desired = lifecycle::held(&row.desired, row.generation, row.report.as_ref(), until)?;
            bump(&mut *tx, &row, row.generation.next(), &desired).await?;
            let until = until.map_or_else(|| "off".into(), |until| until.to_string());
            let details = [("until", until)];
            audit::store::add(tx, &row.organization, &by, "workspace.hold", row.slug.as_str(), &details).await?;
            Ok(row.host)
        })
    })
    .await?;
    app.bells.ring_host(&host);
    app.bells.ring_workspace(id);
    Ok(until)
}
