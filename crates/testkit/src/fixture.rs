//! A small project made of real repositories: a Node service without packages that uses PostgreSQL and Redis
//! through their own clients, and a worker.

use crate::local::Local;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Repositories and a project file in one directory.
#[derive(Debug)]
pub struct Fixture {
    /// Bare repository of the service `web`.
    pub web: PathBuf,
    /// Bare repository of the service `api`.
    pub api: PathBuf,
    /// The project file.
    pub project_file: PathBuf,
}

/// The web service: `/` tells branch, rows and pid; `/add?text=` adds a row; `/exit` ends the process with status 7;
/// `/echo` tells the request's headers; `/login` sets cookies and redirects; `/slow` takes a second; sockets say back what
/// they hear.
pub const WEB_JS: &str = r#"
const http = require('node:http');
const { execFileSync } = require('node:child_process');
const sql = (q) => execFileSync('psql', [process.env.DATABASE_URL, '-XAtc', q], { encoding: 'utf8' }).trim();
const redis = (...args) => execFileSync('redis-cli', ['-u', process.env.CACHE_URL, ...args], { encoding: 'utf8' }).trim();
const server = http.createServer((req, res) => {
  const url = new URL(req.url, 'http://localhost');
  try {
    if (url.pathname === '/echo') return res.end(JSON.stringify({ url: req.url, headers: req.headers }));
    if (url.pathname === '/slow') return setTimeout(() => res.end('slow but whole'), 1000);
    if (url.pathname === '/login') {
      res.setHeader('set-cookie', ['app=1; Path=/; Domain=localhost', 'envforge=mine; Path=/']);
      res.setHeader('access-control-allow-origin', 'http://' + req.headers.host);
      res.writeHead(302, { location: 'http://' + req.headers.host + '/echo' });
      return res.end();
    }
    if (url.pathname === '/healthz') return res.end('ok');
    if (url.pathname === '/add') sql(`insert into notes(text) values ('${url.searchParams.get('text')}')`);
    if (url.pathname === '/set') redis('set', 'k', url.searchParams.get('v'));
    if (url.pathname === '/exit') { res.end('bye'); return setTimeout(() => process.exit(7), 10); }
    res.setHeader('content-type', 'application/json');
    res.end(JSON.stringify({ branch: process.env.BRANCH, pid: process.pid, rows: Number(sql('select count(*) from notes')), key: redis('get', 'k') }));
  } catch (error) { res.statusCode = 500; res.end(String(error.stderr || error)); }
});
server.on('upgrade', (req, socket, head) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
  socket.on('error', () => {});
  if (head.length) socket.write(head);
  socket.pipe(socket);
});
server.listen(process.env.PORT, '127.0.0.1', () => console.log('listening, secret is ' + process.env.DATABASE_URL));
"#;

/// envforge.yml of the web service.
pub const WEB_YML: &str = r"version: 1
service: { name: Web, type: node, command: node web.js }
ports: { http: 3000 }
health: { http: /healthz, interval: 200ms, start_period: 20s }
resources:
  database: { required: true }
  cache: { required: true }
environment:
  DATABASE_URL: { from: resource.database.url }
  CACHE_URL: { from: resource.cache.url }
  BRANCH: { from: workspace.branch }
  API_URL: { from: input.api_url }
inputs:
  api_url: { required: true }
setup:
  prepare: { run: ['echo prepared >> prepared.txt'], layer: shell }
  migrate: ['psql $DATABASE_URL -c ''create table if not exists notes(id serial primary key, text text)''']
tests:
  light: { run: ['echo light test ran'], layer: shell }
  rows: ['psql $DATABASE_URL -XAtc ''select count(*) from notes''']
runtime: { size: small, sleep: { after: 10m } }
";

const API_JS: &str = r"
require('node:http').createServer((req, res) => res.end('api of ' + process.env.SLUG))
  .listen(process.env.PORT, '127.0.0.1', () => console.log('api up'));
";

/// envforge.yml of the service `api`.
pub const API_YML: &str = r"version: 1
service: { name: Api, command: node api.js }
ports: { http: 4100 }
health: { tcp: http, interval: 200ms, start_period: 10s }
environment:
  SLUG: { from: workspace.slug }
workers:
  ticker: { command: 'while :; do echo tick; sleep 5; done' }
";

