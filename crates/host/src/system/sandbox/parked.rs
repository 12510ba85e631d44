//! Listeners in the network of a sleeping workspace.
//!
//! A rule of the workspace's own network leads connections that its shell makes to a set of ports to one listener of the
//! daemon; what runs beside the shell is not led anywhere, so that services meet each other and their databases as ever.
//! Emptied, the set leads nobody, and what was led already goes on; the table may go only when nothing of that is left.

use super::{Result, Sandbox, SystemError};
use crate::system::cgroup;
use nix::sched::{CloneFlags, setns};
use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::AsFd, linux::fs::MetadataExt},
    path::PathBuf,
    process::{Command, Stdio},
};

/// Name of the table, in a network where there is no other of ours.
const TABLE: &str = "envforge";
/// Where nft looks for control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// The listeners that connections are led to: IPv4, and IPv6 where the network has it.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1.
    pub four: TcpListener,
    /// ::1.
    pub six: Option<TcpListener>,
}

/// Leads connections of the shell to `ports` to new listeners; what was led elsewhere before is forgotten.
///
/// # Errors
/// When the machine cannot (no root, no `nft`, an older kernel).
pub fn park(sandbox: &Sandbox, ports: &BTreeSet<u16>) -> Result<Listeners> {
    let doing = "lead connections to a sleeping workspace";
    let (level, shell) = shell_group(sandbox)
        .ok_or_else(|| SystemError::new(doing, io::Error::other("its shell has no control group of its own")))?;
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    files_mark(sandbox, true)?;
    within(sandbox, move || {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
        let to = |listener: &TcpListener| listener.local_addr().map(|at: SocketAddr| at.port());
        let led = |family: &str, port: u16| {
            format!(
                "    meta nfproto {family} socket cgroupv2 level {level} \"{shell}\" fib daddr type local \
                 tcp dport @parked redirect to :{port}\n"
            )
        };
        let mut rules = led("ipv4", to(&four)?);
        if let Some(six) = &six {
            rules.push_str(&led("ipv6", to(six)?));
        }
        let text = format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n  set parked {{ type inet_service; \
             elements = {{ {} }}; }}\n  chain output {{\n    type nat hook output priority -100;\n{rules}  }}\n}}\n",
            ports.join(", "),
        );
        nft(&text)?;
        four.set_nonblocking(true)?;
        six.as_ref().map_or(Ok(()), |six| six.set_nonblocking(true))?;
        Ok(Listeners { four, six })
    })
    .map_err(|e| SystemError::new(doing, e))
}

/// Names one network, so that what was bound in another one is known to be of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(u64);

/// The workspace's network as it is now.
#[must_use]
pub fn network(sandbox: &Sandbox) -> Option<Network> {
    fs::metadata(sandbox.pins.first()?).ok().map(|about| Network(about.st_ino()))
}

/// Listens on a port of the workspace's own loopback.
///
/// # Errors
/// When something else does, or the machine cannot.
pub fn listen(sandbox: &Sandbox, port: u16) -> Result<Listeners> {
    within(sandbox, move || {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).ok();
        four.set_nonblocking(true)?;
        six.as_ref().map_or(Ok(()), |six| six.set_nonblocking(true))?;
        Ok(Listeners { four, six })
    })
    .map_err(|e| SystemError::new("listen in a workspace's network", e))
}

/// Leads nobody any more. What was led already goes on.
///
/// # Errors
/// When `nft` does not.
pub fn open(sandbox: &Sandbox) -> Result<()> {
    within(sandbox, || nft(&format!("flush set inet {TABLE} parked\n")))
        .map_err(|e| SystemError::new("let connections to a workspace pass", e))
}

/// Takes everything away, once nothing that was led is left.
///
/// # Errors
/// When `nft` does not.
pub fn clear(sandbox: &Sandbox) -> Result<()> {
    if !mark(sandbox).exists() {
        return Ok(());
    }
    within(sandbox, || nft(&format!("table inet {TABLE}\ndelete table inet {TABLE}\n")))
        .map_err(|e| SystemError::new("take the rules for connections away", e))?;
    files_mark(sandbox, false)
}

/// There while there may be a table: a daemon that starts anew takes away what an earlier one left.
fn mark(sandbox: &Sandbox) -> PathBuf {
    sandbox.run.join("parked")
}

fn files_mark(sandbox: &Sandbox, there: bool) -> Result<()> {
    let mark = mark(sandbox);
    let done = match there {
        true => fs::write(&mark, b""),
        false => fs::remove_file(&mark),
    };
    done.map_err(|e| SystemError::new("note that connections are led", e))
}

/// The shell's group as `nft` names it, with its depth.
fn shell_group(sandbox: &Sandbox) -> Option<(usize, String)> {
    let group = sandbox.cgroups.shell.v2.as_ref()?;
    let depth = group.strip_prefix(cgroup::v2_mount()?).ok()?.components().count();
    let named = group.strip_prefix(GROUPS).ok()?.to_str()?;
    named.bytes().all(|b| b.is_ascii_graphic() && b != b'"').then(|| (depth, named.to_owned()))
}

/// Does something in the workspace's network, on a thread that ends with it: the network of a thread is its own.
fn within<T: Send + 'static>(
    sandbox: &Sandbox,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let network = sandbox.pins.first().filter(|_| !sandbox.is_held());
    let network = fs::File::open(network.ok_or(io::ErrorKind::Unsupported)?)?;
    let thread = std::thread::Builder::new().name("network".into()).spawn(move || {
        setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
        work()
    })?;
    thread.join().map_err(|_| io::Error::other("the thread in the workspace's network ended"))?
}

/// `nft -f -` in the caller's network.
fn nft(text: &str) -> io::Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let ended = child.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(io::Error::other(said.lines().next().unwrap_or("nft failed without a word").to_owned()))
}

/// The port that a connection was made to before it was led here.
///
/// # Errors
/// When it was not led here.
pub fn asked_port(stream: &tokio::net::TcpStream) -> io::Result<u16> {
    use nix::sys::socket::{getsockopt, sockopt};
    let network_order = if stream.local_addr()?.is_ipv4() {
        getsockopt(stream, sockopt::OriginalDst)?.sin_port
    } else {
        getsockopt(stream, sockopt::Ip6tOriginalDst)?.sin6_port
    };
    Ok(u16::from_be(network_order))
}
