//! What is accepted and refused in a project file, and how a change of it is told.

use envforge_api::{
    project::{BindingValue, ProjectSpec, ResourceSetting, RuntimeSize},
    resource::{ResourceKind, ResourceMode, ResourceScope},
};
use envforge_manifest::{changes, parse_project};

const WHOLE: &str = "\
project: scheduler
services:
  web:     { repo: https://git.example/acme/web.git }
  backend: { repo: https://git.example/acme/monorepo.git, path: ./services/backend/, ports: { http: 4200 } }
bindings:
  routes: { web: { /api: backend } }
  inputs: { web.api_url: route /api, backend.public_site_url: web.url, backend.own: backend.internal_url, web.base: backend.base_url }
resources: { database: managed, cache: { mode: managed, scope: service }, mail: provided, queue: disabled }
runtime: { size: medium, sleep: { after: 30m } }
";

fn good(text: &str) -> ProjectSpec {
    parse_project("scheduler.yml", text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"))
}

#[test]
fn every_key_of_the_reference_is_understood() {
    let spec = good(WHOLE);
    assert_eq!(spec.project.as_str(), "scheduler");
    let names: Vec<_> = spec.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["web", "backend"]);
    assert_eq!(spec.services[1].path.as_deref(), Some("services/backend"));
    assert_eq!(spec.services[1].ports["http"], 4200);
    assert_eq!(spec.routes["web"]["/api"].as_str(), "backend");
    let values: Vec<_> = spec.inputs.iter().map(|b| b.value.clone()).collect();
    let service = |name: &str| name.parse().expect("name");
    assert_eq!(values[0], BindingValue::Route { path: "/api".into() });
    assert_eq!(values[1], BindingValue::Url { service: service("web") });
    assert_eq!(values[2], BindingValue::InternalUrl { service: service("backend") });
    assert_eq!(values[3], BindingValue::Output { service: service("backend"), output: "base_url".into() });
    let cache = ResourceSetting { mode: ResourceMode::Managed, scope: ResourceScope::Service };
    assert_eq!(spec.resources[&ResourceKind::Cache], cache);
    assert_eq!(spec.resources[&ResourceKind::Mail].mode, ResourceMode::Provided);
    assert_eq!((spec.runtime.size, spec.runtime.sleep_after_seconds), (Some(RuntimeSize::Medium), Some(1800)));
}

/// Text after `project: p` and two services in lines 1 to 4; line, column, part of the reason, part of the mend.
type Case = (&'static str, u32, u32, &'static str, &'static str);

const HEAD: &str = "project: p\nservices:\n  a: { repo: /srv/a.git }\n  b: { repo: /srv/b.git }\n";

#[test]
fn bindings_name_services_and_routes_that_exist_and_never_go_in_a_circle() {
    let cases: &[Case] = &[
        ("bindings: { routes: { c: { /api: a } } }", 5, 23, "no service `c`", "`a` or `b`"),
        ("bindings: { routes: { a: { /api: bb } } }", 5, 34, "no service `bb`", "`b`"),
        ("bindings: { routes: { a: { api: b } } }", 5, 28, "must begin with `/`", "/api"),
        ("bindings: { routes: { a: { /api/: b } } }", 5, 28, "must not end with `/`", ""),
        ("bindings: { routes: { a: { /api: a } } }", 5, 28, "in a circle: a → a", ""),
        ("bindings: { routes: { a: { /api: b }, b: { /api: a } } }", 5, 28, "in a circle: a → b → a", ""),
        ("bindings: { routes: { a: { /api/x: b }, b: { /api: a } } }", 5, 28, "in a circle", ""),
        ("bindings: { inputs: { a: b.url } }", 5, 23, "does not name an input", "`SERVICE.INPUT`"),
        ("bindings: { inputs: { c.x: b.url } }", 5, 23, "no service `c`", ""),
        ("bindings: { inputs: { a.x: c.url } }", 5, 28, "no service `c`", ""),
        ("bindings: { inputs: { a.x: \"http://b\" } }", 5, 28, "not a value", "route /PATH"),
        ("bindings: { inputs: { a.x: route /api } }", 5, 28, "`a` has no route `/api`", "routes: { a:"),
        ("bindings: { inputs: { a.x: 7 } }", 5, 28, "a number", ""),
        ("bindings: { route: {} }", 5, 13, "`route`", "`routes`"),
        ("resources: { database: manged }", 5, 24, "`manged`", "`managed`"),
        ("resources: { datbase: managed }", 5, 14, "`datbase`", "`database`"),
        ("resources: { cache: { mode: managed, scope: all } }", 5, 45, "`all`", "`service`"),
        ("runtime: { size: tiny }", 5, 18, "`tiny`", "`small`"),
        ("depends_on: {}", 5, 1, "`depends_on`", ""),
    ];
    for (text, line, column, reason, mend) in cases {
        let findings = parse_project("p.yml", &format!("{HEAD}{text}\n")).expect_err(text);
        let found = findings
            .iter()
            .any(|d| (d.line, d.column) == (*line, *column) && d.reason.contains(reason) && d.mend.contains(mend));
        assert!(found && findings.len() == 1, "{text}\n{findings:#?}");
    }
    // Different paths between two services are no circle, and a longer prefix wins.
    good(&format!("{HEAD}bindings: {{ routes: {{ a: {{ /api: b }}, b: {{ /docs: a }} }} }}\n"));
    good(&format!("{HEAD}bindings: {{ routes: {{ a: {{ /api: b }}, b: {{ /apis: a }} }} }}\n"));
}

#[test]
fn services_have_a_name_and_a_repository_that_git_may_be_given() {
    for (text, line, column, reason) in [
        ("services: { a: { repo: /a } }\n", 1, 1, "`project` is missing"),
        ("project: P\nservices: { a: { repo: /a } }\n", 1, 10, "not a name"),
        ("project: p\n", 1, 1, "`services` is missing"),
        ("project: p\nservices: {}\n", 2, 11, "no services"),
        ("project: p\nservices: { a: {} }\n", 2, 13, "no `repo`"),
        ("project: p\nservices: { A: { repo: /a } }\n", 2, 13, "not a name"),
        ("project: p\nservices: { storage: { repo: /a } }\n", 2, 13, "cannot be called `storage`"),
        ("project: p\nservices: { a: { repo: \"--upload-pack=x\" } }\n", 2, 24, "not the address"),
        ("project: p\nservices: { a: { repo: \"ext::sh -c id\" } }\n", 2, 24, "not the address"),
        ("project: p\nservices: { a: { repo: /a, path: ../b } }\n", 2, 34, "`..`"),
        ("project: p\nservices: { a: { repo: /a, ports: { http: 0 } } }\n", 2, 43, "not a port"),
        ("project: p\nservices:\n  a: { repo: /a }\n  a: { repo: /b }\n", 4, 3, "written twice"),
    ] {
        let findings = parse_project("p.yml", text).expect_err(text);
        let found = findings.iter().any(|d| (d.line, d.column) == (line, column) && d.reason.contains(reason));
        assert!(found && findings.len() == 1, "{text}\n{findings:#?}");
    }
}

#[test]
fn a_password_in_an_address_is_refused_and_not_repeated() {
    let text = "project: p\nservices: { a: { repo: \"https://ada:hunter2@git.example/a.git\" } }\n";
    let findings = parse_project("p.yml", text).expect_err("a password");
    assert!(findings[0].reason.contains("holds a password"));
    assert!(!format!("{findings:?}").contains("hunter2"));
}

#[test]
fn a_change_is_told_in_one_line_for_each_difference() {
    let old = good(WHOLE);
    assert!(changes(Some(&old), &old).is_empty());
    let new = good(
        "project: scheduler\nservices:\n  web: { repo: https://git.example/acme/site.git }\n  jobs: { repo: /srv/jobs.git }\n\
         bindings: { inputs: { web.api_url: jobs.url } }\n\
         resources: { database: managed, cache: disabled, mail: provided, queue: disabled }\nruntime: { size: large }\n",
    );
    assert_eq!(
        changes(Some(&old), &new),
        [
            "- service backend",
            "+ service jobs",
            "~ service web: repo https://git.example/acme/web.git → https://git.example/acme/site.git",
            "- route web /api",
            "- input backend.own",
            "- input backend.public_site_url",
            "~ input web.api_url: route /api → jobs.url",
            "- input web.base",
            "~ resource cache: managed, one for each service → disabled: from each workspace's next wake services get no \
             cache, and those that require it are blocked; the managed data stays on the host and is there again when the \
             mode is managed again",
            "~ runtime size: medium → large",
            "- runtime sleep after",
        ]
    );
    // A mode that is not written is `managed`.
    let provided = good(&WHOLE.replace("mail: provided", "mail: cloud").replace("database: managed, ", ""));
    let told = changes(Some(&old), &provided);
    assert_eq!(told[0], "- resource database");
    assert!(told[1].starts_with("~ resource mail: provided → cloud: from each workspace's next wake"), "{}", told[1]);
    assert!(told[1].ends_with("; the values that were set stay set") && told.len() == 2, "{told:?}");
    assert_eq!(changes(None, &new)[..3], ["+ project scheduler", "+ service jobs", "+ service web"]);
    let mut turned = old.clone();
    turned.services.reverse();
    assert_eq!(changes(Some(&old), &turned), ["~ order of services or inputs"]);
}
