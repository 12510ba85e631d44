//! Four workspaces that have everything, one installation for all tests of this folder that run at the same time: `a`, in
//! which the attacks are tried, and whom they are aimed at: `b`, awake, of the same project; `c`, asleep, of another
//! one; and `f`, a fork of `a` that was made when `a` held its secrets already. What each holds is its own name; what it
//! was given after that fork, which nobody else may ever have, is `only of` it.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    storage::{self, Stored},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError, Weak},
};

const YML: &str = r#"version: 1
service: { name: Web, command: "exec python3 -m http.server $PORT --bind 127.0.0.1 --directory /tmp" }
ports: { http: 3000 }
health: { tcp: http, interval: 200ms, start_period: 60s }
resources:
  database: { required: true, extensions: [dblink, postgres_fdw, file_fdw, adminpack, lo, pageinspect] }
  cache: { required: true }
  storage: { required: true }
  mail: { required: true }
environment:
  DATABASE_URL: { from: resource.database.url }
  CACHE_URL: { from: resource.cache.url }
  SMTP_URL: { from: resource.mail.smtp_url }
  S3_URL: { from: resource.storage.url }
  S3_ENDPOINT: { from: resource.storage.endpoint }
  S3_BUCKET: { from: resource.storage.bucket }
  AWS_REGION: { from: resource.storage.region }
  AWS_ACCESS_KEY_ID: { from: resource.storage.access_key }
  AWS_SECRET_ACCESS_KEY: { from: resource.storage.secret_key }
runtime: { size: small, sleep: { after: 10m } }
"#;

/// What everyone is given to keep. `NAME` is the workspace.
const KEEP: &str = r"
import subprocess, smtplib
from email.message import EmailMessage
sql = ['psql', os.environ['DATABASE_URL'], '-XAtqc']
subprocess.run(sql + ['create table secret(t text)'], check=True)
subprocess.run(sql + ['insert into secret values (\'of NAME\')'], check=True)
subprocess.run(['redis-cli', 'set', 'secret', 'of NAME'], check=True, stdout=subprocess.DEVNULL)
s3.put_object(Bucket=bucket, Key='secret', Body=b'of NAME')
mail = EmailMessage()
mail['From'], mail['To'], mail['Subject'] = 'a@example.com', 'b@example.com', 'of NAME'
with smtplib.SMTP('localhost', 1025) as smtp: smtp.send_message(mail)
open('/workspace/secret', 'w').write('of NAME')
tell(1)
";

/// What each is given once the fork is there, which no other one has.
const KEEP_ALONE: &str = r"
import subprocess, smtplib
from email.message import EmailMessage
only = 'only of NAME'
subprocess.run(['psql', os.environ['DATABASE_URL'], '-XAtqc', 'create table own as select %r::text' % only], check=True)
subprocess.run(['redis-cli', 'set', 'own', only], check=True, stdout=subprocess.DEVNULL)
s3.put_object(Bucket=bucket, Key='own', Body=only.encode())
mail = EmailMessage()
mail['From'], mail['To'], mail['Subject'] = 'a@example.com', 'b@example.com', only
with smtplib.SMTP('localhost', 1025) as smtp: smtp.send_message(mail)
open('/workspace/own', 'w').write(only)
tell(1)
";

/// What it has of both. What it tried itself may lie in its own bucket.
const KEPT: &str = r"
import subprocess
def said(*words): return subprocess.run(words, capture_output=True, text=True).stdout.strip()
keys = [o['Key'] for o in s3.list_objects_v2(Bucket=bucket)['Contents'] if 'tried-by-NAME' not in o['Key']]
tell([[said('psql', os.environ['DATABASE_URL'], '-XAtqc', 'table ' + name), said('redis-cli', '--raw', 'get', name),
       open('/workspace/' + name).read()] for name in ('secret', 'own')]
     + [[(key, s3.get_object(Bucket=bucket, Key=key)['Body'].read().decode()) for key in keys]])
";

pub(crate) struct World {
    pub(crate) stored: Stored,
    /// Environments of `web` by workspace.
    pub(crate) env: BTreeMap<&'static str, BTreeMap<String, String>>,
}

static NOW: Mutex<Weak<World>> = Mutex::new(Weak::new());

