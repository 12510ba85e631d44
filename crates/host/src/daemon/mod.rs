//! The host daemon: makes what should be true of the workspaces on this machine true, and says what is.
//!
//! Start-up is one ordinary pass: open the installation, read the ledger, adopt what runs, register, report,
//! reconcile. Services, terminals and databases are not its children: it may be killed at any line.

mod acts;
mod cloud;
mod control_link;
pub mod copy;
mod dial;
pub mod disk;
mod elsewhere;
pub mod hub;
mod inside;
mod intents;
pub mod ledger;
mod listening;
mod outbox;
mod parked;
mod plan;
mod provisioner;
mod reconcile;
mod report;
mod runtime;
mod secrets;
pub mod shell;
pub mod storage;
pub mod streams;
pub mod supervisor;
pub mod tunnel;
mod values;

use crate::{
    resources::{
        postgres,
        storage::{Place, keeper},
    },
    system::{
        SystemError, accounts, boot, cgroup, files,
        installation::{Installation, Isolation},
        sandbox,
    },
};
use control_link::End;
use envforge_api::{home, problem::Problem, states::Trouble};
use hub::{Hub, Workspace};
use ledger::Ledger;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{signal::unix::SignalKind, sync::Mutex};
use tokio_util::sync::CancellationToken;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// `ENVFORGE_HOME` of the installation.
    pub home: PathBuf,
    /// Address of the control plane.
    pub server: envforge_api::client::Endpoint,
    /// The host's bearer token.
    pub token: envforge_api::secret::Secret,
    /// Gateways on other machines.
    pub gateways: tunnel::Gateways,
    /// A storage server in the place of the host's own.
    pub storage: Option<crate::resources::storage::External>,
    /// What is kept free of the disk.
    pub disk: disk::Options,
}

/// `envforge host`: runs until SIGTERM. Services and terminals go on without it. Says `ready` through `say` when it is
/// registered.
pub async fn main(options: Options, say: impl Fn(&str)) -> ExitCode {
    match run(options, say).await {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::Replaced) => {
            tracing::error!("this host was registered again by someone else: stopping its runtimes and ending");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(%error, hint = %error.hint, "the host daemon cannot run");
            crate::system::enter::complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options, say: impl Fn(&str)) -> Result<End, SystemError> {
    let installation = Installation::open(&options.home)?;
    let _alone = lock(&installation)?;
    let (mut ledger, records) = Ledger::open(&installation.home)?;
    let current = boot::boot_id()?;
    let same_boot = ledger.host.boot.as_ref().is_none_or(|known| *known == current);
    if ledger.host.boot.as_ref() != Some(&current)
        && let Err(error) = ledger.note(|host| host.boot = Some(current))
    {
        // A daemon that starts anew takes this boot for a new one again, and waits for a sync before it wakes anything.
        tracing::error!(%error, hint = %error.hint, "the boot cannot be ledgered");
    }
    sandbox::ensure_network(&installation).await?;
    let cache_account = accounts::ensure_cache_account(&installation)?;
    let hub = Arc::new(Hub::new(installation, cache_account, ledger, options.server, options.token));
    hub.may_wake.send_replace(same_boot);
    storage::configure(&hub, options.storage.as_ref()).await?;
    let stop = CancellationToken::new();
    for record in records {
        let workspace = Arc::new(Workspace::new(record.index, record.intent));
        workspace.copied.send_replace(copy::fork::cost(&hub.installation.workspace_dir(&workspace.id)));
        hub.insert(Arc::clone(&workspace));
        copy::snapshot::look(&hub, &workspace);
    }
    tokio::spawn(disk::keep(disk::begin(Arc::clone(&hub), options.disk), stop.clone()));
    // One may begin as a copy of another: all are known first.
    for workspace in hub.all() {
        reconcile::begin(&hub, &workspace, &stop);
    }
    acts::resume(&hub);
    tunnel::begin(&hub, options.gateways, &stop);
    // Ends with the daemon.
    tokio::spawn(storage::keep(Arc::clone(&hub), stop.clone()));
    let (streams, dials) =
        (streams::serve(Arc::clone(&hub), stop.clone()), dial::serve(Arc::clone(&hub), stop.clone()));
    let serving = tokio::spawn(async { tokio::try_join!(streams, dials).map(drop) });
    let (h, s) = (Arc::clone(&hub), stop.clone());
    // Prepared ahead of the first wake; a wake that comes earlier waits for it, one that finds it failed says why.
    tokio::spawn(async move {
        tokio::select! {
            () = s.cancelled() => {}
            prepared = ensure_database_template(&h) => if let Err(trouble) = prepared {
                tracing::warn!(reason = %trouble.reason, hint = %trouble.hint, "no database template");
            }
        }
    });
    let mut term =
        tokio::signal::unix::signal(SignalKind::terminate()).map_err(|e| SystemError::new("watch for SIGTERM", e))?;
    let mut int =
        tokio::signal::unix::signal(SignalKind::interrupt()).map_err(|e| SystemError::new("watch for SIGINT", e))?;
    let end = tokio::select! {
        end = control_link::keep(&hub, &stop, || say("ready")) => end,
        _ = term.recv() => End::Stopped,
        _ = int.recv() => End::Stopped,
        served = serving => {
            let source = match served {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => io::Error::other("it ended"),
            };
            return Err(SystemError::new("serve streams", source));
        }
    };
    if matches!(end, End::Replaced) {
        sleep_all(&hub, "stale-epoch").await;
    }
    stop.cancel();
    Ok(end)
}

fn lock(installation: &Installation) -> Result<fs::File, SystemError> {
    let path = installation.home.join("host").join("daemon.lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| SystemError::new(format!("open {}", path.display()), e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|e| {
        SystemError::new("be the host daemon of this installation", e.into())
            .with_hint("another one runs: `envforge local status` shows it")
    })?;
    Ok(file)
}

