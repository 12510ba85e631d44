//! Readings on their way to the control plane. They stay in their files until they are stored there, and then until
//! their instance has ended.
//!
//! A file grows for as long as its runtime is awake: what is stored is never read again, and a workspace that has none
//! is not looked at while no runtime of it is awake.

use super::hub::{Hub, Workspace};
use envforge_api::{
    ids::{RuntimeInstanceId, WorkspaceId},
    usage::Reading,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::{BufRead, Seek},
    path::{Path, PathBuf},
};

/// Readings of one sync.
const AT_ONCE: usize = 500;

/// How far one file is stored.
#[derive(Debug)]
struct Position {
    path: PathBuf,
    /// The first reading that is not stored.
    next: u64,
    /// Where it begins in the file.
    offset: u64,
}

/// How far each instance's readings are stored.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    positions: BTreeMap<RuntimeInstanceId, Position>,
    /// Workspaces without readings, and without a runtime to make some.
    quiet: BTreeSet<WorkspaceId>,
}

fn marker(path: &Path) -> PathBuf {
    path.with_extension("sent")
}

impl Outbox {
    /// Readings that are not stored yet.
    pub(super) fn collect(&mut self, hub: &Hub) -> Vec<Reading> {
        let mut all = Vec::new();
        for workspace in hub.all() {
            // Asked before the files are looked at: what comes after that belongs to a runtime that is awake.
            let awake = is_awake(&workspace);
            if !awake && self.quiet.contains(&workspace.id) {
                continue;
            }
            let found = self.of_workspace(&hub.installation.workspace_dir(&workspace.id), &mut all);
            if awake || found {
                self.quiet.remove(&workspace.id);
            } else {
                self.quiet.insert(workspace.id.clone());
            }
            if all.len() >= AT_ONCE {
                break;
            }
        }
        all
    }

    /// Adds the readings of one workspace; whether it has any files of them.
    fn of_workspace(&mut self, dir: &Path, all: &mut Vec<Reading>) -> bool {
        let Ok(entries) = fs::read_dir(dir.join("meter")) else { return false };
        let mut found = false;
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
            let instance: Option<RuntimeInstanceId> = path.file_stem().and_then(|s| s.to_str()?.parse().ok());
            let Some(instance) = instance else { continue };
            found = true;
            let position = self.positions.entry(instance).or_insert_with(|| Position::of(path));
            // A file that cannot be read now is read at the next look.
            let _ = position.read(|_, reading| {
                all.push(reading);
                all.len() < AT_ONCE
            });
            if all.len() >= AT_ONCE {
                break;
            }
        }
        found
    }

    /// Notes which of the sent readings are stored now; removes files of instances that ended and are stored whole.
    pub(super) fn stored(&mut self, sent: &[Reading], stored: &[(RuntimeInstanceId, u64)]) {
        for reading in sent {
            if !stored.iter().any(|(instance, n)| *instance == reading.instance && *n == reading.n) {
                continue;
            }
            let Some(position) = self.positions.get_mut(&reading.instance) else { continue };
            if reading.ended.is_some() {
                // Sent again after a crash between these lines, they are known there already.
                let _ = fs::remove_file(&position.path);
                let _ = fs::remove_file(marker(&position.path));
                self.positions.remove(&reading.instance);
            } else {
                position.pass(reading.n);
            }
        }
    }
}

fn is_awake(workspace: &Workspace) -> bool {
    let facts = workspace.runtime.borrow();
    !facts.known || facts.supervisor.is_some() || facts.starting.is_some()
}

