//! Resources whose servers are somewhere else: the organization provides them, or a provisioner made them. Nothing is
//! started here; each is looked at from inside the workspace's network, as its services will see it, at the wake and as
//! long as the runtime is awake. What is wrong is told without address or password, and gets better by itself.

use super::{
    events::Event,
    process,
    protocol::ResourceSpec,
    runtime::{Runtime, Shared},
    seed,
};
use crate::{
    resources::outside::{libpq, redis_greeting},
    system::{
        enter::{As, Entry, base_environment},
        spawn::Stream,
    },
};
use envforge_api::{
    names::ServiceName,
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::{ResourceState, Stated, Trouble},
    stream::LogLevel,
    time::Timestamp,
};
use std::{collections::BTreeMap, process::Output, rc::Rc, time::Duration};
use tokio::{task::AbortHandle, time::timeout};

/// How long a server may take to accept a connection, and how long to let someone in.
const CONNECT: Duration = Duration::from_secs(3);
const SIGN_IN: Duration = Duration::from_secs(10);
/// Between two looks at one that was there. Nothing tells of its end: a connection held open would be one more on a
/// server that counts them.
const EVERY: Duration = Duration::from_secs(5);
/// One that was there is asked once more after this before it is called away.
const ONCE_MORE: Duration = Duration::from_secs(1);
/// Between two looks at one that is not there, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One of them.
#[derive(Debug)]
pub(super) struct Outside {
    spec: ResourceSpec,
    stated: Stated<ResourceState>,
    run: u64,
    watch: Option<AbortHandle>,
}

impl Outside {
    fn is(&self, kind: ResourceKind, service: Option<&ServiceName>) -> bool {
        self.spec.resource.kind == kind && self.spec.resource.service.as_ref() == service
    }

    fn state(&mut self, state: ResourceState, trouble: Option<Trouble>) {
        let since = if self.stated.state == state { self.stated.since } else { Timestamp::now() };
        self.stated = match trouble {
            Some(trouble) => Stated::because(state, since, trouble),
            None => Stated::plain(state, since),
        };
    }

    fn end_watch(&mut self) {
        self.run += 1;
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
    }
}

fn is_outside(spec: &ResourceSpec) -> bool {
    matches!(spec.resource.mode, ResourceMode::Provided | ResourceMode::Cloud) && spec.blocked.is_none()
}

/// All that the description has.
pub(super) fn all(resources: &[ResourceSpec], now: Timestamp) -> Vec<Outside> {
    let one = |spec: &ResourceSpec| Outside {
        spec: spec.clone(),
        stated: Stated::plain(ResourceState::Waking, now),
        run: 0,
        watch: None,
    };
    resources.iter().filter(|spec| is_outside(spec)).map(one).collect()
}

impl Runtime {
    /// How a service sees a resource from elsewhere: its state; `None` where it is no such one.
    pub(super) fn outside(&self, kind: ResourceKind, service: Option<&str>) -> Option<&Stated<ResourceState>> {
        let its = |of: &&Outside| {
            let owner = of.spec.resource.service.as_ref();
            of.spec.resource.kind == kind && owner.is_none_or(|owner| Some(owner.as_str()) == service)
        };
        self.outside.iter().find(its).map(|of| &of.stated)
    }

    /// Follows a new description. What is the same is looked at as before; what was blocked, anew.
    pub(super) fn update_outside(&mut self) {
        for mut new in all(&self.spec.resources, Timestamp::now()) {
            let (kind, service) = (new.spec.resource.kind, new.spec.resource.service.clone());
            match self.outside.iter_mut().find(|known| known.is(kind, service.as_ref())) {
                Some(known) if known.spec == new.spec && known.stated.state != ResourceState::Blocked => {}
                Some(known) => {
                    known.end_watch();
                    new.run = known.run;
                    *known = new;
                }
                None => self.outside.push(new),
            }
        }
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.outside).into_iter().partition(|known| {
            let same = |spec: &&ResourceSpec| known.is(spec.resource.kind, spec.resource.service.as_ref());
            self.spec.resources.iter().find(same).is_some_and(is_outside)
        });
        self.outside = kept;
        gone.into_iter().for_each(|mut gone| gone.end_watch());
    }

    /// Looks at each that has its fields and is not looked at yet.
    pub(super) fn watch_outside(&mut self) {
        for of in &mut self.outside {
            if of.watch.is_none() && !of.spec.coming {
                let (shared, spec, run) = (Rc::clone(&self.shared), of.spec.clone(), of.run);
                // Ends with the runtime, or when the resource is described anew.
                of.watch = Some(tokio::task::spawn_local(watch(shared, spec, run)).abort_handle());
            }
        }
    }

    pub(super) fn outside_seen(
        &mut self,
        (kind, service): (ResourceKind, Option<&ServiceName>),
        run: u64,
        trouble: Option<Trouble>,
    ) {
        // What stands still cannot look either.
        if self.still.is_some() && trouble.is_some() {
            return;
        }
        let Some(of) = self.outside.iter_mut().find(|of| of.is(kind, service) && of.run == run) else { return };
        let was = of.stated.clone();
        let (level, text) = match &trouble {
            Some(trouble) => (LogLevel::Error, format!("{kind}: {}", trouble.reason)),
            None => (LogLevel::Info, format!("{kind} can be reached")),
        };
        let state = if trouble.is_some() { ResourceState::Blocked } else { ResourceState::Ready };
        of.state(state, trouble);
        let is_news = (was.state, &was.reason) != (of.stated.state, &of.stated.reason);
        if is_news && (was.state, state) != (ResourceState::Waking, ResourceState::Ready) {
            self.note(level, &text);
        }
    }

    /// Nothing is looked at from here on.
    pub(super) fn end_outside(&mut self) {
        for of in &mut self.outside {
            of.end_watch();
            of.state(ResourceState::Waking, None);
        }
    }
}

