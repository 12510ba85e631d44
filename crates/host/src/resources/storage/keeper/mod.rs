//! The keeper of the host's storage server: one small process beside the daemon, which it outlives.
//!
//! It is the only one that can connect to the server, since both are in a place of their own ([`secluded`]): whoever needs
//! the server asks on `<run>/storage.sock`, which is root's. A connection that says [`Ask::Need`] is a need for as long as
//! it is open; without any the server is stopped and the keeper ends, so that sleeping workspaces cost no process. A
//! server that ends is started again. With a server elsewhere in its place the keeper only hands connections out.
//!
//! [`secluded`]: crate::system::secluded

mod need;
mod own;

use super::{External, Keys, Place, s3::Client, users};
use crate::system::{SystemError, enter, files, installation::Installation};
use envforge_api::{
    dial::{self, Dialled},
    states::Trouble,
    tunnel::NotOpened,
};
pub use need::{Need, dial, end, ensure, kill, watch};
use own::Own;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener as StdListener, net::UnixStream as StdStream},
    },
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener, UnixStream},
    signal::unix::SignalKind,
    sync::watch as channel,
    task::LocalSet,
    time::timeout,
};

/// What the internal command is called.
pub const COMMAND: &str = "keep-storage";
/// How long a server without need goes on: a runtime that sleeps and wakes at once finds it there.
const LINGER: Duration = Duration::from_secs(3);
/// How long a question for a connection waits for a server that is on its way.
const COMING: Duration = Duration::from_secs(4);

/// What is asked, a line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(super) enum Ask {
    /// The server is needed while this connection is open. Answered by lines of [`Told`].
    Need,
    /// A connection to the server.
    Dial,
    /// Nothing: the connection is open as long as the keeper lives.
    Watch,
    /// End, whoever needs the server.
    End,
    /// The same without giving the server time: its data is about to be removed.
    Kill,
}

/// How the server stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "told")]
pub(super) enum Told {
    /// It is being started.
    Coming,
    /// It answers.
    Ready,
    /// It cannot be had; it is tried again.
    Failed {
        /// Why.
        trouble: Trouble,
    },
}

/// What tasks of the keeper share.
#[derive(Debug)]
struct Shared {
    /// `host:port` of the server.
    address: String,
    stands: channel::Sender<Told>,
    needs: channel::Sender<usize>,
    /// Set by whoever ends it: how long the server may take.
    ended: channel::Sender<Option<Duration>>,
}

/// A keeper that is about to serve.
#[derive(Debug)]
pub struct Keeper {
    _lock: fs::File,
    listener: StdListener,
    /// Where its socket is: seen from a place of its own the path may lead nowhere.
    run: OwnedFd,
    root: Keys,
    server: Server,
}

#[derive(Debug)]
enum Server {
    Own(Box<Own>),
    External(External),
}

/// What has to be done before there is any thread: locks, sockets, namespaces. `None` when another keeper lives.
///
/// # Errors
/// When the machine refuses.
pub fn prepare(home: &Path) -> Result<Option<Keeper>, SystemError> {
    // A terminal that closes or a daemon that stops must not reach us.
    let _ = rustix::process::setsid();
    let installation = Installation::open(home)?;
    let place = Place::new(&installation.home, &installation.run);
    place.ensure()?;
    let Some(lock) = lock(&place)? else { return Ok(None) };
    let root = place.root()?;
    let doing = |e| SystemError::new("listen for those who need storage", e);
    let run = rustix::fs::open(&installation.run, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let run = run.map_err(|e| doing(e.into()))?;
    let listener = listen(&place.socket()).map_err(doing)?;
    let server = match place.external() {
        Some(external) => Server::External(external),
        None => match Own::prepare(&installation, &place, &root) {
            Ok(own) => Server::Own(Box::new(own)),
            Err(error) => {
                let _ = fs::remove_file(place.socket());
                return Err(error);
            }
        },
    };
    Ok(Some(Keeper { _lock: lock, listener, run, root, server }))
}

/// One keeper for an installation: the lock ends with the process. One that is ending is waited for.
fn lock(place: &Place) -> Result<Option<fs::File>, SystemError> {
    let doing = |e| SystemError::new("lock the storage", e);
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(place.file("keeper.lock"));
    let file = file.map_err(doing)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if StdStream::connect(place.socket()).is_ok() {
            return Ok(None);
        }
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|e| doing(e.into()))?;
    }
    files::write_whole(&place.file("keeper.pid"), std::process::id().to_string().as_bytes(), 0o600)?;
    Ok(Some(file))
}

