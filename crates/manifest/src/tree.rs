//! YAML text into a small tree in which every key and value knows its place.
//!
//! The tree is data alone: anchors, aliases, tags, directives and further documents are findings, so that no text is
//! larger as a tree than as text. Depth, nodes and length are limited before anything is built.

use crate::findings::{Findings, Pos, quote};
use granit_parser::{Event, Parser, ScalarStyle, Span};

/// Longest text in bytes.
pub(crate) const MAX_BYTES: usize = 256 * 1024;
/// Most nodes.
const MAX_NODES: usize = 10_000;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// A value and where it begins.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Pos,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(crate) enum Value {
    /// Text; `plain` = written without quotes, so that it may mean a number, a boolean or nothing.
    Scalar { text: String, plain: bool },
    /// Keys with their values in written order; no key twice.
    Map(Vec<Entry>),
    /// Values in written order.
    List(Vec<Node>),
    /// Something that has its finding already.
    Broken,
}

/// One key of a map with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Pos,
    pub(crate) value: Node,
}

impl Node {
    /// Whether nothing was written (`key:`, `~` or `null`).
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it is, as a sentence names it.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { text, plain: true } if as_bool(text).is_some() => "true or false",
            Value::Scalar { text, plain: true } if is_number(text) => "a number",
            Value::Scalar { .. } => "text",
            Value::Map(_) => "a map",
            Value::List(_) => "a list",
            Value::Broken => "not readable",
        }
    }
}

/// A plain scalar read as YAML 1.2 reads booleans.
pub(crate) fn as_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Whether YAML 1.2 reads a plain scalar as a number.
pub(crate) fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let hexadecimal =
        digits.strip_prefix("0x").is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()));
    hexadecimal || (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok())
}

/// Reads a text. Absent when no tree could be made; what is wrong is in `findings` then, or there is no content.
pub(crate) fn read(text: &str, findings: &mut Findings<'_>) -> Option<Node> {
    if text.len() > MAX_BYTES {
        let mend = format!("keep it below {} KiB: move scripts into files of their own", MAX_BYTES / 1024);
        findings.add_hidden(Pos::START, format!("the file has {} bytes, which is too many", text.len()), mend);
        return None;
    }
    let mut builder = Builder { findings, open: Vec::new(), root: None, nodes: 0, documents: 0 };
    let mut options = granit_parser::options! {
        emit_unresolved_aliases: true,
        emit_anchor_events: true,
        disallow_directives: true,
        block_nesting_limit: 200,
        flow_nesting_limit: 200,
    };
    options.set_emit_comments(false);
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            // The scanner reads ahead of its events, so a very deep text ends here.
            Err(error) if matches!(error.kind(), granit_parser::ErrorKind::RecursionLimitExceeded) => {
                builder.too_deep(place(error.marker()));
                return None;
            }
            Err(error) => {
                let at = place(error.marker());
                let mend = "mend the YAML there or just before: indentation, quotes, brackets and `key: value` pairs";
                builder.findings.add(at, format!("this is not YAML: {}", plain_words(&error.info())), mend);
                return None;
            }
        }
    }
    builder.root
}

fn plain_words(info: &str) -> String {
    info.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn place(marker: &granit_parser::Marker) -> Pos {
    let line = u32::try_from(marker.line()).unwrap_or(u32::MAX).max(1);
    Pos { line, column: u32::try_from(marker.col()).unwrap_or(u32::MAX - 1) + 1 }
}

/// A collection that is not closed yet.
enum Open {
    Map { at: Pos, entries: Vec<Entry>, key: Option<Key> },
    List { at: Pos, items: Vec<Node> },
}

/// A key whose value comes next; absent text = it has its finding, and the value is dropped.
struct Key {
    text: Option<String>,
    at: Pos,
}

struct Builder<'f, 't> {
    findings: &'f mut Findings<'t>,
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

impl Builder<'_, '_> {
    /// Takes one event; nothing = stop reading.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = place(&span.start);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.findings.add(at, "a second document begins here", "keep one document: remove the `---`");
                    return None;
                }
            }
            Event::Scalar(text, style, _, tag) => {
                self.tag(tag.is_some(), &span);
                let plain = style == ScalarStyle::Plain;
                // The parser writes `~` where nothing is written.
                let text = if span.is_empty() { String::new() } else { text.into_owned() };
                self.value(Node { at, value: Value::Scalar { text, plain } })?;
            }
            Event::SequenceStart(_, _, tag) => {
                self.tag(tag.is_some(), &span);
                self.begin(Open::List { at, items: Vec::new() }, at)?;
            }
            Event::MappingStart(_, _, tag) => {
                self.tag(tag.is_some(), &span);
                self.begin(Open::Map { at, entries: Vec::new(), key: None }, at)?;
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop()? {
                Open::Map { at, entries, .. } => self.place(Node { at, value: Value::Map(entries) }),
                Open::List { at, items } => self.place(Node { at, value: Value::List(items) }),
            },
            Event::Anchor(_, name) => {
                let reason = format!("the anchor {} is not allowed", quote(&format!("&{name}")));
                self.findings.add(at, reason, "write the value out where it is needed");
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.findings.add(at, "aliases are not allowed", "write the value out here");
                self.value(Node { at, value: Value::Broken })?;
            }
            _ => {}
        }
        Some(())
    }

    fn tag(&mut self, tagged: bool, span: &Span) {
        if tagged {
            let at = span.tag_span().map_or(place(&span.start), |tag| place(&tag.start));
            self.findings.add(at, "tags are not allowed", "remove the tag; put text in quotes where it must stay text");
        }
    }

    fn count(&mut self, at: Pos) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.findings.add(at, format!("the file has more than {MAX_NODES} values"), "make it shorter");
            return None;
        }
        Some(())
    }

    fn too_deep(&mut self, at: Pos) {
        self.findings.add(at, format!("this is nested deeper than {MAX_DEPTH} levels"), "nest less deeply");
    }

    fn begin(&mut self, open: Open, at: Pos) -> Option<()> {
        self.count(at)?;
        if self.open.len() >= MAX_DEPTH {
            self.too_deep(at);
            return None;
        }
        self.open.push(open);
        Some(())
    }

    fn value(&mut self, node: Node) -> Option<()> {
        self.count(node.at)?;
        self.place(node);
        Some(())
    }

    /// Puts a finished node where it belongs: a key, a value, an item or the root.
    fn place(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                None => *key = Some(read_key(node, entries, self.findings)),
                Some(Key { text: Some(text), at }) => {
                    // Nothing written has no place of its own: the key is where a person looks.
                    let empty = matches!(&node.value, Value::Scalar { text, plain: true } if text.is_empty());
                    let value = if empty { Node { at, ..node } } else { node };
                    entries.push(Entry { key: text, at, value });
                }
                Some(Key { text: None, .. }) => {}
            },
        }
    }
}

fn read_key(node: Node, entries: &[Entry], findings: &mut Findings<'_>) -> Key {
    let at = node.at;
    let text = match node.value {
        Value::Scalar { text, .. } => match entries.iter().find(|entry| entry.key == text) {
            None => Some(text),
            Some(first) => {
                let reason = format!("{} is written twice: first in line {}", quote(&text), first.at.line);
                findings.add(at, reason, "keep one of the two");
                None
            }
        },
        Value::Map(_) | Value::List(_) => {
            findings.add(at, "a map or list cannot be a key", "write a name before the `:`");
            None
        }
        Value::Broken => None,
    };
    Key { text, at }
}
