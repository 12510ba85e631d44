//! What the gateway itself shows. No word of it tells a visitor anything that a link does not allow: what cannot be
//! verified gets one and the same answer.

use crate::{body::Answer, wake::NotWoken};
use envforge_api::{
    gateway::Standing,
    names::Slug,
    states::{RuntimeState, ServiceKind},
    time::Timestamp,
};
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use std::fmt::Write as _;

/// Whether the one who asks reads pages or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Person,
    Program,
}

/// After how many seconds asking again makes sense.
const RETRY_SECONDS: i64 = 5;

fn base(status: StatusCode, kind: &'static str, body: String) -> Response<Answer> {
    let mut response = Response::new(Answer::own(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Text that may stand in a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0;min-height:100vh;display:grid;\
place-items:center;background:Canvas;color:CanvasText}main{max-width:34rem;padding:2rem}h1{font-size:1.3rem;\
margin:0 0 .5rem}p{margin:.4rem 0;opacity:.8}ul{list-style:none;padding:0;margin:1rem 0}li{display:flex;gap:.75rem;\
align-items:center;padding:.25rem 0}i{width:.7rem;height:.7rem;border-radius:50%;background:#999;flex:none}\
.healthy i{background:#1a7f37}.starting i{background:#bf8700;animation:p 1s infinite alternate}\
.crashed i,.unhealthy i{background:#cf222e}@keyframes p{to{opacity:.25}}small{opacity:.65;margin-left:auto}\
button{font:inherit;padding:.4rem .9rem;margin-top:.5rem}@media(prefers-reduced-motion:reduce){i{animation:none!important}}";

fn page(status: StatusCode, title: &str, head: &str, main: &str) -> Response<Answer> {
    let body = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><meta name=\"robots\" content=\"noindex\"><title>{title}</title>\
         <style>{STYLE}</style>{head}</head><body><main>{main}</main></body></html>\n",
        title = escaped(title),
    );
    let mut response = base(status, "text/html; charset=utf-8", body);
    response.headers_mut().insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
    response
}

#[derive(Serialize)]
struct ErrorWord<'a> {
    error: Words<'a>,
}

#[derive(Serialize)]
struct Words<'a> {
    kind: &'a str,
    message: &'a str,
    hint: &'a str,
}

fn told(reader: Reader, status: StatusCode, kind: &str, message: &str, hint: &str) -> Response<Answer> {
    match reader {
        Reader::Person => {
            let main = format!("<h1>{}</h1><p>{}</p>", escaped(message), escaped(hint));
            page(status, message, "", &main)
        }
        Reader::Program => {
            let word = ErrorWord { error: Words { kind, message, hint } };
            base(status, "application/json", serde_json::to_string(&word).unwrap_or_default())
        }
    }
}

/// For who wants a host's streams without a capability that is valid now; the words are the host's own.
pub(crate) fn no_capability() -> Response<Answer> {
    let (message, hint) = ("this needs a valid capability", "open it with `envforge`, which asks for one");
    told(Reader::Program, StatusCode::UNAUTHORIZED, "unauthenticated", message, hint)
}

/// The host of a capability has no tunnel here.
pub(crate) fn host_away() -> Response<Answer> {
    let (message, hint) = ("the workspace's host does not answer this gateway", "try again; it dials in by itself");
    told(Reader::Program, StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, hint)
}

/// For everything that is not verified, whatever it is.
pub(crate) fn unverified() -> Response<Answer> {
    let hint = "Links expire and can be revoked: ask whoever sent it for a new one.";
    told(Reader::Person, StatusCode::NOT_FOUND, "not_found", "Nothing is shown here without a valid link", hint)
}

/// A verified visitor asks for what the link does not carry.
pub(crate) fn not_carried(reader: Reader) -> Response<Answer> {
    let hint = "Ask for a link with more route families.";
    told(reader, StatusCode::FORBIDDEN, "forbidden", "This link does not open this path", hint)
}

/// A request that makes no sense.
pub(crate) fn bad_request(message: &str) -> Response<Answer> {
    told(Reader::Program, StatusCode::BAD_REQUEST, "invalid", message, "")
}

/// The gateway knows too little at the moment.
pub(crate) fn away(reader: Reader) -> Response<Answer> {
    let hint = "It comes back by itself: try again in a moment.";
    retry(told(reader, StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The control plane does not answer", hint), None)
}

/// More is waiting than may.
pub(crate) fn crowded(reader: Reader) -> Response<Answer> {
    let hint = "Too many requests wait for it: try again in a moment.";
    retry(told(reader, StatusCode::SERVICE_UNAVAILABLE, "unavailable", "This workspace is waking", hint), None)
}

/// The service could not be connected to, or broke the exchange off.
pub(crate) fn bad_gateway(reader: Reader, message: &str) -> Response<Answer> {
    let hint = "`envforge why` says more to whoever may open the workspace.";
    told(reader, StatusCode::BAD_GATEWAY, "unavailable", message, hint)
}

fn retry(mut response: Response<Answer>, until: Option<Timestamp>) -> Response<Answer> {
    let seconds = until.map_or(RETRY_SECONDS, |until| until.duration_since(Timestamp::now()).as_secs().clamp(1, 3600));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// A call to a service that is not awake.
pub(crate) fn not_woken(reader: Reader, why: &NotWoken) -> Response<Answer> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match why {
        NotWoken::Asleep => {
            let hint = "Open its page: that wakes it.";
            retry(told(reader, unavailable, "asleep", "This workspace is asleep", hint), None)
        }
        NotWoken::Refused(trouble, until) => {
            let hint = trouble.hint.as_str();
            retry(told(reader, unavailable, "refused", &trouble.reason, hint), Some(*until))
        }
        NotWoken::Late => {
            let hint = "It goes on waking: try again in a moment.";
            retry(told(reader, unavailable, "timeout", "This workspace did not wake in time", hint), None)
        }
        NotWoken::Broken(how) => {
            let message = format!("This service is {how}");
            let hint = "`envforge why` says more to whoever may open the workspace.";
            retry(told(reader, unavailable, "unavailable", &message, hint), None)
        }
        NotWoken::Away => away(reader),
        NotWoken::Gone => unverified(),
    }
}

/// What the waiting page shows, and asks for again and again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct State<'a> {
    /// The service that was asked for can be shown.
    ready: bool,
    runtime: RuntimeState,
    /// What a person is told.
    says: String,
    /// Whether a person may ask for a wake.
    wakes: bool,
    services: Vec<(&'a str, &'static str)>,
    /// To be told of the next change.
    seen: String,
}

impl State<'_> {
    /// Whether a page that last saw `seen`, as it was encoded for an address, shows this already.
    pub(crate) fn is_seen(&self, seen: &str) -> bool {
        seen.replace("%2C", ",").replace("%3A", ":") == self.seen
    }
}

/// Reads a standing for a visitor: names and states, no reasons.
pub(crate) fn state<'a>(standing: &'a Standing, ready: bool, refused: Option<&str>) -> State<'a> {
    let services: Vec<_> = standing
        .services
        .iter()
        .filter(|service| service.kind == ServiceKind::Service)
        .map(|service| (service.name.as_str(), service.stated.state.as_str()))
        .collect();
    let runtime = standing.runtime.state;
    let says = match (refused, runtime) {
        (Some(refused), _) => refused.to_owned(),
        (None, RuntimeState::Asleep | RuntimeState::Frozen) => "It is asleep.".to_owned(),
        (None, RuntimeState::Sleeping) => "It is going to sleep.".to_owned(),
        (None, RuntimeState::Failed) => "It could not be started.".to_owned(),
        (None, RuntimeState::Waking) => "It is waking up. This page turns into it by itself.".to_owned(),
        (None, RuntimeState::Awake) => "It is awake. This page turns into it as soon as it answers.".to_owned(),
    };
    let wakes = refused.is_none() && runtime.can_wake();
    let seen = services.iter().fold(format!("{runtime}{wakes}"), |all, (name, state)| format!("{all},{name}:{state}"));
    State { ready, runtime, says, wakes, services, seen }
}

