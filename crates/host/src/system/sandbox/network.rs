//! The network of workspaces: a veth pair each, NAT to the outside, nothing between them and nothing to the host.
//!
//! Rules live in one nftables table of the installation. `ip` and `nft` are called as programs.

use crate::system::{
    Result, SystemError,
    installation::{Installation, Isolation},
};
use nix::libc;
use std::{fs, io, os::fd::AsRawFd, process::Stdio};
use tokio::io::AsyncWriteExt;

/// Name of the host's end of workspace `index`; at most 15 characters.
fn veth(installation: &Installation, index: u32) -> String {
    format!("e{}h{index}", installation.id)
}

fn table(installation: &Installation) -> String {
    format!("envforge_{}", installation.id)
}

/// Name servers for inside: the machine's own that can be reached from another network.
pub(super) fn resolv_conf() -> String {
    let mut lines = String::new();
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            let server = line.strip_prefix("nameserver").map(str::trim);
            let local = server.is_some_and(|s| s.starts_with("127.") || s == "::1");
            if (server.is_some() && !local) || line.starts_with("search ") || line.starts_with("options ") {
                lines.push_str(line);
                lines.push('\n');
            }
        }
        if lines.contains("nameserver") {
            break;
        }
    }
    lines
}

/// Address at which `pasta` answers for a name server that only the machine itself can reach.
pub(super) const FORWARDED: &str = "169.254.1.53";

/// Name servers for inside an ordinary user's workspace.
pub(super) fn resolv_conf_forwarded() -> String {
    let text = resolv_conf();
    if text.contains("nameserver") { text } else { format!("nameserver {FORWARDED}\n{text}") }
}

/// Turns loopback on in the caller's network.
pub(in crate::system) fn loopback_up() -> Result<()> {
    let doing = |e: io::Error| SystemError::new("turn loopback on", e);
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).map_err(doing)?;
    #[allow(unsafe_code)]
    // SAFETY: every octet of the request may be zero; the name is shorter than its field and ends with zero; the
    // kernel reads the request only.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if done == 0 { Ok(()) } else { Err(doing(io::Error::last_os_error())) }
}

/// `ip -batch` inside.
pub(super) fn inside(gateway: &str, address: &str) -> String {
    format!("link set lo up\naddr add {address}/30 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n")
}

/// Makes the veth pair of a workspace, one end in the network of process `pid`.
pub(super) async fn connect(installation: &Installation, index: u32, pid: u32) -> Result<()> {
    let name = veth(installation, index);
    let (gateway, _) = installation.addresses(index);
    // What a namespace that ended left behind goes with it a moment later; the name is needed now.
    let _ = feed("ip", &["-batch", "-"], &format!("link del {name}\n"), true).await;
    let batch = format!(
        "link add {name} type veth peer name eth0 netns {pid}\naddr add {gateway}/30 dev {name}\nlink set {name} up\n"
    );
    feed("ip", &["-batch", "-"], &batch, false).await
}

/// Opens the machine's network for the installation: forwarding, NAT, and the rules that keep workspaces apart and
/// away from the host's own addresses. Idempotent.
///
/// # Errors
/// When `nft` is missing or refuses.
pub async fn ensure_network(installation: &Installation) -> Result<()> {
    if installation.isolation != Isolation::Full {
        return Ok(());
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .map_err(|e| SystemError::new("let workspaces reach the network (net.ipv4.ip_forward)", e))?;
    let (table, subnet, prefix) = (table(installation), installation.subnet_cidr(), format!("e{}h", installation.id));
    let rules = format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{prefix}*" ip daddr {{ 100.64.0.0/10, 169.254.0.0/16, 127.0.0.0/8 }} drop
    iifname "{prefix}*" meta nfproto ipv6 drop
    iifname "{prefix}*" ip saddr != {subnet} drop
    iifname "{prefix}*" accept
    oifname "{prefix}*" ct state established,related accept
    oifname "{prefix}*" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{prefix}*" ct state established,related accept
    iifname "{prefix}*" udp dport 53 accept
    iifname "{prefix}*" tcp dport 53 accept
    iifname "{prefix}*" drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{prefix}*" ct state established,related accept
    oifname "{prefix}*" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{prefix}*" masquerade
  }}
}}
"#
    );
    feed("nft", &["-f", "-"], &rules, false).await
}

/// Removes rules and links of the installation. What is gone already is as wanted.
pub(super) async fn remove(installation: &Installation) {
    let table = table(installation);
    let _ = feed("nft", &["-f", "-"], &format!("table inet {table}\ndelete table inet {table}\n"), true).await;
    let prefix = format!("e{}h", installation.id);
    let Ok(links) = fs::read_dir("/sys/class/net") else { return };
    for link in links.flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            let _ = feed("ip", &["-batch", "-"], &format!("link del {name}\n"), true).await;
        }
    }
}

async fn feed(program: &str, args: &[&str], input: &str, quiet: bool) -> Result<()> {
    let doing = |e| SystemError::new(format!("set up the network with {program}"), e);
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(if quiet { Stdio::null() } else { Stdio::piped() })
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| doing(e).with_hint(format!("install what brings {program}: apt-get install nftables iproute2")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.map_err(doing)?;
    }
    let ended = child.wait_with_output().await.map_err(doing)?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(doing(io::Error::other(said.lines().next().unwrap_or("it failed without a word").to_owned())))
}
