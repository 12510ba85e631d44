//! What a request's headers say about who sends it and why: pure decisions, each on a handful of headers.
//!
//! All dev hosts of a base are one site to a browser, so cookies go along with requests that pages of other dev hosts
//! make. A cookie therefore counts only for what its own pages ask, and for a person who follows a link.

use http::{HeaderMap, HeaderName, Method, header};

/// What the decisions look at.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    /// Whether it asks to become a socket.
    pub(crate) socket: bool,
}

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Words in the names of programs that look at pages to show a preview, or to index them.
const LOOKERS: [&str; 10] = [
    "bot",
    "preview",
    "crawler",
    "spider",
    "facebookexternalhit",
    "whatsapp",
    "slack",
    "skypeuri",
    "embedly",
    "scanner",
];

/// What kind of sender a verified request has, where waking is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deserves {
    /// A person goes to a page: it wakes, and what the page asks for afterwards does too.
    Navigation,
    /// A program that is no browser: it wakes.
    Program,
    /// A browser's own call: it wakes only shortly after a navigation or a poke.
    Call,
    /// Prefetches and previews never wake.
    Nothing,
}

impl Asking<'_> {
    fn text(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the visitor's cookie counts, on the dev host whose origin this is.
    pub(crate) fn counts_cookie(&self, own: &str) -> bool {
        let origin = self.headers.get(header::ORIGIN).map(|value| value.as_bytes() == own.as_bytes());
        if self.socket {
            return origin == Some(true);
        }
        let site = self.headers.get(FETCH_SITE).map(|value| matches!(value.as_bytes(), b"same-origin" | b"none"));
        if site.is_none() && origin.is_none() && self.is_browser() {
            return self.is_followed_or_own(own);
        }
        if origin != Some(false) && site != Some(false) {
            return true;
        }
        let top = self.text(&FETCH_MODE) == Some("navigate") && self.text(&FETCH_DEST) == Some("document");
        top && self.method == Method::GET
    }

    /// A browser that says nothing about where a request comes from: an old one, or any where there is no TLS. Pages can
    /// keep silent about themselves (no referrer), but cannot make what they load look like a navigation.
    fn is_followed_or_own(&self, own: &str) -> bool {
        let referer = self.text(&header::REFERER).and_then(|referer| referer.strip_prefix(own));
        let navigates = self.headers.contains_key(header::UPGRADE_INSECURE_REQUESTS);
        referer.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || (navigates && matches!(*self.method, Method::GET | Method::HEAD))
    }

    fn is_prefetch(&self) -> bool {
        let says = |name: &'static str| self.headers.get(name).and_then(|value| value.to_str().ok());
        let purpose =
            says("sec-purpose").or_else(|| says("purpose")).or_else(|| says("x-purpose")).or_else(|| says("x-moz"));
        purpose.is_some_and(|purpose| ["prefetch", "prerender", "preview"].iter().any(|word| purpose.contains(word)))
    }

    fn agent(&self) -> &str {
        self.text(&header::USER_AGENT).unwrap_or_default()
    }

    fn is_looker(&self) -> bool {
        let agent = self.agent().to_ascii_lowercase();
        LOOKERS.iter().any(|word| agent.contains(word))
    }

    fn is_browser(&self) -> bool {
        self.headers.contains_key(FETCH_MODE) || self.agent().starts_with("Mozilla/")
    }

    /// Whether a person would see the answer as a page.
    pub(crate) fn is_navigation(&self) -> bool {
        if !matches!(*self.method, Method::GET | Method::HEAD) || self.socket {
            return false;
        }
        match self.text(&FETCH_MODE) {
            Some(mode) => mode == "navigate",
            // Browsers say it to trustworthy addresses only.
            None => self.is_browser() && self.text(&header::ACCEPT).is_some_and(|accept| accept.contains("text/html")),
        }
    }

    /// What this request deserves, once it is verified.
    pub(crate) fn deserves(&self) -> Deserves {
        if self.is_prefetch() || self.is_looker() {
            Deserves::Nothing
        } else if self.is_navigation() || self.text(&FETCH_MODE) == Some("navigate") {
            Deserves::Navigation
        } else if self.is_browser() {
            Deserves::Call
        } else {
            Deserves::Program
        }
    }
}

