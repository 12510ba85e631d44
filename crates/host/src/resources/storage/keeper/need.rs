//! The other end of the keeper's socket: what daemon and supervisors ask.

use super::{Ask, COMING, COMMAND, Told};
use crate::{
    resources::storage::Place,
    system::{SystemError, boot, enter, files},
};
use envforge_api::{
    dial::{self, Dialled},
    states::Trouble,
    tunnel::NotOpened,
};
use std::{fs, io, net::TcpStream, os::unix::fs::OpenOptionsExt, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{Instant, timeout},
};

/// How long a keeper is waited for that somebody else starts, or that is about to be replaced.
const ARRIVES: Duration = Duration::from_secs(20);
/// How long a keeper may take to end with its server.
const ENDS: Duration = Duration::from_secs(20);

async fn connect(place: &Place, ask: Ask) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(place.socket()).await?;
    let mut line = serde_json::to_vec(&ask)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream)
}

/// A need of the server, for as long as it lives.
#[derive(Debug)]
pub struct Need(BufReader<UnixStream>);

impl Need {
    /// Waits until the server answers. A keeper that is not there is waited for: the daemon starts it.
    ///
    /// # Errors
    /// When the server cannot be had, with how to get it.
    pub async fn ready(place: &Place) -> Result<Self, Trouble> {
        let deadline = Instant::now() + ARRIVES;
        let mut pause = Duration::from_millis(5);
        let stream = loop {
            match connect(place, Ask::Need).await {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => tokio::time::sleep(pause).await,
                Err(_) => {
                    let hint = "the host daemon starts it: `envforge doctor` says whether that runs";
                    return Err(Trouble::new("the keeper of the storage server is not there", hint));
                }
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        };
        let mut need = Self(BufReader::new(stream));
        loop {
            match need.told().await {
                Ok(Told::Ready) => return Ok(need),
                Ok(Told::Coming) => {}
                Ok(Told::Failed { trouble }) => return Err(trouble),
                Err(_) => {
                    return Err(Trouble::new("the keeper of the storage server ended", "it is tried again by itself"));
                }
            }
        }
    }

    async fn told(&mut self) -> io::Result<Told> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Resolves when the keeper is gone, or says that its server cannot be had.
    pub async fn lost(&mut self) {
        while let Ok(Told::Ready | Told::Coming) = self.told().await {}
    }
}

/// A connection to the server.
///
/// # Errors
/// When it does not run.
pub async fn dial(place: &Place) -> Result<TcpStream, NotOpened> {
    dial::dial(&place.socket(), &Ask::Dial, COMING).await.map(|Dialled { socket, .. }| socket)
}

/// Resolves when the keeper is gone; at once when there is none.
pub async fn watch(place: &Place) {
    if let Ok(mut stream) = connect(place, Ask::Watch).await {
        let _ = stream.read_u8().await;
    }
}

/// Starts a keeper unless one lives, and waits until it can be asked. It outlives the caller, whose network it starts in.
///
/// # Errors
/// When it does not start, with why.
pub async fn ensure(place: &Place) -> Result<(), Trouble> {
    if UnixStream::connect(place.socket()).await.is_ok() {
        return Ok(());
    }
    if place.external().is_none() {
        place.server()?;
    }
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    let doing = |e| system(SystemError::new("start the keeper of the storage server", e));
    place.ensure().map_err(system)?;
    let log = place.file("keeper.err");
    files::write_whole(&log, b"", 0o600).map_err(system)?;
    let file = fs::OpenOptions::new().append(true).mode(0o600).open(&log).map_err(doing)?;
    let mut command = tokio::process::Command::new(enter::own_binary().map_err(system)?);
    command.arg(COMMAND).arg(place.home()).env_clear();
    for name in ["PATH", "XDG_RUNTIME_DIR", boot::BOOT_ID_PATH_VAR] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file)).spawn();
    let mut child = child.map_err(doing)?;
    let listens = async {
        let mut pause = Duration::from_millis(2);
        while UnixStream::connect(place.socket()).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    };
    tokio::select! {
        listens = timeout(ARRIVES, listens) => {
            listens.map_err(|_| doing(io::ErrorKind::TimedOut.into()))
        }
        // Another one may have been there first.
        _ = child.wait() => {
            if UnixStream::connect(place.socket()).await.is_ok() {
                return Ok(());
            }
            let said = fs::read_to_string(&log).unwrap_or_default();
            let said = said.lines().next().unwrap_or("it ended without a word").trim_start_matches("envforge: ").to_owned();
            Err(Trouble::new(said, "the host daemon tries it again with the next wake"))
        }
    }
}

/// The same at once, of a server whose data is about to be removed.
///
/// # Errors
/// As [`end`].
pub async fn kill(place: &Place) -> Result<(), SystemError> {
    if let Ok(mut stream) = connect(place, Ask::Kill).await {
        let gone = async { drop(stream.read_u8().await) };
        let _ = timeout(ENDS, gone).await;
    }
    // One of before an upgrade does not know the word.
    end(place).await
}

/// Ends the keeper and its server, whoever needs them, and waits until they are gone. None is as wanted.
///
/// # Errors
/// When it does not end.
pub async fn end(place: &Place) -> Result<(), SystemError> {
    let Ok(mut stream) = connect(place, Ask::End).await else { return Ok(()) };
    // Its end closes the connection.
    let gone = async {
        let _ = stream.read_u8().await;
    };
    timeout(ENDS, gone).await.map_err(|_| SystemError::new("end the storage server", io::ErrorKind::TimedOut.into()))
}
