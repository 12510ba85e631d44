//! One resource server: made, started or adopted, prepared, followed and stopped. What a server is, its driver knows.

use super::{
    events::Event,
    health, logs, process,
    receipt::{self, Suspect},
    relay, reset,
    runtime::{Launch, Shared},
    seed,
};
use crate::{
    resources::{Context, Driver, driver},
    system::{
        SystemError,
        cgroup::Group,
        doors,
        enter::{As, Entry, base_environment},
        sandbox::DATA,
        spawn::Stream,
    },
};
use envforge_api::{resource::ResourceKind, states::Trouble};
use nix::unistd::Pid;
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a server may take until it answers; crash recovery of a large database takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a server may take to write down what it holds before it is killed.
const SERVER_GRACE: Duration = Duration::from_secs(30);

/// The driver of the server of this name.
pub(super) fn driver_of(server: &str) -> Option<Box<dyn Driver>> {
    ResourceKind::ALL.iter().map(|kind| driver(*kind)).find(|driver| driver.name() == server)
}

/// The group of a server's processes.
pub(super) fn group_of(shared: &Shared, server: &str) -> Result<Group, Trouble> {
    let group = shared.sandbox.cgroups.runtime_child(&format!("resources/{server}"));
    group.map_err(|e| Trouble::new(e.to_string(), e.hint))
}

/// Makes, starts (or adopts) and prepares one server, then waits for its end. `launch` is over when its process is there.
pub(super) async fn run(
    name: &'static str,
    run: u64,
    mut contexts: watch::Receiver<Context>,
    launch: Launch,
    shared: &Rc<Shared>,
) -> Result<(), Trouble> {
    let Some(driver) = driver_of(name) else { return Ok(()) };
    let context = contexts.borrow_and_update().clone();
    if let Some(place) = driver.relayed(&context) {
        drop(launch);
        driver.ensure(&context).await?;
        let suspect = receipt::look(shared, driver.as_ref(), &context).await;
        let prepared = keep_prepared(driver.as_ref(), run, contexts, suspect, shared);
        return relay::run(name, &place, run, prepared, shared).await;
    }
    let program = driver.program(context.home())?;
    let group = group_of(shared, name)?;
    let adopted = group.main_pid();
    let (mut child, mut suspect) = (None, None);
    let pid = match adopted {
        Some(pid) => pid,
        None => {
            suspect = receipt::look(shared, driver.as_ref(), &context).await;
            driver.ensure(&context).await?;
            let entry = Entry::new(&shared.sandbox, As::Resource, &group, DATA);
            let mut argv = vec![program.to_string_lossy().into_owned()];
            argv.extend(driver.arguments(&context));
            let environment = base_environment(&shared.sandbox.accounts.resource);
            // Output goes to a file, not to a pipe: the server outlives this supervisor.
            let out = raw_output(shared, name).and_then(|out| Ok((out.try_clone()?, out)));
            let (out, again) = out.map_err(|e| {
                let error = SystemError::new("write its log", e).on_disk(&shared.sandbox.dir);
                Trouble::new(error.to_string(), error.hint)
            })?;
            let streams = [Stream::Null, Stream::Given(out.into()), Stream::Given(again.into())];
            let started = entry.start(&argv, &environment, streams, false);
            let started = started
                .map_err(|e| Trouble::new(format!("cannot start {name}: {e}"), "is the workspace at its limits?"))?;
            let pid = started.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
            child = Some(started);
            pid
        }
    };
    drop(launch);
    let copying = tokio::task::spawn_local(follow_output(Rc::clone(shared), name));
    let ended = async {
        match &mut child {
            Some(child) => {
                let _ = child.wait().await;
            }
            // One that cannot be watched is taken for gone: what is left of it is ended below.
            None => drop(doors::wait_for_end(pid).await),
        }
        // Helpers of a server that was killed hold its files: nothing new starts before they are gone.
        let leftovers = tokio::time::timeout(Duration::from_millis(200), group.wait_empty()).await;
        if leftovers.is_err() {
            process::end(&group).await;
        }
    };
    let tended = driver.tend(contexts.clone());
    let ready = async {
        wait_until_it_answers(driver.as_ref(), &context).await?;
        keep_prepared(driver.as_ref(), run, contexts, suspect, shared).await
    };
    let outcome = tokio::select! {
        // It has no end of its own.
        () = tended => Ok(()),
        () = ended => {
            shared.tell(Event::ServerEnded { server: name, run });
            Ok(())
        }
        failed = ready => {
            process::stop(&group, Duration::from_secs(5)).await;
            failed
        }
    };
    copying.abort();
    outcome
}