impl Fixture {
    /// Makes repositories and project file below `dir`, which other users must be able to read.
    ///
    /// # Panics
    /// When git or the file system fails: a test cannot go on then.
    #[must_use]
    pub fn create(dir: &Path) -> Self {
        let web = repository(dir, "web", &[("web.js", WEB_JS), ("envforge.yml", WEB_YML)]);
        let api = repository(dir, "api", &[("api.js", API_JS), ("envforge.yml", API_YML)]);
        let project_file = dir.join("fixture.yml");
        let text = format!(
            "project: fixture\nservices:\n  web: {{ repo: {} }}\n  api: {{ repo: {} }}\nbindings:\n  routes: {{ web: {{ /api: api }} }}\n  inputs: {{ web.api_url: api.internal_url }}\nresources: {{ database: managed, cache: managed }}\n",
            web.display(),
            api.display(),
        );
        fs::write(&project_file, text).expect("write the project file");
        Self { web, api, project_file }
    }

    /// Applies the project file as it is now.
    ///
    /// # Panics
    /// When it is refused.
    pub fn apply(&self, local: &Local) {
        local.ok(&["project", "apply", "-f", &self.project_file.to_string_lossy()]);
    }

    /// A branch whose runtime sleeps after so long idle, such as `2s`.
    ///
    /// # Panics
    /// When git fails.
    pub fn sleeps_after(&self, branch: &str, after: &str) {
        let text = WEB_YML.replace("after: 10m", &format!("after: {after}"));
        Self::commit(&self.web, branch, "envforge.yml", &text);
    }

    /// Commits a changed file to a branch of a bare repository (made from `main` where new).
    ///
    /// # Panics
    /// When git fails.
    pub fn commit(bare: &Path, branch: &str, file: &str, text: &str) {
        change(bare, branch, |at| {
            let at = at.join(file);
            fs::create_dir_all(at.parent().expect("a directory")).expect("make a directory");
            fs::write(at, text).expect("write");
        });
    }

    /// Removes a file from a branch of a bare repository (made from `main` where new).
    ///
    /// # Panics
    /// When git fails.
    pub fn remove(bare: &Path, branch: &str, file: &str) {
        change(bare, branch, |at| fs::remove_file(at.join(file)).expect("remove"));
    }
}

fn change(bare: &Path, branch: &str, change: impl FnOnce(&Path)) {
    let work = tempfile::tempdir().expect("temp dir");
    let at = work.path().join("w");
    git(work.path(), &["clone", "-q", &bare.to_string_lossy(), "w"]);
    if !git_ok(&at, &["checkout", "-q", branch]) {
        git(&at, &["checkout", "-q", "-b", branch]);
    }
    change(&at);
    git(&at, &["add", "-A"]);
    git(&at, &["commit", "-q", "-m", "change"]);
    git(&at, &["push", "-q", "origin", branch]);
}

impl Fixture {
    /// A bare repository with these files on `main`.
    ///
    /// # Panics
    /// When git or the file system fails.
    #[must_use]
    pub fn repository(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
        repository(dir, name, files)
    }
}

fn repository(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let work = dir.join(format!("{name}-work"));
    fs::create_dir_all(&work).expect("make a directory");
    git(&work, &["init", "-q", "-b", "main"]);
    for (file, text) in files {
        fs::write(work.join(file), text).expect("write a file");
    }
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-q", "-m", "first"]);
    let bare = dir.join(format!("{name}.git"));
    git(dir, &["clone", "-q", "--bare", &work.to_string_lossy(), &bare.to_string_lossy()]);
    bare
}

/// Runs a script of bash that must succeed, with a Git identity.
///
/// # Panics
/// When it fails.
pub fn bash(script: &str) {
    let status = Command::new("bash")
        .args(["-c", script])
        .envs([("GIT_AUTHOR_NAME", "Test"), ("GIT_AUTHOR_EMAIL", "test@example.invalid")])
        .envs([("GIT_COMMITTER_NAME", "Test"), ("GIT_COMMITTER_EMAIL", "test@example.invalid")])
        .stdin(Stdio::null())
        .status()
        .expect("bash runs");
    assert!(status.success(), "{script}");
}

fn git(dir: &Path, args: &[&str]) {
    assert!(git_ok(dir, args), "git {args:?} failed");
}

fn git_ok(dir: &Path, args: &[&str]) -> bool {
    Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "safe.directory=*"])
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("git runs")
        .success()
}
