//! The load: in each workspace a client of each data service, which writes a number down only when it was acknowledged,
//! and the look whether all of these numbers are there.

use envforge_testkit::{fixture::Fixture, local::Local, machine::eventually, storage::Stored};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

const LOAD_PY: &str = include_str!("load.py");

const YML: &str = r#"version: 1
service: { name: Web, command: "exec python3 -m http.server $PORT --bind 127.0.0.1 --directory /tmp" }
ports: { http: 3000 }
health: { tcp: http, interval: 200ms, start_period: 60s }
workers:
  rows: { command: exec python3 load.py rows }
  queue: { command: exec python3 load.py queue }
  objects: { command: exec python3 load.py objects }
  mails: { command: exec python3 load.py mails }
resources:
  database: { required: true }
  queue: { required: true }
  storage: { required: true }
  mail: { required: true }
environment:
  DATABASE_URL: { from: resource.database.url }
  QUEUE_URL: { from: resource.queue.url }
  S3_ENDPOINT: { from: resource.storage.endpoint }
  S3_BUCKET: { from: resource.storage.bucket }
  S3_REGION: { from: resource.storage.region }
  S3_ACCESS_KEY: { from: resource.storage.access_key }
  S3_SECRET_KEY: { from: resource.storage.secret_key }
  SMTP_HOST: { from: resource.mail.host }
  SMTP_PORT: { from: resource.mail.port }
setup:
  table: ['psql $DATABASE_URL -Xqc ''create table if not exists made(number bigserial, name text)''']
runtime: { size: small, sleep: { after: 30m } }
"#;

/// What clients make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Made {
    Rows,
    Queue,
    Objects,
    Mails,
}

impl Made {
    pub(crate) const ALL: [Self; 4] = [Self::Rows, Self::Queue, Self::Objects, Self::Mails];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Queue => "queue",
            Self::Objects => "objects",
            Self::Mails => "mails",
        }
    }
}

/// A workspace under load.
pub(crate) struct Workspace {
    pub(crate) name: &'static str,
    /// The how manieth that was made.
    pub(crate) index: usize,
    pub(crate) dir: PathBuf,
}

/// Makes the project and the workspaces, awake and with their clients at work.
pub(crate) fn begin(stored: &Stored, boto3: &str, names: &[&'static str]) -> Vec<Workspace> {
    let local = &stored.local;
    let script = LOAD_PY.replace("@BOTO3@", boto3);
    let repository = Fixture::repository(local.dir(), "load", &[("envforge.yml", YML), ("load.py", &script)]);
    let file = local.dir().join("load.yml");
    let text = format!(
        "project: load\nservices:\n  web: {{ repo: {} }}\nresources: {{ database: managed, queue: managed, storage: managed, mail: managed }}\n",
        repository.display()
    );
    fs::write(&file, text).expect("write the project file");
    local.ok(&["project", "apply", "-f", &file.to_string_lossy()]);
    let all: Vec<Workspace> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            local.ok(&["up", name, "-c", "--no-attach", "--wait"]);
            Workspace { name, index, dir: local.workspace_dir(name) }
        })
        .collect();
    for workspace in &all {
        for made in Made::ALL {
            eventually("a client is at work", || (workspace.acknowledged(made) > 0).then_some(()));
        }
    }
    all
}

impl Workspace {
    fn written_down(&self, made: Made) -> PathBuf {
        self.dir.join("files").join(format!("{}.acknowledged", made.name()))
    }

    /// How many were acknowledged until now: all lines are as long.
    pub(crate) fn acknowledged(&self, made: Made) -> u64 {
        fs::metadata(self.written_down(made)).map_or(0, |about| about.len() / "01234567-000000\n".len() as u64)
    }

    /// What is there.
    fn found(&self, local: &Local, made: Made) -> Result<Vec<String>, String> {
        let mut look = match made {
            Made::Mails => {
                // As long a path as a socket's may not be.
                let mut curl = Command::new("curl");
                curl.args(["-sSf", "--unix-socket", "inbox.sock", "http://inbox/api/v1/messages?limit=100000"]);
                curl.current_dir(self.dir.join("data/mailpit"));
                curl
            }
            Made::Rows | Made::Queue | Made::Objects => {
                local.command(&["run", self.name, "--service", "web", "--", "python3", "load.py", "read", made.name()])
            }
        };
        let out = look.output().expect("it runs");
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        if made == Made::Mails {
            let inbox: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let mails = inbox["messages"].as_array().ok_or("no messages")?;
            return Ok(mails.iter().map(|mail| mail["Subject"].as_str().unwrap_or_default().to_owned()).collect());
        }
        Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
    }

    /// Everything that was acknowledged until now is there, whole and once, and what has an order is in it.
    pub(crate) fn assert_all_there(&self, local: &Local) {
        for made in Made::ALL {
            let text = fs::read_to_string(self.written_down(made)).expect("what was acknowledged");
            let mut why = String::new();
            // A server that ended a moment ago is on its way; its answer counts.
            let found = eventually_said(&format!("{} of {} can be read", made.name(), self.name), &mut why, |why| {
                self.found(local, made).map_err(|said| *why = said).ok()
            });
            let there: BTreeSet<&str> = found.iter().map(String::as_str).collect();
            let missing: Vec<&str> = text.lines().filter(|name| !there.contains(name)).collect();
            let (name, kind) = (self.name, made.name());
            assert!(missing.is_empty(), "{name}: {kind} were acknowledged and are not there: {missing:?}");
            assert_eq!(there.len(), found.len(), "{name}: {kind} are there twice: {:?}", twice(&found));
            let wrong: Vec<_> = found.iter().filter(|name| name.contains(' ')).collect();
            assert!(wrong.is_empty(), "{name}: {kind} have other contents: {wrong:?}");
            if matches!(made, Made::Rows | Made::Queue) {
                assert_ordered(&found);
            }
        }
    }
}

fn eventually_said<T>(what: &str, why: &mut String, mut wanted: impl FnMut(&mut String) -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + envforge_testkit::local::PATIENCE;
    loop {
        if let Some(found) = wanted(why) {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "never: {what}: {why}");
    }
}

fn twice(found: &[String]) -> Vec<&String> {
    let mut seen = BTreeSet::new();
    found.iter().filter(|name| !seen.insert(*name)).collect()
}

/// The things of each client are in the order in which it made them.
fn assert_ordered(found: &[String]) {
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for name in found {
        let (client, number) = name.split_once('-').expect("a name");
        if let Some(before) = last.insert(client, number) {
            assert!(before < number, "{client}: {number} comes after {before}");
        }
    }
}