/// Has a server that answers hold what is asked for, now and after every change, and tells when it does. Does not end by
/// itself.
///
/// # Errors
/// When it cannot be prepared at first: it is of no use then. Later it serves what it served before.
async fn keep_prepared(
    driver: &dyn Driver,
    run: u64,
    mut contexts: watch::Receiver<Context>,
    suspect: Option<Suspect>,
    shared: &Rc<Shared>,
) -> Result<(), Trouble> {
    let server = driver.name();
    let mut context = contexts.borrow_and_update().clone();
    prepare(driver, shared, &context).await?;
    if let Some(suspect) = suspect {
        receipt::ask(shared, driver, &context, suspect).await;
    }
    let mut filled = seed::fill(shared, &context).await;
    loop {
        // Of what is asked for by now it says nothing yet.
        if !contexts.has_changed().unwrap_or_default() {
            shared.tell(match filled {
                Ok(()) => Event::ServerReady { server, run },
                Err(trouble) => Event::ServerUnprepared { server, run, trouble },
            });
            if contexts.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        context = contexts.borrow_and_update().clone();
        filled = match prepare(driver, shared, &context).await {
            Ok(()) => seed::fill(shared, &context).await,
            Err(trouble) => Err(trouble),
        };
    }
}

/// Has the server hold what is asked for, and nothing of what was to be wiped.
async fn prepare(driver: &dyn Driver, shared: &Shared, context: &Context) -> Result<(), Trouble> {
    let due = reset::due(shared, context);
    reset::wipe(driver, context, &due).await?;
    driver.prepare(context).await?;
    // One that is the host's answers a workspace once it knows its keys.
    if driver.relayed(context).is_some() {
        wait_until_it_answers(driver, context).await?;
    }
    if !due.is_empty() {
        shared.receipts.borrow_mut().void(driver.name());
    }
    reset::done(shared, &due)
}

async fn wait_until_it_answers(driver: &dyn Driver, context: &Context) -> Result<(), Trouble> {
    let begun = Instant::now();
    while !driver.answers(context).await {
        if begun.elapsed() > PATIENCE {
            let reason = format!("{} does not answer after {} s", driver.name(), PATIENCE.as_secs());
            return Err(Trouble::new(reason, "its log may say why; it is tried again by itself"));
        }
        tokio::time::sleep(health::next_pause(begun.elapsed(), health::SLOWEST_START)).await;
    }
    Ok(())
}

fn raw_path(shared: &Shared, server: &str) -> PathBuf {
    shared.sandbox.dir.join("logs").join(format!("{server}.raw"))
}

fn raw_output(shared: &Shared, server: &str) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(raw_path(shared, server))
}

/// Copies what a server appends to its file into the log, and empties the file when it was read to the end.
async fn follow_output(shared: Rc<Shared>, server: &'static str) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        drain_output(&shared, server);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Octets of output moved at once; more is dropped.
const MOST_OUTPUT: u64 = 4 << 20;

/// Moves whatever is in a server's output file into its log.
pub(super) fn drain_output(shared: &Shared, server: &'static str) {
    let path = raw_path(shared, server);
    let Ok(about) = fs::metadata(&path) else { return };
    if about.len() == 0 {
        return;
    }
    let Ok(file) = fs::File::open(&path) else { return };
    let mut bytes = Vec::new();
    // What was written while nobody read may be long; its beginning is what tells why.
    if file.take(MOST_OUTPUT).read_to_end(&mut bytes).is_err() {
        return;
    }
    // Lines that arrive between reading and emptying would be lost; the file is appended to, so they are rare and
    // the window is the time of one system call.
    if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
        let _ = file.set_len(0);
    }
    for line in String::from_utf8_lossy(&bytes).lines() {
        shared.logs.write(server, logs::level_of(line), line);
    }
}

/// Ends a server in its own way, or by force when that takes too long.
pub(super) async fn stop(shared: &Shared, server: &str, context: &Context) {
    let Some(driver) = driver_of(server).filter(|driver| driver.relayed(context).is_none()) else { return };
    let Ok(group) = group_of(shared, server) else { return };
    if let Some(pid) = group.main_pid() {
        let ended = async {
            driver.stop(context, Pid::from_raw(pid)).await;
            group.wait_empty().await
        };
        if matches!(tokio::time::timeout(SERVER_GRACE, ended).await, Ok(Ok(_))) {
            return;
        }
    }
    process::end(&group).await;
}
