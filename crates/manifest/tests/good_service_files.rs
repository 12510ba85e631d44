//! What is accepted in an envforge.yml, and what it means.

use envforge_api::resource::ResourceKind;
use envforge_manifest::{
    EnvSource, Health, Layer, Probe, ProxyMode, RouteFamily, ServiceField, ServiceManifest, WorkspaceField,
    parse_project, parse_service,
};

fn good(text: &str) -> ServiceManifest {
    parse_service("envforge.yml", text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"))
}

const WHOLE: &str = r#"
version: 1
service:
  name: Ledger API
  type: node                   # optional hint
  command: node server.js
ports:   { http: 4100 }
workers:
  mailer: { command: node mailer.js }
health:  { http: /healthz, port: http, interval: 1s, timeout: 2s, start_period: 60s }
resources:
  database: { required: true, seed: db/seed.sql, extensions: [pgcrypto] }
  mail:     { required: false }
inputs:
  public_site_url: { required: true }
outputs:
  base_url: { port: http }
environment:
  DATABASE_URL: { from: resource.database.url }
  SITE_URL:     { from: input.public_site_url }
  STRIPE_KEY:   { from: secret.stripe_key }
  WORKSPACE:    { from: workspace.slug }
  OWN:          { from: service.internal_url }
  NODE_ENV: development
  RETRIES: 3
  DEBUG: false
  VERSION: 1.10
  EMPTY: ""
setup:
  install: { run: [npm ci], layer: shell, changes: [package-lock.json] }
  migrate: [npm run migrate]
  say: echo hello
tests:
  lint: { run: npm run lint, layer: shell }
  unit: [npm test, "true", true]
routes:  [ { path: /api, family: api }, { path: /ws, family: websockets } ]
proxy:   forwarded
tools:   { node: "22", python: 3.10, go: latest }
runtime: { size: small, sleep: { after: 15m } }
"#;

#[test]
fn every_key_of_the_reference_is_understood() {
    let manifest = good(WHOLE);
    assert_eq!(manifest.display_name.as_deref(), Some("Ledger API"));
    assert_eq!(manifest.kind_hint.as_deref(), Some("node"));
    assert_eq!(manifest.command.as_deref(), Some("node server.js"));
    assert_eq!(manifest.ports, [("http".parse().expect("name"), 4100)]);
    assert_eq!(manifest.workers, [("mailer".parse().expect("name"), "node mailer.js".to_owned())]);
    let probe = Probe::Http { path: "/healthz".into(), port: "http".parse().expect("name") };
    let health = Health { probe, interval_ms: 1000, timeout_ms: 2000, start_period_ms: 60_000 };
    assert_eq!(manifest.health, Some(health));
    let database = &manifest.resources[&ResourceKind::Database];
    assert_eq!((database.required, database.seed.as_deref()), (true, Some("db/seed.sql")));
    assert_eq!(database.extensions, ["pgcrypto"]);
    assert!(!manifest.resources[&ResourceKind::Mail].required);
    assert!(manifest.inputs["public_site_url"]);
    assert_eq!(manifest.outputs["base_url"].as_str(), "http");
    let names: Vec<&str> = manifest.environment.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..4], ["DATABASE_URL", "SITE_URL", "STRIPE_KEY", "WORKSPACE"]);
    let value = |name: &str| manifest.environment.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    assert_eq!(value("WORKSPACE"), Some(EnvSource::Workspace { field: WorkspaceField::Slug }));
    assert_eq!(value("OWN"), Some(EnvSource::Service { field: ServiceField::InternalUrl }));
    for (name, text) in [("RETRIES", "3"), ("DEBUG", "false"), ("VERSION", "1.10"), ("EMPTY", "")] {
        assert_eq!(value(name), Some(EnvSource::Literal { value: text.into() }), "{name}");
    }
    let steps: Vec<_> = manifest.setup.iter().map(|s| (s.name.as_str(), s.run.len(), s.layer)).collect();
    assert_eq!(steps, [("install", 1, Layer::Shell), ("migrate", 1, Layer::Runtime), ("say", 1, Layer::Runtime)]);
    assert_eq!(manifest.setup[0].changes, ["package-lock.json"]);
    assert_eq!(manifest.tests[0].run, ["npm run lint"]);
    assert_eq!(manifest.tests[1].run, ["npm test", "true", "true"]);
    assert_eq!(manifest.routes, [("/api".into(), RouteFamily::Api), ("/ws".into(), RouteFamily::Websockets)]);
    assert_eq!(manifest.proxy, ProxyMode::Forwarded);
    assert_eq!((manifest.tools["node"].as_str(), manifest.tools["python"].as_str()), ("22", "3.10"));
    assert_eq!(manifest.sleep_after_seconds, Some(900));
    assert_eq!(manifest.digest.len(), 64);
}

