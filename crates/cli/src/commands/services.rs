//! `start`, `stop` and `restart` of services.

use crate::{
    args::{ServicesArgs, words},
    context::Context,
};
use envforge_api::{
    names::ServiceName,
    problem::{Problem, ProblemKind},
    public::{Commanded, ControlServices, ServiceVerb},
};
use std::process::ExitCode;

pub(super) async fn run(context: &Context, verb: ServiceVerb, args: ServicesArgs) -> Result<ExitCode, Problem> {
    let (ws, names) = words::split(&args.words, &context.known().await?, false);
    if names.is_empty() {
        return Err(Problem::new(
            ProblemKind::Usage,
            "no service was named",
            "name services after the workspace; `envforge wake` and `envforge sleep` act on all of them",
        ));
    }
    let workspace = context.workspace(ws.as_deref()).await?;
    let services = names.iter().map(|name| service(name)).collect::<Result<Vec<_>, _>>()?;
    let client = context.client().await?;
    let request = ControlServices { verb, services };
    let done: Commanded = client.post(&format!("/v1/workspaces/{workspace}/services"), &request).await?;
    context.out.data(&done.command, || {
        format!("{} {} of {workspace} {}", done.command.id, done.command.kind, done.command.state)
    });
    Ok(ExitCode::SUCCESS)
}

/// Reads the name of a service.
///
/// # Errors
/// [`ProblemKind::Usage`]; a worker is told where it belongs.
pub(super) fn service(given: &str) -> Result<ServiceName, Problem> {
    given.parse().map_err(|error: envforge_api::names::BadName| {
        let hint = match given.split_once('.') {
            Some((service, _)) => format!("a worker starts and stops with its service, `{service}`"),
            None => "`envforge status` lists the services".to_owned(),
        };
        Problem::new(ProblemKind::Usage, error.to_string(), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_told_where_it_belongs() {
        assert!(service("web").is_ok());
        assert!(service("backend.mailer").expect_err("no service").hint.contains("`backend`"));
    }
}
