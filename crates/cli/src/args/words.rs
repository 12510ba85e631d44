//! Positional words that may begin with a workspace or not: who is meant is decided here, purely.

use envforge_api::{
    command::RunTarget,
    problem::{Problem, ProblemKind},
};

/// What is known when words are read.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Slugs of the workspaces the caller can see.
    pub(crate) workspaces: Vec<String>,
    /// The workspace the caller is in.
    pub(crate) current: Option<String>,
    /// Names of services, workers and resources of that workspace.
    pub(crate) services: Vec<String>,
}

/// Splits `[WS] [NAME…]`: the workspace (absent = the current one, or to be picked) and the names.
///
/// In a workspace a word that is one of its services is meant as such. Elsewhere a first word followed by others is the
/// workspace, and a lone one is too where `lone_is_workspace` says so or where it is the slug of one.
pub(crate) fn split(words: &[String], known: &Known, lone_is_workspace: bool) -> (Option<String>, Vec<String>) {
    let Some((first, rest)) = words.split_first() else { return (None, Vec::new()) };
    let is_workspace = known.workspaces.contains(first);
    let first_is_workspace = if known.current.is_some() {
        is_workspace && !known.services.contains(first)
    } else {
        is_workspace || !rest.is_empty() || lone_is_workspace
    };
    if first_is_workspace { (Some(first.clone()), rest.to_vec()) } else { (None, words.to_vec()) }
}

/// Reads `[WS] (setup [NAME] | test [NAME] | -- CMD)`.
///
/// # Errors
/// [`ProblemKind::Usage`] when nothing or two things are to be run.
pub(crate) fn run_target(words: &[String], argv: &[String]) -> Result<(Option<String>, RunTarget), Problem> {
    let usage = |message: &str| {
        Problem::new(
            ProblemKind::Usage,
            message,
            "envforge run [WS] [--service S] (setup [NAME] | test [NAME] | -- CMD)",
        )
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let target = |what: &str, name: Option<&str>| match what {
        "setup" => RunTarget::Setup { name: name.map(str::to_owned) },
        _ => RunTarget::Test { name: name.map(str::to_owned) },
    };
    let is_what = |word: &str| matches!(word, "setup" | "test");
    match (words.as_slice(), argv.is_empty()) {
        ([], false) => Ok((None, RunTarget::Argv { argv: argv.to_vec() })),
        ([ws], false) if !is_what(ws) => Ok((Some((*ws).to_owned()), RunTarget::Argv { argv: argv.to_vec() })),
        (_, false) => Err(usage("a command after `--` and a set-up step or test cannot be run at once")),
        ([what], true) if is_what(what) => Ok((None, target(what, None))),
        ([what, name], true) if is_what(what) => Ok((None, target(what, Some(name)))),
        ([ws, what], true) if is_what(what) => Ok((Some((*ws).to_owned()), target(what, None))),
        ([ws, what, name], true) if is_what(what) => Ok((Some((*ws).to_owned()), target(what, Some(name)))),
        ([] | [_], true) => Err(usage("nothing to run was named")),
        (_, true) => Err(usage("a command to run stands after `--`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn known(current: Option<&str>) -> Known {
        Known {
            workspaces: words("main web-fix web"),
            current: current.map(str::to_owned),
            services: if current.is_some() { words("web backend") } else { Vec::new() },
        }
    }

    #[test]
    fn the_first_word_is_a_workspace_unless_it_names_a_service_of_the_one_you_are_in() {
        for (current, given, lone, workspace, rest) in [
            (None, "main web", false, Some("main"), "web"),
            (None, "main", true, Some("main"), ""),
            (None, "backend", false, None, "backend"),
            (None, "nosuch", true, Some("nosuch"), ""),
            (None, "nosuch web", false, Some("nosuch"), "web"),
            (Some("web-fix"), "web", true, None, "web"),
            (Some("web-fix"), "web backend", false, None, "web backend"),
            (Some("web-fix"), "main web", false, Some("main"), "web"),
            (Some("web-fix"), "system", true, None, "system"),
            (Some("web-fix"), "", true, None, ""),
        ] {
            let (ws, names) = split(&words(given), &known(current), lone);
            assert_eq!((ws.as_deref(), names), (workspace, words(rest)), "{given} in {current:?}");
        }
    }

    #[test]
    fn run_names_a_step_a_test_or_a_command() {
        let argv = |text: &str| RunTarget::Argv { argv: words(text) };
        let test = |name: Option<&str>| RunTarget::Test { name: name.map(str::to_owned) };
        let setup = |name: Option<&str>| RunTarget::Setup { name: name.map(str::to_owned) };
        for (given, command, workspace, wanted) in [
            ("", "npm test", None, argv("npm test")),
            ("ws", "npm test", Some("ws"), argv("npm test")),
            ("setup", "", None, setup(None)),
            ("test unit", "", None, test(Some("unit"))),
            ("ws setup", "", Some("ws"), setup(None)),
            ("ws test unit", "", Some("ws"), test(Some("unit"))),
        ] {
            let (ws, target) = run_target(&words(given), &words(command)).expect("readable");
            assert_eq!((ws.as_deref(), target), (workspace, wanted), "{given} -- {command}");
        }
        for (given, command) in [("", ""), ("ws", ""), ("ws npm test", ""), ("setup", "npm test")] {
            assert_eq!(run_target(&words(given), &words(command)).expect_err("refused").kind, ProblemKind::Usage);
        }
    }
}
