//! Secrets: sealed at rest, given to the host of a workspace that declares them, shown to nobody.

use crate::support::installation::Installation;
use axum::http::Method;
use data_encoding::BASE64;
use envforge_api::{
    client::Client,
    ids::HostId,
    problem::{Problem, ProblemKind},
    public::AuditList,
    secrets::{GivenSecrets, SecretList, SecretView},
};
use serde_json::{Value, json};
use std::fs;

const VALUE: &str = "sk_live_0123456789";

async fn set(client: &Client, at: &str, value: &str) -> Result<SecretView, Problem> {
    client.call(Method::PUT, &format!("/v1/secrets/{at}"), Some(&json!({ "value": value }))).await
}

async fn given(host: &Client, workspace: &str, names: &[&str]) -> GivenSecrets {
    host.post("/v1/host/secrets", &json!({ "workspace": workspace, "names": names })).await.expect("given")
}

fn values(given: &GivenSecrets) -> Vec<(&str, &str)> {
    given.values.iter().map(|(name, value)| (name.as_str(), value.expose())).collect()
}

fn host_of(it: &Installation) -> Client {
    it.client(Some(&it.token("host.token")))
}

#[tokio::test]
async fn a_host_is_given_what_a_workspace_of_its_own_declares_the_projects_before_the_organizations() {
    let it = Installation::start().await;
    let ws = it.open("ws", false).await;
    it.project("other").await;
    let (owner, host) = (it.owner(), host_of(&it));
    set(&owner, "stripe_key", "of all").await.expect("set");
    set(&owner, "shared", "of all").await.expect("set");
    set(&owner, "stripe_key?project=other", "of other").await.expect("set");
    set(&owner, "provisioner.database.url", "admin").await.expect("set");
    assert_eq!(values(&given(&host, ws.id.as_str(), &["stripe_key"]).await), [("stripe_key", "of all")]);
    let own = set(&owner, "stripe_key?project=demo", VALUE).await.expect("set");
    assert_eq!(own.project.as_ref().map(AsRef::as_ref), Some("demo"));
    let names = ["stripe_key", "shared", "unset"];
    assert_eq!(values(&given(&host, ws.id.as_str(), &names).await), [("shared", "of all"), ("stripe_key", VALUE)]);
    let body = json!({ "workspace": ws.id, "names": [], "provisioners": ["database"] });
    let settings: GivenSecrets = host.post("/v1/host/secrets", &body).await.expect("given");
    assert_eq!(values(&settings), [("provisioner.database.url", "admin")]);
    // Set anew, and taken away again.
    set(&owner, "stripe_key?project=demo", "newer").await.expect("set");
    assert_eq!(values(&given(&host, ws.id.as_str(), &["stripe_key"]).await), [("stripe_key", "newer")]);
    let path = "/v1/secrets/stripe_key?project=demo";
    owner.call::<(), SecretView>(Method::DELETE, path, None).await.expect("removed");
    let again = owner.call::<(), SecretView>(Method::DELETE, path, None).await.expect_err("it is gone");
    assert_eq!(again.kind, ProblemKind::NotFound);
    assert_eq!(values(&given(&host, ws.id.as_str(), &["stripe_key"]).await), [("stripe_key", "of all")]);
    // No workspace of another host.
    sqlx::query(
        "WITH h AS (INSERT INTO hosts (id, organization_id) SELECT $1, id FROM organizations RETURNING id)
         UPDATE workspaces SET host_id = h.id FROM h",
    )
    .bind(HostId::generate().as_str())
    .execute(&it.pool)
    .await
    .expect("moved");
    let body = json!({ "workspace": ws.id, "names": ["shared"] });
    let elsewhere = host.post::<_, GivenSecrets>("/v1/host/secrets", &body).await.expect_err("another host's");
    assert_eq!(elsewhere.kind, ProblemKind::NotFound);
    it.stop().await;
}

