//! One installation on this machine: its id, directories, and what it claimed from the machine (uids, subnet).
//!
//! Several installations run side by side. Everything that has a machine-wide name carries the installation's id;
//! uid range and subnet are claimed under a host-wide lock in `/etc/envforge/claims.json` and checked against what
//! exists.

use super::{Result, SystemError, files};
use envforge_api::{
    home::{self, Place},
    problem::Problem,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    ops::Range,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What the machine and the caller's rights allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Root: Linux users, network and mount namespaces, cgroups.
    Full,
    /// An ordinary user: user, network, mount and pid namespaces; no users of their own, no limits.
    UserNamespaces,
}

/// An opened installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// 8 hex digits; prefixes every machine-wide name.
    pub id: String,
    /// `ENVFORGE_HOME`.
    pub home: PathBuf,
    /// `/run/envforge/<id>` as root, `$XDG_RUNTIME_DIR/envforge/<id>` (or a short directory in /tmp) otherwise.
    pub run: PathBuf,
    /// What is possible.
    pub isolation: Isolation,
    /// First uid of the claimed range (`Full` only); see [`super::accounts`].
    pub first_uid: u32,
    /// Workspaces that fit in the claimed ranges.
    pub capacity: u32,
    /// First address of the claimed subnet, such as `100.64.16.0`; workspace `i` has the `i`-th /30 in it.
    pub subnet: Ipv4Addr,
}

/// Uids and addresses that one installation takes from the machine.
pub(super) const UIDS: u32 = 4096;
/// First uid that is ever claimed: above what distributions and container tools hand out by themselves.
const FIRST_UID: u32 = 600_000;
/// Claimed subnets are /18 blocks of 100.64.0.0/10 (shared address space, RFC 6598), 4096 /30 each.
const SUBNETS: u32 = 256;
const SUBNET_SIZE: u32 = 1 << 14;

/// Who claimed which block, by installation id.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Claims {
    #[serde(default)]
    installations: BTreeMap<String, Claim>,
    /// Blocks of uids are never given twice, even when an installation is gone: files may still carry them.
    #[serde(default)]
    next_uid_block: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claim {
    home: PathBuf,
    uid_block: u32,
    subnet_block: u32,
}

const CLAIMS_DIR: &str = "/etc/envforge";

impl Installation {
    /// Opens the installation at `home`, making and claiming what is missing. Idempotent; safe from several
    /// processes at once.
    ///
    /// # Errors
    /// When a directory cannot be made or nothing is left to claim.
    pub fn open(home: &Path) -> Result<Self> {
        Self::opened(home, own)
    }

