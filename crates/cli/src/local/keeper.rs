//! The keeper: one process per home that starts the parts in order and keeps each alive.
//!
//! It outlives the terminal it was started from (a session of its own, nothing to read, no inherited files). When
//! it is killed the parts go on; the next keeper finds them in `keeper.json` and takes them over.

use super::{
    door::{Door, Gateway},
    log,
    part::Part,
    paths::{Paths, Programs},
    postgres::Postgres,
    prepare::{self, Prepared},
    process::Process,
    program::{Control, Host, Program, broken},
    state::{Board, Lock, Named, Phase, Record},
};
use envforge_api::problem::Problem;
use rustix::process::Signal;
use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

/// Names of the parts in the order in which they start.
pub(super) const PARTS: [&str; 4] = ["postgres", "control", "host", "gateway"];
/// How often logs and the home are looked at.
const ROUND: Duration = Duration::from_secs(10);

/// Runs a keeper until SIGTERM or until its home is removed. A second one for the same home ends at once.
pub(super) async fn keep(paths: &Paths, programs: &Programs) -> ExitCode {
    detach();
    match run(paths, programs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::note(&format!("{} ({})", problem.message, problem.hint));
            ExitCode::FAILURE
        }
    }
}

/// Leaves the caller's terminal, working directory, umask and open files behind.
fn detach() {
    // It fails only for a leader of a process group, which a keeper started by hand may be.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let _ = std::env::set_current_dir("/");
    // What this program opened itself is closed on exec; all else came from the caller, who may be waiting for it.
    for entry in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let flags = fs::read_to_string(entry.path()).ok().and_then(|text| {
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
            i32::from_str_radix(flags.trim(), 8).ok()
        });
        if fd > 2 && flags.is_some_and(|flags| flags & nix::libc::O_CLOEXEC == 0) {
            let _ = nix::unistd::close(fd);
        }
    }
}

struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to stop; a lost terminal is none.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => {}
            }
        }
    }
}

async fn run(paths: &Paths, programs: &Programs) -> Result<(), Problem> {
    let mut signals = Signals::new().map_err(|error| broken("listen for signals", &error))?;
    make_home(paths).map_err(|error| broken("make the home", &error))?;
    let Some(lock) = take_lock(paths).await? else { return Ok(()) };
    let before = Record::read(paths);
    let board = Board::new(paths, Phase::Starting, &PARTS).map_err(|error| broken("write keeper.json", &error))?;
    log::note(&format!("keeper {} starts for {}", std::process::id(), paths.home().display()));

    let mut running = Vec::new();
    let (address, mut addresses) = watch::channel(None);
    let mut started = tokio::select! {
        started = start(paths, programs, &board, before.as_ref(), address, &mut running) => started,
        // A start that is cut off leaves its process in the record; it is ended from there below.
        () = signals.stop() => Err(Problem::unavailable("the installation was stopped while it started", "")),
    };
    if started.is_ok() {
        board.enter(Phase::Ready, None);
        log::note("ready");
        addresses.mark_unchanged();
        watch_over(paths, &lock, &mut signals, &mut addresses, &running).await;
    }
    match &mut started {
        Ok(()) => board.enter(Phase::Stopping, None),
        Err(problem) => board.enter(Phase::Stopping, Some(problem.clone())),
    }
    while let Some(part) = running.pop() {
        part.stop().await;
    }
    if started.is_err()
        && let Err(left) = super::stop::end_left(paths).await
    {
        log::note(&left.message);
    }
    let phase = if started.is_ok() { Phase::Stopped } else { Phase::Failed };
    board.enter(phase, started.as_ref().err().cloned());
    log::note("ended");
    started
}

