//! The only place that prints. Data goes to standard output, talk to standard error, progress only to a terminal.
//!
//! A reader that went away (`| head`) ends the output quietly: write errors on standard output are remembered and
//! nothing more is written.

pub(crate) mod mail;
pub(crate) mod receipts;
pub(crate) mod status;
pub(crate) mod tables;
pub(crate) mod times;
pub(crate) mod why;

use envforge_api::{
    problem::{ErrorBody, Problem, ProblemKind},
    secret::Secret,
};
use serde::Serialize;
use std::{
    io::{IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Where and how to print.
#[derive(Debug)]
pub(crate) struct Output {
    /// Data and errors as JSON.
    pub(crate) json: bool,
    gone: AtomicBool,
    /// What tests read instead of the process's streams: standard output and standard error.
    #[cfg(test)]
    pub(crate) captured: std::sync::Mutex<(Vec<u8>, Vec<u8>)>,
}

impl Output {
    /// An output in the given form.
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            gone: AtomicBool::new(false),
            #[cfg(test)]
            captured: std::sync::Mutex::default(),
        }
    }

    /// Whether a person sits at both ends: questions can be asked.
    pub(crate) fn can_ask(&self) -> bool {
        !self.json && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Whether standard output still has a reader.
    pub(crate) fn has_reader(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
    }

    /// Prints data: JSON where asked for, else the text.
    pub(crate) fn data<T: Serialize>(&self, value: &T, human: impl FnOnce() -> String) {
        if self.json {
            match serde_json::to_string_pretty(value) {
                Ok(text) => self.line(&text),
                Err(error) => self.problem(&Problem::internal(error.to_string())),
            }
        } else {
            self.line(&human());
        }
    }

    /// Prints data as one line of JSON.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.problem(&Problem::internal(error.to_string())),
        }
    }

    /// Prints a line of data; an empty text prints nothing.
    pub(crate) fn line(&self, text: &str) {
        let text = text.trim_end_matches('\n');
        if !text.is_empty() {
            self.stdout(format!("{text}\n").as_bytes());
        }
    }

    /// Passes octets to standard output as they are.
    pub(crate) fn stdout(&self, bytes: &[u8]) {
        if self.has_reader() {
            #[cfg(test)]
            let written = self.captured.lock().expect("not poisoned").0.write_all(bytes);
            #[cfg(not(test))]
            let written = write(std::io::stdout().lock(), bytes);
            if written.is_err() {
                self.gone.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Passes octets to standard error as they are.
    pub(crate) fn stderr(&self, bytes: &[u8]) {
        #[cfg(test)]
        let written = self.captured.lock().expect("not poisoned").1.write_all(bytes);
        #[cfg(not(test))]
        let written = write(std::io::stderr().lock(), bytes);
        // Nobody reads standard error: there is no one left to tell.
        drop(written);
    }

    /// Says something to the person.
    pub(crate) fn say(&self, text: &str) {
        self.stderr(format!("envforge: {text}\n").as_bytes());
    }

    /// Shows a problem: message, findings, candidates and hint, or its JSON.
    pub(crate) fn problem(&self, problem: &Problem) {
        let text = if self.json {
            serde_json::to_string(&ErrorBody { error: problem.clone() }).unwrap_or_else(|error| error.to_string())
        } else {
            problem_text(problem)
        };
        self.stderr(format!("{text}\n").as_bytes());
    }

    /// A moving line on a terminal while something is waited for; nothing elsewhere.
    pub(crate) fn progress(&self, message: &str) -> Progress {
        if self.json || !std::io::stderr().is_terminal() {
            return Progress(None);
        }
        let bar = indicatif::ProgressBar::new_spinner();
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress(Some(bar))
    }

    /// Asks a yes-or-no question; `false` is the default.
    ///
    /// # Errors
    /// When the person breaks off.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool, Problem> {
        inquire::Confirm::new(question).with_default(false).prompt().map_err(broken_off)
    }

    /// Asks for a value that nobody else is to see.
    ///
    /// # Errors
    /// When the person breaks off.
    pub(crate) fn hidden(&self, question: &str) -> Result<Secret, Problem> {
        let answer = inquire::Password::new(question).without_confirmation().prompt().map_err(broken_off)?;
        Ok(Secret::new(answer))
    }

    /// Lets the person choose one.
    ///
    /// # Errors
    /// When the person breaks off.
    pub(crate) fn choose(&self, question: &str, options: Vec<String>) -> Result<String, Problem> {
        inquire::Select::new(question, options).prompt().map_err(broken_off)
    }
}

#[cfg(not(test))]
fn write(mut stream: impl Write, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

fn broken_off(_: inquire::InquireError) -> Problem {
    Problem::new(ProblemKind::Failed, "broken off", "")
}

/// A moving line on a terminal; gone when dropped.
#[derive(Debug)]
pub(crate) struct Progress(Option<indicatif::ProgressBar>);

impl Progress {
    /// Shows other words.
    pub(crate) fn set(&self, message: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(message.to_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A problem in words.
pub(crate) fn problem_text(problem: &Problem) -> String {
    let mut text = format!("error: {}", problem.message);
    for finding in &problem.diagnostics {
        text.push_str(&format!("\n{finding}"));
    }
    if !problem.candidates.is_empty() {
        text.push_str(&format!("\n  one of: {}", problem.candidates.join(", ")));
    }
    if !problem.hint.is_empty() {
        text.push_str(&format!("\n  hint: {}", problem.hint));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::problem::Diagnostic;

    #[test]
    fn a_problem_shows_findings_candidates_and_the_hint() {
        let mut problem = Problem::invalid("the project file has mistakes", "mend them and apply again")
            .with_candidates(vec!["a".into(), "b".into()]);
        problem.diagnostics.push(Diagnostic {
            file: "p.yml".into(),
            line: 3,
            column: 5,
            reason: "unknown key `depends_on`".into(),
            mend: "remove it".into(),
            snippet: String::new(),
        });
        assert_eq!(
            problem_text(&problem),
            "error: the project file has mistakes\np.yml:3:5: unknown key `depends_on`\n  mend: remove it\n  one of: a, b\n  hint: mend them and apply again"
        );
    }
}
