//! The host's end: answers for every stream, and connects it to what it is for.

use super::{
    Broken, CONNECTION_WINDOW, Connected, HEADERS, INSTANCE_HEADER, MAX_STREAMS, NotOpened, NotTaken, OPEN_HEADER,
    Open, PATH, PATIENCE, PROTOCOL, PassGranted, Pipe, SEND_BUFFER, STREAM_WINDOW, WHY_HEADER,
    alive::{Ears, Heard},
};
use h2::{RecvStream, server::SendResponse};
use http_body_util::Empty;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use std::{future::poll_fn, io, pin::pin};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

/// Octets carried at once.
const AT_ONCE: usize = 16 << 10;

/// Asks the gateway at the other end of a connection to take a tunnel.
///
/// # Errors
/// When it does not, or is none.
pub async fn ask<I>(connection: I, pass: &PassGranted) -> Result<Upgraded, NotTaken>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut bearer =
        HeaderValue::from_str(&format!("Bearer {}", pass.token.expose())).map_err(|_| NotTaken::Unwritable)?;
    bearer.set_sensitive(true);
    let request = Request::get(PATH)
        .header(HOST, &pass.base)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .header(AUTHORIZATION, bearer)
        .body(Empty::<Bytes>::new())
        .map_err(|_| NotTaken::Unwritable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(connection)).await?;
    // Ends with the exchange, or hands the connection over.
    tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request).await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(response).await?),
        status => Err(NotTaken::Refused(status)),
    }
}

/// The host's end: serves a connection that was upgraded until it ends. `opened` connects what a stream is for.
///
/// # Errors
/// When the connection breaks.
pub async fn serve<I, S, F>(connection: I, opened: impl Fn(Open) -> F + Send + 'static) -> Result<(), Broken>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<Connected<S>, NotOpened>> + Send + 'static,
{
    let ears = Ears::default();
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .handshake(Heard::new(connection, &ears));
    let mut connection = timeout(PATIENCE, handshake).await.map_err(|_| Broken::Silent)??;
    let pings = connection.ping_pong();
    let mut gone = pin!(async {
        match pings {
            Some(pings) => ears.gone(pings).await,
            None => std::future::pending().await,
        }
    });
    // One that fails concerns its own stream alone; all are cancelled with the tunnel.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            request = connection.accept() => match request {
                Some(request) => {
                    let (request, respond) = request?;
                    let connected = wanted(&request).map(&opened);
                    streams.spawn(answer(request, respond, connected));
                }
                None => return Ok(()),
            },
            Some(_) = streams.join_next() => {}
            () = &mut gone => return Err(Broken::Silent),
        }
    }
}

/// What a request is for.
fn wanted(request: &Request<RecvStream>) -> Option<Open> {
    let json = request.headers().get(OPEN_HEADER).filter(|_| request.method() == Method::CONNECT)?;
    serde_json::from_slice(json.as_bytes()).ok()
}

async fn answer<S, F>(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, connected: Option<F>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<Connected<S>, NotOpened>>,
{
    let decided = async {
        match connected {
            Some(connected) => connected.await,
            None => Err(NotOpened::Unknown),
        }
    };
    let outcome = tokio::select! {
        outcome = decided => outcome,
        // The gateway gave it up meanwhile.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let mut response = Response::new(());
    match outcome {
        Ok((inner, instance)) => {
            // An id is of letters and digits alone.
            if let Some(instance) = instance.and_then(|instance| HeaderValue::from_str(instance.as_str()).ok()) {
                response.headers_mut().insert(INSTANCE_HEADER, instance);
            }
            if let Ok(send) = respond.send_response(response, false) {
                // A stream that breaks is its two ends' concern; both learn of it.
                drop(carry(Pipe::new(send, request.into_body()), inner).await);
            }
        }
        Err(why) => {
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response.headers_mut().insert(WHY_HEADER, HeaderValue::from_static(why.as_str()));
            // It fails when the gateway has given it up.
            drop(respond.send_response(response, true));
        }
    }
}

/// Carries both directions until both have ended, or either breaks. That the gateway gives up is noticed even when the
/// service takes nothing and sends nothing.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(mut pipe: Pipe, inner: S) -> io::Result<()> {
    let (mut from, mut to) = split(inner);
    let (reader, writer) = (&mut pipe.reader, &mut pipe.writer);
    let ended = Notify::new();
    let there = async {
        copy(reader, &mut to).await?;
        to.shutdown().await?;
        ended.notify_one();
        Ok(())
    };
    let back = async {
        let mut octets = vec![0; AT_ONCE];
        loop {
            let read = tokio::select! {
                read = from.read(&mut octets) => read?,
                error = writer.breaks() => return Err(error),
            };
            if read == 0 {
                break;
            }
            writer.write_all(&octets[..read]).await?;
        }
        writer.shutdown().await?;
        tokio::select! {
            () = ended.notified() => Ok(()),
            error = writer.breaks() => Err(error),
        }
    };
    tokio::try_join!(there, back).map(drop)
}
