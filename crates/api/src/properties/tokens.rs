//! Signed statements: nothing but what was signed, with a known key, for this purpose, is ever accepted.

use super::input::Input;
use crate::{
    capability::{Capability, Right},
    link::{Family, Holder, Link, Visit},
    sign::{Refused, SigningKey, Statement, VerifyKey, verify},
    time::Timestamp,
    tunnel::Pass,
};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use std::{fmt::Debug, sync::LazyLock};

/// Everything that is valid.
struct Signed {
    keys: [VerifyKey; 2],
    links: Vec<(String, usize, Link)>,
    visits: Vec<(String, usize, Visit)>,
    capabilities: Vec<(String, usize, Capability)>,
    passes: Vec<(String, usize, Pass)>,
    tokens: Vec<String>,
}

/// The example keys of RFC 8032, 7.1: the same in every run, so that an input means the same in every run.
const KEYS: [&str; 2] = [
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
];
/// When all of them end.
const END: &str = "2030-01-01T00:00:00Z";
/// The order of the group: adding it to the second half of a signature changes nothing but the octets.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

static SIGNED: LazyLock<Signed> = LazyLock::new(Signed::new);

fn id<T: std::str::FromStr<Err: Debug>>(prefix: &str) -> T {
    format!("{prefix}_00000000000000000000000000").parse().expect("an id")
}

fn signed<S: Statement + Clone>(keys: &[SigningKey], statement: &S) -> Vec<(String, usize, S)> {
    let sign = |(at, key): (usize, &SigningKey)| (key.sign(statement).expect("signed"), at, statement.clone());
    keys.iter().enumerate().map(sign).collect()
}

impl Signed {
    fn new() -> Self {
        let end: Timestamp = END.parse().expect("a time");
        let read = |hex: &str| SigningKey::from_bytes(&HEXLOWER.decode(hex.as_bytes()).expect("hex")).expect("a key");
        let keys = KEYS.map(read);
        let link = Link {
            id: id("lnk"),
            organization: id("org"),
            workspace: id("ws"),
            service: "web".parse().expect("a service"),
            host: "web--a--b".parse().expect("a label"),
            families: Family::ALL.iter().copied().collect(),
            expires_at: end,
        };
        let mut visit = Visit::of_link(link.clone());
        visit.id = id("vis");
        let member = Visit { holder: Holder::Member(id("usr")), user: "ada".into(), ..visit.clone() };
        let capability = Capability {
            host: id("host"),
            workspace: id("ws"),
            principal: id("usr"),
            principal_name: "ada".into(),
            session: id("att"),
            rights: Right::ALL.iter().copied().collect(),
            service: None,
            expires_at: end,
        };
        let pass = Pass { host: id("host"), expires_at: end };
        let links = signed(&keys, &link);
        let visits = [signed(&keys, &visit), signed(&keys, &member)].concat();
        let (capabilities, passes) = (signed(&keys, &capability), signed(&keys, &pass));
        let tokens = links.iter().map(|(token, ..)| token);
        let tokens = tokens.chain(visits.iter().map(|(token, ..)| token));
        let tokens = tokens.chain(capabilities.iter().map(|(token, ..)| token));
        let tokens = tokens.chain(passes.iter().map(|(token, ..)| token)).cloned().collect();
        Self { keys: keys.map(|key| key.verify_key()), links, visits, capabilities, passes, tokens }
    }
}

/// The input says which keys are known and what time it is, then takes a valid token and edits it.
pub fn tokens(input: &[u8]) {
    let mut input = Input::new(input);
    let (keys, honest) = known(&mut input);
    let now: Timestamp =
        input.of(&["2029-12-31T23:59:59.999999999Z", END, "2030-01-01T00:00:01Z"]).parse().expect("now");
    let mut token = SIGNED.tokens[input.below(SIGNED.tokens.len())].clone();
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        token = edited(&token, &mut input);
    }
    let ended = now >= END.parse().expect("a time");
    let judge = Judge { keys: &keys, honest, token: &token, now, ended };
    judge.agrees(&SIGNED.links);
    judge.agrees(&SIGNED.visits);
    judge.agrees(&SIGNED.capabilities);
    judge.agrees(&SIGNED.passes);
}

