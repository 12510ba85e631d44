//! A runtime's supervisor without a daemon or a control plane: what drivers of resources are tried and measured with.

use crate::local::PATIENCE;
use envforge_api::{
    generation::Generation,
    ids::{RuntimeInstanceId, WorkspaceId},
    project::RuntimeSize,
    resource::{ResourceKind, ResourceMode, ResourceScope},
    secret::Secret,
    states::ResourceState,
};
use envforge_host::{
    daemon::supervisor::{self, Supervisor},
    resources::storage::{Place, keeper},
    supervise::{
        process,
        protocol::{Ask, ResourceSpec, RuntimeSpec, Snapshot, VERSION},
    },
    system::{
        boot, cgroup, enter,
        enter::{As, Entry, base_environment},
        installation::Installation,
        sandbox::{self, Sandbox},
        spawn::Stream,
    },
};
use envforge_manifest::ResolvedResource;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

/// Values of a resource's fields.
pub type Fields = BTreeMap<String, Secret>;

/// The machine below: an installation in a temporary home.
#[derive(Debug)]
pub struct Rig {
    _home: tempfile::TempDir,
    /// The installation.
    pub installation: Installation,
    /// The program that it enters workspaces with.
    pub binary: PathBuf,
    next: std::cell::Cell<u32>,
}

impl Rig {
    /// With this `envforge`.
    ///
    /// # Panics
    /// When there can be none.
    #[must_use]
    pub fn new(binary: &Path) -> Self {
        enter::stand_in(binary.to_owned());
        let home = tempfile::Builder::new().prefix("ef").tempdir().expect("temp dir");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let installation = Installation::open(&home.path().join("home")).expect("an installation");
        Self { _home: home, installation, binary: binary.to_owned(), next: std::cell::Cell::new(0) }
    }

    /// Where the host's storage server is.
    #[must_use]
    pub fn place(&self) -> Place {
        Place::new(&self.installation.home, &self.installation.run)
    }

