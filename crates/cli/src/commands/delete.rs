//! `delete`: the only command that removes data. It names what goes, and asks.

use crate::{args::DeleteArgs, context::Context, stream::cache, wait};
use envforge_api::{
    problem::{Problem, ProblemKind},
    public::{DeleteRequest, Deleted},
};
use http::Method;
use std::process::ExitCode;

/// What to do once it is known what a deletion would lose.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Work would be lost and `--force` is missing.
    Refuse,
    /// Ask the person.
    Ask,
    /// Nobody can be asked and `--yes` is missing.
    NeedsYes,
    /// Go on.
    Delete,
}

/// Decides from flags and findings alone.
fn judge(at_risk: bool, force: bool, yes: bool, can_ask: bool) -> Verdict {
    match (at_risk && !force, yes, can_ask) {
        (true, _, _) => Verdict::Refuse,
        (false, true, _) => Verdict::Delete,
        (false, false, true) => Verdict::Ask,
        (false, false, false) => Verdict::NeedsYes,
    }
}

pub(super) async fn run(context: &Context, args: DeleteArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(Some(&args.ws)).await?;
    // The host looks through every checkout before it answers.
    let client = context.client().await?.clone().with_deadline(std::time::Duration::from_secs(90));
    let path = format!("/v1/workspaces/{workspace}");
    let ask = async |dry_run| {
        let request = DeleteRequest { force: args.force, dry_run };
        client.call::<_, Deleted>(Method::DELETE, &path, Some(&request)).await
    };
    // Who forces it and is not asked wants it also while the host cannot say what would be lost.
    let would = if args.force && args.yes {
        Deleted { goes: Vec::new(), at_risk: Vec::new(), command: None }
    } else {
        ask(true).await?
    };
    let verdict = judge(!would.at_risk.is_empty(), args.force, args.yes, context.out.can_ask());
    if !context.out.json && (verdict != Verdict::Delete || !would.at_risk.is_empty()) {
        context.out.say(&losses(workspace.as_str(), &would));
    }
    match verdict {
        Verdict::Refuse => {
            return Err(Problem::new(
                ProblemKind::Conflict,
                format!("{workspace} has work that exists nowhere else: {}", would.at_risk.join("; ")),
                "commit and push it, or delete it too with `--force`",
            ));
        }
        Verdict::NeedsYes => {
            return Err(Problem::new(
                ProblemKind::Usage,
                format!("deleting {workspace} removes {}", would.goes.join(", ")),
                format!("`envforge delete {workspace} --yes` does it"),
            ));
        }
        Verdict::Ask => {
            if !context.out.confirm(&format!("Delete {workspace} for good?"))? {
                return Err(Problem::new(ProblemKind::Failed, format!("{workspace} was not deleted"), ""));
            }
        }
        Verdict::Delete => {}
    }
    let mut deleted = ask(false).await.map_err(|problem| match problem.kind {
        // Work that came up since it was looked for: the same refusal as before.
        ProblemKind::Confirm => Problem { kind: ProblemKind::Conflict, ..problem },
        _ => problem,
    })?;
    if let Some(record) = deleted.command.take() {
        let record = wait::until_final(context, record).await?;
        wait::succeeded(&record)?;
        deleted.command = Some(record);
    }
    cache::forget(&context.settings, &workspace);
    context.out.data(&deleted, || format!("{workspace} is deleted"));
    Ok(ExitCode::SUCCESS)
}

fn losses(workspace: &str, would: &Deleted) -> String {
    let mut lines = vec![format!("deleting {workspace} removes")];
    lines.extend(would.goes.iter().map(|line| format!("  - {line}")));
    if !would.at_risk.is_empty() {
        lines.push("and work that exists nowhere else".to_owned());
        lines.extend(would.at_risk.iter().map(|line| format!("  ! {line}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_exists_nowhere_else_is_refused_without_force_even_with_yes() {
        assert_eq!(judge(true, false, true, true), Verdict::Refuse);
        assert_eq!(judge(true, true, true, false), Verdict::Delete);
        assert_eq!(judge(true, true, false, true), Verdict::Ask);
        assert_eq!(judge(false, false, false, false), Verdict::NeedsYes);
        assert_eq!(judge(false, false, true, false), Verdict::Delete);
    }

    #[test]
    fn what_goes_is_named() {
        let would = Deleted {
            goes: vec!["the checkout of web".into()],
            at_risk: vec!["web: 2 files not committed".into()],
            command: None,
        };
        assert_eq!(
            losses("a", &would),
            "deleting a removes\n  - the checkout of web\nand work that exists nowhere else\n  ! web: 2 files not committed"
        );
    }
}