/// Makes the home and the directories that logs and the control plane need.
pub(super) fn make_home(paths: &Paths) -> std::io::Result<()> {
    if !paths.home().exists() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(paths.home())?;
        fs::set_permissions(paths.home(), fs::Permissions::from_mode(0o755))?;
    }
    for (dir, mode) in [(paths.logs(), 0o755), (paths.control(), 0o700)] {
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Takes the lock, looking again for a moment because a probe may hold it shared.
async fn take_lock(paths: &Paths) -> Result<Option<Lock>, Problem> {
    for _ in 0..20 {
        match Lock::take(paths).map_err(|error| broken("take the keeper's lock", &error))? {
            Some(lock) if lock.is_in_place(paths) => return Ok(Some(lock)),
            // Its home was removed between opening and locking: look again.
            Some(_) => make_home(paths).map_err(|error| broken("make the home", &error))?,
            None => sleep(Duration::from_millis(5)).await,
        }
    }
    Ok(None)
}

/// Starts the parts in order; each that runs is in `running`.
async fn start(
    paths: &Paths,
    programs: &Programs,
    board: &Board,
    before: Option<&Record>,
    address: watch::Sender<Option<std::net::SocketAddr>>,
    running: &mut Vec<Part>,
) -> Result<(), Problem> {
    let left = |name: &str| before.and_then(|record| record.part(name)?.process);
    let door = Door::open(board, left("gateway").is_some_and(Named::lives))?;
    let prepared = prepare::prepare(paths, programs).await?;
    let moved = before.is_some_and(|before| before.base_port != board.base_port());
    if moved && let Some(mut control) = left("control").and_then(Process::adopt) {
        // It would go on telling addresses of the old one.
        control.end(Signal::TERM, Duration::from_secs(10)).await;
    }
    for program in parts(paths, programs, board, prepared, address, &door) {
        let left = left(program.name());
        running.push(Part::keep(program, left, paths, board).await?);
    }
    // What was taken over still talks to where the control plane was.
    if let Some(before) = before.filter(|before| before.port != board.port()) {
        let stale = |part: &&Part| before.part(part.name()).is_some_and(|p| p.process.is_some_and(Named::lives));
        clients(running).filter(stale).for_each(Part::restart);
    }
    Ok(())
}

/// The parts that are told where the control plane listens.
fn clients(running: &[Part]) -> impl Iterator<Item = &Part> {
    running.iter().filter(|part| matches!(part.name(), "host" | "gateway"))
}

fn parts(
    paths: &Paths,
    programs: &Programs,
    board: &Board,
    prepared: Prepared,
    address: watch::Sender<Option<std::net::SocketAddr>>,
    door: &Door,
) -> [Program; 4] {
    let run = prepared.run.clone();
    let postgres = Postgres { paths: paths.clone(), prepared };
    let control = Control {
        paths: paths.clone(),
        programs: programs.clone(),
        board: board.clone(),
        database_url: postgres.url(),
        door: door.clone(),
        address,
    };
    let host = Host { paths: paths.clone(), programs: programs.clone() };
    let gateway = Gateway { paths: paths.clone(), programs: programs.clone(), run, door: door.clone() };
    [Program::Postgres(postgres), Program::Control(control), Program::Host(host), Program::Gateway(gateway)]
}

/// Returns when everything is to be stopped.
async fn watch_over(
    paths: &Paths,
    lock: &Lock,
    signals: &mut Signals,
    addresses: &mut watch::Receiver<Option<std::net::SocketAddr>>,
    running: &[Part],
) {
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = signals.stop() => return,
            Ok(()) = addresses.changed() => {
                log::note("the control plane listens elsewhere now, so what talks to it is restarted");
                clients(running).for_each(Part::restart);
            }
            _ = round.tick() => {
                if !lock.is_in_place(paths) {
                    log::note("the home was removed, so everything of it is stopped");
                    return;
                }
                for name in PARTS.iter().chain(&["keeper"]) {
                    if let Err(error) = log::rotate(&paths.log(name), log::MAX_OCTETS) {
                        log::note(&format!("the log of {name} could not be rotated: {error}"));
                    }
                }
            }
        }
    }
}
