//! One attempt at a copy: ahead as long as the source goes on, then the rest while it stands still.
//!
//! It has a thread and a runtime of its own: whatever waits for a process that stands still cannot keep it from
//! letting that one go on.

use super::{
    objects::{self, Objects, Pair},
    plan::{self, DATA, DATABASE, FILES, Found, How, Plan, REDIS},
};
use crate::{
    daemon::supervisor::{self, Supervisor},
    resources::{
        postgres::backup::{self, Backup},
        redis,
        storage::s3::Client,
    },
    supervise::{protocol::Ask, still},
    system::{
        SystemError,
        accounts::Account,
        copying::{self, Mirror, Owners, Passed, Rules, Stop},
        files::{self, Beneath},
        sandbox::Sandbox,
        share,
    },
};
use envforge_api::{
    dial::{self, AskInside},
    resource::ResourceKind,
    states::Trouble,
};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Longest time for which the source stands still.
const BOUND: Duration = Duration::from_secs(10);
/// Longest time until everything that writes stands still: a process may be in the middle of a call of the kernel.
const STOPPING: Duration = Duration::from_secs(3);
/// Passes ahead at most, and what the last of them may have copied so that the one at the end is short.
const AHEAD: usize = 5;
const LITTLE: Passed = Passed { files: 500, bytes: 8 << 20 };

/// Files of the workspace's state that belong to its data.
pub(super) const STATE: [&str; 6] = [
    "resources.json",
    crate::resources::postgres::PASSWORD,
    crate::resources::postgres::PREPARED,
    "wiped.json",
    "setup.json",
    "setup-shell.json",
];

/// What is to be copied, and where to.
pub(super) struct Job {
    pub(super) sandbox: Sandbox,
    /// Absent: nothing of the runtime runs.
    pub(super) awake: bool,
    pub(super) target: PathBuf,
    pub(super) owners: Owners,
    /// Whose share of the disk the copy counts to.
    pub(super) group: u32,
    /// Octets that the copy has to leave free.
    pub(super) spare: u64,
    /// What of the user's files is left out.
    pub(super) is_left_out: fn(&Path) -> bool,
    /// The server and where its objects go, if there are any.
    pub(super) storage: Option<(Client, Vec<Pair>)>,
    /// Set by whoever wants it to end.
    pub(super) stop: Arc<AtomicBool>,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) took: Duration,
    pub(super) stood: Duration,
    pub(super) bytes: u64,
}

/// Says so when dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes the copy. What a failure left of it is the caller's to remove. Dropped, it ends soon.
pub(super) async fn make(job: Job) -> Result<Cut, Trouble> {
    let guard = StopOnDrop(Arc::clone(&job.stop));
    let (done, outcome) = oneshot::channel();
    let broken = |e: io::Error| Trouble::new(format!("cannot copy the workspace: {e}"), "try again");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let spawned = std::thread::Builder::new().name("copy".into()).spawn(move || {
        // A caller that is gone has said that it should stop.
        let _ = done.send(runtime.block_on(attempt(&job)));
    });
    spawned.map_err(broken)?;
    let outcome = outcome.await.unwrap_or_else(|_| Err(Trouble::new("the copy was cut short", "try again")));
    drop(guard);
    outcome
}

fn system(error: SystemError) -> Trouble {
    let hint = if error.hint.is_empty() { "nothing of the source was changed".into() } else { error.hint.clone() };
    Trouble::new(error.to_string(), hint)
}

async fn attempt(job: &Job) -> Result<Cut, Trouble> {
    let begun = Instant::now();
    let supervisor = if job.awake {
        let line = supervisor::connect(&job.sandbox).await;
        Some(line.map_err(|e| Trouble::new(format!("the runtime's supervisor does not answer: {e}"), "try again"))?)
    } else {
        None
    };
    let runs = |server: &str| !job.sandbox.cgroups.runtime.below(&format!("resources/{server}")).is_empty();
    let way = copying::way_between(&job.sandbox.dir.join("state"), &job.target);
    let plan = plan::plan(Found { way, database: job.awake && runs("database"), redis: job.awake && runs("redis") });
    if way == copying::Way::Copy {
        let needed: u64 = PARTS.iter().map(|part| copying::size_of(&job.sandbox.dir.join(part))).sum();
        copying::has_room(&job.target, needed + job.spare).map_err(system)?;
    }
    let mut copy = Copy::new(job, plan, way)?;
    copy.ahead().await?;
    let still = Still::begin(&job.sandbox, supervisor.as_ref().map(|(line, _)| line), &copy.plan.go_on).await?;
    // Whatever comes of it, everything goes on when `still` is gone.
    let copied = copy.at_the_moment().await;
    let stood = still.end(supervisor.as_ref().map(|(line, _)| line)).await;
    copied?;
    let stood = stood?;
    copy.close().await;
    copying::sync(&job.target).map_err(system)?;
    let bytes = copying::size_of(&job.target) + copy.objects.as_ref().map_or(0, Objects::octets);
    Ok(Cut { took: begun.elapsed(), stood, bytes })
}