    /// Prepared data of the installation.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.installation.home.join("templates")
    }

    /// A workspace without a runtime.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn seat(&self) -> Seat {
        let index = self.next.replace(self.next.get() + 1);
        let (id, slug) = (WorkspaceId::generate(), format!("w{index}").parse().expect("a slug"));
        let sandbox = sandbox::ensure(&self.installation, &id, index, &slug).await.expect("a sandbox");
        Seat { sandbox, templates: self.templates(), runtime: None }
    }

    /// Removes everything of the installation.
    ///
    /// # Panics
    /// When something is left.
    pub async fn end(self) {
        keeper::end(&self.place()).await.expect("no keeper");
        sandbox::wipe(&self.installation).await.expect("nothing is left");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed test leaves would go on, and hold what is read of this program's output.
            let mut wipe = std::process::Command::new(&self.binary);
            wipe.args(["host", "wipe", "--home"]).arg(&self.installation.home);
            let _ = wipe.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// One workspace with its runtime.
#[derive(Debug)]
pub struct Seat {
    /// Where it is.
    pub sandbox: Sandbox,
    templates: PathBuf,
    runtime: Option<Runtime>,
}

/// A runtime that is awake.
#[derive(Debug)]
pub struct Runtime {
    process: tokio::process::Child,
    /// The line to its supervisor.
    pub supervisor: Arc<Supervisor>,
    /// What that tells.
    pub snapshots: UnboundedReceiver<Snapshot>,
}

/// A managed resource with these values, of the workspace or of one service.
///
/// # Panics
/// When `service` is no name.
#[must_use]
pub fn spec_of(kind: ResourceKind, service: Option<&str>, fields: &Fields) -> ResourceSpec {
    let service = service.map(|name| name.parse().expect("a name"));
    let scope = if service.is_some() { ResourceScope::Service } else { ResourceScope::Workspace };
    let resource = ResolvedResource {
        kind,
        mode: ResourceMode::Managed,
        scope,
        service,
        consumers: vec![],
        extensions: vec![],
        seeds: vec![],
    };
    ResourceSpec { resource, fields: fields.clone(), blocked: None, seeds: vec![], reset: 0, coming: false }
}

impl Seat {
    /// Starts the runtime and does not wait for its servers.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn begin(&mut self, resources: Vec<ResourceSpec>) {
        let spec = RuntimeSpec {
            version: VERSION,
            instance: RuntimeInstanceId::generate(),
            boot: boot::boot_id().expect("a boot"),
            previous: None,
            generation: Generation(1),
            sandbox: self.sandbox.clone(),
            trigger: "test".into(),
            size: RuntimeSize::Small,
            sleep_after_ms: 3_600_000,
            hold_until: None,
            resources,
            services: vec![],
            stopped: BTreeSet::new(),
            secrets: vec![],
            grace_ms: 1000,
            templates: self.templates.clone(),
        };
        fs::write(self.description(), serde_json::to_vec(&spec).expect("JSON")).expect("written");
        self.resume().await;
    }

    fn description(&self) -> PathBuf {
        self.sandbox.dir.join("state/runtime.json")
    }

    /// Starts a supervisor for the description that is there.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn resume(&mut self) {
        let prepared = supervisor::prepare(&self.sandbox, &self.description()).expect("a supervisor");
        let process = prepared.begin().await;
        let reached = timeout(PATIENCE, async {
            loop {
                match supervisor::connect(&self.sandbox).await {
                    Ok(reached) => return reached,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let (supervisor, snapshots) = reached.await.expect("it answers");
        self.runtime = Some(Runtime { process, supervisor, snapshots });
    }

    /// The runtime that was begun.
    ///
    /// # Panics
    /// When there is none.
    pub fn runtime(&mut self) -> &mut Runtime {
        self.runtime.as_mut().expect("a runtime")
    }

    /// Has the runtime that was begun have these resources.
    ///
    /// # Panics
    /// When it refuses.
    pub async fn update(&mut self, resources: Vec<ResourceSpec>) {
        let (processes, restart, stopped) = (vec![], BTreeSet::new(), BTreeSet::new());
        let update = Ask::Update { processes, resources, restart, stopped, generation: Generation(2), secrets: vec![] };
        self.runtime().supervisor.ask(update).await.expect("accepted");
    }

    /// Waits until every server is.
    ///
    /// # Panics
    /// When one never is.
    pub async fn ready(&mut self) {
        let mut last = Vec::new();
        let ready = async {
            loop {
                let snapshot = self.runtime().snapshots.recv().await.expect("it lives");
                last = snapshot.resources;
                if !last.is_empty() && last.iter().all(|resource| resource.stated.state == ResourceState::Ready) {
                    return;
                }
            }
        };
        let in_time = timeout(PATIENCE, ready).await.is_ok();
        assert!(in_time, "never ready: {last:#?}");
    }

    /// Puts the runtime to sleep.
    ///
    /// # Panics
    /// When it does not fall asleep.
    pub async fn sleep(&mut self) {
        let mut runtime = self.runtime.take().expect("a runtime");
        runtime.supervisor.ask(Ask::Sleep { reason: "test".into() }).await.expect("accepted");
        let ended = timeout(PATIENCE, runtime.process.wait()).await.expect("never asleep").expect("waited for");
        assert!(ended.success(), "{ended}");
    }

    /// The supervisor is gone from one moment to the next.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn lose_supervisor(&mut self) {
        let mut runtime = self.runtime.take().expect("a runtime");
        runtime.process.kill().await.expect("killed");
    }

    /// Everything of the runtime is.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn lose_everything(&mut self) {
        self.lose_supervisor().await;
        self.sandbox.cgroups.runtime.kill().expect("killed");
        self.sandbox.cgroups.runtime.wait_empty().await.expect("gone");
        self.sandbox.cgroups.runtime.remove().expect("removed: a group that was killed is of no use");
        cgroup::Group::ensure(&self.sandbox.cgroups.runtime).expect("made anew");
    }

    /// Runs a client as the workspace's user.
    ///
    /// # Errors
    /// What it said on standard error, if it failed.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run(&self, words: &[&str]) -> Result<String, String> {
        let group = self.sandbox.cgroups.shell_child("client").expect("a group");
        let entry = Entry::new(&self.sandbox, As::User, &group, "/workspace");
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let environment = base_environment(&self.sandbox.accounts.user);
        let out = process::output(&entry, &words, &environment, Stream::Null).await.expect("started");
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).trim_end().to_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }
}
