//! Readings: what was observed of the runtime, appended and synced, so that every billed second can be proved.
//!
//! A reading that the disk refuses is kept in memory, in order, and written when there is space again.

use crate::system::{boot, cgroup::Group};
use envforge_api::{
    ids::{RuntimeInstanceId, WorkspaceId},
    project::RuntimeSize,
    time::BootId,
    usage::Reading,
};
use std::{
    collections::VecDeque,
    fs,
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Path of an instance's readings.
#[must_use]
pub fn path_of(workspace_dir: &Path, instance: &RuntimeInstanceId) -> PathBuf {
    workspace_dir.join("meter").join(format!("{instance}.jsonl"))
}

/// Reads what was written so far. A last line that was cut short by a crash is left out.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Reading>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Appends the end of a runtime that a reboot cut short: nothing was observed after its last reading.
///
/// # Errors
/// When the disk refuses.
pub fn end_unobserved(path: &Path, reason: &str) -> io::Result<()> {
    let Some(last) = read(path)?.pop() else { return Ok(()) };
    if last.ended.is_some() {
        return Ok(());
    }
    let end = Reading { n: last.n + 1, oldest_process: None, ended: Some(reason.to_owned()), ..last };
    append(path, &end)
}

fn append(path: &Path, reading: &Reading) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
    // A line that a crash cut short would swallow the next one.
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last != *b"\n" {
        let text = fs::read(path)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
    }
    let mut line = serde_json::to_vec(reading)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

/// Readings that are kept in memory at most: more than a day of them.
const MOST_PENDING: usize = 30_000;

/// The meter of one runtime instance.
#[derive(Debug)]
pub struct Meter {
    path: PathBuf,
    next: u64,
    /// Taken and not on disk, oldest first.
    pending: VecDeque<Reading>,
    template: Reading,
    group: Group,
    /// Why the instance ended, once it did.
    closed: Option<String>,
}

impl Meter {
    /// The meter of an instance; goes on where an earlier supervisor of the same instance ended.
    ///
    /// # Errors
    /// When earlier readings cannot be read.
    pub fn open(
        workspace_dir: &Path,
        instance: &RuntimeInstanceId,
        boot: &BootId,
        workspace: &WorkspaceId,
        size: RuntimeSize,
        trigger: &str,
        group: &Group,
    ) -> io::Result<Self> {
        let path = path_of(workspace_dir, instance);
        let before = read(&path)?;
        let template = Reading {
            instance: instance.clone(),
            boot: boot.clone(),
            n: 0,
            workspace: workspace.clone(),
            size,
            trigger: trigger.to_owned(),
            at: boot::now(),
            oldest_process: None,
            ended: None,
        };
        let closed = before.last().and_then(|last| last.ended.clone());
        let next = before.last().map_or(0, |last| last.n + 1);
        Ok(Self { path, next, pending: VecDeque::new(), template, group: group.clone(), closed })
    }

    /// Why the instance ended, if its last reading was taken.
    #[must_use]
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Whether there are readings that no last one follows on disk: of this supervisor, or of one before it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.pending.is_empty() || self.closed.is_none() && self.next > 0
    }

    /// Takes a reading now.
    ///
    /// # Errors
    /// When the disk refuses; the reading is kept in memory then.
    pub fn checkpoint(&mut self) -> io::Result<()> {
        let oldest = self.group.pids().into_iter().filter_map(boot::process_started).min();
        self.take(oldest, None);
        self.write()
    }

    /// Takes the last reading: every process is gone. Called again, it only writes what is not on disk yet.
    ///
    /// # Errors
    /// When the disk refuses; the reading is kept in memory then.
    pub fn end(&mut self, reason: &str) -> io::Result<()> {
        self.close(reason);
        self.write()
    }

    /// Takes the last reading and leaves writing it to [`Self::end`], for who has something to write before.
    pub fn close(&mut self, reason: &str) {
        self.take(None, Some(reason.to_owned()));
    }

    fn take(&mut self, oldest_process: Option<envforge_api::time::BootMillis>, ended: Option<String>) {
        if self.closed.is_some() {
            return;
        }
        self.closed.clone_from(&ended);
        if self.pending.len() == MOST_PENDING {
            // The newest says all that the one before it says, but for the seconds between the two.
            self.pending.pop_back();
            self.next -= 1;
        }
        let reading = Reading { n: self.next, at: boot::now(), oldest_process, ended, ..self.template.clone() };
        self.pending.push_back(reading);
        self.next += 1;
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(reading) = self.pending.front() {
            append(&self.path, reading)?;
            self.pending.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_go_on_after_a_crash_in_the_middle_of_a_line_and_end_once() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("meter")).expect("mkdir");
        let (instance, workspace) = (RuntimeInstanceId::generate(), WorkspaceId::generate());
        let open = || {
            let boot = BootId("b".into());
            let group = Group::default();
            Meter::open(dir.path(), &instance, &boot, &workspace, RuntimeSize::Small, "up", &group).expect("meter")
        };
        let path = path_of(dir.path(), &instance);
        open().checkpoint().expect("reading");
        fs::OpenOptions::new().append(true).open(&path).expect("open").write_all(b"{\"inst").expect("write");
        assert!(open().is_open(), "another supervisor began it: this one has to end it");
        let mut meter = open();
        meter.checkpoint().expect("reading");
        meter.end("asked").expect("reading");
        meter.checkpoint().expect("nothing more");
        end_unobserved(&path, "reboot").expect("nothing more");
        let all = read(&path).expect("read");
        assert_eq!(all.iter().map(|r| r.n).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(all[2].ended.as_deref(), Some("asked"));
        assert!(!open().is_open());
    }

    #[test]
    fn a_last_reading_that_is_written_later_tells_of_the_moment_at_which_it_was_taken() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("meter")).expect("mkdir");
        let (instance, workspace) = (RuntimeInstanceId::generate(), WorkspaceId::generate());
        let (boot, group) = (BootId("b".into()), Group::default());
        let mut meter =
            Meter::open(dir.path(), &instance, &boot, &workspace, RuntimeSize::Small, "up", &group).expect("meter");
        meter.checkpoint().expect("reading");
        meter.close("asked");
        let taken = boot::now();
        assert!(meter.is_open(), "it is not written yet");
        while boot::now() == taken {
            std::thread::yield_now();
        }
        meter.end("later").expect("written");
        let all = read(&path_of(dir.path(), &instance)).expect("read");
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].ended.as_deref(), Some("asked"));
        assert!(all[1].at <= taken);
        assert!(!meter.is_open());
    }

    #[test]
    fn readings_that_the_disk_refuses_are_kept_in_order_and_written_when_it_takes_them() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (instance, workspace) = (RuntimeInstanceId::generate(), WorkspaceId::generate());
        let (boot, group) = (BootId("b".into()), Group::default());
        let mut meter =
            Meter::open(dir.path(), &instance, &boot, &workspace, RuntimeSize::Small, "up", &group).expect("meter");
        // Its directory is not there, as if there were no space for it.
        meter.checkpoint().expect_err("refused");
        meter.checkpoint().expect_err("refused");
        meter.end("asked").expect_err("refused");
        fs::create_dir(dir.path().join("meter")).expect("mkdir");
        meter.end("again").expect("written");
        let all = read(&path_of(dir.path(), &instance)).expect("read");
        assert_eq!(all.iter().map(|r| r.n).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(all[2].ended.as_deref(), Some("asked"));
    }
}