#[tokio::test]
async fn what_is_shown_stored_and_recorded_of_a_secret_is_all_but_its_value() {
    let it = Installation::start().await;
    let owner = it.owner();
    set(&owner, "stripe_key?project=demo", VALUE).await.expect("set");
    set(&owner, "token", VALUE).await.expect("set");
    let list: Value = owner.get("/v1/secrets").await.expect("listed");
    let shown: Vec<_> =
        list["secrets"].as_array().expect("secrets").iter().map(|s| (&s["name"], &s["project"])).collect();
    assert_eq!(shown, [(&json!("token"), &Value::Null), (&json!("stripe_key"), &json!("demo"))]);
    let of_demo: SecretList = owner.get("/v1/secrets?project=demo").await.expect("listed");
    assert_eq!(of_demo.secrets.len(), 2, "with those of all");
    let audit: AuditList = owner.get("/v1/audit").await.expect("listed");
    let entry = audit.entries.iter().find(|e| e.target == "stripe_key").expect("an entry");
    assert_eq!((entry.action.as_str(), entry.details["project"].as_str()), ("secret.set", "demo"));
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT secrets::text FROM secrets UNION ALL SELECT audit::text FROM audit")
            .fetch_all(&it.pool)
            .await
            .expect("rows");
    assert!(rows.len() > 3);
    for text in rows.iter().chain([&list.to_string(), &format!("{audit:?}")]) {
        assert!(!text.contains(VALUE), "{text}");
    }
    it.stop().await;
}

#[tokio::test]
async fn what_cannot_be_a_secret_is_refused_without_a_word_of_it() {
    let it = Installation::start().await;
    let owner = it.owner();
    for (at, value) in [
        ("a", ""),
        ("a", "hunter2\0"),
        ("a", "hunter2".repeat(5000).as_str()),
        ("resource.cache.password", "hunter2"),
        ("a.b", "hunter2"),
        ("a?project=Nowhere", "hunter2"),
        ("a?project=nowhere", "hunter2"),
    ] {
        let problem = set(&owner, at, value).await.expect_err(at);
        assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
    }
    for body in [r#"{"value":["hunter2"]}"#, r#"{"valu":"hunter2"}"#, "hunter2"] {
        let body = body.as_bytes().to_vec().into();
        let (status, answer) = owner.raw(Method::PUT, "/v1/secrets/a", body).await.expect("an answer");
        assert!(status == 400 && !String::from_utf8_lossy(&answer).contains("hunter2"));
    }
    let list: SecretList = owner.get("/v1/secrets").await.expect("listed");
    assert!(list.secrets.is_empty());
    it.stop().await;
}

#[tokio::test]
async fn a_new_key_seals_everything_anew_at_the_next_start_and_what_no_key_opens_is_told_apart_from_unset() {
    let it = Installation::start().await;
    let ws = it.open("ws", false).await;
    set(&it.owner(), "stripe_key", VALUE).await.expect("set");
    let path = it.state.join("secrets.key");
    let old = fs::read_to_string(&path).expect("the key");
    let with = |lines: &str| fs::write(&path, lines).expect("written");
    let keys = async || -> Vec<String> {
        sqlx::query_scalar("SELECT key_id FROM secrets").fetch_all(&it.pool).await.expect("keys")
    };
    let first = format!("new {}\n", BASE64.encode(&[7; 32]));
    with(&format!("{first}{old}"));
    let again = Installation::on(it.url.clone(), it.state.clone()).await;
    assert_eq!(keys().await, ["new"]);
    again.running.stop().await;
    // The old key may go now.
    with(&first);
    let again = Installation::on(it.url.clone(), it.state.clone()).await;
    assert_eq!(values(&given(&host_of(&again), ws.id.as_str(), &["stripe_key"]).await), [("stripe_key", VALUE)]);
    again.running.stop().await;
    // The new one may not.
    with(&old);
    let again = Installation::on(it.url.clone(), it.state.clone()).await;
    let lost = given(&host_of(&again), ws.id.as_str(), &["stripe_key", "unset"]).await;
    assert_eq!((lost.values.len(), lost.unopened.len()), (0, 1));
    assert_eq!(keys().await, ["new"], "nothing is thrown away");
    set(&again.owner(), "stripe_key", "newer").await.expect("set again");
    assert_eq!(values(&given(&host_of(&again), ws.id.as_str(), &["stripe_key"]).await), [("stripe_key", "newer")]);
    again.running.stop().await;
    it.stop().await;
}