/// The keys that are known, and which of the two signers are among them, under their own ids.
fn known(input: &mut Input<'_>) -> (Vec<VerifyKey>, [bool; 2]) {
    let [a, b] = SIGNED.keys.clone();
    match input.below(8) {
        0 => (vec![a, b], [true, true]),
        1 => (vec![b, a], [true, true]),
        2 => (vec![a], [true, false]),
        3 => (vec![b], [false, true]),
        4 => (vec![], [false, false]),
        // Ids that are not their keys'.
        5 => (vec![VerifyKey { id: a.id, key: b.key.clone() }, VerifyKey { id: b.id, key: a.key }], [false, false]),
        // Keys that are none.
        6 => {
            (vec![VerifyKey { id: a.id, key: "AAAA".into() }, VerifyKey { id: b.id, key: "*".into() }], [false, false])
        }
        _ => {
            // All zeros is a point of small order, under which some signatures hold for everything.
            let weak = BASE64URL_NOPAD.encode(&[0; 32]);
            (vec![VerifyKey { id: a.id, key: weak }, b], [false, true])
        }
    }
}

struct Judge<'a> {
    keys: &'a [VerifyKey],
    honest: [bool; 2],
    token: &'a str,
    now: Timestamp,
    ended: bool,
}

impl Judge<'_> {
    /// What is verified is one of these, octet for octet, and every one of these is verified.
    fn agrees<S: Statement + Debug + PartialEq + Clone>(&self, valid: &[(String, usize, S)]) {
        let found = valid.iter().find(|(token, key, _)| token == self.token && self.honest[*key]);
        let expected = match found {
            None => Err(Refused::Signature),
            Some(_) if self.ended => Err(Refused::Expired),
            Some((_, _, statement)) => Ok(statement.clone()),
        };
        assert_eq!(verify::<S>(self.keys, self.token, self.now), expected);
    }
}

/// One edit. Some change nothing: what comes out is then still valid, and has to be accepted.
fn edited(token: &str, input: &mut Input<'_>) -> String {
    let octets = token.as_bytes();
    let mut fields: Vec<String> = token.split('.').map(str::to_owned).collect();
    let op = input.below(14);
    let at = input.below(octets.len().max(1));
    let field = at % fields.len();
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    match op {
        0 => octets.get(at).map_or_else(String::new, |was| {
            let mut octets = octets.to_vec();
            octets[at] = was ^ (1 << input.below(8));
            text(octets)
        }),
        1 => text([&octets[..at], &[input.octet()], octets.get(at + 1..).unwrap_or_default()].concat()),
        2 => {
            let length = input.below(40);
            text([&octets[..at], input.take(length), &octets[at..]].concat())
        }
        3 => text([&octets[..at], octets.get(at + input.below(40)..).unwrap_or_default()].concat()),
        4 => text(octets[..at].to_vec()),
        5 => {
            let other = &SIGNED.tokens[input.below(SIGNED.tokens.len())];
            fields[field] = other.split('.').nth(field).unwrap_or_default().to_owned();
            fields.join(".")
        }
        6 => {
            fields.insert(field, fields[input.below(fields.len())].clone());
            fields.join(".")
        }
        7 => {
            fields.remove(field);
            fields.join(".")
        }
        8 => inside(&mut fields, field, |octets| {
            let at = input.short() % octets.len().max(1);
            if let Some(octet) = octets.get_mut(at) {
                *octet ^= 1 << input.below(8);
            }
        }),
        9 => inside(&mut fields, field, |octets| {
            let at = input.below(octets.len().max(1));
            let length = input.below(40);
            octets.splice(at..at, input.take(length).iter().copied());
        }),
        10 => inside(&mut fields, 2, |octets| add_order(octets)),
        11 => {
            let key = &SIGNED.keys[input.below(2)];
            let footer = if input.flag() { key.id.as_bytes() } else { key.key.as_bytes() };
            let at = fields.len() - 1;
            fields[at] = BASE64URL_NOPAD.encode(footer);
            fields.join(".")
        }
        12 => input.of(&["v4.public.", "v4.local.", "v3.public.", "v4.public", "V4.public."]).to_owned() + token,
        _ => String::from_utf8_lossy(input.take(usize::MAX)).into_owned(),
    }
}

/// Edits what a field's base64 holds, where it holds something.
fn inside(fields: &mut [String], field: usize, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    if let Some(Ok(mut octets)) = fields.get(field).map(|field| BASE64URL_NOPAD.decode(field.as_bytes())) {
        edit(&mut octets);
        fields[field] = BASE64URL_NOPAD.encode(&octets);
    }
    fields.join(".")
}

/// Another spelling of the same signature, to who does not ask for the one below the group's order.
fn add_order(message: &mut [u8]) {
    let Some(start) = message.len().checked_sub(32) else { return };
    let mut carry = 0;
    for (octet, order) in message[start..].iter_mut().zip(ORDER) {
        let sum = u16::from(*octet) + u16::from(order) + carry;
        *octet = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
}
