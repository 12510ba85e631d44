//! `why`: what holds a workspace awake or lets it sleep; why a service is not healthy.

use super::logs;
use crate::{
    args::{WhyArgs, words},
    context::Context,
    output::why::{LINES, WhyService, WhyWorkspace},
};
use envforge_api::{problem::Problem, states::ServiceState, stream::LogQuery, time::Timestamp};
use std::process::ExitCode;

pub(super) async fn run(context: &Context, args: WhyArgs) -> Result<ExitCode, Problem> {
    let (ws, names) = words::split(&args.words, &context.known().await?, true);
    let workspace = context.workspace(ws.as_deref()).await?;
    let view = context.view(&workspace).await?;
    let now = Timestamp::now();
    let Some(name) = names.first() else {
        let why = WhyWorkspace::of(&view);
        context.out.data(&why, || why.text(now));
        return Ok(ExitCode::SUCCESS);
    };
    let Some(service) = view.services.iter().find(|service| &service.name == name) else {
        return Err(Problem::not_found(format!("service `{name}` of {workspace}"))
            .with_candidates(view.services.iter().map(|service| service.name.clone()).collect()));
    };
    let lines = if service.last_lines.is_empty() && service.stated.state != ServiceState::Healthy {
        let query = LogQuery { sources: vec![name.clone()], tail: Some(LINES), ..LogQuery::default() };
        // The explanation is worth showing without its log.
        logs::collect(context, &workspace, &view.id, query).await.unwrap_or_default()
    } else {
        Vec::new()
    };
    let why = WhyService::of(&view, service, lines);
    context.out.data(&why, || why.text(now));
    Ok(ExitCode::SUCCESS)
}
