//! The client of a resource: its program, and how it connects, in its environment alone.

use crate::daemon::{hub::Workspace, values::Values};
use envforge_api::{
    problem::{Problem, ProblemKind},
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::ResourceState,
    stream::ResourceClient,
};
use std::{collections::BTreeMap, path::Path};

/// What is run: the program before the caller's arguments, and the variables beside the shell's.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) argv: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
}

/// The client of a managed resource that is ready.
///
/// # Errors
/// When there is no such resource, or it is not ready.
pub(super) fn of(workspace: &Workspace, dir: &Path, wanted: &ResourceClient) -> Result<Program, Problem> {
    ready(workspace, wanted)?;
    let fields = Values::of(dir).fields(wanted.kind, wanted.service.as_ref(), None);
    let field = |name: &str| fields.get(name).map(Secret::expose).unwrap_or_default().to_owned();
    let (argv, environment): (&[&str], &[(&str, &str)]) = match wanted.kind {
        ResourceKind::Database => (
            &["psql"],
            &[
                ("PGHOST", "host"),
                ("PGPORT", "port"),
                ("PGUSER", "user"),
                ("PGPASSWORD", "password"),
                ("PGDATABASE", "name"),
            ],
        ),
        ResourceKind::Cache | ResourceKind::Queue => (&["redis-cli", "-u"], &[]),
        ResourceKind::Storage => (
            &[],
            &[
                ("AWS_ENDPOINT_URL", "endpoint"),
                ("AWS_REGION", "region"),
                ("AWS_ACCESS_KEY_ID", "access_key"),
                ("AWS_SECRET_ACCESS_KEY", "secret_key"),
            ],
        ),
        ResourceKind::Mail => {
            return Err(Problem::invalid(
                format!("{} has no client to run", wanted.kind),
                "a database has `envforge psql`, a cache or queue `envforge redis`, storage `envforge s3`",
            ));
        }
    };
    let mut argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    if wanted.kind == ResourceKind::Storage {
        argv.push(s3_client()?.to_owned());
        // Older ones do not know the variable.
        argv.extend(["--endpoint-url".to_owned(), field("endpoint")]);
    }
    if matches!(wanted.kind, ResourceKind::Cache | ResourceKind::Queue) {
        // Without a password there is nothing to hide in it.
        argv.push(field("url"));
    }
    Ok(Program { argv, environment: environment.iter().map(|(name, of)| ((*name).to_owned(), field(of))).collect() })
}

/// The S3 client of this host, where a workspace's user finds it.
fn s3_client() -> Result<&'static str, Problem> {
    let dirs = ["/usr/local/bin", "/usr/bin", "/bin"];
    let there = |name: &&str| dirs.iter().any(|dir| Path::new(dir).join(name).is_file());
    ["aws", "s5cmd"].into_iter().find(there).ok_or_else(|| {
        let hint = "`envforge s3 WS ls`, `get`, `put` and `rm` need none; or install one of them";
        Problem::new(ProblemKind::NotFound, "this host has neither aws nor s5cmd", hint)
    })
}

/// Whether a managed resource can be used now.
///
/// # Errors
/// Why not.
pub(super) fn ready(workspace: &Workspace, wanted: &ResourceClient) -> Result<(), Problem> {
    let kind = wanted.kind;
    let facts = workspace.runtime.borrow();
    let reports = facts.snapshot.as_ref().filter(|_| facts.supervisor.is_some()).map(|s| s.resources.as_slice());
    let Some(reports) = reports else {
        return Err(Problem::new(ProblemKind::Conflict, format!("{kind} sleeps"), "`envforge wake` wakes it"));
    };
    let of_kind: Vec<_> = reports.iter().filter(|report| report.kind == kind).collect();
    let Some(report) = of_kind.iter().find(|report| report.service == wanted.service) else {
        let names: Vec<String> =
            of_kind.iter().filter_map(|r| r.service.as_ref()).map(|name| format!("--service {name}")).collect();
        let hint = match names.as_slice() {
            [] => format!("a service declares it in its envforge.yml: `resources: {{ {kind}: {{ required: true }} }}`"),
            _ => format!("each service has its own: {}", names.join(" or ")),
        };
        return Err(Problem::new(ProblemKind::NotFound, format!("the workspace has no such {kind}"), hint));
    };
    match (report.mode, report.stated.state) {
        (ResourceMode::Managed, ResourceState::Ready) => Ok(()),
        (ResourceMode::Managed, state) => {
            let reason = report.stated.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let hint = report.stated.hint.clone().unwrap_or_else(|| "try again in a moment".into());
            Err(Problem::new(ProblemKind::Conflict, format!("{kind} is {state}{reason}"), hint))
        }
        (mode, _) => Err(Problem::new(
            ProblemKind::Conflict,
            format!("{kind} is {mode}: its server is not the workspace's own"),
            "connect to it as its operator says",
        )),
    }
}
