//! The gateway of a local installation, and the one port that links of this machine lead to.
//!
//! The keeper itself listens and hands the socket on, so that visitors who come while a gateway is being replaced wait
//! for the next one. The port is kept for good: it is part of every link.

use super::{
    log,
    paths::{Paths, Programs},
    process::Process,
    program::{BASE, broken, command, read_address},
    state::Board,
};
use envforge_api::problem::Problem;
use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
};

/// Tried first, for addresses that people can remember.
const FAVOURITE: u16 = 7080;

/// Names the host below which dev hosts of a local installation lie, when it is started for the first time.
const BASE_VARIABLE: &str = "ENVFORGE_BASE";

/// The port, with the socket on it unless a gateway that an earlier keeper left has that.
#[derive(Debug, Clone)]
pub(super) struct Door {
    host: String,
    port: u16,
    listener: Option<Arc<TcpListener>>,
}

impl Door {
    /// Listens where links lead, or takes a port for the first time. `held`: a gateway that goes on holds the socket.
    ///
    /// # Errors
    /// When no port can be had.
    pub(super) fn open(board: &Board, held: bool) -> Result<Self, Problem> {
        let host = board.base_host().unwrap_or_else(|| {
            std::env::var(BASE_VARIABLE).ok().filter(|base| !base.is_empty()).unwrap_or_else(|| BASE.to_owned())
        });
        let known = board.base_port();
        if let Some(port) = known.filter(|_| held) {
            return Ok(Self { host, port, listener: None });
        }
        let listen = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match known.map(listen) {
            Some(Ok(listener)) => Ok(listener),
            Some(Err(error)) => {
                log::note(&format!("the port of links is taken, so links that were issued lead nowhere: {error}"));
                listen(0)
            }
            None => listen(FAVOURITE).or_else(|_| listen(0)),
        };
        let opened = listener.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, listener) = opened.map_err(|error| broken("listen for visitors", &error))?;
        board.change(|record| (record.base_host, record.base_port) = (Some(host.clone()), Some(port)));
        Ok(Self { host, port, listener: Some(Arc::new(listener)) })
    }

    /// The base of dev hosts.
    pub(super) fn base(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        match &self.listener {
            Some(listener) => Ok(listener.try_clone()?.into()),
            None => Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))?.into()),
        }
    }
}

/// The gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) paths: Paths,
    pub(super) programs: Programs,
    /// Directory for sockets.
    pub(super) run: PathBuf,
    pub(super) door: Door,
}

impl Gateway {
    pub(super) fn start(&self) -> Result<Process, Problem> {
        let address = read_address(&self.paths).ok_or_else(|| {
            Problem::unavailable("the control plane does not run, so links cannot be verified", "it is being restarted")
        })?;
        let socket = self.door.socket().map_err(|error| broken("listen for visitors", &error))?;
        let mut command = command(&self.programs, &self.paths, "gateway")?;
        command.args(["gateway", "--listen", "stdin", "--server", &format!("http://{address}")]);
        command.arg("--token-file").arg(self.paths.gateway_token()).stdin(Stdio::from(socket));
        command.arg("--inside").arg(self.run.join("gateway.sock"));
        Process::start(&mut command).map_err(|error| broken("start the gateway", &error))
    }
}
