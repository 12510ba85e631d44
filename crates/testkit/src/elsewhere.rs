//! Programs that see of a host what they would on another machine: its ports, and none of its sockets.

use crate::{local::Local, terminal::Terminal};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    process::{Child, Command, Stdio},
};

/// Another machine, as far as programs of one installation are concerned. Only root can make one.
#[derive(Debug)]
pub struct Elsewhere<'a> {
    local: &'a Local,
}

/// A gateway there; ends with this.
#[derive(Debug)]
pub struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port for a gateway to come.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

impl<'a> Elsewhere<'a> {
    /// Another machine than that of `local`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn than(local: &'a Local) -> Self {
        // Shells and systems differ in what they quote: a program of its own takes any arguments.
        let hides = "#!/bin/sh\nexec unshare --mount --propagation private -- \\\n  \
                     sh -c 'mount -t tmpfs none /run/envforge && exec \"$@\"' sh \"$@\"\n";
        let program = local.dir().join("elsewhere");
        fs::write(&program, hides).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made a program");
        Self { local }
    }

    fn kept(&self, name: &str) -> String {
        let path = self.local.home().join("control").join(name);
        fs::read_to_string(path).expect("the control plane keeps it").trim().to_owned()
    }

    /// A command line there, of a person whom the control plane knows as the owner.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let line = self.local.command(args);
        let mut command = Command::new(self.local.dir().join("elsewhere"));
        command.arg(line.get_program()).args(args).stdin(Stdio::null());
        for (name, value) in line.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("ENVFORGE_HOME", self.local.dir().join("none"));
        command.env("XDG_CACHE_HOME", self.local.dir().join("cache-elsewhere"));
        command.env("ENVFORGE_SERVER", self.kept("address")).env("ENVFORGE_TOKEN", self.kept("owner.token"));
        command
    }

    /// The same on a terminal.
    #[must_use]
    pub fn terminal(&self, args: &[&str]) -> Terminal {
        Terminal::start(&self.command(args))
    }

    /// A gateway there, once it is ready.
    ///
    /// # Panics
    /// When it does not become so.
    #[must_use]
    pub fn gateway(&self, listener: TcpListener) -> Gateway {
        let token = self.local.home().join("control").join("gateway.token");
        let mut command = self.command(&["gateway", "--listen", "stdin", "--server", &self.kept("address")]);
        command.arg("--token-file").arg(token).env_remove("ENVFORGE_TOKEN").stdin(OwnedFd::from(listener));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        let mut gateway = Gateway(child);
        let said = BufReader::new(gateway.0.stdout.take().expect("piped")).lines().next();
        assert_eq!(said.expect("it says something").expect("text"), "ready");
        gateway
    }
}
