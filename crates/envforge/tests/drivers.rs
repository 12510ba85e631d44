//! What every driver of a managed resource promises, tried on each with its real server: one suite, a subject each.
//!
//! A runtime's supervisor runs the server as in an installation; there is no control plane and no daemon. A further driver
//! is a further [`Subject`].

use envforge_api::{ids::WorkspaceId, resource::ResourceKind, secret::Secret, states::ResourceState};
use envforge_host::{
    resources::{
        self, Part,
        storage::{Bucket, Keyring, keeper, objects, s3},
    },
    supervise::process,
    system::{
        enter::{As, Entry, base_environment},
        spawn::Stream,
    },
};
use envforge_testkit::{
    local::PATIENCE,
    machine::{eventually, lives, sigkill},
    seat::{Fields, Rig, Seat, spec_of},
    storage as servers,
};
use futures_util::future::LocalBoxFuture;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::time::timeout;

/// One driver, as its clients see it.
trait Subject {
    fn kind(&self) -> ResourceKind;

    /// What the host makes up for a workspace, or for one service of it.
    fn fields(&self, workspace: &WorkspaceId, service: Option<&str>) -> Fields;

    /// What a daemon would see to before each wake.
    fn before<'a>(&'a self, _rig: &'a Rig) -> LocalBoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Keeps a word.
    fn keep<'a>(&'a self, seat: &'a Seat, fields: &'a Fields, word: &'a str) -> LocalBoxFuture<'a, Result<(), String>>;

    /// All words that these values lead to, in order.
    fn kept<'a>(&'a self, seat: &'a Seat, fields: &'a Fields) -> LocalBoxFuture<'a, Result<Vec<String>, String>>;

    /// The main process of its server.
    fn server(&self, seat: &Seat) -> Option<i32> {
        let name = resources::driver(self.kind()).name();
        seat.sandbox.cgroups.runtime_child(&format!("resources/{name}")).expect("a group").main_pid()
    }
}

fn rig() -> Rig {
    Rig::new(Path::new(env!("CARGO_BIN_EXE_envforge")))
}

async fn wake(seat: &mut Seat, subject: &dyn Subject, fields: &Fields) {
    seat.begin(vec![spec_of(subject.kind(), None, fields)]).await;
    seat.ready().await;
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

struct Postgres;

impl Subject for Postgres {
    fn kind(&self) -> ResourceKind {
        ResourceKind::Database
    }

    fn fields(&self, _workspace: &WorkspaceId, service: Option<&str>) -> Fields {
        let service = service.map(|name| name.parse().expect("a name"));
        resources::fields(self.kind(), Part { service: service.as_ref(), password: &Secret::random(20), number: 0 })
    }

    fn before<'a>(&'a self, rig: &'a Rig) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let templates = rig.installation.home.join("templates");
            resources::postgres::template::ensure(&rig.installation, &templates).await.expect("a template");
        })
    }

    fn keep<'a>(&'a self, seat: &'a Seat, fields: &'a Fields, word: &'a str) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let sql = format!("create table if not exists words(word text); insert into words values ('{word}')");
            seat.run(&["psql", fields["url"].expose(), "-Xqc", &sql]).await.map(drop)
        })
    }

    fn kept<'a>(&'a self, seat: &'a Seat, fields: &'a Fields) -> LocalBoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let sql = "create table if not exists words(word text); select word from words order by 1";
            seat.run(&["psql", fields["url"].expose(), "-XqAtc", sql]).await.map(|text| lines(&text))
        })
    }
}

struct Redis;

impl Subject for Redis {
    fn kind(&self) -> ResourceKind {
        ResourceKind::Cache
    }

    fn fields(&self, _workspace: &WorkspaceId, service: Option<&str>) -> Fields {
        let number = if service.is_some() { resources::SHARED_NUMBERS } else { 0 };
        resources::fields(self.kind(), Part { service: None, password: &Secret::new(String::new()), number })
    }

    fn keep<'a>(&'a self, seat: &'a Seat, fields: &'a Fields, word: &'a str) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let said = seat.run(&["redis-cli", "-e", "-u", fields["url"].expose(), "sadd", "words", word]).await?;
            if said == "1" || said == "0" { Ok(()) } else { Err(said) }
        })
    }

    fn kept<'a>(&'a self, seat: &'a Seat, fields: &'a Fields) -> LocalBoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let words = ["redis-cli", "-e", "-u", fields["url"].expose(), "sort", "words", "alpha"];
            seat.run(&words).await.map(|text| lines(&text))
        })
    }
}