/// The answer to who asks for the state.
pub(crate) fn state_answer(state: &State<'_>) -> Response<Answer> {
    base(StatusCode::OK, "application/json", serde_json::to_string(state).unwrap_or_default())
}

/// Done, with nothing to show.
pub(crate) fn done() -> Response<Answer> {
    base(StatusCode::NO_CONTENT, "text/plain", String::new())
}

/// Away to another address, which nobody else is told.
pub(crate) fn redirect(to: &str) -> Response<Answer> {
    let mut response = base(StatusCode::SEE_OTHER, "text/plain", String::new());
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// Asks for the state, shows it, and loads the page anew once it is there.
const SCRIPT: &str = "\
(async()=>{const $=i=>document.getElementById(i);let seen='';const show=s=>{$('s').textContent=s.says;\
$('l').replaceChildren(...s.services.map(([n,t])=>{const l=document.createElement('li');l.className=t;\
const d=document.createElement('i'),b=document.createElement('span'),m=document.createElement('small');\
b.textContent=n;m.textContent=t;l.append(d,b,m);return l}));$('w').hidden=!s.wakes};\
$('w').onclick=async()=>{$('w').disabled=true;await fetch('/.envforge/wake',{method:'POST'}).catch(()=>{});\
$('w').disabled=false};for(;;){try{const r=await fetch('/.envforge/state?seen='+encodeURIComponent(seen),\
{cache:'no-store'});if(r.status==404){location.reload();return}const s=await r.json();if(s.ready){location.reload();\
return}if(s.services){show(s);seen=s.seen;continue}}catch(e){}await new Promise(r=>setTimeout(r,1000))}})()";

/// What a person sees until the application is there: it turns into the application by itself, with a script or, without
/// one, by being loaded again.
pub(crate) fn waiting(slug: &Slug, state: &State<'_>) -> Response<Answer> {
    let mut services = String::new();
    for (name, state) in &state.services {
        let _ =
            write!(services, "<li class=\"{state}\"><i></i><span>{}</span><small>{state}</small></li>", escaped(name));
    }
    let hidden = if state.wakes { "" } else { " hidden" };
    let main = format!(
        "<h1>{slug}</h1><p id=\"s\" role=\"status\">{says}</p><ul id=\"l\">{services}</ul>\
         <button id=\"w\"{hidden}>Wake it</button><script>{SCRIPT}</script>",
        slug = escaped(slug.as_str()),
        says = escaped(&state.says),
    );
    let head = "<noscript><meta http-equiv=\"refresh\" content=\"2\"></noscript>";
    let title = if state.runtime == RuntimeState::Waking { format!("{slug} is waking") } else { slug.to_string() };
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, &title, head, &main);
    // By its referrer what it asks for is known to be its own, where a browser says nothing else about that.
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    retry(response, None)
}
