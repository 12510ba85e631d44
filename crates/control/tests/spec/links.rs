//! Links: who issues them, what they say, how they end; codes and visits.

use crate::support::{
    host::{face, report},
    installation::Installation,
};
use axum::http::Method;
use envforge_api::{
    client::Client,
    gateway::{Code, CodeRequest, VisitGranted, VisitRequest},
    host::Phase,
    link::{Family, Holder, Link, OpenedPage, Shared, Visit},
    problem::{Problem, ProblemKind},
    public::{AuditList, LinkList, LinkView},
    secret::Secret,
    sign,
    states::RuntimeState,
    time::Timestamp,
};
use serde_json::{Value, json};

fn token(shared: &Shared) -> Secret {
    let token = shared.url.rsplit_once("/share/").expect("a share URL").1;
    Secret::new(token.to_owned())
}

async fn code(gateway: &Client, shared: &Shared) -> Result<Code, Problem> {
    gateway.post("/v1/gateway/codes", &CodeRequest { link: token(shared) }).await
}

async fn visit(gateway: &Client, code: &Secret, host: &str) -> Result<VisitGranted, Problem> {
    let host = host.parse().expect("a label");
    gateway.post("/v1/gateway/visits", &VisitRequest { code: code.clone(), host }).await
}

#[tokio::test]
async fn a_link_says_what_was_asked_for_and_is_shown_until_it_is_revoked() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", false).await;
    let problem = it.share("ws", json!({})).await.expect_err("no envforge.yml was read");
    assert_eq!(problem.kind, ProblemKind::Conflict, "{problem:?}");
    let mut said = report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled);
    said.faces = vec![face("web", &[], None), face("api", &[("http", 4000), ("admin", 4001)], Some("http"))];
    host.report(said).await;

    let shared = it.share("ws", json!({})).await.expect("a link");
    assert_eq!((shared.service.as_str(), shared.families.len()), ("api", 4));
    assert!(shared.url.starts_with("http://dev.localhost/share/"), "{}", shared.url);
    let link: Link = sign::verify(&host.answer.keys, token(&shared).expose(), Timestamp::now()).expect("signed");
    assert_eq!((link.host.as_str(), &link.workspace), ("api--ws--local", &opened.id));
    assert_eq!((&link.id, link.expires_at), (&shared.id, shared.expires_at));

    let body = json!({ "service": "api", "port": "admin", "expires_seconds": 60, "families": ["api"] });
    let second = it.share("ws", body).await.expect("a link");
    let link: Link = sign::verify(&host.answer.keys, token(&second).expose(), Timestamp::now()).expect("signed");
    assert_eq!((link.host.as_str(), link.families), ("api-admin--ws--local", [Family::Api].into()));
    for bad in [
        json!({ "service": "nosuch" }),
        json!({ "service": "web" }),
        json!({ "expires_seconds": 0 }),
        json!({ "expires_seconds": 2_592_001 }),
        json!({ "families": [] }),
        json!({ "families": ["shell"] }),
    ] {
        assert_eq!(it.share("ws", bad.clone()).await.expect_err("refused").kind, ProblemKind::Invalid, "{bad}");
    }

    let ids = |links: &[LinkView]| links.iter().map(|link| link.id.clone()).collect::<Vec<_>>();
    let list: LinkList = it.owner().get("/v1/workspaces/ws/links").await.expect("links");
    assert_eq!(ids(&list.links), [second.id.clone(), shared.id.clone()]);
    assert_eq!(ids(&it.view("ws").await.links), ids(&list.links));
    let path = format!("/v1/links/{}", shared.id);
    for _ in 0..2 {
        let ended: LinkView = it.owner().call(Method::DELETE, &path, None::<&()>).await.expect("revoked");
        assert_eq!(ended.id, shared.id);
    }
    assert_eq!(ids(&it.view("ws").await.links), [second.id]);
    let audit: AuditList = it.owner().get("/v1/audit").await.expect("audit");
    let actions: Vec<_> = audit.entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["link.revoke", "link.issue", "link.issue", "workspace.create"]);
    assert!(!serde_json::to_string(&audit).expect("json").contains(token(&shared).expose()), "a token is in no record");
    it.stop().await;
}

