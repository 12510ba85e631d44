//! Applying project files: declarative, shown first, whole or not at all.

use crate::support::installation::{Installation, opening};
use envforge_api::{
    generation::Revision,
    problem::{Problem, ProblemKind},
    public::{Opened, ProjectApplied, ProjectList, ProjectView},
};
use serde_json::json;

const FILE: &str = "project: shop\nservices:\n  web: { repo: https://git.example/acme/web.git }\n";

async fn apply(it: &Installation, text: &str, dry_run: bool) -> Result<ProjectApplied, Problem> {
    let body = json!({ "file": "shop.yml", "text": text, "dry_run": dry_run });
    it.owner().call(axum::http::Method::PUT, "/v1/projects/shop", Some(&body)).await
}

#[tokio::test]
async fn applying_shows_the_difference_and_the_same_file_changes_nothing() {
    let it = Installation::start().await;
    let shown = apply(&it, FILE, true).await.expect("shown");
    assert!(!shown.applied && !shown.changes.is_empty());
    it.owner().get::<ProjectView>("/v1/projects/shop").await.expect_err("a dry run stores nothing");
    let applied = apply(&it, FILE, false).await.expect("applied");
    assert!(applied.applied);
    assert_eq!(applied.project.revision, Revision(1));
    let again = apply(&it, FILE, false).await.expect("the same");
    assert!(!again.applied && again.changes.is_empty(), "{again:?}");
    let more = format!("{FILE}  api: {{ repo: https://git.example/acme/api.git }}\n");
    let applied = apply(&it, &more, false).await.expect("applied");
    assert_eq!((applied.applied, applied.project.revision), (true, Revision(2)));
    let list: ProjectList = it.owner().get("/v1/projects").await.expect("a list");
    assert_eq!(list.projects.iter().map(|p| p.project.as_str()).collect::<Vec<_>>(), ["demo", "shop"]);
    it.stop().await;
}

#[tokio::test]
async fn a_file_with_findings_is_refused_whole_and_says_where() {
    let it = Installation::start().await;
    let problem = apply(&it, "project: shop\nservices:\n  web: { repo: x }\n", false).await.expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Invalid);
    assert_eq!(problem.diagnostics[0].line, 3, "{problem:?}");
    let other = apply(&it, &FILE.replace("shop", "store"), false).await.expect_err("refused");
    assert_eq!(other.kind, ProblemKind::Invalid);
    it.owner().get::<ProjectView>("/v1/projects/shop").await.expect_err("nothing was stored");
    it.stop().await;
}

#[tokio::test]
async fn a_new_revision_reaches_a_workspace_with_its_next_wake() {
    let it = Installation::start().await;
    apply(&it, FILE, false).await.expect("applied");
    let host = it.host().await;
    let request = json!({ "name": "ws", "create": true, "project": "shop" });
    let opened: Opened = it.owner().post("/v1/workspaces/open", &request).await.expect("opened");
    apply(&it, &FILE.replace("web.git", "web2.git"), false).await.expect("applied");
    assert_eq!(host.intent(&opened.id).await.expect("an intent").revision, Revision(1));
    it.ask("ws", "wake", json!({})).await.expect("asked");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert_eq!(intent.revision, Revision(2));
    assert!(intent.spec.services[0].repo.ends_with("web2.git"));
    let _: Opened =
        it.owner().post("/v1/workspaces/open", &opening("ws")).await.expect("an existing slug needs no project");
    it.stop().await;
}