async fn watch(shared: Rc<Shared>, spec: ResourceSpec, run: u64) {
    let (kind, service) = (spec.resource.kind, spec.resource.service.clone());
    let tell = |trouble| shared.tell(Event::Outside { kind, service: service.clone(), run, trouble });
    let mut pause = FIRST_PAUSE;
    loop {
        if let Err(trouble) = is_usable(&shared, &spec).await {
            tell(Some(trouble));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            continue;
        }
        if let Err(trouble) = seed::fill_with(&shared, &spec.fields, &spec.seeds).await {
            // Again by itself would be the same again: at the next restart or wake.
            tell(Some(trouble));
            return;
        }
        tell(None);
        pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(EVERY).await;
            if connects(&shared, &spec).await.is_err() {
                tokio::time::sleep(ONCE_MORE).await;
                if let Err(trouble) = connects(&shared, &spec).await {
                    tell(Some(trouble));
                    break;
                }
            }
        }
    }
}

/// A trouble with what can be done about it, which never says where the server is.
fn trouble(spec: &ResourceSpec, reason: &str) -> Trouble {
    let kind = spec.resource.kind;
    let of = spec.resource.service.as_ref().map(|service| format!("{service}.")).unwrap_or_default();
    let hint = match spec.resource.mode {
        ResourceMode::Cloud => "its server is the provisioner's; it is tried again by itself".to_owned(),
        ResourceMode::Provided | ResourceMode::Managed | ResourceMode::Disabled => {
            let field = if kind == ResourceKind::Mail { "smtp_url" } else { "url" };
            format!(
                "its values are the project's secrets (`envforge secrets set resource.{kind}.{of}{field}`, then restart a service that uses it); it is tried again by itself"
            )
        }
    };
    Trouble::new(reason, hint)
}

/// Whether it accepts connections, and lets the workspace in where that can be asked.
async fn is_usable(shared: &Shared, spec: &ResourceSpec) -> Result<(), Trouble> {
    connects(shared, spec).await?;
    match spec.resource.kind {
        ResourceKind::Database => signs_in(shared, spec).await,
        ResourceKind::Cache | ResourceKind::Queue => answers(shared, spec).await,
        ResourceKind::Storage | ResourceKind::Mail => Ok(()),
    }
}

/// Bash opens connections by itself, and finds names as every program in the workspace does. Where to is in the
/// environment alone.
const DIAL: &str = r#"exec 3<>"/dev/tcp/$EF_HOST/$EF_PORT" || exit 1
[ -z "$EF_SAY" ] && exit 0
printf %s "$EF_SAY" >&3
for ((i = 0; i < EF_ANSWERS; i++)); do IFS= read -r -t 3 line <&3 || exit 2; printf '%s\n' "${line%$'\r'}"; done
"#;

async fn dial(shared: &Shared, spec: &ResourceSpec, say: &str, answers: u32) -> Result<Output, Trouble> {
    let field = |name: &str| spec.fields.get(name).map(Secret::expose).unwrap_or_default().to_owned();
    let host = field("host").trim_start_matches('[').trim_end_matches(']').to_owned();
    let variables = [("EF_HOST", host), ("EF_PORT", field("port")), ("EF_SAY", say.to_owned())];
    let variables = variables.into_iter().chain([("EF_ANSWERS", answers.to_string())]);
    let environment = variables.map(|(name, value)| (name.to_owned(), value)).collect();
    run(shared, spec, &["bash", "-c", DIAL], environment, CONNECT + Duration::from_secs(u64::from(answers))).await
}

/// Runs a small program inside, as the user of resource servers, to its end.
async fn run(
    shared: &Shared,
    spec: &ResourceSpec,
    argv: &[&str],
    environment: BTreeMap<String, String>,
    limit: Duration,
) -> Result<Output, Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    let group = format!("resources/{}-look", spec.resource.kind);
    let group = shared.sandbox.cgroups.runtime_child(&group).map_err(system)?;
    let entry = Entry::new(&shared.sandbox, As::Resource, &group, "/");
    let mut all = base_environment(&shared.sandbox.accounts.resource);
    all.insert("LC_ALL".into(), "C".into());
    all.extend(environment);
    let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    match timeout(limit, process::output(&entry, &argv, &all, Stream::Null)).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => {
            Err(trouble(spec, &format!("its server cannot be asked from the workspace ({})", error.kind())))
        }
        Err(_) => Err(trouble(spec, &format!("its server does not answer within {} s", limit.as_secs()))),
    }
}

