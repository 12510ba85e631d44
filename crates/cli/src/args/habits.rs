//! Words of other tools, answered with the right command.

use envforge_api::problem::{Problem, ProblemKind};

/// What people type out of habit, and what it is here.
const HABITS: &[(&[&str], &str)] = &[
    (&["down"], "`envforge sleep` stops the runtime and keeps everything"),
    (&["suspend", "pause", "halt", "hibernate"], "`envforge sleep` stops the runtime and keeps everything"),
    (&["ps", "list", "workspaces", "get"], "`envforge ls` lists workspaces, `envforge status WS` shows one"),
    (&["top", "stats", "describe", "inspect", "show"], "`envforge status WS` shows a workspace"),
    (
        &["rm", "remove", "destroy", "kill", "prune"],
        "`envforge delete WS` removes a workspace with its data; `envforge sleep WS` only stops it",
    ),
    (
        &["attach", "shell", "sh", "enter", "connect", "ssh", "checkout", "switch", "tmux", "code"],
        "`envforge up WS` opens the shell; `envforge exec WS -- CMD` runs one command",
    ),
    (&["create", "new", "init", "add"], "`envforge up -c NAME` makes a branch with its workspace"),
    (&["clone", "copy", "duplicate"], "`envforge fork WS NEW` copies a workspace with its data"),
    (&["snapshots", "checkpoint", "backup", "save"], "`envforge snapshot create WS` keeps a workspace as it is"),
    (&["restore", "rollback", "revert", "undo"], "`envforge snapshot restore WS SNAPSHOT` goes back to a snapshot"),
    (&["log", "tail"], "`envforge logs WS -f` follows the logs"),
    (&["resume", "unpause", "awake"], "`envforge wake WS` wakes the runtime"),
    (&["test", "setup", "task"], "`envforge run WS test` and `envforge run WS setup` run what envforge.yml declares"),
    (&["apply", "validate", "config"], "`envforge project apply -f FILE` applies a project file"),
    (&["usage", "billing"], "`envforge workspace usage WS` shows the meter"),
    (&["commands", "history", "receipts"], "`envforge workspace commands WS` lists receipts"),
    (&["environment", "printenv"], "`envforge env WS --service S` shows a service's environment"),
    (&["version"], "`envforge --version` prints the version"),
    (&["help"], "`envforge --help` lists the commands, `envforge COMMAND --help` explains one"),
];

/// The answer to a command that does not exist.
pub(crate) fn answer(given: &str, known: &[String]) -> Problem {
    let message = format!("`envforge {given}` is not a command");
    for (words, hint) in HABITS {
        if words.contains(&given) {
            return Problem::new(ProblemKind::Usage, message, *hint);
        }
    }
    let near = known
        .iter()
        .map(|name| (distance(given, name), name))
        .filter(|(far, name)| *far <= 2 && *far < name.chars().count())
        .min();
    match near {
        Some((_, name)) => Problem::new(ProblemKind::Usage, message, format!("did you mean `envforge {name}`?")),
        None => Problem::new(ProblemKind::Usage, message, "`envforge --help` lists the commands"),
    }
}

/// Edit distance of two short words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        ["up", "status", "ls", "wake", "sleep", "delete"].map(str::to_owned).to_vec()
    }

    #[test]
    fn habits_of_other_tools_are_answered_with_the_right_command_and_status_2() {
        for (habit, right) in [
            ("down", "envforge sleep"),
            ("ps", "envforge ls"),
            ("rm", "envforge delete"),
            ("attach", "envforge up"),
            ("ssh", "envforge exec"),
            ("create", "envforge up -c"),
        ] {
            let problem = answer(habit, &known());
            assert!(problem.hint.contains(right), "{habit}: {}", problem.hint);
            assert_eq!(problem.kind.exit_code(), 2);
        }
    }

    #[test]
    fn a_typing_mistake_is_answered_with_the_nearest_command() {
        assert_eq!(answer("statsu", &known()).hint, "did you mean `envforge status`?");
        assert_eq!(answer("wkae", &known()).hint, "did you mean `envforge wake`?");
        assert_eq!(answer("frobnicate", &known()).hint, "`envforge --help` lists the commands");
    }
}