/// As [`dial::listen`], before there is anything that waits.
fn listen(path: &Path) -> io::Result<StdListener> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = StdListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Keeper {
    /// Serves until nobody needs the server any more.
    pub async fn serve(self) -> ExitCode {
        match LocalSet::new().run_until(self.keep()).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                enter::complain(&error);
                ExitCode::FAILURE
            }
        }
    }

    async fn keep(self) -> Result<(), SystemError> {
        let doing = |e| SystemError::new("serve those who need storage", e);
        let listener = UnixListener::from_std(self.listener).map_err(doing)?;
        let mut term = tokio::signal::unix::signal(SignalKind::terminate()).map_err(doing)?;
        let address = match &self.server {
            Server::Own(_) => own::ADDRESS.to_owned(),
            Server::External(external) => external.address.clone(),
        };
        let shared = Rc::new(Shared {
            address,
            stands: channel::Sender::new(Told::Coming),
            needs: channel::Sender::new(0),
            ended: channel::Sender::new(None),
        });
        // Ends with the process: whoever is connected then finds that out.
        tokio::task::spawn_local(accept(listener, Rc::clone(&shared)));
        let client = Client::at(&shared.address, self.root);
        let mut ended = shared.ended.subscribe();
        let running = async {
            match &self.server {
                Server::Own(own) => own.run(&client, &shared.stands, shared.needs.subscribe()).await,
                Server::External(_) => look(&client, &shared.stands).await,
            }
        };
        tokio::select! {
            never = running => match never {},
            () = unneeded(shared.needs.subscribe()) => {}
            _ = ended.wait_for(Option::is_some) => {}
            _ = term.recv() => {}
        }
        // Whoever comes from here on finds no socket, and has another keeper begin, which waits for the lock.
        let _ = rustix::fs::unlinkat(&self.run, "storage.sock", AtFlags::empty());
        if let Server::Own(own) = &self.server {
            let grace = *shared.ended.borrow();
            own.stop(grace.unwrap_or(own::GRACE)).await;
        }
        Ok(())
    }
}

/// Resolves when nobody has needed the server for a while.
async fn unneeded(mut needs: channel::Receiver<usize>) {
    loop {
        if needs.wait_for(|needs| *needs == 0).await.is_err() {
            return;
        }
        if timeout(LINGER, needs.wait_for(|needs| *needs > 0)).await.is_err() {
            return;
        }
    }
}

/// Whether a server elsewhere answers, until it does.
async fn look(client: &Client, stands: &channel::Sender<Told>) -> std::convert::Infallible {
    let mut pause = Duration::from_millis(100);
    while let Err(error) = users::kind(client).await {
        let hint = "is the storage endpoint of the host daemon right, and does it answer? It is tried again by itself";
        stands.send_replace(Told::Failed { trouble: Trouble::new(error.to_string(), hint) });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    stands.send_replace(Told::Ready);
    std::future::pending().await
}

async fn accept(listener: UnixListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Rc::clone(&shared);
                // Ends with the connection.
                tokio::task::spawn_local(async move { drop(answer(stream, &shared).await) });
            }
            // Out of descriptors: those in use end some time.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Counts a need for as long as it lives.
struct Counted<'a>(&'a channel::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(needs: &'a channel::Sender<usize>) -> Self {
        needs.send_modify(|needs| *needs += 1);
        Self(needs)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|needs| *needs -= 1);
    }
}

async fn answer(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let ask: Ask = dial::asked(&stream).await?;
    match ask {
        Ask::Need => {
            let _counted = Counted::new(&shared.needs);
            let mut stands = shared.stands.subscribe();
            let mut word = [0];
            loop {
                let mut line = serde_json::to_vec(&*stands.borrow_and_update())?;
                line.push(b'\n');
                stream.write_all(&line).await?;
                tokio::select! {
                    changed = stands.changed() => if changed.is_err() { return Ok(()) },
                    // Nothing more is said on it: whatever comes is its end.
                    _ = stream.read(&mut word) => return Ok(()),
                }
            }
        }
        Ask::Dial => {
            let _counted = Counted::new(&shared.needs);
            let mut stands = shared.stands.subscribe();
            let ready = timeout(COMING, stands.wait_for(|stands| *stands == Told::Ready)).await;
            let outcome = match ready.is_ok_and(|ready| ready.is_ok()) {
                true => connect(&shared.address).await,
                false => Err(NotOpened::NotListening),
            };
            dial::answer(&stream, outcome).await
        }
        Ask::Watch => stream.read_u8().await.map(drop),
        Ask::End | Ask::Kill => {
            let grace = if ask == Ask::Kill { Duration::ZERO } else { own::GRACE };
            shared.ended.send_replace(Some(grace));
            stream.read_u8().await.map(drop)
        }
    }
}

async fn connect(address: &str) -> Result<Dialled, NotOpened> {
    let stream = timeout(COMING, TcpStream::connect(address)).await.map_err(|_| NotOpened::NotListening)?;
    let stream = stream.map_err(|_| NotOpened::NotListening)?;
    stream.set_nodelay(true).map_err(|_| NotOpened::NotListening)?;
    let socket = stream.into_std().map_err(|_| NotOpened::NotListening)?;
    Ok(Dialled { socket, instance: None })
}