/// With the server that is recorded.
struct Storage {
    server: PathBuf,
    client: PathBuf,
}

impl Storage {
    /// Inside, as everybody: whoever has the keys gets in, and nobody else.
    async fn python(&self, seat: &Seat, fields: &Fields, script: &str) -> Result<String, String> {
        let value = |name: &str| fields[name].expose().to_owned();
        let text = format!(
            "import sys\nsys.path.insert(0, '{}')\nimport boto3\nfrom botocore.config import Config\n\
             s3 = boto3.client('s3', endpoint_url='{}', region_name='{}', aws_access_key_id='{}', aws_secret_access_key='{}',\n\
                 config=Config(retries={{'max_attempts': 1}}, s3={{'addressing_style': 'path'}}))\nbucket = '{}'\n{script}\n",
            self.client.display(),
            value("endpoint"),
            value("region"),
            value("access_key"),
            value("secret_key"),
            value("bucket"),
        );
        seat.run(&["python3", "-c", &text]).await
    }
}

impl Subject for Storage {
    fn kind(&self) -> ResourceKind {
        ResourceKind::Storage
    }

    fn fields(&self, workspace: &WorkspaceId, service: Option<&str>) -> Fields {
        let service = service.map(|name| name.parse().expect("a name"));
        let mut ring = Keyring::default();
        ring.complete(workspace, service.as_ref());
        ring.bucket(service.as_ref()).expect("made up").fields(None)
    }

    fn before<'a>(&'a self, rig: &'a Rig) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let place = rig.place();
            let kind = if self.server.ends_with("minio") { "\"minio\"" } else { "\"seaweedfs\"" };
            if !place.was_used() {
                fs::create_dir(place.dir()).expect("made");
                fs::write(place.dir().join("server"), kind).expect("written");
            }
            let connects = || std::os::unix::net::UnixStream::connect(place.socket()).is_ok();
            if !connects() {
                let path = std::env::var("PATH").unwrap_or_default();
                let path = format!("{}:{path}", self.server.parent().expect("a directory").display());
                let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_envforge"));
                command.arg(keeper::COMMAND).arg(place.home()).env("PATH", path);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let mut keeper = command.spawn().expect("a keeper");
                // It ends by itself; whoever started it waits for that.
                std::thread::spawn(move || keeper.wait());
                eventually("a keeper", || connects().then_some(()));
            }
        })
    }

    fn keep<'a>(&'a self, seat: &'a Seat, fields: &'a Fields, word: &'a str) -> LocalBoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let script = format!("s3.put_object(Bucket=bucket, Key='{word}', Body=b'x')");
            self.python(seat, fields, &script).await.map(drop)
        })
    }

    fn kept<'a>(&'a self, seat: &'a Seat, fields: &'a Fields) -> LocalBoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async move {
            let script = "for o in s3.list_objects_v2(Bucket=bucket).get('Contents', []): print(o['Key'])";
            self.python(seat, fields, script).await.map(|text| lines(&text))
        })
    }

    fn server(&self, seat: &Seat) -> Option<i32> {
        let run = seat.sandbox.run.parent().expect("a run directory");
        let id = run.file_name().expect("an id").to_string_lossy().into_owned();
        let group = envforge_testkit::machine::cgroup_of(&id).join("storage/server/cgroup.procs");
        let text = fs::read_to_string(group).unwrap_or_default();
        text.lines().find_map(|line| line.parse().ok())
    }
}

/// Ensured twice, or with a part more, it is as it was.
async fn ensure_is_idempotent(subject: &dyn Subject, rig: &Rig) {
    let mut seat = rig.seat().await;
    let fields = subject.fields(&seat.sandbox.workspace, None);
    let of_web = subject.fields(&seat.sandbox.workspace, Some("web"));
    wake(&mut seat, subject, &fields).await;
    subject.keep(&seat, &fields, "one").await.expect("kept");
    let server = subject.server(&seat);
    let both = vec![spec_of(subject.kind(), None, &fields), spec_of(subject.kind(), Some("web"), &of_web)];
    for resources in [both.clone(), both] {
        seat.update(resources).await;
        // What changed is prepared behind the answer.
        let kept = async {
            while subject.kept(&seat, &of_web).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, kept).await.expect("never prepared");
        assert_eq!(subject.kept(&seat, &fields).await.as_deref(), Ok(&["one".to_owned()][..]));
    }
    assert_eq!(subject.kept(&seat, &of_web).await, Ok(vec![]), "a service's own part is empty");
    subject.keep(&seat, &of_web, "two").await.expect("kept");
    assert_eq!(subject.kept(&seat, &fields).await, Ok(vec!["one".to_owned()]), "and no other sees what is in it");
    assert_eq!(subject.server(&seat), server, "it was not started again");
    seat.sleep().await;
}

