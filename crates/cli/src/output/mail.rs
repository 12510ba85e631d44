//! An inbox, and one message of it.

use super::{tables::table, times};
use envforge_api::mail::{Address, Inbox, Mail};

fn person(of: &Address) -> String {
    match (of.name.as_str(), of.address.as_str()) {
        ("", address) => address.to_owned(),
        (name, address) => format!("{name} <{address}>"),
    }
}

fn people(of: &[Address]) -> String {
    of.iter().map(person).collect::<Vec<_>>().join(", ")
}

/// What a terminal may show of what others wrote: no control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

/// `mail`.
pub(crate) fn list(inbox: &Inbox) -> String {
    let rows = inbox.messages.iter().map(|m| {
        let subject = plain(&m.subject).replace('\n', " ");
        vec![m.id.clone(), times::point(m.received_at), plain(&person(&m.from)), plain(&people(&m.to)), subject]
    });
    let shown = inbox.messages.len() as u64;
    let mut text = table(&["MESSAGE", "RECEIVED", "FROM", "TO", "SUBJECT"], rows.collect());
    if shown < inbox.total {
        text.push_str(&format!("\nthe newest {shown} of {}", inbox.total));
    }
    text
}

/// `mail --show`.
pub(crate) fn message(mail: &Mail) -> String {
    let mut lines = vec![format!("From:    {}", person(&mail.from)), format!("To:      {}", people(&mail.to))];
    if !mail.cc.is_empty() {
        lines.push(format!("Cc:      {}", people(&mail.cc)));
    }
    lines.push(format!("Date:    {}", times::point(mail.date)));
    lines.push(format!("Subject: {}", mail.subject));
    for file in &mail.attachments {
        lines.push(format!("File:    {} ({}, {} octets)", file.name, file.content_type, file.size));
    }
    let text = mail.text.replace("\r\n", "\n");
    plain(&format!("{}\n\n{}", lines.join("\n"), text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(name: &str) -> Address {
        Address { name: name.into(), address: format!("{}@example.com", name.to_lowercase()) }
    }

    #[test]
    fn a_message_cannot_speak_to_the_terminal_that_shows_it() {
        let mail = Mail {
            id: "a".into(),
            from: address("Ada"),
            to: vec![address("Bob"), address("")],
            cc: vec![],
            subject: "\u{1b}[2Jhello".into(),
            date: "2026-01-31T12:00:00Z".parse().expect("a time"),
            size: 10,
            text: "one\r\ntwo\u{7}\r\n".into(),
            html: String::new(),
            attachments: vec![],
        };
        let shown = message(&mail);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{7}'), "{shown:?}");
        assert!(
            shown.contains("From:    Ada <ada@example.com>\nTo:      Bob <bob@example.com>, @example.com"),
            "{shown}"
        );
        assert!(shown.ends_with("one\ntwo\u{fffd}"), "{shown:?}");
    }
}
