//! How a project and the manifests found in a workspace become what a host starts.

use envforge_api::{
    project::RuntimeSize,
    resource::{ResourceKind, ResourceMode},
    states::Trouble,
};
use envforge_manifest::{
    EnvValue, FoundManifest, Probe, Resolution, ResolvedService, WorkspaceFacts, parse_project, parse_service, resolve,
};
use std::collections::BTreeMap;

const PROJECT: &str = "\
project: scheduler
services:
  web:     { repo: /srv/web.git }
  backend: { repo: /srv/mono.git, path: services/backend }
bindings:
  routes: { web: { /api: backend } }
  inputs: { web.api_url: route /api, web.internal: backend.internal_url, web.base: backend.admin_url, backend.site: web.url }
";
const WEB: &str = "\
version: 1
service: { command: vite, port: 3000 }
inputs: { api_url: {}, internal: {}, base: {} }
environment:
  API: { from: input.api_url }
  INTERNAL: { from: input.internal }
  BASE: { from: input.base }
  KEY: { from: secret.stripe_key }
  BRANCH: { from: workspace.branch }
  OWN: { from: service.url }
  LOCAL: { from: service.internal_url }
";
const BACKEND: &str = "\
version: 1
service: { command: node server.js }
ports: { http: 4100, admin: 4101 }
resources: { database: { extensions: [pgcrypto] }, mail: { required: false } }
inputs: { site: {} }
outputs: { admin_url: { port: admin } }
environment:
  SITE: { from: input.site }
  DATABASE_URL: { from: resource.database.url }
  SMTP: { from: resource.mail.smtp_url }
runtime: { size: small, sleep: { after: 45m } }
";

fn found(name: &str, text: &str) -> FoundManifest {
    match parse_service(&format!("{name}/envforge.yml"), text) {
        Ok(manifest) => FoundManifest::Good(Box::new(manifest)),
        Err(findings) => FoundManifest::Bad(findings),
    }
}

fn join(project: &str, manifests: &[(&str, FoundManifest)]) -> Resolution {
    let spec = parse_project("p.yml", project).unwrap_or_else(|findings| panic!("{findings:#?}"));
    let url = |name: &str| format!("http://{name}--x--acme.dev.localhost");
    let facts = WorkspaceFacts {
        slug: "x".parse().expect("slug"),
        branch: "feature/X".parse().expect("branch"),
        project: "scheduler".parse().expect("slug"),
        organization: "acme".parse().expect("slug"),
        urls: spec.services.iter().map(|s| (s.name.clone(), url(s.name.as_str()))).collect(),
    };
    let manifests: BTreeMap<_, _> =
        manifests.iter().map(|(name, manifest)| (name.parse().expect("name"), manifest.clone())).collect();
    resolve(&spec, &manifests, &facts)
}

fn both(project: &str, web: &str, backend: &str) -> Resolution {
    join(project, &[("web", found("web", web)), ("backend", found("backend", backend))])
}

fn service<'r>(resolution: &'r Resolution, name: &str) -> &'r ResolvedService {
    resolution.services.iter().find(|service| service.name.as_str() == name).expect(name)
}

fn known<'r>(service: &'r ResolvedService, variable: &str) -> Option<&'r str> {
    service.environment.iter().find(|(name, _)| name == variable).and_then(|(_, value)| match value {
        EnvValue::Known { text } => Some(text.as_str()),
        EnvValue::Resource { .. } | EnvValue::Secret { .. } => None,
    })
}

fn blocked<'r>(resolution: &'r Resolution, name: &str) -> &'r Trouble {
    service(resolution, name).blocked.as_ref().expect("a reason")
}

#[test]
fn bindings_become_addresses_of_this_workspace() {
    let all = both(PROJECT, WEB, BACKEND);
    let (web, backend) = (service(&all, "web"), service(&all, "backend"));
    assert_eq!((&web.blocked, &backend.blocked), (&None, &None));
    assert_eq!((web.directory.as_str(), backend.directory.as_str()), ("web", "mono/services/backend"));
    for (variable, expected) in [
        ("API", "http://web--x--acme.dev.localhost/api"),
        ("INTERNAL", "http://localhost:4100"),
        ("BASE", "http://localhost:4101"),
        ("BRANCH", "feature/X"),
        ("OWN", "http://web--x--acme.dev.localhost"),
        ("LOCAL", "http://localhost:3000"),
    ] {
        assert_eq!(known(web, variable), Some(expected), "{variable}");
    }
    assert!(web.environment.contains(&("KEY".into(), EnvValue::Secret { name: "stripe_key".into() })));
    assert_eq!(known(backend, "SITE"), Some("http://web--x--acme.dev.localhost"));
    let database = EnvValue::Resource { kind: ResourceKind::Database, field: "url".into() };
    assert!(backend.environment.contains(&("DATABASE_URL".into(), database)));
    assert_eq!(backend.declared, [(ResourceKind::Database, true), (ResourceKind::Mail, false)].into());
    assert_eq!(all.resources.len(), 2);
    assert_eq!(all.resources[0].extensions, ["pgcrypto"]);
}