async fn sleep_all(hub: &Hub, reason: &str) {
    let asks = hub.all().into_iter().map(|workspace| async move {
        let supervisor = workspace.runtime.borrow().supervisor.clone();
        if let Some(supervisor) = supervisor {
            let _ = supervisor.ask(crate::supervise::protocol::Ask::Sleep { reason: reason.to_owned() }).await;
            let mut facts = workspace.runtime.subscribe();
            let gone = facts.wait_for(|facts| facts.supervisor.is_none());
            let _ = tokio::time::timeout(Duration::from_secs(45), gone).await;
        }
    });
    futures_util::future::join_all(asks).await;
}

/// Makes the PostgreSQL template once, whoever asks first.
pub(crate) async fn ensure_database_template(hub: &Hub) -> Result<(), Trouble> {
    static ONCE: Mutex<()> = Mutex::const_new(());
    let _alone = ONCE.lock().await;
    postgres::template::ensure(&hub.installation, &hub.templates()).await
}

/// What a keeper has to know before it starts the parts of a local installation.
#[derive(Debug, serde::Serialize)]
pub struct Prepared {
    /// Directory for sockets.
    pub run: PathBuf,
    /// The account the control plane's PostgreSQL runs as; absent when that is the caller.
    pub postgres: Option<accounts::Account>,
    /// Its control group.
    pub postgres_cgroup: Option<PathBuf>,
}

/// `envforge host prepare --home H`: makes and claims what an installation needs from the machine.
///
/// # Errors
/// When the machine refuses.
pub fn prepare(home: &Path) -> Result<Prepared, SystemError> {
    let installation = Installation::open(home)?;
    match installation.isolation {
        Isolation::UserNamespaces => Ok(Prepared { run: installation.run, postgres: None, postgres_cgroup: None }),
        Isolation::Full => {
            let postgres = accounts::ensure_database_account(&installation)?;
            let group = cgroup::ensure_own(&installation, "postgres", None)?;
            Ok(Prepared { run: installation.run, postgres: Some(postgres), postgres_cgroup: group.v2 })
        }
    }
}

