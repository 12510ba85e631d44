//! Collects what is wrong with one file, so that a person mends everything in one go.
//!
//! Whatever is quoted from the file is shortened and freed of control characters: a finding is printed on terminals.

use envforge_api::problem::Diagnostic;

/// A place in a file: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pos {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Pos {
    pub(crate) const START: Self = Self { line: 1, column: 1 };
}

/// Findings kept at most; more of them help nobody.
const MOST: usize = 100;
/// Characters of a line that a snippet shows at most.
const WIDTH: usize = 120;

/// The findings of one file.
#[derive(Debug)]
pub(crate) struct Findings<'t> {
    file: &'t str,
    lines: Vec<&'t str>,
    found: Vec<Diagnostic>,
}

impl<'t> Findings<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, lines: text.lines().collect(), found: Vec::new() }
    }

    /// Adds a finding with the line it is about.
    pub(crate) fn add(&mut self, at: Pos, reason: impl Into<String>, mend: impl Into<String>) {
        let snippet = self.snippet(at);
        self.push(at, reason.into(), mend.into(), snippet);
    }

    /// Adds a finding about a line that must not be shown, since it holds a password.
    pub(crate) fn add_hidden(&mut self, at: Pos, reason: impl Into<String>, mend: impl Into<String>) {
        self.push(at, reason.into(), mend.into(), String::new());
    }

    fn push(&mut self, at: Pos, reason: String, mend: String, snippet: String) {
        if self.found.len() < MOST {
            let Pos { line, column } = at;
            self.found.push(Diagnostic { file: self.file.to_owned(), line, column, reason, mend, snippet });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Every finding in the order of the file.
    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| (d.line, d.column));
        self.found
    }

    /// The line with a marker below the column.
    fn snippet(&self, at: Pos) -> String {
        let Some(line) = self.lines.get(at.line as usize - 1) else { return String::new() };
        let column = at.column as usize - 1;
        // Of a long line, the part around the column.
        let skip = column.saturating_sub(WIDTH / 2);
        let shown: String = line
            .chars()
            .skip(skip)
            .take(WIDTH)
            .map(|c| match c {
                '\t' => ' ',
                c if c.is_control() => '\u{FFFD}',
                c => c,
            })
            .collect();
        let number = at.line.to_string();
        let margin = " ".repeat(number.len());
        let marker = " ".repeat(column - skip);
        format!("{margin} |\n{number} | {}\n{margin} | {marker}^", shown.trim_end())
    }
}

/// Text of the file in a sentence: in backquotes, at most 60 characters, control characters escaped.
pub(crate) fn quote(text: &str) -> String {
    let mut shown = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == 60 {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    format!("`{shown}`")
}

/// `a, b or c`, each in backquotes.
pub(crate) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.into_iter().map(quote).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that was probably meant: at most a third of its letters away, at least one edit allowed.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.chars().count() > 40 {
        return None;
    }
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|word| (distance(&given, word), word))
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1) && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Edits (insert, remove, replace, swap of neighbours) between two short words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognized_and_a_stranger_is_not() {
        let known = ["environment", "inputs", "ports", "setup"];
        assert_eq!(nearest("enviroment", known), Some("environment"));
        assert_eq!(nearest("Ports", known), Some("ports"));
        assert_eq!(nearest("prots", known), Some("ports"));
        assert_eq!(nearest("volumes", known), None);
    }

    #[test]
    fn a_snippet_marks_the_column_also_on_a_long_line() {
        let text = format!("a: 1\n{}b: 2\n", " ".repeat(300));
        let findings = Findings::new("f", &text);
        assert_eq!(findings.snippet(Pos { line: 1, column: 4 }), "  |\n1 | a: 1\n  |    ^");
        let long = findings.snippet(Pos { line: 2, column: 304 });
        let [_, line, marker] = long.lines().collect::<Vec<_>>()[..] else { panic!("{long}") };
        assert_eq!(line.find('2').map(|_| line.rfind('2')), Some(marker.find('^')), "{long}");
        assert_eq!(findings.snippet(Pos { line: 9, column: 1 }), "");
    }

    #[test]
    fn quoted_text_cannot_write_to_the_terminal() {
        assert_eq!(quote("a\u{1b}[2J"), "`a\\u{1b}[2J`");
        assert!(quote(&"x".repeat(500)).chars().count() < 70);
    }
}
