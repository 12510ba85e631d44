//! `whoami`, `keys rotate` and `audit`.

use crate::{
    args::AuditArgs,
    context::Context,
    output::{tables, times},
};
use envforge_api::{
    problem::Problem,
    public::{AuditList, KeyRotated, Whoami},
};
use std::process::ExitCode;

pub(super) async fn whoami(context: &Context) -> Result<ExitCode, Problem> {
    let who: Whoami = context.client().await?.get("/v1/whoami").await?;
    context.out.data(&who, || {
        let role = who.role.map_or_else(String::new, |role| format!(", {role}"));
        let workspace = who.workspace.as_ref().map_or_else(String::new, |ws| format!(", as workspace {ws}"));
        format!("{} in {}{role}{workspace}", who.name, who.organization)
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rotate_keys(context: &Context) -> Result<ExitCode, Problem> {
    let rotated: KeyRotated = context.client().await?.post("/v1/keys/rotate", &serde_json::json!({})).await?;
    context.out.data(&rotated, || {
        let (from, end) = (times::point(rotated.signs_from), times::point(rotated.others_end_at));
        format!("key {} signs from {from} on; all that others signed has expired by {end}", rotated.id)
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn audit(context: &Context, args: AuditArgs) -> Result<ExitCode, Problem> {
    let list: AuditList = context.client().await?.get(&format!("/v1/audit?limit={}", args.limit)).await?;
    context.out.data(&list, || tables::audit(&list.entries));
    Ok(ExitCode::SUCCESS)
}
