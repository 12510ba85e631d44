//! What it takes to try storage: a server, and a real client. What is not there is said and left out.

use crate::{
    fixture::Fixture,
    local::{self, Local},
    machine::eventually,
    visitor,
};
use serde_json::Value;
use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The MinIO to try with: on PATH, or where a developer put one.
#[must_use]
pub fn minio() -> Option<PathBuf> {
    local::program("minio", "storage with MinIO")
}

/// The SeaweedFS to try with.
#[must_use]
pub fn seaweedfs() -> Option<PathBuf> {
    let found = local::target().join("lib/envforge/seaweedfs/bin/weed");
    if !found.is_file() {
        local::left_out("storage with SeaweedFS, without it: scripts/setup --test-deps");
        return None;
    }
    Some(found)
}

/// The real client, for Python to import.
#[must_use]
pub fn client() -> Option<PathBuf> {
    let boto3 = local::target().join("tools/boto3");
    if !boto3.join(".complete").is_file() {
        local::left_out("storage with a real client, without boto3: scripts/setup --test-deps");
        return None;
    }
    Some(boto3)
}

const YML: &str = r#"version: 1
service: { name: Web, command: "exec python3 -m http.server $PORT --bind 127.0.0.1 --directory /tmp" }
ports: { http: 3000 }
health: { tcp: http, interval: 200ms, start_period: 60s }
resources: { storage: { required: true } }
environment:
  S3_URL: { from: resource.storage.url }
  S3_ENDPOINT: { from: resource.storage.endpoint }
  S3_BUCKET: { from: resource.storage.bucket }
  AWS_REGION: { from: resource.storage.region }
  AWS_ACCESS_KEY_ID: { from: resource.storage.access_key }
  AWS_SECRET_ACCESS_KEY: { from: resource.storage.secret_key }
runtime: { size: small, sleep: { after: 10m } }
"#;

/// What every script begins with: `s3` asks at the endpoint, `public` makes addresses for browsers, `tell` prints JSON,
/// `refused` is the code with which something is refused.
const HEAD: &str = r"
import sys, os, json
sys.path.insert(0, '@BOTO3@')
import boto3, botocore, urllib.request, urllib.error
from botocore.config import Config
def client(service='s3', endpoint=os.environ.get('S3_ENDPOINT'), key=None, secret=None):
    config = Config(signature_version='s3v4' if service == 's3' else 'v4', s3={'addressing_style': 'path'},
                    retries={'max_attempts': 1}, connect_timeout=5, read_timeout=30)
    return boto3.client(service, endpoint_url=endpoint, region_name='us-east-1', config=config,
                        aws_access_key_id=key or os.environ['AWS_ACCESS_KEY_ID'],
                        aws_secret_access_key=secret or os.environ['AWS_SECRET_ACCESS_KEY'])
s3, bucket = client(), os.environ['S3_BUCKET']
public = client(endpoint=os.environ['S3_URL'])
def sign(action, seconds=300, **more):
    return public.generate_presigned_url(action, Params={'Bucket': bucket, **more}, ExpiresIn=seconds)
def tell(value): print(json.dumps(value))
def refused(act):
    try: return 'OPEN: %r' % (act(),)
    except botocore.exceptions.ClientError as error: return error.response.get('Error', {}).get('Code', 'refused')
";

/// A project whose only service declares storage and does nothing with it; scripts of Python run in its environment.
#[derive(Debug)]
pub struct Stored {
    /// The installation.
    pub local: Local,
    boto3: PathBuf,
}