    /// The same for a home that is still the copy of another: for who is about to make it the installation.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_copy(home: &Path) -> Result<Self> {
        Self::opened(home, |_| Ok(()))
    }

    fn opened(home: &Path, own: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let home = std::path::absolute(home).map_err(|e| SystemError::new("find the home directory", e))?;
        files::ensure_dir(&home, 0o755)?;
        let home = fs::canonicalize(&home).map_err(|e| SystemError::new("find the home directory", e))?;
        files::ensure_dir(&home.join("workspaces"), 0o700)?;
        files::ensure_dir(&home.join("host"), 0o700)?;
        let root = rustix::process::geteuid().is_root();
        let id = ensure_id(&home)?;
        own(&home)?;
        if !root {
            let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
                || PathBuf::from(format!("/tmp/envforge-{}", rustix::process::getuid().as_raw())),
                |dir| PathBuf::from(dir).join("envforge"),
            );
            let run = base.join(&id);
            files::ensure_dir(&base, 0o700)?;
            files::ensure_dir(&run, 0o700)?;
            return Ok(Self {
                id,
                home,
                run,
                isolation: Isolation::UserNamespaces,
                first_uid: 0,
                capacity: 4000,
                subnet: Ipv4Addr::UNSPECIFIED,
            });
        }
        let claim = claim(&id, &home)?;
        files::ensure_dir(Path::new("/run/envforge"), 0o755)?;
        let run = Path::new("/run/envforge").join(&id);
        files::ensure_dir(&run, 0o711)?;
        files::ensure_dir(Path::new(super::sandbox::WORKSPACE), 0o755)?;
        Ok(Self {
            id,
            home,
            run,
            isolation: Isolation::Full,
            first_uid: FIRST_UID + claim.uid_block * UIDS,
            capacity: (UIDS - super::accounts::RESERVED) / 2 - 1,
            subnet: Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + claim.subnet_block * SUBNET_SIZE),
        })
    }

    /// Gives back what the installation claimed (after `local reset`); its workspaces are gone by then.
    ///
    /// # Errors
    /// When the claims cannot be written.
    pub fn release(&self) -> Result<()> {
        if self.isolation == Isolation::Full {
            let _lock = claims_lock()?;
            let mut claims = read_claims()?;
            claims.installations.remove(&self.id);
            write_claims(&claims)?;
        }
        match fs::remove_dir_all(&self.run) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SystemError::new(format!("remove {}", self.run.display()), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// `<home>/workspaces/<id>`.
    #[must_use]
    pub fn workspace_dir(&self, workspace: &envforge_api::ids::WorkspaceId) -> PathBuf {
        self.home.join("workspaces").join(workspace.as_str())
    }

    /// `<run>/w<index>`: sockets and namespace pins of one workspace; short, for the 107-octet limit.
    #[must_use]
    pub fn workspace_run(&self, index: u32) -> PathBuf {
        self.run.join(format!("w{index}"))
    }

    /// The two addresses of workspace `index`: the host's side and its own, in a /30.
    #[must_use]
    pub fn addresses(&self, index: u32) -> (Ipv4Addr, Ipv4Addr) {
        let base = self.subnet.to_bits() + index * 4;
        (Ipv4Addr::from_bits(base + 1), Ipv4Addr::from_bits(base + 2))
    }

    /// The claimed subnet as `address/prefix`.
    #[must_use]
    pub fn subnet_cidr(&self) -> String {
        format!("{}/18", self.subnet)
    }
}

/// The id in `<home>/host/installation`, made once.
fn ensure_id(home: &Path) -> Result<String> {
    let path = home.join("host").join("installation");
    loop {
        match fs::read_to_string(&path) {
            Ok(text) => {
                let id = text.trim().to_owned();
                if id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Ok(id);
                }
                return Err(SystemError::new(
                    format!("read {}", path.display()),
                    io::Error::new(io::ErrorKind::InvalidData, "not an installation id"),
                )
                .with_hint(
                    "restore the file: it holds 8 hex digits that name users and networks of this installation",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SystemError::new(format!("read {}", path.display()), error)),
        }
        let mut raw = [0_u8; 4];
        rand::fill(&mut raw);
        let id = data_encoding::HEXLOWER.encode(&raw);
        // Whoever links first decides; everyone then reads the same file.
        let own = home.join("host").join(format!("installation.{id}"));
        files::write_durably(&own, format!("{id}\n").as_bytes(), 0o644)?;
        let linked = fs::hard_link(&own, &path);
        let _ = fs::remove_file(&own);
        match linked {
            Ok(()) => return Ok(id),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(SystemError::new(format!("write {}", path.display()), error)),
        }
    }
}

/// Marks a new home as this directory, and refuses a copy of another.
fn own(home: &Path) -> Result<()> {
    let failed = |problem: Problem| {
        SystemError::new("open the installation", io::Error::other(problem.message)).with_hint(problem.hint)
    };
    home::check(home).map_err(failed)?;
    home::mark(home).map_err(|e| SystemError::new("mark the home", e))
}

/// A home that was moved is the same; two homes of one id are not.
fn moved(from: &Path, to: &Path) -> Result<()> {
    if !from.join("host").join("place").exists() || home::place(from).is_ok_and(|place| place != Place::Own) {
        return Ok(());
    }
    let both = format!("{} and {} are both this installation", from.display(), to.display());
    Err(SystemError::new("open the installation", io::Error::other(both)).with_hint("remove the one that is a copy"))
}

fn claims_lock() -> Result<fs::File> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(CLAIMS_DIR)
        .map_err(|e| SystemError::new(format!("make {CLAIMS_DIR}"), e))?;
    let path = Path::new(CLAIMS_DIR).join("claims.lock");
    let doing = || format!("lock {}", path.display());
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| SystemError::new(doing(), e))?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|e| SystemError::new(doing(), e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| SystemError::new(doing(), e.into()))?;
    Ok(file)
}

fn read_claims() -> Result<Claims> {
    let path = Path::new(CLAIMS_DIR).join("claims.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            SystemError::new(format!("read {}", path.display()), io::Error::new(io::ErrorKind::InvalidData, e))
                .with_hint("repair the file: it says which uids and subnets belong to which installation")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Claims::default()),
        Err(error) => Err(SystemError::new(format!("read {}", path.display()), error)),
    }
}

