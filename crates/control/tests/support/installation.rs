//! A control plane on port 0 with a database of its own, and the clients that speak to it.

use super::{cluster::Cluster, host::Host};
use envforge_api::{
    client::{Client, Endpoint},
    command::CommandView,
    link::Shared,
    problem::Problem,
    public::{CommandList, Commanded, OpenWorkspace, Opened, WorkspaceView},
    secret::Secret,
    states::CommandState,
};
use envforge_control::{Options, Running, start};
use serde_json::{Value, json};
use sha2::Digest;
use sqlx::PgPool;
use std::path::PathBuf;

/// A running control plane; stopped by [`Installation::stop`], or with the test's runtime.
#[derive(Debug)]
pub(crate) struct Installation {
    pub(crate) running: Running,
    pub(crate) pool: PgPool,
    pub(crate) url: String,
    pub(crate) state: PathBuf,
}

impl Installation {
    /// One with a project `demo` of two services.
    pub(crate) async fn start() -> Self {
        let url = tokio::task::spawn_blocking(|| Cluster::shared().database()).await.expect("a database");
        let installation = Self::on(url, scratch()).await;
        installation.project("demo").await;
        installation
    }

    /// One on an existing database and state directory.
    pub(crate) async fn on(url: String, state: PathBuf) -> Self {
        let options = Options {
            database_url: Secret::new(url.clone()),
            listen: "127.0.0.1:0".parse().expect("an address"),
            state: state.clone(),
            base: "dev.localhost".into(),
        };
        let running = start(options).await.expect("the control plane starts");
        let pool = PgPool::connect(&url).await.expect("a connection");
        Self { running, pool, url, state }
    }

    /// A project, stored as an applied file would be.
    pub(crate) async fn project(&self, slug: &str) {
        let spec = json!({
            "project": slug,
            "services": [
                { "name": "web", "repo": "/srv/web.git" },
                { "name": "api", "repo": "/srv/api.git" },
            ],
        });
        sqlx::query(
            "WITH p AS (
                 INSERT INTO projects (id, organization_id, slug, revision)
                 SELECT $1, id, $2, 1 FROM organizations RETURNING id)
             INSERT INTO project_revisions (project_id, revision, text, spec) SELECT id, 1, '', $3 FROM p",
        )
        .bind(envforge_api::ids::ProjectId::generate().as_str())
        .bind(slug)
        .bind(spec)
        .execute(&self.pool)
        .await
        .expect("a project");
    }

    /// A client with any token, or none.
    pub(crate) fn client(&self, token: Option<&str>) -> Client {
        let address = self.running.address();
        let endpoint = Endpoint::Http { host: address.ip().to_string(), port: address.port() };
        Client::new(endpoint, token.map(|token| Secret::new(token.to_owned())))
    }

    /// A token that the first start made.
    pub(crate) fn token(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.state.join(name)).expect("a token file");
        text.trim().to_owned()
    }

    /// The local owner.
    pub(crate) fn owner(&self) -> Client {
        self.client(Some(&self.token("owner.token")))
    }

    /// A new principal of a role; returns its token.
    pub(crate) async fn person(&self, role: &str) -> String {
        let token = Secret::random(20).expose().to_owned();
        sqlx::query(
            "WITH p AS (
                 INSERT INTO principals (id, organization_id, name, role)
                 SELECT $1, id, $2, $2 FROM organizations RETURNING id)
             INSERT INTO tokens (hash, id, principal_id) SELECT $3, $4, id FROM p",
        )
        .bind(envforge_api::ids::PrincipalId::generate().as_str())
        .bind(role)
        .bind(sha2::Sha256::digest(token.as_bytes()).to_vec())
        .bind(envforge_api::ids::TokenId::generate().as_str())
        .execute(&self.pool)
        .await
        .expect("a principal");
        token
    }

    /// The local gateway.
    pub(crate) fn gateway(&self) -> Client {
        self.client(Some(&self.token("gateway.token")))
    }

    /// A link, issued by the owner.
    pub(crate) async fn share(&self, slug: &str, body: Value) -> Result<Shared, Problem> {
        self.owner().post(&format!("/v1/workspaces/{slug}/links"), &body).await
    }

    /// The local host, registered.
    pub(crate) async fn host(&self) -> Host {
        Host::register(self.client(Some(&self.token("host.token")))).await
    }

    /// Opens with `-c`.
    pub(crate) async fn open(&self, name: &str, wake: bool) -> Opened {
        let request = OpenWorkspace { wake, ..opening(name) };
        self.owner().post("/v1/workspaces/open", &request).await.expect("opened")
    }

    /// A workspace as the owner sees it.
    pub(crate) async fn view(&self, slug: &str) -> WorkspaceView {
        self.owner().get(&format!("/v1/workspaces/{slug}")).await.expect("a workspace")
    }

    /// The records of a workspace, newest first: kind and state.
    pub(crate) async fn records(&self, slug: &str) -> Vec<(String, String)> {
        let list: CommandList =
            self.owner().get(&format!("/v1/workspaces/{slug}/commands?limit=1000")).await.expect("records");
        list.commands.iter().map(|c| (c.kind.to_string(), c.state.to_string())).collect()
    }

    /// Posts to `/v1/workspaces/{slug}/{verb}`.
    pub(crate) async fn ask(&self, slug: &str, verb: &str, body: Value) -> Result<CommandView, Problem> {
        let answer: Commanded = self.owner().post(&format!("/v1/workspaces/{slug}/{verb}"), &body).await?;
        Ok(answer.command)
    }

    /// A record's state.
    pub(crate) async fn state_of(&self, command: &CommandView) -> CommandState {
        let view: CommandView = self.owner().get(&format!("/v1/commands/{}", command.id)).await.expect("a record");
        view.state
    }

    /// Stops the control plane and removes what it left.
    pub(crate) async fn stop(self) {
        self.pool.close().await;
        self.running.stop().await;
        drop(std::fs::remove_dir_all(&self.state));
    }
}

/// An empty directory's name.
pub(crate) fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("efcontrol-{}", Secret::random(8).expose()))
}

/// A request that creates.
pub(crate) fn opening(name: &str) -> OpenWorkspace {
    OpenWorkspace { name: name.into(), create: true, from: None, branch: None, project: None, wake: false }
}