impl Stored {
    /// Starts an installation whose host uses `server`, and applies the project. `None` where something is not there.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(binary: &Path, server: Option<PathBuf>, with: &[(&str, &str)]) -> Option<Self> {
        Self::start_by(server, with, |with| Some(Local::start_with(binary, with)))
    }

    /// The same with all of it on a file system of this kind and so many MiB.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_on_image(
        binary: &Path,
        server: Option<PathBuf>,
        (kind, mib): (&str, u64),
        with: &[(&str, &str)],
    ) -> Option<Self> {
        Self::start_by(server, with, |with| Local::start_on_image(binary, kind, mib, with))
    }

    fn start_by(
        server: Option<PathBuf>,
        with: &[(&str, &str)],
        start: impl FnOnce(&[(&str, &str)]) -> Option<Local>,
    ) -> Option<Self> {
        let (server, boto3) = (server?, client()?);
        let path = local::path();
        let own = server.parent().map(Path::to_owned);
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path))).expect("a path");
        let mut with = with.to_vec();
        let path = path.into_string().expect("text");
        with.push(("PATH", &path));
        let local = start(&with)?;
        // The host may have the other one too.
        let kind = if server.ends_with("minio") { "\"minio\"" } else { "\"seaweedfs\"" };
        fs::create_dir(local.home().join("storage")).expect("make a directory");
        fs::write(local.home().join("storage/server"), kind).expect("written");
        Some(Self { boto3, ..Self::over(local) })
    }

    /// Applies the project to an installation whose storage is of no interest.
    ///
    /// # Panics
    /// When it is refused.
    #[must_use]
    pub fn over(local: Local) -> Self {
        Self { local, boto3: PathBuf::new() }.applied()
    }

    fn applied(self) -> Self {
        let repository = Fixture::repository(self.local.dir(), "web", &[("envforge.yml", YML)]);
        self.apply(&repository, "managed");
        self
    }

    /// Applies the project with this setting of its storage.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, repository: &Path, storage: &str) {
        let file = self.local.dir().join("stored.yml");
        let shown = repository.display();
        let text = format!(
            "project: stored\nservices:\n  web: {{ repo: {shown} }}\n  other: {{ repo: {shown}, ports: {{ http: 3001 }} }}\nresources: {{ storage: {storage} }}\n"
        );
        fs::write(&file, text).expect("write the project file");
        self.local.ok(&["project", "apply", "-f", &file.to_string_lossy()]);
    }

    /// Runs a script in the environment of a service; what it tells.
    ///
    /// # Panics
    /// When it fails.
    pub fn python_in(&self, workspace: &str, service: &str, script: &str) -> Value {
        let text = self.script(script);
        let out = self.local.ok(&["run", workspace, "--service", service, "--", "python3", "-c", &text]);
        let last = out.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in {out}"))
    }

    /// The whole of a script, for whoever runs it otherwise.
    #[must_use]
    pub fn script(&self, script: &str) -> String {
        format!("{}\n{script}\n", HEAD.replace("@BOTO3@", &self.boto3.to_string_lossy()))
    }

    /// The same in the environment of `web`.
    pub fn python(&self, workspace: &str, script: &str) -> Value {
        self.python_in(workspace, "web", script)
    }

    /// What the environment of `web` holds.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn environment(&self, workspace: &str) -> std::collections::BTreeMap<String, String> {
        let text = self.local.ok(&["env", workspace, "--service", "web", "--reveal"]);
        text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

/// A server elsewhere: on the loopback of this machine, with its root credentials in a file. Ends when it is dropped.
#[derive(Debug)]
pub struct Elsewhere {
    process: Child,
    dir: tempfile::TempDir,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

/// Its root credentials.
const ROOT: [&str; 2] = ["elsewhereroot", "elsewheresecret"];

impl Elsewhere {
    /// Starts `server`.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start(server: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("ef").tempdir().expect("temp dir");
        let held: Vec<TcpListener> = (0..11).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<u16> = held.iter().map(|held| held.local_addr().expect("an address").port()).collect();
        let at = dir.path().join("data");
        fs::create_dir(&at).expect("make a directory");
        let shown = at.display();
        let words = if server.ends_with("minio") {
            let [api, console] = [ports[0], ports[1]];
            format!("server --quiet --address 127.0.0.1:{api} --console-address 127.0.0.1:{console} {shown}")
        } else {
            let named = ["s3", "master", "volume", "filer", "admin"];
            let each = named.iter().zip(ports.chunks(2)).map(|(name, two)| {
                let [http, grpc] = [two[0], two[1]];
                format!("-{name}.port={http} -{name}.port.grpc={grpc}")
            });
            let each: Vec<String> = each.collect();
            format!(
                "mini -dir={shown} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.iam.readOnly=false -s3.port.iceberg=0 \
                 -s3.port.lance=0 -webdav=false -admin.ui=false -master.telemetry=false -volume.max=64 {}",
                each.join(" ")
            )
        };
        drop(held);
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let mut command = Command::new(server);
        command.args(words.split_ascii_whitespace()).current_dir(dir.path()).env("HOME", dir.path());
        command.env("AWS_ACCESS_KEY_ID", ROOT[0]).env("AWS_SECRET_ACCESS_KEY", ROOT[1]);
        command.env("MINIO_ROOT_USER", ROOT[0]).env("MINIO_ROOT_PASSWORD", ROOT[1]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("a server");
        let credentials = dir.path().join("credentials");
        let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", ROOT[0], ROOT[1]);
        fs::write(&credentials, text).expect("written");
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("chmod");
        let endpoint = format!("http://127.0.0.1:{}", ports[0]);
        let elsewhere = Self { process, dir, endpoint };
        // It listens a moment before it knows its users.
        eventually("a server elsewhere", || {
            TcpStream::connect(("127.0.0.1", ports[0])).ok()?;
            (visitor::get(&format!("{}/", elsewhere.endpoint), &[]).status == 403).then_some(())
        });
        elsewhere
    }

    /// The file with its root credentials.
    #[must_use]
    pub fn credentials(&self) -> String {
        self.dir.path().join("credentials").to_string_lossy().into_owned()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // One that ended already is as wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