impl Position {
    fn of(path: PathBuf) -> Self {
        let sent = fs::read_to_string(marker(&path)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let mut position = Self { path, next: 0, offset: 0 };
        if sent > 0 {
            position.pass_until(sent);
        }
        position
    }

    /// Gives each reading that is not stored, and the place after it, until `take` has enough.
    fn read(&self, mut take: impl FnMut(u64, Reading) -> bool) -> io::Result<()> {
        let mut file = fs::File::open(&self.path)?;
        file.seek(io::SeekFrom::Start(self.offset))?;
        let (mut lines, mut at, mut line) = (io::BufReader::new(file), self.offset, Vec::new());
        loop {
            line.clear();
            at += lines.read_until(b'\n', &mut line)? as u64;
            // A last line that is being written, or was cut short by a crash, is no reading.
            let reading = if line.ends_with(b"\n") { serde_json::from_slice::<Reading>(&line).ok() } else { None };
            let Some(reading) = reading else { return Ok(()) };
            if reading.n >= self.next && !take(at, reading) {
                return Ok(());
            }
        }
    }

    /// The readings up to `n` are stored.
    fn pass(&mut self, n: u64) {
        if n >= self.next {
            self.pass_until(n + 1);
            // Without it a daemon that starts anew sends again what is known there already.
            let _ = fs::write(marker(&self.path), self.next.to_string());
        }
    }

    fn pass_until(&mut self, next: u64) {
        let mut offset = self.offset;
        let _ = self.read(|after, reading| {
            if reading.n < next {
                offset = after;
            }
            reading.n + 1 < next
        });
        (self.next, self.offset) = (next, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::meter;
    use envforge_api::time::{BootId, BootMillis};
    use std::io::Write;

    fn reading(instance: &RuntimeInstanceId, n: u64, ended: bool) -> Reading {
        Reading {
            instance: instance.clone(),
            boot: BootId("b".into()),
            n,
            workspace: WorkspaceId::generate(),
            size: envforge_api::project::RuntimeSize::Small,
            trigger: "up".into(),
            at: BootMillis(n * 1000),
            oldest_process: None,
            ended: ended.then(|| "asked".into()),
        }
    }

    fn write(path: &Path, reading: &Reading) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).expect("open");
        file.write_all(&serde_json::to_vec(reading).expect("json")).expect("write");
        file.write_all(b"\n").expect("write");
    }

    fn numbers(outbox: &mut Outbox, dir: &Path) -> Vec<u64> {
        let mut all = Vec::new();
        outbox.of_workspace(dir, &mut all);
        all.iter().map(|reading| reading.n).collect()
    }

    #[test]
    fn readings_are_given_until_they_are_stored_and_a_file_is_gone_once_all_of_its_instance_are() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("meter")).expect("mkdir");
        let instance = RuntimeInstanceId::generate();
        let path = meter::path_of(dir.path(), &instance);
        let mut outbox = Outbox::default();
        for n in 0..3 {
            write(&path, &reading(&instance, n, false));
        }
        fs::OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"half").expect("write");
        assert_eq!(numbers(&mut outbox, dir.path()), [0, 1, 2]);
        let sent: Vec<_> = (0..3).map(|n| reading(&instance, n, false)).collect();
        outbox.stored(&sent, &[(instance.clone(), 0), (instance.clone(), 1)]);
        assert_eq!(numbers(&mut outbox, dir.path()), [2]);
        // A daemon that starts anew goes on from there.
        assert_eq!(numbers(&mut Outbox::default(), dir.path()), [2]);
        outbox.stored(&sent[2..], &[(instance.clone(), 2)]);
        assert_eq!(numbers(&mut outbox, dir.path()), [0; 0]);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("open")
            .set_len(fs::read(&path).expect("read").iter().rposition(|b| *b == b'\n').expect("a line") as u64 + 1)
            .expect("cut");
        let last = reading(&instance, 3, true);
        write(&path, &last);
        assert_eq!(numbers(&mut outbox, dir.path()), [3]);
        outbox.stored(&[last], &[(instance, 3)]);
        assert!(!path.exists() && !marker(&path).exists());
    }

    #[test]
    fn no_more_than_a_syncs_worth_is_given_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("meter")).expect("mkdir");
        let instance = RuntimeInstanceId::generate();
        let path = meter::path_of(dir.path(), &instance);
        for n in 0..AT_ONCE as u64 + 20 {
            write(&path, &reading(&instance, n, false));
        }
        let mut outbox = Outbox::default();
        assert_eq!(numbers(&mut outbox, dir.path()).len(), AT_ONCE);
        outbox.stored(&[reading(&instance, AT_ONCE as u64 - 1, false)], &[(instance, AT_ONCE as u64 - 1)]);
        assert_eq!(numbers(&mut outbox, dir.path()).len(), 20);
    }
}
