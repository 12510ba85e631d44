//! What is kept: the audit log, and problems in their one form.

use crate::support::installation::Installation;
use envforge_api::{problem::ProblemKind, public::AuditList};
use serde_json::{Value, json};

#[tokio::test]
async fn every_change_is_in_the_audit_log_and_the_log_refuses_to_be_changed() {
    let it = Installation::start().await;
    it.open("ws", false).await;
    it.ask("ws", "wake", json!({})).await.expect("asked");
    it.ask("ws", "sleep", json!({})).await.expect("asked");
    let audit: AuditList = it.owner().get("/v1/audit").await.expect("audit");
    let actions: Vec<_> = audit.entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["workspace.sleep", "workspace.wake", "workspace.create"]);
    for change in ["UPDATE audit SET actor = 'x'", "DELETE FROM audit", "TRUNCATE audit"] {
        let error = sqlx::query(change).execute(&it.pool).await.expect_err(change);
        assert!(error.to_string().contains("append-only"), "{change}: {error}");
    }
    it.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_problems_with_a_hint() {
    let it = Installation::start().await;
    for (path, body) in [
        ("/v1/workspaces/open", json!({ "nome": "x" })),
        ("/v1/workspaces/open", json!({ "name": "a..b", "create": true })),
    ] {
        let problem = it.owner().post::<_, Value>(path, &body).await.expect_err("refused");
        assert_eq!(problem.kind, ProblemKind::Invalid);
        assert!(!problem.hint.is_empty(), "{problem:?}");
    }
    let problem = it.owner().get::<Value>("/v1/nothing").await.expect_err("no route");
    assert_eq!(problem.kind, ProblemKind::NotFound);
    let problem = it.client(Some("wrong")).get::<Value>("/v1/whoami").await.expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Unauthenticated);
    it.stop().await;
}