/// Whether its server accepts a connection.
async fn connects(shared: &Shared, spec: &ResourceSpec) -> Result<(), Trouble> {
    let output = dial(shared, spec, "", 0).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(trouble(spec, why_no_connection(&String::from_utf8_lossy(&output.stderr))))
}

/// From what bash says, without any of its words: they name the address.
fn why_no_connection(said: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["refused"]) {
        "its server refuses connections: nothing listens there"
    } else if has(&["not known", "name resolution", "No address", "invalid"]) {
        "the name of its server is not known here"
    } else if has(&["No route", "unreachable"]) {
        "its server cannot be reached from the workspace"
    } else if has(&["timed out"]) {
        "its server does not answer"
    } else {
        "its server accepts no connection"
    }
}

async fn signs_in(shared: &Shared, spec: &ResourceSpec) -> Result<(), Trouble> {
    let mut environment = libpq(&spec.fields);
    environment.insert("PGCONNECT_TIMEOUT".into(), "8".into());
    let argv = ["psql", "-X", "-q", "-A", "-t", "-w", "-c", "select 1"];
    let output = run(shared, spec, &argv, environment, SIGN_IN).await?;
    // Without a psql nobody can ask; the services will tell.
    if output.status.success() || output.status.code() == Some(127) {
        return Ok(());
    }
    Err(trouble(spec, why_no_session(&String::from_utf8_lossy(&output.stderr))))
}

/// From what psql says, without any of its words.
fn why_no_session(said: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["authentication failed", "no password supplied", "is not permitted to log in"])
        || (has(&["role \""]) && has(&["does not exist"]))
    {
        "its server refuses the user or the password"
    } else if has(&["does not exist", "permission denied for database"]) {
        "its server has no database of that name for that user"
    } else if has(&["pg_hba.conf"]) {
        "its server lets nobody in from here"
    } else if has(&["starting up", "shutting down", "recovery"]) {
        "its server is starting or stopping"
    } else if has(&["too many", "reserved for"]) {
        "its server has no connection left"
    } else if has(&["SSL", "TLS", "certificate"]) {
        "its server and the URL do not agree about TLS"
    } else {
        "its server accepts connections and opens no session"
    }
}

async fn answers(shared: &Shared, spec: &ResourceSpec) -> Result<(), Trouble> {
    let Some((say, answers)) = redis_greeting(&spec.fields) else { return Ok(()) };
    let output = dial(shared, spec, &say, answers).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    match why_no_answer(&said) {
        None => Ok(()),
        Some(reason) => Err(trouble(spec, reason)),
    }
}

fn why_no_answer(said: &str) -> Option<&'static str> {
    match said.lines().last() {
        Some("+PONG") => None,
        Some(line) if line.starts_with("-NOAUTH") || line.starts_with("-WRONGPASS") || line.starts_with("-NOPERM") => {
            Some("its server refuses the user or the password")
        }
        Some(line) if line.starts_with("-LOADING") => Some("its server is starting"),
        Some(_) => Some("its server answers with an error"),
        None => Some("its server accepts connections and does not answer as Redis does"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_cannot_be_used_is_said_without_address_user_or_password() {
        let no_connection = [
            (
                "bash: connect: Connection refused\nbash: /dev/tcp/10.1.2.3/5432: Connection refused",
                "refuses connections",
            ),
            ("bash: db.internal: Name or service not known", "not known here"),
            ("bash: connect: No route to host", "cannot be reached"),
            ("bash: connect: Connection timed out", "does not answer"),
            ("", "accepts no connection"),
        ];
        for (said, reason) in no_connection {
            assert!(why_no_connection(said).contains(reason), "{said}");
        }
        let no_session = [
            (r#"FATAL:  password authentication failed for user "ada""#, "user or the password"),
            (r#"FATAL:  role "ada" does not exist"#, "user or the password"),
            (r#"FATAL:  database "app" does not exist"#, "no database"),
            (r#"FATAL:  no pg_hba.conf entry for host "10.1.2.3", user "ada""#, "nobody in from here"),
            ("FATAL:  the database system is starting up", "starting or stopping"),
            ("FATAL:  sorry, too many clients already", "no connection left"),
            ("server does not support SSL, but SSL was required", "about TLS"),
            ("else", "opens no session"),
        ];
        for (said, reason) in no_session {
            assert!(why_no_session(said).contains(reason), "{said}");
        }
        assert_eq!(why_no_answer("+OK\n+PONG\n"), None);
        for (said, reason) in
            [("-NOAUTH x", "password"), ("-WRONGPASS x\n-NOAUTH y", "password"), ("", "does not answer")]
        {
            assert!(why_no_answer(said).is_some_and(|why| why.contains(reason)), "{said}");
        }
    }
}