#[test]
fn without_a_declared_check_a_service_is_healthy_when_its_http_port_accepts() {
    let all = both(PROJECT, WEB, BACKEND);
    let health = service(&all, "backend").health.clone().expect("a check");
    assert_eq!(health.port, Some(4100));
    assert!(matches!(health.check.probe, Probe::Tcp { ref port } if port.as_str() == "http"));
    let only =
        both(PROJECT, WEB, "version: 1\nservice: { command: x }\nports: { grpc: 50051 }\ninputs: { site: {} }\n");
    assert_eq!(service(&only, "backend").health.as_ref().and_then(|h| h.port), Some(50051));
    assert_eq!(service(&only, "backend").http_port, Some(50051));
    let none = both(PROJECT, WEB, "version: 1\nservice: { command: x }\nports: { a: 1, b: 2 }\n");
    assert_eq!((&service(&none, "backend").health, service(&none, "backend").http_port), (&None, None));
}

#[test]
fn a_bad_manifest_blocks_its_service_and_those_that_need_its_port_alone() {
    let all = both(PROJECT, WEB, "version: 1\nservice: { comand: x }\nbad: 1\n");
    let trouble = blocked(&all, "backend");
    assert!(trouble.reason.starts_with("backend/envforge.yml:2:12: `comand` is not a key"), "{trouble:?}");
    assert!(trouble.reason.ends_with("(and 1 more)") && trouble.hint.contains("`command`"), "{trouble:?}");
    assert_eq!(all.diagnostics.len(), 2);
    assert!(blocked(&all, "web").reason.contains("the envforge.yml of `backend` cannot be used"));
    // The project's own port needs no manifest.
    let project = PROJECT.replace("services/backend }", "services/backend, ports: { http: 4100, admin: 4101 } }");
    let web = WEB.replace(", base: {}", ", base: { required: false }");
    let all = both(&project, &web, "version: 9\n");
    assert_eq!(service(&all, "web").blocked, None);
    assert_eq!(known(service(&all, "web"), "BASE"), None);
}

#[test]
fn a_missing_manifest_blocks_with_the_reason_given() {
    let missing = FoundManifest::Missing(Trouble::new("there is no envforge.yml in backend", "add one"));
    let all = join(PROJECT, &[("web", found("web", WEB)), ("backend", missing)]);
    assert_eq!(blocked(&all, "backend").reason, "there is no envforge.yml in backend");
    let all = join(PROJECT, &[("web", found("web", WEB))]);
    assert!(blocked(&all, "backend").reason.contains("not found"));
}

#[test]
fn an_unbound_required_input_blocks_and_an_optional_one_is_left_out() {
    let web = WEB.replace("base: {}", "base: {}, other: {}");
    let all = both(PROJECT, &web, BACKEND);
    assert_eq!(blocked(&all, "web").reason, "its required input `other` is not bound");
    assert!(blocked(&all, "web").hint.contains("web.other"));
    let web = WEB.replace("base: {}", "base: {}, other: { required: false }") + "  OTHER: { from: input.other }\n";
    let all = both(PROJECT, &web, BACKEND);
    assert_eq!(service(&all, "web").blocked, None);
    assert_eq!(known(service(&all, "web"), "OTHER"), None);
}

#[test]
fn a_port_that_an_earlier_service_has_blocks_the_later_one() {
    let backend = BACKEND.replace("4101", "3000");
    let all = both(PROJECT, WEB, &backend);
    assert_eq!(service(&all, "web").blocked, None);
    assert_eq!(blocked(&all, "backend").reason, "its port `admin` is 3000, which is taken by `web`");
    let project = PROJECT.replace("services/backend }", "services/backend, ports: { admin: 5000 } }");
    let all = both(&project, WEB, &backend);
    assert_eq!(service(&all, "backend").blocked, None);
    assert_eq!(known(service(&all, "web"), "BASE"), Some("http://localhost:5000"));
    let taken = both(PROJECT, WEB, &BACKEND.replace("4101", "5432"));
    assert!(blocked(&taken, "backend").reason.contains("taken by the resource `database`"));
    let undeclared = PROJECT.replace("services/backend }", "services/backend, ports: { grpc: 1 } }");
    assert!(blocked(&both(&undeclared, WEB, BACKEND), "backend").reason.contains("does not declare"));
}

