//! What each command does: one file each, all of them functions from a context and arguments to an exit status.

mod copies;
mod delete;
mod env;
mod exec;
mod hold;
mod identity;
mod links;
mod local;
mod logs;
mod objects;
mod port_forward;
mod project;
mod resources;
mod run;
mod secrets;
mod services;
mod status;
mod up;
mod wake;
mod waking;
mod why;
mod workspace;

use crate::{
    args::{Cli, Command, KeysCommand, habits},
    context::Context,
    output::Output,
};
use clap::CommandFactory;
use envforge_api::problem::Problem;
use std::process::ExitCode;

/// Runs one command.
///
/// # Errors
/// Whatever it could not do.
pub(crate) async fn dispatch(context: &Context, command: Command) -> Result<ExitCode, Problem> {
    match command {
        Command::Up(args) => up::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Ls => status::list(context).await,
        Command::Wake(args) => wake::run(context, wake::Verb::Wake, args).await,
        Command::Sleep(args) => wake::run(context, wake::Verb::Sleep, args).await,
        Command::Hold(args) => hold::run(context, args).await,
        Command::Start(args) => services::run(context, envforge_api::public::ServiceVerb::Start, args).await,
        Command::Stop(args) => services::run(context, envforge_api::public::ServiceVerb::Stop, args).await,
        Command::Restart(args) => services::run(context, envforge_api::public::ServiceVerb::Restart, args).await,
        Command::Why(args) => why::run(context, args).await,
        Command::Exec(args) => exec::run(context, args).await,
        Command::Run(args) => run::run(context, args).await,
        Command::Env(args) => env::run(context, args).await,
        Command::Logs(args) => logs::run(context, args).await,
        Command::Share(args) => links::share(context, args).await,
        Command::Links(args) => links::list(context, args).await,
        Command::Revoke(args) => links::revoke(context, args).await,
        Command::Open(args) => links::open(context, args).await,
        Command::PortForward(args) => port_forward::run(context, args).await,
        Command::Resources(args) => resources::list(context, args).await,
        Command::Reset(args) => resources::reset(context, args).await,
        Command::Psql(args) => resources::psql(context, args).await,
        Command::Redis(args) => resources::redis(context, args).await,
        Command::S3(args) => objects::run(context, args).await,
        Command::Mail(args) => resources::inbox(context, args).await,
        Command::Fork(args) => copies::fork(context, args).await,
        Command::Snapshot(command) => copies::snapshot(context, command).await,
        Command::Workspace(command) => workspace::run(context, command).await,
        Command::Project(command) => project::run(context, command).await,
        Command::Secrets(command) => secrets::run(context, command).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Doctor => local::doctor(context).await,
        Command::Local(command) => local::run(context, command).await,
        Command::Audit(args) => identity::audit(context, args).await,
        Command::Whoami => identity::whoami(context).await,
        Command::Keys(KeysCommand::Rotate) => identity::rotate_keys(context).await,
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "envforge", &mut script);
            context.out.stdout(&script);
            Ok(ExitCode::SUCCESS)
        }
        Command::Server(_) | Command::Host(_) | Command::Gateway(_) => {
            Err(Problem::internal("this program is started by the binary"))
        }
        Command::Other(words) => {
            let given = words.first().map_or("", String::as_str);
            let problem = habits::answer(given, &crate::command_names());
            if !context.out.json && words.iter().any(|word| word == "--json") {
                Output::new(true).problem(&problem);
                return Ok(ExitCode::from(problem.kind.exit_code()));
            }
            Err(problem)
        }
    }
}