/// Cut short wherever, it starts over and becomes whole.
async fn ensure_heals(subject: &dyn Subject, rig: &Rig) {
    let mut seat = rig.seat().await;
    let fields = subject.fields(&seat.sandbox.workspace, None);
    for point in ["begun", "started", "ready"] {
        subject.before(rig).await;
        seat.begin(vec![spec_of(subject.kind(), None, &fields)]).await;
        match point {
            "started" => drop(eventually("a server", || subject.server(&seat))),
            "ready" => seat.ready().await,
            _ => {}
        }
        seat.lose_everything().await;
    }
    subject.before(rig).await;
    wake(&mut seat, subject, &fields).await;
    subject.keep(&seat, &fields, "one").await.expect("kept");
    assert_eq!(subject.kept(&seat, &fields).await, Ok(vec!["one".to_owned()]));
    seat.sleep().await;
}

/// What was acknowledged is there after a sleep, a killed server and a killed supervisor.
async fn data_survives(subject: &dyn Subject, rig: &Rig) {
    let mut seat = rig.seat().await;
    let fields = subject.fields(&seat.sandbox.workspace, None);
    wake(&mut seat, subject, &fields).await;
    subject.keep(&seat, &fields, "asleep").await.expect("kept");
    seat.sleep().await;
    eventually("no process", || subject.server(&seat).is_none_or(|pid| !lives(pid)).then_some(()));

    subject.before(rig).await;
    wake(&mut seat, subject, &fields).await;
    assert_eq!(subject.kept(&seat, &fields).await, Ok(vec!["asleep".to_owned()]));
    subject.keep(&seat, &fields, "killed").await.expect("kept");
    let server = subject.server(&seat).expect("it runs");
    sigkill(server);
    eventually("another server", || subject.server(&seat).filter(|pid| *pid != server));
    let both = Ok(vec!["asleep".to_owned(), "killed".to_owned()]);
    let again = async {
        while subject.kept(&seat, &fields).await != both {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, again).await.expect("never there again");

    // A supervisor's end costs the server nothing.
    let server = subject.server(&seat);
    seat.lose_supervisor().await;
    assert_eq!(subject.server(&seat), server);
    seat.resume().await;
    seat.ready().await;
    assert_eq!(subject.server(&seat), server);
    assert_eq!(subject.kept(&seat, &fields).await, both);
    seat.sleep().await;
}

/// One workspace's values lead to nothing of another's.
async fn workspaces_are_apart(subject: &dyn Subject, rig: &Rig) {
    let (mut one, mut two) = (rig.seat().await, rig.seat().await);
    let of_one = subject.fields(&one.sandbox.workspace, None);
    let of_two = subject.fields(&two.sandbox.workspace, None);
    wake(&mut one, subject, &of_one).await;
    wake(&mut two, subject, &of_two).await;
    subject.keep(&one, &of_one, "of one").await.expect("kept");
    subject.keep(&two, &of_two, "of two").await.expect("kept");
    for (seat, fields, own) in [(&one, &of_one, "of one"), (&two, &of_two, "of two")] {
        assert_eq!(subject.kept(seat, fields).await, Ok(vec![own.to_owned()]));
    }
    // The names of the other one with keys of one's own.
    let mut mixed = of_two.clone();
    for name in ["bucket", "name"] {
        if let Some(value) = of_one.get(name) {
            mixed.insert(name.to_owned(), value.clone());
        }
    }
    let seen = subject.kept(&two, &mixed).await.unwrap_or_default();
    assert!(!seen.contains(&"of one".to_owned()), "{seen:?}");
    one.sleep().await;
    two.sleep().await;
}

/// A port that is somebody else's is not taken for the server: it is told, and made good when the port is free.
async fn a_taken_port_is_told(subject: &dyn Subject, rig: &Rig) {
    let mut seat = rig.seat().await;
    let fields = subject.fields(&seat.sandbox.workspace, None);
    let script = format!(
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', {})); s.listen(); print(flush=True); input()",
        subject.kind().port()
    );
    let group = seat.sandbox.cgroups.shell_child("squatter").expect("a group");
    let entry = Entry::new(&seat.sandbox, As::User, &group, "/workspace");
    let words = ["python3", "-c", &script].map(str::to_owned);
    let environment = base_environment(&seat.sandbox.accounts.user);
    let streams = [Stream::Piped, Stream::Piped, Stream::Null];
    let mut squatter = entry.start(&words, &environment, streams, true).expect("started");
    let mut line = [0];
    let mut out = squatter.stdout.take().expect("piped");
    tokio::io::AsyncReadExt::read_exact(&mut out, &mut line).await.expect("it listens");
    seat.begin(vec![spec_of(subject.kind(), None, &fields)]).await;
    let blocked = async {
        loop {
            let snapshot = seat.runtime().snapshots.recv().await.expect("it lives");
            if let Some(told) = snapshot.resources.first().filter(|r| r.stated.state == ResourceState::Blocked) {
                return told.stated.clone();
            }
        }
    };
    let told = timeout(PATIENCE, blocked).await.expect("never told");
    let port = subject.kind().port().to_string();
    assert!(told.reason.as_deref().is_some_and(|reason| reason.contains(&port)), "{told:?}");
    assert!(told.hint.as_deref().is_some_and(|hint| !hint.is_empty()), "{told:?}");
    drop((squatter.stdin.take(), squatter));
    subject.before(rig).await;
    seat.ready().await;
    seat.sleep().await;
}

/// The suite for one driver. `$subject` is an `Option`: what is not on this machine is said and left out.
macro_rules! suite {
    ($driver:ident, $subject:expr) => {
        mod $driver {
            use super::*;

            suite!(@each $subject, ensure_is_idempotent, ensure_heals, data_survives, workspaces_are_apart, a_taken_port_is_told);
        }
    };
    (@each $subject:expr, $($promise:ident),*) => {
        $(
            #[tokio::test]
            async fn $promise() {
                let Some(subject) = $subject else { return };
                let rig = rig();
                subject.before(&rig).await;
                super::$promise(&subject, &rig).await;
                rig.end().await;
            }
        )*
    };
}

fn storage(server: Option<PathBuf>) -> Option<Storage> {
    server.zip(servers::client()).map(|(server, client)| Storage { server, client })
}

suite!(postgresql, Some(Postgres));
suite!(redis, Some(Redis));
suite!(storage_with_seaweedfs, storage(servers::seaweedfs()));
suite!(storage_with_minio, storage(servers::minio()));

#[tokio::test]
async fn a_database_starts_whatever_locks_one_that_was_killed_has_left() {
    let rig = rig();
    Postgres.before(&rig).await;
    let mut seat = rig.seat().await;
    let fields = Postgres.fields(&seat.sandbox.workspace, None);
    wake(&mut seat, &Postgres, &fields).await;
    Postgres.keep(&seat, &fields, "one").await.expect("kept");
    let data = seat.sandbox.dir.join("data");
    let locks = ["postgresql/postmaster.pid", "postgresql-socket/.s.PGSQL.5432.lock"].map(|lock| data.join(lock));
    let owner = seat.sandbox.accounts.resource.clone();
    let group = seat.sandbox.cgroups.shell_child("other").expect("a group");
    let entry = Entry::new(&seat.sandbox, As::Resource, &group, "/workspace");
    let words = ["sleep", "600"].map(str::to_owned);
    let environment = base_environment(&owner);
    let other = process::spawn(&entry, &words, &environment).expect("another process of its user");
    for pid in [String::new(), other.id().expect("a process").to_string()] {
        seat.lose_everything().await;
        for lock in &locks {
            assert!(lock.is_file(), "this is where a server has its lock");
            // As it is when it was killed while it wrote it, and when its number is another's.
            fs::write(lock, &pid).expect("written");
        }
        wake(&mut seat, &Postgres, &fields).await;
        assert_eq!(Postgres.kept(&seat, &fields).await, Ok(vec!["one".to_owned()]));
    }
    seat.sleep().await;
    group.kill().expect("killed");
    rig.end().await;
}

/// What fork, snapshot and reset do with the objects of one workspace.
async fn objects_as_a_whole(subject: &Storage, rig: &Rig) {
    let (mut one, mut two) = (rig.seat().await, rig.seat().await);
    let of_one = subject.fields(&one.sandbox.workspace, None);
    let of_two = subject.fields(&two.sandbox.workspace, None);
    wake(&mut one, subject, &of_one).await;
    wake(&mut two, subject, &of_two).await;
    let (from, to) = (Bucket::of_fields(&of_one).expect("a bucket"), Bucket::of_fields(&of_two).expect("a bucket"));
    let own = s3::Client::by_keeper(&rig.place(), from.keys.clone());
    let mut wanted = Vec::new();
    for (key, octets) in [("plain", 3), ("a b/ü+%41&<>'\"?#=", 0), ("z/deep/er", 1 << 20)] {
        let mut call = s3::Call::on("PUT", &from.name, Some(key)).header("content-type", "text/x-own");
        call.body = vec![b'x'; octets];
        let tag = own.call(call).await.expect("put").headers["etag"].to_str().expect("text").replace('"', "");
        wanted.push(objects::Object { key: key.into(), size: octets as u64, digest: tag });
    }
    // More than one answer names.
    for number in 0..1100 {
        let key = format!("many/{number:04}");
        own.call(s3::Call::on("PUT", &from.name, Some(&key))).await.expect("put");
        wanted.push(objects::Object { key, size: 0, digest: "d41d8cd98f00b204e9800998ecf8427e".into() });
    }
    wanted.sort();
    assert_eq!(objects::list(&own, &from.name).await.expect("listed"), wanted);

    let root = envforge_host::resources::storage::Root::reach(&rig.place()).await.expect("reached");
    for _ in 0..2 {
        assert_eq!(objects::copy(&root.client, &from.name, &to.name).await.expect("copied"), wanted);
        assert_eq!(objects::list(&root.client, &to.name).await.expect("listed"), wanted);
    }
    let theirs = root.client.with_keys(&to.keys);
    let read = theirs.call(s3::Call::on("GET", &to.name, Some("z/deep/er"))).await.expect("the other one's keys");
    assert_eq!((read.body.len(), &read.headers["content-type"]), (1 << 20, &"text/x-own".parse().expect("a value")));

    // One that is no more what was listed is not copied, and what is already right is left alone.
    let listed = wanted.iter().find(|object| object.key == "plain").expect("listed");
    let other = objects::Object { digest: "0".repeat(32), ..listed.clone() };
    let copied = async |object| objects::copy_one(&root.client, &from.name, object, &to.name).await.expect("answered");
    assert_eq!(copied(listed).await, objects::Copied::AsListed);
    assert_eq!(copied(&other).await, objects::Copied::Moved);
    own.call(s3::Call::on("DELETE", &from.name, Some("many/0000"))).await.expect("deleted");
    objects::mirror(&root.client, &from.name, &to.name).await.expect("mirrored");
    wanted.retain(|object| object.key != "many/0000");
    assert_eq!(objects::list(&root.client, &to.name).await.expect("listed"), wanted);

    // In parts, as larger ones are.
    let large = vec![b'y'; (11 << 20) + 1];
    let call = s3::Call::on("PUT", &from.name, Some("large")).header("x-amz-meta-own", "kept");
    own.call(s3::Call { body: large.clone(), ..call }).await.expect("put");
    objects::copy_by(&root.client, &from.name, &to.name, 5 << 20).await.expect("copied");
    let read = theirs.call(s3::Call::on("GET", &to.name, Some("large"))).await.expect("read");
    assert!(read.body == large, "{} octets", read.body.len());
    assert_eq!(read.headers["x-amz-meta-own"], "kept");

    objects::clear(&root.client, &from.name).await.expect("cleared");
    envforge_host::resources::storage::users::settled(&root.client, &from).await;
    assert_eq!(objects::list(&own, &from.name).await.expect("listed by the same keys"), []);
    own.call(s3::Call::on("PUT", &from.name, Some("new"))).await.expect("and written to");
    assert_eq!(objects::list(&theirs, &to.name).await.expect("listed").len(), wanted.len() + 1, "the copy stays");
    drop(root);
    one.sleep().await;
    two.sleep().await;
}

#[tokio::test]
async fn all_objects_of_a_bucket_are_listed_copied_and_removed_by_the_server() {
    for server in [servers::seaweedfs(), servers::minio()] {
        let Some(subject) = storage(server) else { continue };
        let rig = rig();
        subject.before(&rig).await;
        objects_as_a_whole(&subject, &rig).await;
        rig.end().await;
    }
}
