//! Keeping one part alive: start, wait until ready, wait until it ends, pause, start again.
//!
//! A part's task fails only towards its own first start (told once through `first`); after that it never gives up.
//! It ends when it is told to stop, after the part's process has ended.

use super::{
    log,
    paths::Paths,
    process::Process,
    program::Program,
    state::{Board, Named, PartState},
};
use envforge_api::problem::Problem;
use rustix::process::Signal;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Pause before the first restart; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that did its work for so long ended for a new reason: the pause begins small again. Far longer than a start
/// costs, so that one that ends again and again wastes little; short, since somebody waits for one that was killed.
const WORKED: Duration = Duration::from_secs(2);
/// How often the first start is tried before it counts as failed.
const FIRST_ATTEMPTS: u32 = 2;

/// A part that is kept alive.
#[derive(Debug)]
pub(super) struct Part {
    name: &'static str,
    stop: watch::Sender<bool>,
    again: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Part {
    /// Begins to keep a part alive, taking over `left` if an earlier keeper left a sound process, and waits until it
    /// has been ready once.
    ///
    /// # Errors
    /// Why it could not be started; its process has ended then.
    pub(super) async fn keep(
        program: Program,
        left: Option<Named>,
        paths: &Paths,
        board: &Board,
    ) -> Result<Self, Problem> {
        let (stop, stopped) = watch::channel(false);
        let (first, ready) = oneshot::channel();
        let again = Arc::new(Notify::new());
        let name = program.name();
        let keeper = Keeper {
            program,
            paths: paths.clone(),
            board: board.clone(),
            stop: stopped,
            again: again.clone(),
            first: Some(first),
            ready: None,
        };
        let task = tokio::spawn(keeper.run(left));
        match ready.await {
            Ok(Ok(())) => Ok(Self { name, stop, again, task }),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(Problem::internal(format!("the task that keeps `{name}` alive ended"))),
        }
    }

    /// Its name in status and logs.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Ends the process so that it is started again with what is true now.
    pub(super) fn restart(&self) {
        self.again.notify_one();
    }

    /// Ends the process in its own way and waits until it has ended.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        if self.task.await.is_err() {
            log::note(&format!("the task that kept `{}` alive had failed", self.name));
        }
    }
}

struct Keeper {
    program: Program,
    paths: Paths,
    board: Board,
    stop: watch::Receiver<bool>,
    again: Arc<Notify>,
    first: Option<oneshot::Sender<Result<(), Problem>>>,
    /// Since when the process does its work.
    ready: Option<Instant>,
}

/// How a stretch of a part's life ended.
enum End {
    Stop,
    Died(Problem),
}

impl Keeper {
    async fn run(mut self, left: Option<Named>) {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        let mut left = self.adopt(left).await;
        loop {
            let end = match left.take() {
                Some(process) => self.live(process).await,
                None => self.start_and_live().await,
            };
            let problem = match end {
                End::Stop => {
                    self.board.part(self.program.name(), PartState::Stopped, None, None);
                    return;
                }
                End::Died(problem) => problem,
            };
            attempts += 1;
            log::note(&format!("{}: {}", self.program.name(), problem.message));
            if attempts >= FIRST_ATTEMPTS
                && let Some(first) = self.first.take()
            {
                self.board.part(self.program.name(), PartState::Stopped, None, Some(problem.message.clone()));
                // Nobody hears it when the keeper itself is being stopped.
                let _ = first.send(Err(problem));
                return;
            }
            if self.ready.take().is_some_and(|since| since.elapsed() >= WORKED) {
                pause = FIRST_PAUSE;
            }
            self.board.part(self.program.name(), PartState::Restarting, None, Some(problem.message));
            tokio::select! {
                () = sleep(pause) => {}
                () = asked(&mut self.stop) => {
                    self.board.part(self.program.name(), PartState::Stopped, None, None);
                    return;
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// A process that an earlier keeper left and that still does its work; one that does not is killed.
    async fn adopt(&self, left: Option<Named>) -> Option<Process> {
        let mut process = Process::adopt(left?)?;
        if self.program.is_sound(process.name()).await {
            log::note(&format!("{}: process {} goes on under this keeper", self.program.name(), process.name().pid));
            return Some(process);
        }
        process.end(Signal::KILL, Duration::ZERO).await;
        None
    }

    async fn start_and_live(&mut self) -> End {
        let log = self.paths.log(self.program.name());
        let from = log::len(&log);
        let mut process = match self.program.start().await {
            Ok(process) => process,
            Err(problem) => return End::Died(problem),
        };
        self.board.part(self.program.name(), PartState::Starting, Some(process.name()), None);
        let (title, patience) = (self.program.title(), self.program.ready_within());
        // A rotation at the start may have made the log shorter.
        let from = from.min(log::len(&log));
        let (reason, hint) = tokio::select! {
            ready = timeout(patience, ready(&self.program, process.name(), from)) => match ready {
                Ok(()) => return self.live(process).await,
                Err(_) => {
                    process.end(Signal::KILL, Duration::ZERO).await;
                    (format!("{title} was not ready within {} seconds", patience.as_secs()), log::hint(&log, None))
                }
            },
            how = process.wait() => {
                let line = log::last_line(&log, from);
                let hint = log::hint(&log, line.as_deref());
                let line = line.map(|line| format!(": {line}")).unwrap_or_default();
                (format!("{title} ended before it was ready ({how}){line}"), hint)
            }
            () = asked(&mut self.stop) => return self.end(process).await,
        };
        self.swept(Problem::unavailable(reason, hint)).await
    }

    async fn live(&mut self, mut process: Process) -> End {
        self.board.part(self.program.name(), PartState::Running, Some(process.name()), None);
        self.ready = Some(Instant::now());
        if let Some(first) = self.first.take() {
            // Nobody hears it when the keeper itself is being stopped.
            let _ = first.send(Ok(()));
        }
        let reason = tokio::select! {
            how = process.wait() => how,
            () = asked(&mut self.stop) => return self.end(process).await,
            () = self.again.notified() => {
                let (signal, grace) = self.program.farewell();
                process.end(signal, grace).await;
                "restarted because the address of the control plane changed".to_owned()
            }
        };
        self.swept(Problem::unavailable(reason, "")).await
    }

    async fn end(&self, mut process: Process) -> End {
        let (signal, grace) = self.program.farewell();
        let how = process.end(signal, grace).await;
        log::note(&format!("{}: stopped ({how})", self.program.name()));
        match self.swept(Problem::unavailable(how, "")).await {
            End::Stop | End::Died(_) => End::Stop,
        }
    }

    async fn swept(&self, problem: Problem) -> End {
        if let Err(left) = self.program.sweep().await {
            log::note(&format!("{}: {}", self.program.name(), left.message));
        }
        End::Died(problem)
    }
}

/// Waits until the process is ready: looks often at first, then less often.
async fn ready(program: &Program, process: Named, log_from: u64) {
    let mut pause = Duration::from_millis(2);
    while !program.is_ready(process, log_from).await {
        sleep(pause).await;
        pause = (pause * 5 / 4).min(Duration::from_millis(100));
    }
}

/// Waits until stopping is asked for. Dropping the handle asks for it too, so that no process outlives its keeper's
/// will.
async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone, which is the same answer.
    let _ = stop.wait_for(|stop| *stop).await;
}
