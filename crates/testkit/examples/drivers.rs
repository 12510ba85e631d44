//! What a driver of a data service takes until a real client has its first answer, against a script that does the same by
//! hand: `drivers ENVFORGE KIND RUNS PROGRAM`, where PROGRAM is the text of the script (see `bench/by_hand.py`).
//!
//! Each run has two workspaces. In one the resource is asked of a runtime's supervisor that is there already, in the other
//! the script makes and starts the same server, with the same arguments, as the same user, in the same control group and
//! namespaces. Both are then put to sleep, and woken. A line of JSON tells of each.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use envforge_api::{project::RuntimeSize, resource::ResourceKind, secret::Secret};
use envforge_host::{
    resources::{
        self, Context, Part, Share, postgres,
        storage::{Keyring, keeper},
    },
    supervise::protocol::ResourceSpec,
    system::{
        cgroup,
        enter::{As, Entry, base_environment},
        sandbox::{self, DATA},
        spawn::{Process, Stream},
    },
};
use envforge_testkit::seat::{Fields, Rig, Seat, spec_of};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::unix::pipe::{Receiver, Sender},
    task::LocalSet,
};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [binary, kind, runs, program] = &words[..] else { panic!("drivers ENVFORGE KIND RUNS PROGRAM") };
    let kind = *ResourceKind::ALL.iter().find(|known| known.to_string() == *kind).expect("a kind");
    let runs = runs.parse().expect("a number");
    let measured = async {
        let bench = Bench { rig: Rig::new(Path::new(binary)), kind, program };
        for _ in 0..runs {
            bench.run().await;
        }
        bench.rig.end().await;
    };
    LocalSet::new().run_until(measured).await;
}

struct Bench<'a> {
    rig: Rig,
    kind: ResourceKind,
    program: &'a str,
}

/// The script, ready to begin at a word.
struct Script {
    process: Process,
    words: Sender,
    said: tokio::io::Lines<BufReader<Receiver>>,
}

impl Script {
    async fn tell(&mut self, what: &Value) {
        self.words.write_all(format!("{what}\n").as_bytes()).await.expect("it listens");
    }

    async fn said(&mut self) -> Value {
        let line = self.said.next_line().await.expect("read").expect("it says something");
        serde_json::from_str(&line).expect("JSON")
    }

    async fn end(mut self) {
        drop(self.words);
        assert!(self.process.wait().await.expect("waited for").success());
    }
}

