//! `env`: what a service's env file holds.

use super::services::service;
use crate::{args::EnvArgs, context::Context, stream};
use envforge_api::{capability::Right, problem::Problem, stream::ServiceEnv};
use serde::Serialize;
use std::{collections::BTreeMap, process::ExitCode};

#[derive(Debug, Serialize)]
struct Shown<'a> {
    service: &'a str,
    variables: BTreeMap<&'a str, &'a str>,
}

pub(super) async fn run(context: &Context, args: EnvArgs) -> Result<ExitCode, Problem> {
    let service = service(&args.service)?;
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let right = if args.reveal { Right::Reveal } else { Right::Env };
    let grant = stream::grant(context, &workspace, vec![right], args.reveal.then(|| service.clone())).await?;
    let host = stream::host(context, &grant)?;
    let reveal = if args.reveal { "&reveal=true" } else { "" };
    let path = format!("/host/v1/workspaces/{}/env?service={service}{reveal}", grant.workspace);
    let env: ServiceEnv = host.get(&path).await?;
    let shown = Shown {
        service: env.service.as_str(),
        variables: env.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    };
    context.out.data(&shown, || {
        env.variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
    });
    Ok(ExitCode::SUCCESS)
}