/// Everything that writes, standing still for as long as this is there.
struct Still<'a> {
    sandbox: &'a Sandbox,
    since: Instant,
    /// There was something that had to.
    any: bool,
}

impl<'a> Still<'a> {
    async fn begin(
        sandbox: &'a Sandbox,
        supervisor: Option<&Arc<Supervisor>>,
        but: &BTreeSet<String>,
    ) -> Result<Self, Trouble> {
        let writers = still::writers(sandbox, but);
        let any = writers.iter().any(|group| !group.is_empty());
        let stopped = Self { sandbox, since: Instant::now(), any };
        match supervisor.filter(|supervisor| supervisor.knows_stillness()) {
            Some(supervisor) => {
                let bound_ms = u64::try_from(BOUND.as_millis()).unwrap_or(u64::MAX);
                supervisor.ask(Ask::StandStill { bound_ms, but: but.clone() }).await?;
            }
            // Asleep, or a supervisor of before an upgrade: a daemon that starts anew lets everything go on.
            None => writers.iter().try_for_each(|group| group.freeze(true)).map_err(system)?,
        }
        let all = futures_util::future::try_join_all(writers.iter().map(|group| group.wait_frozen()));
        match tokio::time::timeout(STOPPING, all).await {
            Ok(frozen) => drop(frozen.map_err(system)?),
            Err(_) => {
                let hint = "try again; `ps` in the workspace's shell shows processes that wait for a disk (state D)";
                return Err(Trouble::new("a process of the workspace does not stand still", hint));
            }
        }
        Ok(stopped)
    }

    /// Lets everything go on and tells how long it stood still.
    async fn end(self, supervisor: Option<&Arc<Supervisor>>) -> Result<Duration, Trouble> {
        still::thaw(self.sandbox);
        let stood = self.since.elapsed();
        if let Some(supervisor) = supervisor.filter(|supervisor| supervisor.knows_stillness()) {
            supervisor.ask(Ask::GoOn).await?;
        }
        if stood > BOUND {
            let hint = "try again when it writes less";
            return Err(Trouble::new("the workspace would have stood still for too long", hint));
        }
        Ok(if self.any { stood } else { Duration::ZERO })
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        still::thaw(self.sandbox);
    }
}

/// The copy as far as it is.
struct Copy<'a> {
    job: &'a Job,
    plan: Plan,
    mirrors: Vec<(How, Mirror)>,
    backup: Option<Backup>,
    objects: Option<Objects>,
    /// Segments of the database's log that are copied.
    segments: BTreeSet<String>,
}

impl<'a> Copy<'a> {
    fn new(job: &'a Job, plan: Plan, way: copying::Way) -> Result<Self, Trouble> {
        let mirror = |part: &plan::Part| {
            let rules = match (part.at, part.how) {
                (DATABASE, How::Backup) => Rules { is_left_out: is_left_out_of_backup, only_grows: |_| false },
                (DATABASE, _) => Rules { is_left_out: backup::is_of_a_process, only_grows: |_| false },
                (REDIS, _) => Rules { is_left_out: plan::is_of_redis_process, only_grows: plan::is_redis_log },
                (DATA, _) => Rules { is_left_out: plan::is_another_part, only_grows: |_| false },
                (_, _) => Rules { is_left_out: job.is_left_out, only_grows: |_| false },
            };
            let (from, to) = (job.sandbox.dir.join(part.at), job.target.join(part.at));
            (part.how, Mirror::new(&from, &to, job.owners.clone(), rules, way))
        };
        let mirrors = plan.parts.iter().map(mirror).collect();
        // Parts lie in it that are copied before it.
        files::ensure_dir(&job.target.join("state"), 0o700).map_err(system)?;
        for theirs in PARTS {
            share::ensure_tree(&job.target.join(theirs), job.group).map_err(system)?;
        }
        let objects = job.storage.as_ref().map(|(client, pairs)| Objects::new(client.clone(), pairs));
        Ok(Self { job, plan, mirrors, backup: None, objects, segments: BTreeSet::new() })
    }

