//! The command line of EnvForge, and the keeper of a local installation.
//!
//! Arguments ([`args`]), settings, commands and output are four things: `args` says what may be typed, `settings` where
//! it goes, `commands/<verb>` what is done, `output` alone prints. Everything is asked of the control plane's public
//! API and of the host's streams; nothing here knows a database or a kernel.

pub mod args;
mod commands;
mod context;
#[cfg(test)]
mod fake;
pub mod local;
mod output;
#[cfg(test)]
mod sample;
mod settings;
#[cfg(test)]
mod spec;
mod stream;
mod wait;

pub use args::{Cli, Command, programs};

use clap::{CommandFactory, Parser, error::ErrorKind};
use envforge_api::problem::{Problem, ProblemKind};
use output::Output;
use std::process::ExitCode;

/// Reads the process's arguments. Help, the version and wrong usage are answered here, and the process ends.
#[must_use]
pub fn parse() -> Cli {
    match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => std::process::exit(refuse(&error)),
    }
}

/// Answers arguments that could not be read; the exit status.
fn refuse(error: &clap::Error) -> i32 {
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if json && !asked_for {
        let (message, hint) = usage_message(&error.render().to_string());
        Output::new(true).problem(&Problem::new(ProblemKind::Usage, message, hint));
    } else if error.print().is_err() {
        // Nobody reads the answer; the status still tells.
        return error.exit_code();
    }
    error.exit_code()
}

/// A refusal of the argument parser as one sentence and a hint.
fn usage_message(text: &str) -> (String, String) {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (message, hint) = text.split_once("\n\n").unwrap_or((text, ""));
    (one_line(message.trim_start_matches("error: ")), one_line(hint))
}

/// The names of every command that is shown.
fn command_names() -> Vec<String> {
    Cli::command().get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect()
}

/// Runs the command line with the process's arguments; `envforge server`, `host`, `supervise` and `enter` are
/// dispatched by the binary before this is called.
pub async fn main() -> ExitCode {
    let cli = parse();
    let out = Output::new(cli.json);
    // A command that runs another one returns that one's status; what goes wrong in EnvForge must be told apart.
    let passes_a_status_on = matches!(&cli.command, Command::Exec(_) | Command::Run(_));
    let context = match context::Context::from_process(out) {
        Ok(context) => context,
        Err(problem) => {
            Output::new(cli.json).problem(&problem);
            return ExitCode::from(problem.kind.exit_code());
        }
    };
    match commands::dispatch(&context, cli.command).await {
        Ok(code) => code,
        Err(problem) => {
            context.out.problem(&problem);
            ExitCode::from(failure_code(problem.kind, passes_a_status_on))
        }
    }
}

/// The exit status of a failure of EnvForge itself.
fn failure_code(kind: ProblemKind, passes_a_status_on: bool) -> u8 {
    if passes_a_status_on && kind != ProblemKind::Usage { 125 } else { kind.exit_code() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_with_the_status_of_the_contract() {
        for (kind, code) in [
            (ProblemKind::Failed, 1),
            (ProblemKind::Conflict, 1),
            (ProblemKind::Usage, 2),
            (ProblemKind::Confirm, 2),
            (ProblemKind::NotFound, 3),
            (ProblemKind::Unauthenticated, 3),
            (ProblemKind::Timeout, 4),
            (ProblemKind::Unavailable, 5),
        ] {
            assert_eq!(failure_code(kind, false), code, "{kind}");
            let of_exec = if kind == ProblemKind::Usage { 2 } else { 125 };
            assert_eq!(failure_code(kind, true), of_exec, "{kind}");
        }
    }

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    fn cli(text: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("envforge").chain(text.split_whitespace()))
    }

    #[test]
    fn json_is_accepted_before_and_after_the_command_but_not_inside_one_that_is_run() {
        assert!(cli("--json status").expect("read").json);
        assert!(cli("status ws --json").expect("read").json);
        assert!(cli("workspace usage --json").expect("read").json);
        assert!(!cli("exec ws -- prog --json").expect("read").json);
    }

    #[test]
    fn every_command_of_the_contract_is_read() {
        for text in [
            "up",
            "up a -c --from main --branch b --no-attach --wait -- npm test",
            "up feature/x",
            "status -w",
            "status a -w --json",
            "ls",
            "wake --wait",
            "sleep a --wait",
            "hold 2h",
            "hold a off",
            "start web",
            "stop a web backend",
            "restart a web",
            "why",
            "why a web",
            "exec -- ls -la",
            "exec a -- sh -c true",
            "run a --service web test unit",
            "run setup --detach",
            "run -- npm test",
            "env a --service web --reveal",
            "logs",
            "logs a web backend.mailer -f -n 5 --level warn --since 10m --until 2026-01-01T00:00:00Z",
            "share",
            "share a --service web.admin --expires 30m --families web,api --json",
            "links a",
            "revoke lnk_00000000000000000000000000",
            "open",
            "open a web",
            "resources a --json",
            "reset a database mail --yes",
            "port-forward a database 15432 --json",
            "port-forward web.admin",
            "port-forward a database --service web",
            "psql a -- -c select",
            "psql --service web",
            "redis a --queue -- ping",
            "s3",
            "s3 a get k f --service web",
            "s3 a -- s3 ls",
            "mail",
            "mail a --show latest --json",
            "workspace commands a --service web --status failed --limit 3",
            "workspace command cmd_00000000000000000000000000 --cancel",
            "workspace usage",
            "project apply -f p.yml --dry-run",
            "project show",
            "delete a --yes --force",
            "doctor",
            "local start",
            "local stop --all",
            "local status",
            "local reset --yes",
            "local keep",
            "server --database-url postgres://x --listen 127.0.0.1:0 --state /s --base dev.localhost",
            "host --home /h --server http://a:1 --token-file /t",
            "host --home /h --server https://a --token-file /t --gateway https://b --gateway http://c --gateway-root /r",
            "host prepare --home /h",
            "audit --limit 3",
            "whoami",
            "completions bash",
            "keys rotate",
        ] {
            let read = cli(text);
            assert!(read.is_ok(), "{text}: {}", read.expect_err("refused"));
            assert!(!matches!(read.expect("read").command, Command::Other(_)), "{text}");
        }
    }

    #[test]
    fn wrong_usage_ends_with_status_2() {
        for text in [
            "delete",
            "revoke",
            "share a --families shell",
            "exec a",
            "start",
            "port-forward",
            "port-forward a b 1 2",
            "env a",
            "logs --level loud",
            "project apply",
            "host --home /h",
            "",
        ] {
            assert_eq!(cli(text).expect_err(text).exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn wrong_usage_is_one_sentence_in_json() {
        let (message, hint) = usage_message(&cli("delete").expect_err("refused").render().to_string());
        assert_eq!(message, "the following required arguments were not provided: <WS>");
        assert!(hint.starts_with("Usage: envforge delete"), "{hint}");
    }

    #[test]
    fn an_unknown_command_is_kept_for_an_answer() {
        assert!(matches!(cli("down a").expect("read").command, Command::Other(words) if words == ["down", "a"]));
        assert!(command_names().contains(&"server".to_owned()));
    }
}
