//! What one side may say to the other: HTTP/2 as it should be, as it should not be, and no HTTP/2 at all.

use super::super::input::Input;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
/// Octets said in all, so that one input does not take long.
const MOST: usize = 256 << 10;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header as a literal that is not remembered (RFC 7541, 6.2.2), its length as an integer of 7 bits and more.
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| match text.len() {
        length @ 0..127 => [&[length.to_le_bytes()[0]], text.as_bytes()].concat(),
        length => {
            let rest = length - 127;
            [&[127, rest.to_le_bytes()[0] | 0x80, (rest >> 7).to_le_bytes()[0]], text.as_bytes()].concat()
        }
    };
    [vec![0], text(name), text(value)].concat()
}

/// A request for a stream, as a gateway makes it.
fn open(port: usize) -> Vec<u8> {
    let what =
        format!(r#"{{"open":"dial","workspace":"ws_00000000000000000000000000","port":{port},"token":"capability"}}"#);
    [header(":method", "CONNECT"), header(":authority", "host:1"), header("envforge-open", &what)].concat()
}

/// Everything that is said, one thing after the other.
pub(super) fn script(input: &mut Input<'_>) -> Vec<u8> {
    let (mut said, mut last, mut stream) = (Vec::new(), Vec::new(), 1);
    while !input.is_empty() && said.len() < MOST {
        let one = one(input, &mut stream, &last);
        said.extend_from_slice(&one);
        last = one;
    }
    said
}

fn one(input: &mut Input<'_>, stream: &mut u32, last: &[u8]) -> Vec<u8> {
    let on = |input: &mut Input<'_>, stream: u32| match input.below(6) {
        0 => 0,
        1 => stream.saturating_sub(2).max(1),
        2 => stream,
        3 => stream + 2,
        4 => u32::from(input.octet()),
        _ => u32::MAX >> input.below(2),
    };
    match input.below(16) {
        0 => {
            let length = input.below(256);
            input.take(length).to_vec()
        }
        1 | 2 => {
            let (kind, flags, on, length) = (input.octet() % 12, input.octet(), on(input, *stream), input.below(256));
            frame(kind, flags, on, input.take(length))
        }
        3 => {
            // It promises more than it has, or less.
            let mut frame = frame(input.octet() % 12, input.octet(), on(input, *stream), input.take(24));
            let at = 1 + input.below(2);
            frame[at] = frame[at].wrapping_add(input.octet());
            frame
        }
        4 | 5 => {
            let flags = [0x4, 0x5][input.below(2)];
            let headers = frame(HEADERS, flags, *stream, &open(input.short()));
            *stream += 2;
            headers
        }
        6 | 7 => {
            let (on, end, length) = (on(input, *stream), input.octet() & 1, input.short());
            frame(DATA, end, on, &vec![7; length.min(16 << 10)])
        }
        8 => {
            let on = on(input, *stream);
            let by = [0, input.octet(), input.octet(), input.octet()];
            frame(WINDOW, 0, on, if input.flag() { &[0x7f, 0xff, 0xff, 0xff] } else { &by })
        }
        9 => frame(RESET, 0, on(input, *stream), &[0, 0, 0, input.octet() % 16]),
        10 => {
            let (id, value) = (input.octet() % 10, [input.octet(), input.octet(), input.octet(), input.octet()]);
            frame(SETTINGS, 0, 0, &[&[0, id], &value[..]].concat())
        }
        11 => frame(PING, input.octet() & 1, 0, &[input.octet(); 8]),
        12 => frame(GOAWAY, 0, 0, &[0, 0, 0, input.octet(), 0, 0, 0, input.octet() % 16]),
        13 => {
            // An answer to a stream: opened, refused, or only begun.
            let status = ["200", "502", "101", "204"][input.below(4)];
            let why = ["asleep", "not_listening", "nonsense", ""][input.below(4)];
            let (flags, on) = (input.octet() & 5, on(input, *stream));
            frame(
                HEADERS,
                flags,
                on,
                &[header(":status", status), header("envforge-why", why), header("envforge-instance", why)].concat(),
            )
        }
        14 => {
            let on = on(input, *stream);
            let length = input.below(64);
            frame(CONTINUATION, input.octet() & 4, on, input.take(length))
        }
        _ => last.repeat(1 + input.below(200)).into_iter().take(MOST).collect(),
    }
}