    /// Copies while everything goes on.
    async fn ahead(&mut self) -> Result<(), Trouble> {
        let (stop, target, spare) = (Arc::clone(&self.job.stop), self.job.target.clone(), self.job.spare);
        // A source that grows must not be left without room by its own copy.
        let stop: Stop<'_> = &|| stop.load(Ordering::Relaxed) || copying::has_room(&target, spare).is_err();
        let system = |error: SystemError| match copying::has_room(&target, spare) {
            Err(full) if error.source.kind() == io::ErrorKind::Interrupted => system(full),
            Ok(()) | Err(_) => system(error),
        };
        if self.plan.parts.iter().any(|part| part.how == How::Backup) {
            self.backup = Some(Backup::begin(&self.job.sandbox).await?);
        }
        for (_, mirror) in self.mirrors.iter_mut().filter(|(how, _)| *how == How::Backup) {
            mirror.pass(None, stop).map_err(system)?;
        }
        if let Some(objects) = &self.objects {
            objects.begin().await?;
        }
        for _ in 0..AHEAD {
            let synced = copying::sync(&self.job.sandbox.dir).map_err(system)?;
            let mut passed = Passed::default();
            for (_, mirror) in self.mirrors.iter_mut().filter(|(how, _)| *how != How::Backup) {
                let one = mirror.pass(Some(synced), stop).map_err(system)?;
                passed = Passed { files: passed.files + one.files, bytes: passed.bytes + one.bytes };
            }
            if let Some(objects) = &mut self.objects {
                let one = objects.pass(stop).await?;
                passed = Passed { files: passed.files + one.files, bytes: passed.bytes + one.bytes };
            }
            if let Some(backup) = &mut self.backup {
                let full = backup.full_segments().await?;
                passed.bytes += self.copy_segments(&full)?;
            }
            if passed.files <= LITTLE.files && passed.bytes <= LITTLE.bytes {
                break;
            }
        }
        Ok(())
    }

    /// Copies what is left, while everything that writes stands still.
    async fn at_the_moment(&mut self) -> Result<(), Trouble> {
        if self.plan.go_on.contains("redis") {
            redis_has_written(&self.job.sandbox).await?;
        }
        if let Some(mut backup) = self.backup.take() {
            let finished = backup.finish().await?;
            let left = backup
                .segments()
                .map_err(|e| Trouble::new(format!("cannot read the database's log: {e}"), "try again"))?;
            let left: Vec<String> = left.into_iter().filter(|name| *name <= finished.last).collect();
            self.copy_segments(&left)?;
            self.put(Path::new("postgresql/backup_label"), finished.label.as_bytes()).map_err(system)?;
            let control = Path::new("postgresql/global/pg_control");
            let read = whole(&theirs(&self.job.sandbox)?, control).map_err(system)?;
            self.put(control, &read).map_err(system)?;
            self.backup = Some(backup);
        }
        for (how, mirror) in &mut self.mirrors {
            match how {
                How::Backup => {}
                How::Passes => drop(mirror.pass(None, &|| false).map_err(system)?),
                How::Written => written(&theirs(&self.job.sandbox)?, mirror)?,
            }
        }
        if let Some(objects) = &mut self.objects {
            let slow = |_| {
                Trouble::new("the storage does not come to the end of what is new", "try again when it writes less")
            };
            tokio::time::timeout(BOUND, objects.last()).await.map_err(slow)??;
        }
        if let Some((_, pairs)) = &self.job.storage {
            objects::are_all(&self.job.sandbox.dir, pairs).map_err(system)?;
        }
        for name in STATE {
            let (from, to) = (self.job.sandbox.dir.join("state").join(name), self.job.target.join("state").join(name));
            match fs::read(&from) {
                Ok(bytes) => files::write_whole(&to, &bytes, 0o600).map_err(system)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(system(SystemError::new(format!("read {name}"), error))),
            }
        }
        Ok(())
    }

