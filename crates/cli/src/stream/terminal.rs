//! The person's terminal: raw while attached, and restored however that ends.

use envforge_api::{problem::Problem, stream::TerminalSize};
use rustix::termios::{self, OptionalActions, Termios};
use std::io::IsTerminal;

/// Whether standard input and output are both a terminal.
pub(crate) fn present() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// The terminal's size; 80 by 24 where it does not say.
pub(crate) fn size() -> TerminalSize {
    match termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => TerminalSize { columns: size.ws_col, rows: size.ws_row },
        Ok(_) | Err(_) => TerminalSize { columns: 80, rows: 24 },
    }
}

/// Value of TERM.
pub(crate) fn term() -> String {
    std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| "xterm-256color".to_owned())
}

/// Raw mode while this value lives; dropping it (also by a panic) restores what was.
pub(crate) struct Raw(Termios);

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raw")
    }
}

impl Raw {
    /// Makes standard input raw.
    ///
    /// # Errors
    /// When it is no terminal.
    pub(crate) fn enter() -> Result<Self, Problem> {
        let failed =
            |error: rustix::io::Errno| Problem::internal(format!("the terminal could not be made raw: {error}"));
        let before = termios::tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}