fn write_claims(claims: &Claims) -> Result<()> {
    let path = Path::new(CLAIMS_DIR).join("claims.json");
    let bytes = serde_json::to_vec_pretty(claims)
        .map_err(|e| SystemError::new("write the claims", io::Error::new(io::ErrorKind::InvalidData, e)))?;
    files::write_durably(&path, &bytes, 0o644)
}

fn claim(id: &str, home: &Path) -> Result<Claim> {
    let _lock = claims_lock()?;
    let mut claims = read_claims()?;
    if let Some(known) = claims.installations.get_mut(id) {
        if known.home != home {
            moved(&known.home, home)?;
            known.home = home.to_owned();
            let claim = known.clone();
            write_claims(&claims)?;
            return Ok(claim);
        }
        return Ok(known.clone());
    }
    // Directories that were removed by hand give their subnet back.
    claims.installations.retain(|_, claim| claim.home.exists());
    let used = used_uids();
    let mut uid_block = claims.next_uid_block;
    while used.iter().any(|range| overlaps(range, &uids_of(uid_block))) {
        uid_block += 1;
    }
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let subnet_block = (0..SUBNETS)
        .find(|block| {
            let first = Ipv4Addr::new(100, 64, 0, 0).to_bits() + block * SUBNET_SIZE;
            !claims.installations.values().any(|claim| claim.subnet_block == *block) && !routed(&routes, first)
        })
        .ok_or_else(|| {
            SystemError::new("claim a subnet", io::Error::other("every block of 100.64.0.0/10 is taken"))
                .with_hint("`envforge local reset` of an installation that is not used any more frees one")
        })?;
    let claim = Claim { home: home.to_owned(), uid_block, subnet_block };
    claims.next_uid_block = uid_block + 1;
    claims.installations.insert(id.to_owned(), claim.clone());
    write_claims(&claims)?;
    Ok(claim)
}

fn uids_of(block: u32) -> Range<u32> {
    FIRST_UID + block * UIDS..FIRST_UID + (block + 1) * UIDS
}

fn overlaps(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Ids that users and groups of the machine have, or may be given in namespaces of their own.
fn used_uids() -> Vec<Range<u32>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut used = ids(&read("/etc/passwd"), 2);
    used.extend(ids(&read("/etc/group"), 2));
    used.extend(ranges(&read("/etc/subuid")));
    used.extend(ranges(&read("/etc/subgid")));
    used
}

/// Single ids in a field of a table with colons.
fn ids(table: &str, field: usize) -> Vec<Range<u32>> {
    let id = |line: &str| line.split(':').nth(field)?.trim().parse::<u32>().ok();
    table.lines().filter_map(id).map(|id| id..id.saturating_add(1)).collect()
}

/// Ranges of a table such as `/etc/subuid`: `name:first:count`.
fn ranges(table: &str) -> Vec<Range<u32>> {
    let range = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|field| field.trim().parse::<u32>());
        let (first, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(first..first.saturating_add(count))
    };
    table.lines().filter_map(range).collect()
}

/// Whether the machine has a route (other than the default one) into the block that begins at `first`.
fn routed(routes: &str, first: u32) -> bool {
    routes.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|f| u32::from_str_radix(f, 16).ok()).map(u32::swap_bytes);
        match (number(1), number(7)) {
            (Some(destination), Some(mask)) if mask != 0 => {
                (destination & !(SUBNET_SIZE - 1)) == first || (first & mask) == destination
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_users_groups_and_of_their_namespaces_are_not_claimed() {
        let used = [ids("a:x:600005:1:::\nbroken\n", 2), ids("g:x:604096:a,b\n", 2), ranges("a:700000:65536\n:x:\n")];
        let used: Vec<_> = used.concat();
        let taken = |block| used.iter().any(|range| overlaps(range, &uids_of(block)));
        assert!(taken(0) && taken(1) && !taken(2));
        let block = (700_000 - FIRST_UID) / UIDS;
        assert!(!taken(block - 1) && taken(block) && taken(block + 16) && !taken(block + 17));
    }

    #[test]
    fn a_block_that_the_machine_routes_already_is_not_claimed() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                      eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n\
                      tun0 00404064 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        assert!(routed(routes, Ipv4Addr::new(100, 64, 64, 0).to_bits()));
        assert!(!routed(routes, Ipv4Addr::new(100, 64, 128, 0).to_bits()));
    }
}
