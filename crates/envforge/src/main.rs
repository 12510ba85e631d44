//! The one binary: picks the program that its first words name.
//!
//! `enter` runs before any thread exists, because it changes namespaces; `supervise` gets one thread, because there is
//! one of it per awake workspace; the others get what they ask for.

use envforge_api::{client::Endpoint, problem::Problem, secret::Secret, trust::Trust};
use envforge_cli::{Command, programs};
use envforge_gateway::{
    Security,
    acme::{Pace, Settings},
};
use envforge_host::{
    daemon::tunnel::Gateways,
    resources::storage::{External, keeper},
};
use std::{
    io::{IsTerminal, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).take(2).map(|word| word.to_string_lossy().into_owned()).collect();
    match words.first().map(String::as_str) {
        Some("enter") => {
            let rest: Vec<String> = std::env::args_os().skip(2).map(|w| w.to_string_lossy().into_owned()).collect();
            envforge_host::system::enter::main(&rest)
        }
        Some("supervise") => match words.get(1) {
            Some(spec) => one_thread(envforge_host::supervise::main(Path::new(spec))),
            None => failed(&Problem::invalid("`envforge supervise` is for EnvForge itself", "")),
        },
        Some(keeper::COMMAND) => keep_storage(words.get(1).map(Path::new)),
        Some("server" | "host" | "gateway") => match envforge_cli::parse().command {
            Command::Server(args) => server(args),
            Command::Host(args) => host(args),
            Command::Gateway(args) => gateway(&args),
            _ => failed(&Problem::internal("the first word named another program")),
        },
        Some(_) | None => one_thread(envforge_cli::main()),
    }
}

/// It changes namespaces before it has a thread.
fn keep_storage(home: Option<&Path>) -> ExitCode {
    let Some(home) = home else {
        return failed(&Problem::invalid(format!("`envforge {}` is for EnvForge itself", keeper::COMMAND), ""));
    };
    match keeper::prepare(home) {
        Ok(Some(keeper)) => one_thread(keeper.serve()),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => failed(&Problem::unavailable(error.to_string(), error.hint)),
    }
}

fn one_thread(program: impl Future<Output = ExitCode>) -> ExitCode {
    run(tokio::runtime::Builder::new_current_thread(), program)
}

fn many_threads(program: impl Future<Output = ExitCode>) -> ExitCode {
    log_to_stderr();
    run(tokio::runtime::Builder::new_multi_thread(), program)
}

fn run(mut builder: tokio::runtime::Builder, program: impl Future<Output = ExitCode>) -> ExitCode {
    match builder.enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(program);
            // What still blocks (a read from a terminal) must not hold up the end.
            runtime.shutdown_background();
            code
        }
        Err(error) => failed(&Problem::unavailable(format!("the program cannot start: {error}"), "")),
    }
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RUST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A line that cannot be written (the disk is full) is lost: complaining about it on the same file would panic.
    let logs = logs.log_internal_errors(false);
    logs.with_ansi(std::io::stderr().is_terminal()).init();
}

fn failed(problem: &Problem) -> ExitCode {
    let mut err = std::io::stderr();
    let _ = writeln!(err, "envforge: {problem}");
    if !problem.hint.is_empty() {
        let _ = writeln!(err, "  {}", problem.hint);
    }
    ExitCode::from(problem.kind.exit_code())
}

fn server(args: programs::ServerArgs) -> ExitCode {
    let programs::ServerArgs { database_url, listen, state, base } = args;
    many_threads(envforge_control::main(envforge_control::Options { database_url, listen, state, base }))
}

fn host(args: programs::HostArgs) -> ExitCode {
    use programs::HostCommand;
    let done = |outcome: Result<(), envforge_host::system::SystemError>| match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&Problem::unavailable(error.to_string(), error.hint)),
    };
    match args.command {
        Some(HostCommand::CopyStorage { home, storage_endpoint, storage_credentials }) => {
            let to = match External::configured(&storage_endpoint, &storage_credentials) {
                Ok(to) => to,
                Err(error) => return failed(&Problem::invalid(error.to_string(), error.hint)),
            };
            one_thread(async {
                match envforge_host::daemon::storage::copy(&home, &to, say).await {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(trouble) => failed(&Problem::unavailable(trouble.reason, trouble.hint)),
                }
            })
        }
        Some(HostCommand::Prepare { home }) => {
            let prepared = envforge_host::daemon::prepare(&home).map(|prepared| {
                let text = serde_json::to_string(&prepared).unwrap_or_default();
                let _ = writeln!(std::io::stdout(), "{text}");
            });
            done(prepared)
        }
        Some(HostCommand::Quiesce { home }) => one_thread(async { done(envforge_host::daemon::quiesce(&home).await) }),
        Some(HostCommand::Adopt { home }) => one_thread(async { done(envforge_host::daemon::adopt(&home).await) }),
        Some(HostCommand::Wipe { home }) => one_thread(async { done(envforge_host::daemon::wipe(&home).await) }),
        None => match host_options(args) {
            Ok(options) => many_threads(envforge_host::daemon::main(options, say)),
            Err(problem) => failed(&problem),
        },
    }
}