/// `envforge host quiesce --home H`: puts every runtime to sleep and ends every shell, without a daemon.
///
/// # Errors
/// When a supervisor does not end.
pub async fn quiesce(home: &Path) -> Result<(), SystemError> {
    if !home.join("host").join("installation").exists() {
        return Ok(());
    }
    quiet(&Installation::open(home)?).await
}

/// `envforge host adopt --home H`: ends what may be left of an installation whose copy this is, and then makes it the
/// installation. Cut short, it is still a copy.
///
/// # Errors
/// While the original is there, or when something of it does not end.
pub async fn adopt(home: &Path) -> Result<(), SystemError> {
    let failed = |problem: Problem| {
        SystemError::new("adopt the copy", io::Error::other(problem.message)).with_hint(problem.hint)
    };
    if home::is_adoptable(home).map_err(failed)? {
        quiet(&Installation::open_copy(home)?).await?;
        home::take(home).map_err(|e| SystemError::new("mark the home", e).on_disk(home))?;
    }
    Ok(())
}

/// Ends every process of an installation's workspaces and gives their namespaces back.
async fn quiet(installation: &Installation) -> Result<(), SystemError> {
    let (_, records) = Ledger::open(&installation.home)?;
    let ends = records.iter().map(|record| async {
        let id = &record.intent.workspace;
        let sandbox = sandbox::Sandbox::of(installation, id, record.index, &record.intent.slug);
        if let Ok((supervisor, mut snapshots)) = supervisor::connect(&sandbox).await {
            let ask = crate::supervise::protocol::Ask::Sleep { reason: "stopped".into() };
            let _ = supervisor.ask(ask).await;
            // The line closes with the supervisor.
            let gone = async { while snapshots.recv().await.is_some() {} };
            let _ = tokio::time::timeout(Duration::from_secs(45), gone).await;
        }
        for group in [&sandbox.cgroups.runtime, &sandbox.cgroups.shell] {
            group.kill()?;
            group.wait_empty().await?;
        }
        // Made anew when it is needed: see `Cgroups::runtime_child`.
        sandbox.cgroups.shell.remove()?;
        sandbox::rest(&sandbox).await?;
        if sandbox::release(&sandbox) {
            return Ok(());
        }
        let busy = io::Error::other(format!("something was started in {} meanwhile", sandbox.hostname));
        Err(SystemError::new("end everything of the workspaces", busy).with_hint("run the command again"))
    });
    futures_util::future::join_all(ends).await.into_iter().collect::<Result<(), SystemError>>()?;
    keeper::end(&Place::new(&installation.home, &installation.run)).await
}

/// `envforge host wipe --home H`: removes what the installation has on the machine beside its home.
///
/// # Errors
/// When something cannot be removed; calling again goes on.
pub async fn wipe(home: &Path) -> Result<(), SystemError> {
    if !home.join("host").join("installation").exists() {
        return Ok(());
    }
    let installation = Installation::open(home)?;
    let lock = lock(&installation)?;
    let killed = kill_supervisors(&installation);
    keeper::kill(&Place::new(&installation.home, &installation.run)).await?;
    sandbox::wipe(&installation).await?;
    drop(lock);
    let _ = files::write_whole(&installation.home.join("host").join("wiped"), b"", 0o644);
    killed
}

fn kill_supervisors(installation: &Installation) -> Result<(), SystemError> {
    let Ok(entries) = fs::read_dir(installation.home.join("workspaces")) else { return Ok(()) };
    let states = entries.flatten().map(|entry| entry.path().join("state"));
    states.filter(|state| supervisor::lives(state)).try_for_each(|state| supervisor::kill(&state))
}