impl Bench<'_> {
    async fn run(&self) {
        if self.kind == ResourceKind::Database {
            postgres::template::ensure(&self.rig.installation, &self.rig.templates()).await.expect("a template");
        }
        let (mut ours, mut by_hand) = (self.rig.seat().await, self.rig.seat().await);
        let (of_ours, of_hand) = (self.fields(&ours), self.fields(&by_hand));
        let all = self.whole(&by_hand, &of_hand);
        for step in ["first", "wake"] {
            let mut all = all.clone();
            all["step"] = step.into();
            // What either left to be written is not the other's to wait for.
            rustix::fs::sync();
            let floor = self.by_hand(&by_hand, &all).await;
            rustix::fs::sync();
            let [answered, told] = self.ours(&mut ours, spec_of(self.kind, None, &of_ours), &of_ours).await;
            println!("{}", json!({ "step": step, "floor": floor, "answered": answered, "told": told }));
        }
        for seat in [&mut ours, &mut by_hand] {
            sandbox::remove(&self.rig.installation, &seat.sandbox).await.expect("removed");
        }
    }

    fn fields(&self, seat: &Seat) -> Fields {
        if self.kind == ResourceKind::Storage {
            let mut ring = Keyring::default();
            ring.complete(&seat.sandbox.workspace, None);
            return ring.bucket(None).expect("made up").fields(None);
        }
        resources::fields(self.kind, Part { service: None, password: &Secret::random(20), number: 0 })
    }

    /// What the script has to know.
    fn whole(&self, seat: &Seat, fields: &Fields) -> Value {
        let driver = resources::driver(self.kind);
        let share = Share { kind: self.kind, reset: 0, fields: fields.clone(), extensions: vec![], seeds: vec![] };
        let context = Context {
            sandbox: seat.sandbox.clone(),
            templates: self.rig.templates(),
            size: RuntimeSize::Small,
            shares: vec![share],
        };
        let mut argv = vec![driver.program(&self.rig.installation.home).expect("a server").display().to_string()];
        argv.extend(driver.arguments(&context));
        let plain: serde_json::Map<String, Value> =
            fields.iter().map(|(name, value)| (name.clone(), value.expose().into())).collect();
        let mut all = json!({ "kind": self.kind, "argv": argv, "fields": plain, "data": DATA });
        if self.kind == ResourceKind::Database {
            // Its user cannot read the host's own, and has one of its own that it copies.
            let template = fs::read_dir(self.rig.templates()).expect("templates").flatten();
            let template = template.map(|entry| entry.path()).find(|path| path.is_dir()).expect("a template");
            let own = seat.sandbox.dir.join("data/template");
            let script = format!(
                "cp -a {0} {1} && chown -R {2} {1} && sync -f {1}",
                template.display(),
                own.display(),
                seat.sandbox.accounts.resource.uid
            );
            assert!(std::process::Command::new("sh").args(["-c", &script]).status().expect("sh").success());
            all["password"] = fs::read_to_string(template.with_extension("password")).expect("a password").into();
        }
        all
    }

    /// Starts the script where a server of the workspace runs, or where a client does.
    async fn script(&self, seat: &Seat, who: As) -> Script {
        let server = resources::driver(self.kind).name();
        let group = match (who, self.kind) {
            (As::User, _) => seat.sandbox.cgroups.shell_child("client"),
            // That server is no workspace's, and has no limits of one.
            (As::Resource, ResourceKind::Storage) => cgroup::ensure_own(&self.rig.installation, "by-hand", None),
            (As::Resource, _) => seat.sandbox.cgroups.runtime_child(&format!("resources/{server}")),
        };
        let entry = Entry::new(&seat.sandbox, who, &group.expect("a group"), DATA);
        let argv = ["python3", "-c", self.program].map(str::to_owned);
        let environment = base_environment(&seat.sandbox.accounts.resource);
        let errors = rustix::io::dup(std::io::stderr()).expect("an error stream");
        let streams = [Stream::Piped, Stream::Piped, Stream::Given(errors)];
        let mut process = entry.start(&argv, &environment, streams, true).expect("started");
        let words = process.stdin.take().expect("piped");
        let said = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut script = Script { process, words, said };
        assert_eq!(script.said().await, "ready");
        script
    }

    /// Milliseconds until a client of what the script started had its answer.
    async fn by_hand(&self, seat: &Seat, all: &Value) -> f64 {
        let mut script = self.script(seat, As::Resource).await;
        let begun = now();
        script.tell(all).await;
        let answered = script.said().await.as_f64().expect("a moment");
        script.end().await;
        (answered - begun) * 1000.0
    }

    /// The same for the driver, and until the supervisor told that it is ready.
    async fn ours(&self, seat: &mut Seat, spec: ResourceSpec, fields: &Fields) -> [f64; 2] {
        // A supervisor that has nothing to do yet.
        seat.begin(vec![]).await;
        let mut client = self.script(seat, As::User).await;
        let plain: serde_json::Map<String, Value> =
            fields.iter().map(|(name, value)| (name.clone(), value.expose().into())).collect();
        let begun = now();
        client.tell(&json!({ "kind": self.kind, "fields": plain, "step": "ask", "argv": [], "data": DATA })).await;
        if self.kind == ResourceKind::Storage {
            keeper::ensure(&self.rig.place()).await.expect("a keeper");
        }
        seat.update(vec![spec]).await;
        let told = async {
            seat.ready().await;
            now()
        };
        let (told, answered) = tokio::join!(told, client.said());
        client.end().await;
        seat.sleep().await;
        if self.kind == ResourceKind::Storage {
            keeper::end(&self.rig.place()).await.expect("no keeper");
        }
        let since = |moment: f64| (moment - begun) * 1000.0;
        [since(answered.as_f64().expect("a moment")), since(told)]
    }
}

/// Seconds of the clock that the script reads, too.
fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a machine's uptime fit")]
    let seconds = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9;
    seconds
}