fn gateway(args: &programs::GatewayArgs) -> ExitCode {
    let options = || {
        let server = args.server.parse()?;
        let token = token(&args.token_file, "gateway")?;
        let listener = match args.listen {
            programs::Listen::Address(address) => std::net::TcpListener::bind(address),
            programs::Listen::Stdin => std::io::stdin().as_fd().try_clone_to_owned().map(std::net::TcpListener::from),
        };
        let hint = "choose another address with --listen";
        let listener = listener.map_err(|e| Problem::unavailable(format!("cannot listen for visitors: {e}"), hint))?;
        Ok(envforge_gateway::Options { server, token, listener, security: security(args), inside: args.inside.clone() })
    };
    match options() {
        // Visitors have threads of their own.
        Ok(options) => {
            log_to_stderr();
            one_thread(envforge_gateway::main(options, say))
        }
        Err(problem) => failed(&problem),
    }
}

fn security(args: &programs::GatewayArgs) -> Security {
    let acme = args.acme_directory.clone().zip(args.acme_hook.clone()).zip(args.acme_dir.clone());
    let files = args.tls_certificate.clone().zip(args.tls_key.clone());
    match (acme, files) {
        (Some(((directory, hook), dir)), _) => {
            let (contact, root, pace) = (args.acme_contact.clone(), args.acme_root.clone(), Pace::default());
            Security::Acme(Settings { directory, hook, dir, contact, root, pace })
        }
        (None, Some((certificate, key))) => Security::Files(envforge_gateway::tls::Files { certificate, key }),
        (None, None) => Security::Plain,
    }
}

/// A word for whoever started this.
fn say(word: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{word}").and_then(|()| out.flush());
}

fn token(file: &Path, of: &str) -> Result<Secret, Problem> {
    let token = std::fs::read_to_string(file).map_err(|error| {
        let hint = format!("`envforge server` writes it to {of}.token in its state directory");
        Problem::invalid(format!("the token of the {of} cannot be read: {}", error.kind()), hint)
    })?;
    Ok(Secret::new(token.trim().to_owned()))
}

fn host_options(args: programs::HostArgs) -> Result<envforge_host::daemon::Options, Problem> {
    let missing =
        |what: &str| Problem::invalid(format!("{what} is missing"), "`envforge host --help` says what is needed");
    let home: PathBuf = args.home.ok_or_else(|| missing("--home"))?;
    let server: Endpoint = args.server.ok_or_else(|| missing("--server"))?.parse()?;
    let file = args.token_file.ok_or_else(|| missing("--token-file"))?;
    let storage = match (&args.storage_endpoint, &args.storage_credentials) {
        (Some(endpoint), Some(file)) => Some(External::configured(endpoint, file)),
        (_, _) => None,
    };
    let storage = storage.transpose().map_err(|e| Problem::invalid(e.to_string(), e.hint))?;
    let gateways = gateways(&args.gateways, args.gateway_root.as_deref())?;
    let disk = envforge_host::daemon::disk::Options { reserve: args.disk_reserve, limit: args.disk_limit };
    Ok(envforge_host::daemon::Options { home, server, token: token(&file, "host")?, gateways, storage, disk })
}

/// The gateways that a host dials.
fn gateways(given: &[String], root: Option<&Path>) -> Result<Gateways, Problem> {
    let endpoint = |given: &String| match given.parse()? {
        Endpoint::Unix(_) => Err(Problem::invalid(
            format!("--gateway: `{given}` is on this machine, where gateways need no tunnel"),
            "write it as http://HOST:PORT or https://HOST:PORT",
        )),
        endpoint @ (Endpoint::Http { .. } | Endpoint::Https { .. }) => Ok(endpoint),
    };
    let endpoints = given.iter().map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let by_tls = endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Https { .. }));
    let trust = match root {
        Some(file) => Some(Trust::with_root(file)?),
        // Said now, not at each attempt.
        None if by_tls => Some(Trust::of_machine()?),
        None => None,
    };
    Ok(Gateways { endpoints, trust })
}