#[test]
fn a_disabled_required_resource_blocks_and_an_optional_one_is_unset() {
    let all = both(&format!("{PROJECT}resources: {{ database: disabled }}\n"), WEB, BACKEND);
    assert!(blocked(&all, "backend").reason.contains("disabled"));
    assert_eq!(service(&all, "web").blocked, None);
    assert_eq!(all.resources[0].mode, ResourceMode::Disabled);
    let all = both(&format!("{PROJECT}resources: {{ mail: disabled }}\n"), WEB, BACKEND);
    let backend = service(&all, "backend");
    assert_eq!(backend.blocked, None);
    assert!(backend.environment.iter().all(|(name, _)| name != "SMTP"));
    for mode in ["provided", "cloud"] {
        let all = both(&format!("{PROJECT}resources: {{ database: {mode} }}\n"), WEB, BACKEND);
        assert_eq!((all.resources[0].mode.as_str(), &service(&all, "backend").blocked), (mode, &None));
        let backend = &service(&all, "backend").environment;
        let reference = |value: &EnvValue| matches!(value, EnvValue::Resource { kind: ResourceKind::Database, .. });
        assert!(backend.iter().any(|(_, value)| reference(value)), "its host knows the value");
    }
}

#[test]
fn a_resource_is_shared_unless_each_service_has_its_own() {
    let web =
        WEB.replace("inputs:", "resources: { database: { extensions: [pgcrypto, citext] }, queue: , cache: }\ninputs:");
    let all = both(PROJECT, &web, BACKEND);
    let database = all.resources.iter().find(|r| r.kind == ResourceKind::Database).expect("a database");
    assert_eq!((database.consumers.len(), database.extensions.len(), &database.service), (2, 2, &None));
    let kinds: Vec<_> = all.resources.iter().map(|r| r.kind.as_str()).collect();
    assert_eq!(kinds, ["database", "cache", "queue", "mail"]);
    let project = format!("{PROJECT}resources: {{ database: {{ mode: managed, scope: service }} }}\n");
    let all = both(&project, &web, BACKEND);
    let of: Vec<_> =
        all.resources.iter().filter(|r| r.kind == ResourceKind::Database).map(|r| r.service.clone()).collect();
    assert_eq!(of, [Some("web".parse().expect("name")), Some("backend".parse().expect("name"))]);
}

#[test]
fn size_and_idle_time_are_the_projects_or_the_largest_or_the_default() {
    let all = both(PROJECT, WEB, BACKEND);
    assert_eq!((all.size, all.sleep_after_seconds), (RuntimeSize::Small, 45 * 60));
    let all = both(PROJECT, &format!("{WEB}runtime: {{ size: large, sleep: {{ after: 10m }} }}\n"), BACKEND);
    assert_eq!((all.size, all.sleep_after_seconds), (RuntimeSize::Large, 45 * 60));
    let all = both(&format!("{PROJECT}runtime: {{ size: medium, sleep: {{ after: 1m }} }}\n"), WEB, BACKEND);
    assert_eq!((all.size, all.sleep_after_seconds), (RuntimeSize::Medium, 60));
    let all = join(PROJECT, &[]);
    assert_eq!((all.size, all.sleep_after_seconds), (RuntimeSize::Medium, 900));
}

#[test]
fn a_service_with_nothing_to_run_is_blocked_and_one_with_workers_is_not() {
    let all = both(PROJECT, WEB, "version: 1\nports: { http: 1, admin: 2 }\noutputs: { admin_url: { port: admin } }\n");
    assert!(blocked(&all, "backend").reason.contains("neither a command nor workers"));
    let all = join(
        "project: p\nservices: { jobs: { repo: /srv/jobs.git } }\n",
        &[("jobs", found("jobs", "version: 1\nworkers: { a: { command: x } }\n"))],
    );
    let jobs = service(&all, "jobs");
    assert_eq!((&jobs.blocked, jobs.workers.len(), &jobs.health), (&None, 1, &None));
}
