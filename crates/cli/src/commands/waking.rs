//! Waking once for a command that needs something of the runtime, and waiting until that is there.

use crate::{context::Context, wait};
use envforge_api::{
    names::Slug,
    problem::{Problem, ProblemKind},
    public::{Commanded, WakeRequest, WorkspaceView},
    states::RuntimeState,
};

/// Wakes what sleeps, and follows it while it is awake until `there` finds what is needed.
///
/// # Errors
/// As the requests, and when the runtime fails.
pub(super) async fn until<T>(
    context: &Context,
    workspace: &Slug,
    there: impl Fn(&WorkspaceView) -> Option<T>,
) -> Result<T, Problem> {
    let awake = |state| matches!(state, RuntimeState::Awake | RuntimeState::Waking);
    let mut asked = None;
    if !awake(context.view(workspace).await?.runtime.stated.state) {
        let path = format!("/v1/workspaces/{workspace}/wake");
        let record: Commanded = context.client().await?.post(&path, &WakeRequest::default()).await?;
        asked = Some(record.command.generation);
        context.out.say(&format!("waking {workspace}"));
    }
    wait::until(context, workspace, |view| {
        let stated = &view.runtime.stated;
        if stated.state == RuntimeState::Failed && Some(view.runtime.generation) >= asked {
            let reason = stated.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let message = format!("the runtime of {workspace} failed{reason}");
            return Err(Problem::new(ProblemKind::Failed, message, stated.hint.clone().unwrap_or_default()));
        }
        // It may not have heard of the wake yet.
        Ok(if awake(stated.state) { there(view) } else { None })
    })
    .await
}