impl World {
    /// The one that is there, else a new one. `None` where a server is missing, which is said.
    pub(crate) fn get() -> Option<Arc<Self>> {
        // A test that failed while it made one left none.
        let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(world) = now.upgrade() {
            return Some(world);
        }
        envforge_testkit::local::program("mailpit", "workspaces kept apart in everything")?;
        let world = Arc::new(Self::make()?);
        *now = Arc::downgrade(&world);
        Some(world)
    }

    fn make() -> Option<Self> {
        let stored = Stored::start(Path::new(env!("CARGO_BIN_EXE_envforge")), storage::seaweedfs(), &[])?;
        let local = &stored.local;
        let bare = Fixture::repository(local.dir(), "all", &[("envforge.yml", YML)]);
        for project in ["mine", "theirs"] {
            let file = local.dir().join(format!("{project}.yml"));
            let all = "database: managed, cache: managed, storage: managed, mail: managed";
            let text = format!(
                "project: {project}\nservices:\n  web: {{ repo: {} }}\nresources: {{ {all} }}\n",
                bare.display()
            );
            fs::write(&file, text).expect("written");
            local.ok(&["project", "apply", "-f", &file.to_string_lossy()]);
        }
        let up = |workspace: &str, project: &str| {
            let mut up = local.command(&["up", workspace, "-c", "--no-attach"]);
            let out = up.env("ENVFORGE_PROJECT", project).output().expect("envforge runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        };
        for (workspace, project) in [("a", "mine"), ("b", "mine"), ("c", "theirs")] {
            up(workspace, project);
        }
        for workspace in ["a", "b", "c"] {
            local.wait_healthy(workspace);
            stored.python(workspace, &KEEP.replace("NAME", workspace));
        }
        local.ok(&["fork", "a", "f"]);
        local.wait_healthy("f");
        for workspace in ["a", "b", "c", "f"] {
            stored.python(workspace, &KEEP_ALONE.replace("NAME", workspace));
        }
        let env = ["a", "b", "c", "f"].map(|workspace| (workspace, stored.environment(workspace))).into();
        local.ok(&["sleep", "c", "--wait"]);
        Some(Self { stored, env })
    }

    pub(crate) fn local(&self) -> &Local {
        &self.stored.local
    }

    pub(crate) fn of(&self, workspace: &str, name: &str) -> &str {
        &self.env[workspace][name]
    }

    /// A further workspace of the project of `a` and `b`, awake, for a test that breaks it: it removes it in the end.
    pub(crate) fn open(&self, workspace: &str) {
        let mut up = self.local().command(&["up", workspace, "-c", "--no-attach"]);
        assert!(up.env("ENVFORGE_PROJECT", "mine").output().expect("envforge runs").status.success());
        self.local().wait_healthy(workspace);
    }

    /// Runs a script of Python as a process of a service of `workspace`; what it tells.
    pub(crate) fn inside(&self, workspace: &str, script: &str) -> Value {
        self.stored.python(workspace, script)
    }

    /// That these, which are awake, hold what they were given and nothing else. A fork holds what its source did.
    pub(crate) fn unharmed(&self, workspaces: &[&str], after: &str) {
        for workspace in workspaces {
            let name = if *workspace == "f" { "a" } else { workspace };
            let (of, own) = (format!("of {name}"), format!("only of {workspace}"));
            let whole = serde_json::json!([[of, of, of], [own, own, own], [["own", own], ["secret", of]]]);
            let kept = self.inside(workspace, &KEPT.replace("NAME", workspace));
            assert_eq!(kept, whole, "{workspace} after {after}");
        }
    }

    /// The address of a workspace in its own network.
    pub(crate) fn address(&self, workspace: &str) -> String {
        self.local().inside_ok(workspace, "hostname -I | tr -d ' '")
    }

    /// Asks a workspace's cluster as its superuser, on its own socket, as only the host can. What `psql` said, and
    /// whether it went well.
    pub(crate) fn as_superuser(&self, workspace: &str, password_of: &str, sql: &str) -> (bool, String) {
        let state = |of: &str| self.local().workspace_dir(of).join("state/postgresql.password");
        let password = fs::read_to_string(state(password_of)).expect("the superuser's password");
        let socket = self.local().workspace_dir(workspace).join("data/postgresql-socket");
        let out = Command::new("psql")
            .args(["-XAtq", "-U", "envforge", "-d", "app", "-c", sql, "-h"])
            .arg(socket)
            .env("PGPASSWORD", password.trim())
            .output()
            .expect("psql");
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
    }
}