#[test]
fn short_forms_mean_the_same_as_long_ones() {
    let short =
        good("version: 1\nservice: { command: x, port: 3000, inputs: { a: {} } }\nresources: { cache: , queue: {} }\n");
    let long = good(
        "version: 1\nservice: { command: x }\nports: { http: 3000 }\ninputs: { a: { required: true } }\n\
         resources: { cache: { required: true }, queue: { required: true } }\n",
    );
    assert_ne!(short.digest, long.digest);
    assert_eq!(ServiceManifest { digest: long.digest.clone(), ..short }, long);
}

#[test]
fn a_health_check_takes_the_port_http_or_the_only_one() {
    let name = |text: &str| text.parse().expect("name");
    let probe = |health: &str, ports: &str| {
        good(&format!("version: 1\nports: {ports}\nhealth: {health}\n")).health.expect("health").probe
    };
    assert_eq!(probe("{ http: / }", "{ web: 80 }"), Probe::Http { path: "/".into(), port: name("web") });
    for form in
        ["{ tcp: admin }", "{ tcp: 81 }", "{ tcp: true, port: admin }", "{ tcp: , port: 81 }", "{ port: admin }"]
    {
        assert_eq!(probe(form, "{ http: 80, admin: 81 }"), Probe::Tcp { port: name("admin") }, "{form}");
    }
    assert_eq!(probe("{ tcp: true }", "{ http: 80, admin: 81 }"), Probe::Tcp { port: name("http") });
    assert_eq!(probe("{ command: \"true\" }", "{}"), Probe::Command { command: "true".into() });
    assert_eq!(good("version: 1\nports: { http: 80 }\n").health, None);
}

#[test]
fn the_example_project_is_understood() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/scheduler");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect(path);
    assert_eq!(good(&read("web/envforge.yml")).ports[0].1, 3000);
    assert_eq!(good(&read("backend/envforge.yml")).workers.len(), 1);
    let project = read("scheduler.yml").replace("@REPOSITORIES@", "/srv/git");
    let spec = parse_project("scheduler.yml", &project).expect("a project");
    assert_eq!(spec.services.len(), 2);
}

#[test]
fn addresses_on_the_internet_and_on_localhost_are_plain_values() {
    for value in [
        "https://key@o1.ingest.sentry.io/2",
        "http://localhost:4100",
        "http://127.0.0.1:80",
        "http://[::1]:80",
        "s3://bucket/key",
        "file:///tmp/x",
        "backend",
        "a://b",
        "http://",
    ] {
        let manifest = good(&format!("version: 1\nenvironment: {{ A: \"{value}\" }}\n"));
        assert_eq!(manifest.environment[0].1, EnvSource::Literal { value: value.into() });
    }
}

#[test]
fn every_finding_of_a_file_is_given_in_its_order() {
    let text =
        "version: 3\nservice: { comand: x }\nports: { http: 0 }\nenvironment:\n  A: { from: web.url }\n  PORT: 1\n";
    let findings = parse_service("envforge.yml", text).expect_err("bad");
    let places: Vec<_> = findings.iter().map(|d| (d.line, d.column)).collect();
    assert_eq!(places, [(1, 10), (2, 12), (3, 16), (5, 14), (6, 3)]);
    assert_eq!(findings[2].snippet, "  |\n3 | ports: { http: 0 }\n  |                ^");
}
