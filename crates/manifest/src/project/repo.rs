//! The address of a Git repository. It is given to `git` as an argument, so its shape is checked strictly.

use crate::{
    findings::{Findings, quote},
    section,
    tree::Node,
};

const MEND: &str = "write `https://…`, `http://…`, `ssh://…`, `git@HOST:PATH`, `file:///…` or an absolute path";

pub(super) fn check(f: &mut Findings<'_>, node: &Node) -> Option<String> {
    let given = section::text(f, node, "`repo`")?;
    if has_password(given) {
        let mend = "remove the password from the address: Git credentials belong to the person who is attached";
        f.add_hidden(node.at, "the address of the repository holds a password", mend);
        return None;
    }
    if is_address(given) {
        return Some(given.to_owned());
    }
    f.add(node.at, format!("{} is not the address of a Git repository", quote(given)), MEND);
    None
}

/// `scheme://user:password@host`. A user alone is fine: `ssh://git@host`.
fn has_password(given: &str) -> bool {
    let Some((_, rest)) = given.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

fn is_address(given: &str) -> bool {
    if given.len() > 1024 || given.starts_with('-') || given.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return false;
    }
    // `ext::command` and every other transport helper run programs.
    if given.contains("::") && !given.contains("://") {
        return false;
    }
    for scheme in ["https://", "http://", "ssh://"] {
        if let Some(rest) = given.strip_prefix(scheme) {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            return !host.is_empty() && !host.starts_with('-') && !authority.starts_with('-') && !path.is_empty();
        }
    }
    if let Some(path) = given.strip_prefix("file://") {
        return path.len() > 1 && path.starts_with('/');
    }
    if given.starts_with('/') {
        return given.len() > 1;
    }
    // `git@host:path`.
    let Some((authority, path)) = given.split_once(':') else { return false };
    let Some((user, host)) = authority.split_once('@') else { return false };
    let plain = |text: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    plain(user) && plain(host) && !path.is_empty() && !path.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_run_no_program_are_accepted() {
        for good in [
            "https://git.example/acme/web.git",
            "http://localhost:3000/a.git",
            "ssh://git@git.example:22/a.git",
            "git@git.example:acme/web.git",
            "file:///srv/web.git",
            "/srv/git/web.git",
        ] {
            assert!(is_address(good) && !has_password(good), "{good}");
        }
        for bad in [
            "--upload-pack=touch /tmp/x",
            "ext::sh -c id",
            "ext::sh",
            "web",
            "../web.git",
            "ssh://-oProxyCommand=x/y",
            "ssh://git@-oProxyCommand=x/y",
            "git@-oProxyCommand=x:y",
            "git@host:-x",
            "https://",
            "https:///x",
            "file://web",
            "/a\nb",
            "ftp://host/x",
            "/",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
        assert!(has_password("https://ada:secret@git.example/x.git"));
    }
}