#[tokio::test]
async fn a_link_becomes_a_code_and_a_code_a_visit_on_its_own_host_once() {
    let it = Installation::start().await;
    let (host, gateway) = (it.host().await, it.gateway());
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web", "families": ["web", "assets"] })).await.expect("a link");
    let (first, second) =
        (code(&gateway, &shared).await.expect("a code"), code(&gateway, &shared).await.expect("another"));
    assert_ne!(first.code, second.code, "each opening has a code of its own");
    assert_eq!(first.host.as_str(), "web--ws--local");
    visit(&gateway, &first.code, "api--ws--local").await.expect_err("another host");
    let granted = visit(&gateway, &first.code, "web--ws--local").await.expect("a visit");
    let said: Visit = sign::verify(&host.answer.keys, granted.token.expose(), Timestamp::now()).expect("signed");
    assert_eq!(said.holder, Holder::Link(shared.id.clone()));
    assert_eq!((said.user.as_str(), said.host.as_str()), (format!("link:{}", shared.id).as_str(), "web--ws--local"));
    assert_eq!((said.families.len(), said.expires_at), (2, shared.expires_at));
    let used = visit(&gateway, &first.code, "web--ws--local").await.expect_err("used already");
    for unknown in ["nosuch", ""] {
        let unknown = visit(&gateway, &Secret::new(unknown.into()), "web--ws--local").await.expect_err("unknown");
        assert_eq!(used, unknown, "both look the same");
    }
    // Stored by its digest alone.
    let texts: i64 = sqlx::query_scalar("SELECT count(*) FROM visit_codes c WHERE c::text LIKE '%' || $1 || '%'")
        .bind(second.code.expose())
        .fetch_one(&it.pool)
        .await
        .expect("counted");
    assert_eq!(texts, 0);
    // Too late.
    sqlx::query("UPDATE visit_codes SET expires_at = now()").execute(&it.pool).await.expect("aged");
    visit(&gateway, &second.code, "web--ws--local").await.expect_err("too old");
    it.stop().await;
}

#[tokio::test]
async fn used_by_many_at_once_a_code_is_one_visit() {
    let it = Installation::start().await;
    let gateway = it.gateway();
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let code = code(&gateway, &shared).await.expect("a code").code;
    let all = futures_util::future::join_all((0..8).map(|_| visit(&gateway, &code, "web--ws--local"))).await;
    assert_eq!(all.iter().filter(|visit| visit.is_ok()).count(), 1);
    it.stop().await;
}

#[tokio::test]
async fn a_revoked_or_forged_link_and_the_code_of_one_open_nothing() {
    let it = Installation::start().await;
    let gateway = it.gateway();
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let early = code(&gateway, &shared).await.expect("a code");
    let path = format!("/v1/links/{}", shared.id);
    it.owner().call::<(), LinkView>(Method::DELETE, &path, None).await.expect("revoked");
    visit(&gateway, &early.code, "web--ws--local").await.expect_err("its link ended meanwhile");
    let revoked = code(&gateway, &shared).await.expect_err("revoked");
    let forged =
        gateway.post::<_, Code>("/v1/gateway/codes", &CodeRequest { link: Secret::new("v4.public.x".into()) }).await;
    assert_eq!(revoked, forged.expect_err("forged"), "every refusal looks the same");
    it.stop().await;
}

#[tokio::test]
async fn the_links_of_a_workspace_end_when_it_is_deleted() {
    let it = Installation::start().await;
    let gateway = it.gateway();
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let body = json!({ "force": true });
    it.owner().call::<_, Value>(Method::DELETE, "/v1/workspaces/ws", Some(&body)).await.expect("asked");
    code(&gateway, &shared).await.expect_err("ended");
    let problem = it.share("ws", json!({ "service": "web" })).await.expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Conflict);
    it.stop().await;
}

#[tokio::test]
async fn a_developer_shares_own_workspaces_alone_and_opens_others_as_a_member() {
    let it = Installation::start().await;
    let (host, gateway) = (it.host().await, it.gateway());
    let developer = it.client(Some(&it.person("developer").await));
    let body = json!({ "name": "own", "create": true });
    developer.post::<_, Value>("/v1/workspaces/open", &body).await.expect("opened");
    it.open("owners", false).await;
    let web = json!({ "service": "web" });
    let own: Shared = developer.post("/v1/workspaces/own/links", &web).await.expect("own");
    developer.post::<_, Shared>("/v1/workspaces/owners/links", &web).await.expect_err("not others'");
    let others = it.share("owners", web.clone()).await.expect("a link");
    let revoke = |id: &str| format!("/v1/links/{id}");
    let path = revoke(others.id.as_str());
    developer.call::<(), LinkView>(Method::DELETE, &path, None).await.expect_err("not others'");
    developer.call::<(), LinkView>(Method::DELETE, &revoke(own.id.as_str()), None).await.expect("own");
    assert_eq!(it.view("owners").await.links.len(), 1);

    let page: OpenedPage = developer.post("/v1/workspaces/owners/visits", &web).await.expect("a page");
    assert_eq!(page.origin, "http://web--owners--local.dev.localhost");
    let code = page.url.strip_prefix(&format!("{}/.envforge/enter?code=", page.origin)).expect("an entrance");
    let granted = visit(&gateway, &Secret::new(code.into()), "web--owners--local").await.expect("a visit");
    let said: Visit = sign::verify(&host.answer.keys, granted.token.expose(), Timestamp::now()).expect("signed");
    assert!(matches!(said.holder, Holder::Member(_)));
    assert_eq!(said.user, "developer");
    it.stop().await;
}
