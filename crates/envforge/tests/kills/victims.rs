//! Who is killed: each process whose death is promised to cost nothing that was acknowledged.

use crate::{
    chance::Chance,
    load::{Made, Workspace},
};
use envforge_testkit::{
    local::Local,
    machine::{eventually, lives},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::fs;

/// A kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Victim {
    Database,
    Backend,
    Redis,
    Storage,
    StorageKeeper,
    Mail,
    Supervisor,
    Service,
    Host,
    Control,
    ControlDatabase,
}

pub(crate) const ALL: [Victim; 11] = [
    Victim::Database,
    Victim::Backend,
    Victim::Redis,
    Victim::Storage,
    Victim::StorageKeeper,
    Victim::Mail,
    Victim::Supervisor,
    Victim::Service,
    Victim::Host,
    Victim::Control,
    Victim::ControlDatabase,
];

/// A process and when it began, so that a number that is used again is another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    began: u64,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let began = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
        lives(pid).then_some(Self { pid, began })
    }

    /// Kills it; whether it was there to be killed.
    pub(crate) fn kill(self) -> bool {
        if Self::of(self.pid) != Some(self) || kill(Pid::from_raw(self.pid), Signal::SIGKILL).is_err() {
            return false;
        }
        eventually("a killed process is gone", || (Self::of(self.pid) != Some(self)).then_some(()));
        true
    }
}

/// The command line of a process.
fn words(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

impl Victim {
    /// What a client of the workspace notices of its death, and must be able to go on with.
    pub(crate) fn hits(self) -> &'static [Made] {
        match self {
            Self::Database | Self::Backend => &[Made::Rows],
            Self::Redis => &[Made::Queue],
            Self::Storage | Self::StorageKeeper => &[Made::Objects],
            Self::Mail => &[Made::Mails],
            Self::Supervisor | Self::Service => &Made::ALL,
            Self::Host | Self::Control | Self::ControlDatabase => &[],
        }
    }

    /// The part of the installation that it is.
    fn part(self) -> Option<&'static str> {
        match self {
            Self::Host => Some("host"),
            Self::Control => Some("control"),
            Self::ControlDatabase => Some("postgres"),
            Self::Database
            | Self::Backend
            | Self::Redis
            | Self::Storage
            | Self::StorageKeeper
            | Self::Mail
            | Self::Supervisor
            | Self::Service => None,
        }
    }

    /// One of those that run now, of this workspace where it belongs to one.
    pub(crate) fn find(self, local: &Local, workspace: &Workspace, chance: &mut Chance) -> Option<Process> {
        let group = |name: &str| local.pids_in(&format!("w{}/runtime/{name}", workspace.index));
        let main = |name: &str| group(&format!("resources/{name}")).first().copied();
        let pid = match self {
            Self::Database => main("database").filter(|pid| words(*pid).contains("/postgres ")),
            Self::Backend => {
                let serves = |pid: &i32| words(*pid).starts_with("postgres: app");
                let all: Vec<i32> = group("resources/database").into_iter().filter(serves).collect();
                (!all.is_empty()).then(|| *chance.one(&all))
            }
            Self::Redis => main("redis"),
            Self::Mail => main("mail"),
            Self::Storage => local.pids_in("storage").first().copied(),
            Self::StorageKeeper => {
                let noted = fs::read_to_string(local.home().join("storage/keeper.pid")).ok();
                let noted = noted.and_then(|text| text.trim().parse().ok());
                noted.filter(|pid| words(*pid).contains("keep-storage"))
            }
            Self::Supervisor => {
                let dir = workspace.dir.to_string_lossy().into_owned();
                local.supervisors().into_iter().find(|pid| words(*pid).contains(&dir))
            }
            Self::Service => {
                let all = group("services");
                (!all.is_empty()).then(|| *chance.one(&all))
            }
            Self::Host | Self::Control | Self::ControlDatabase => self.noted(local),
        };
        Process::of(pid?)
    }

    /// As the keeper wrote it down.
    fn noted(self, local: &Local) -> Option<i32> {
        let record = fs::read(local.home().join("keeper.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        let part = record["parts"].as_array()?.iter().find(|part| part["name"].as_str() == self.part())?;
        let (pid, ticks) = (part["process"]["pid"].as_i64()?, part["process"]["ticks"].as_u64()?);
        let process = Process::of(i32::try_from(pid).ok()?)?;
        (process.began == ticks).then_some(process.pid)
    }
}