    async fn close(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.close().await;
        }
    }

    fn copy_segments(&mut self, names: &[String]) -> Result<u64, Trouble> {
        let (data, wal) = (theirs(&self.job.sandbox)?, Path::new("postgresql/pg_wal"));
        let mut bytes = 0;
        for name in names {
            if self.segments.contains(name) {
                continue;
            }
            let read = data.read(&wal.join(name), LARGEST).map_err(system)?;
            bytes += read.len() as u64;
            self.put(&wal.join(name), &read).map_err(system)?;
            self.segments.insert(name.clone());
        }
        Ok(bytes)
    }

    /// Writes a file of the data's copy, as the owner of the cluster's directory: links that were copied are not followed.
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), SystemError> {
        let doing = |e| SystemError::new(format!("write {}", path.display()), e).on_disk(&self.job.target);
        let about = fs::symlink_metadata(self.job.target.join(DATABASE)).map_err(doing)?;
        let owner = Account { name: String::new(), uid: about.uid(), gid: about.gid() };
        Beneath::open(&self.job.target.join(DATA))?.write(path, bytes, 0o600, &owner)
    }
}

/// Largest segment of a database's log.
const LARGEST: u64 = 1 << 30;
/// What is read of small files at most.
const SMALL: u64 = 1 << 20;

/// The data of a workspace: its resource user may have put anything anywhere in it.
fn theirs(sandbox: &Sandbox) -> Result<Beneath, Trouble> {
    Beneath::open(&sandbox.dir.join(DATA)).map_err(system)
}

/// The control file is written while it is read; it is taken when nothing changed between two looks.
fn is_left_out_of_backup(path: &Path) -> bool {
    backup::is_left_out(path) || path == Path::new("global/pg_control")
}

fn whole(data: &Beneath, path: &Path) -> Result<Vec<u8>, SystemError> {
    let mut last = data.read(path, SMALL)?;
    loop {
        let again = data.read(path, SMALL)?;
        if again == last {
            return Ok(again);
        }
        last = again;
    }
}

/// How long Redis may take to write down what it holds: it waits for a sync that is under way for two seconds at most.
const WRITTEN: Duration = Duration::from_secs(4);

/// Waits until everything that was answered is in the log of commands.
async fn redis_has_written(sandbox: &Sandbox) -> Result<(), Trouble> {
    let failed = |why: &dyn std::fmt::Display| {
        Trouble::new(format!("cannot copy the cache: {why}"), "`envforge logs WS redis` has what it said; try again")
    };
    let ask = async {
        let port = ResourceKind::Cache.port();
        let dialled = dial::dial(&sandbox.dial_socket(), &AskInside { port }, Duration::ZERO).await;
        let dialled = dialled.map_err(|why| failed(&format!("{why:?}")))?;
        dialled.socket.set_nonblocking(true).map_err(|e| failed(&e))?;
        let mut stream = tokio::net::TcpStream::from_std(dialled.socket).map_err(|e| failed(&e))?;
        let mut pause = Duration::from_micros(500);
        while redis::unwritten(&mut stream).await.map_err(|e| failed(&e))? > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(())
    };
    tokio::time::timeout(WRITTEN, ask).await.unwrap_or_else(|_| Err(failed(&"it does not write down what it holds")))
}

/// Redis may exchange its files while they are copied, when it has rewritten its log: then they are copied again.
fn written(data: &Beneath, mirror: &mut Mirror) -> Result<(), Trouble> {
    const LOOKS: usize = 5;
    let manifest = Path::new("redis/appendonlydir/appendonly.aof.manifest");
    let mut before = data.read(manifest, SMALL).ok();
    for _ in 0..LOOKS {
        mirror.pass(None, &|| false).map_err(system)?;
        let after = data.read(manifest, SMALL).ok();
        if before == after {
            return Ok(());
        }
        before = after;
    }
    Err(Trouble::new("the cache exchanges its files again and again", "try again"))
}

/// Where the parts of a workspace are in a copy.
pub(super) const PARTS: [&str; 2] = [FILES, DATA];