/// Whether a page in a browser asks: what no page may ask is refused by this.
pub(crate) fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.keys().any(|name| name.as_str().starts_with("sec-fetch-"))
}

/// The token in `Authorization`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "http://web--a--b.dev.localhost:8080";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect()
    }

    fn counts(method: Method, socket: bool, pairs: &[(&'static str, &str)]) -> bool {
        Asking { method: &method, headers: &headers(pairs), socket }.counts_cookie(OWN)
    }

    #[test]
    fn a_cookie_counts_for_its_own_pages_and_for_who_follows_a_link() {
        let other = "http://evil--a--b.dev.localhost:8080";
        let (get, post) = (Method::GET, Method::POST);
        assert!(counts(get.clone(), false, &[]));
        assert!(counts(post.clone(), false, &[("origin", OWN), ("sec-fetch-site", "same-origin")]));
        assert!(counts(get.clone(), false, &[("sec-fetch-site", "none")]));
        let followed =
            [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(counts(get.clone(), false, &followed));
        assert!(!counts(post.clone(), false, &followed));
        let framed = [("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert!(!counts(get.clone(), false, &framed));
        assert!(!counts(get.clone(), false, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")]));
        assert!(!counts(post.clone(), false, &[("origin", other)]));
        assert!(!counts(post.clone(), false, &[("origin", other), ("sec-fetch-site", "same-origin")]));
        assert!(!counts(post, false, &[("origin", "null")]));
        // Without TLS browsers say less.
        let browser = ("user-agent", "Mozilla/5.0");
        let page = format!("{OWN}/page");
        assert!(counts(get.clone(), false, &[browser, ("referer", &page)]));
        assert!(counts(get.clone(), false, &[browser, ("upgrade-insecure-requests", "1")]));
        assert!(!counts(get.clone(), false, &[browser]));
        assert!(!counts(get.clone(), false, &[browser, ("accept", "text/html"), ("referer", other)]));
        let prefixed = format!("{OWN}.evil.example/");
        assert!(!counts(get.clone(), false, &[browser, ("referer", &prefixed)]));
        assert!(counts(get.clone(), true, &[("origin", OWN)]));
        assert!(!counts(get.clone(), true, &[]));
        assert!(!counts(get, true, &[("origin", other)]));
    }

    #[test]
    fn people_and_programs_deserve_a_wake_prefetches_and_previews_do_not() {
        let of = |method: Method, pairs: &[(&'static str, &str)]| {
            Asking { method: &method, headers: &headers(pairs), socket: false }.deserves()
        };
        let chrome = ("user-agent", "Mozilla/5.0 (X11; Linux) Chrome/150");
        let page = ("sec-fetch-mode", "navigate");
        assert_eq!(of(Method::GET, &[chrome, page]), Deserves::Navigation);
        assert_eq!(of(Method::GET, &[chrome, ("accept", "text/html,*/*")]), Deserves::Navigation);
        assert_eq!(of(Method::POST, &[chrome, page]), Deserves::Navigation);
        assert_eq!(of(Method::GET, &[chrome, ("sec-fetch-mode", "cors")]), Deserves::Call);
        assert_eq!(of(Method::GET, &[chrome]), Deserves::Call);
        assert_eq!(of(Method::GET, &[("user-agent", "curl/8")]), Deserves::Program);
        assert_eq!(of(Method::POST, &[]), Deserves::Program);
        assert_eq!(of(Method::GET, &[chrome, page, ("sec-purpose", "prefetch;prerender")]), Deserves::Nothing);
        assert_eq!(of(Method::GET, &[chrome, page, ("x-moz", "prefetch")]), Deserves::Nothing);
        assert_eq!(of(Method::GET, &[("user-agent", "Slackbot-LinkExpanding 1.0")]), Deserves::Nothing);
        assert_eq!(of(Method::GET, &[("user-agent", "Mozilla/5.0 (compatible; Googlebot/2.1)")]), Deserves::Nothing);
    }
}
