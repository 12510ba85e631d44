//! Someone who visits dev hosts over plain HTTP, with exactly the headers that a test wants.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers in the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// An address as a browser splits it: authority and the rest.
fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is no plain address"));
    match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    }
}

/// Connects to where a dev host's address leads.
///
/// # Panics
/// When nothing listens there.
#[must_use]
pub fn connect(url: &str) -> TcpStream {
    let port = split(url).0.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
    stream.set_read_timeout(Some(super::local::PATIENCE)).expect("a limit");
    stream
}

/// Writes the head of a request.
///
/// # Panics
/// When the connection is broken.
pub fn ask(stream: &mut TcpStream, method: &str, url: &str, headers: &[(&str, &str)]) {
    let (host, path) = split(url);
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).expect("sent");
}

/// Reads one answer; `Err` when the connection ends before.
///
/// # Errors
/// The connection's.
pub fn read_answer(reader: &mut BufReader<TcpStream>, head: bool) -> std::io::Result<Answer> {
    let mut line = String::new();
    let next = |reader: &mut BufReader<TcpStream>, line: &mut String| {
        line.clear();
        match reader.read_line(line)? {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let first = next(reader, &mut line)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let mut headers = Vec::new();
    loop {
        let header = next(reader, &mut line)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').ok_or(std::io::ErrorKind::InvalidData)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let find = |name: &str| headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.clone());
    let mut body = Vec::new();
    if head || status == 101 || status == 204 || status == 304 {
    } else if find("transfer-encoding").is_some() {
        loop {
            let size = next(reader, &mut line)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = find("content-length").and_then(|length| length.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
}

/// One request on a connection of its own.
///
/// # Panics
/// When there is no answer.
#[must_use]
pub fn request(method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = connect(url);
    let mut all = headers.to_vec();
    all.push(("connection", "close"));
    ask(&mut stream, method, url, &all);
    read_answer(&mut BufReader::new(stream), method == "HEAD").unwrap_or_else(|e| panic!("{method} {url}: {e}"))
}

/// Sends a body.
///
/// # Panics
/// When nobody answers.
#[must_use]
pub fn put(url: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
    let length = body.len().to_string();
    let mut all = headers.to_vec();
    all.extend([("connection", "close"), ("content-length", &*length)]);
    let mut stream = connect(url);
    ask(&mut stream, "PUT", url, &all);
    stream.write_all(body.as_bytes()).expect("sent");
    read_answer(&mut BufReader::new(stream), false).expect("an answer")
}

/// GET.
#[must_use]
pub fn get(url: &str, headers: &[(&str, &str)]) -> Answer {
    request("GET", url, headers)
}

/// Opens a link as a browser does; the dev host's origin and the cookie that it got.
///
/// # Panics
/// When the link does not lead in.
#[must_use]
pub fn enter(url: &str) -> (String, String) {
    let shared = get(url, &[]);
    assert_eq!(shared.status, 303, "{shared:?}");
    let to = shared.header("location").expect("a way on").to_owned();
    let (origin, cookie) = enter_by(&to);
    (origin, cookie)
}

/// The second half of [`enter`].
///
/// # Panics
/// When the code does not lead in.
#[must_use]
pub fn enter_by(to: &str) -> (String, String) {
    let entered = get(to, &[]);
    assert_eq!((entered.status, entered.header("location")), (303, Some("/")), "{entered:?}");
    let cookie = entered.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie");
    (format!("http://{}", split(to).0), cookie.to_owned())
}

/// An open WebSocket, as octets: tests say and hear whole frames.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// The answer that was no socket.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn open(url: &str, headers: &[(&str, &str)]) -> Result<Self, Answer> {
        let mut stream = connect(url);
        let mut all = headers.to_vec();
        all.extend([
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        ask(&mut stream, "GET", url, &all);
        let mut reader = BufReader::new(stream);
        let answer = read_answer(&mut reader, false).expect("an answer");
        if answer.status == 101 { Ok(Self(reader.into_inner())) } else { Err(answer) }
    }

    /// Sends octets and reads as many back.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn echo(&mut self, octets: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.write_all(octets)?;
        let mut heard = vec![0; octets.len()];
        self.0.read_exact(&mut heard)?;
        Ok(heard)
    }

    /// Waits until the other side ends it.
    ///
    /// # Panics
    /// When it is still open after `within`.
    pub fn wait_closed(mut self, within: Duration) {
        self.0.set_read_timeout(Some(within)).expect("a limit");
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("still open"),
            Ok(_) | Err(_) => {}
        }
    }
}
