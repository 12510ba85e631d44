//! What is refused in an envforge.yml, and where the finding points.

use envforge_manifest::parse_service;

/// Text, line, column, part of the reason, part of the mend.
type Case = (&'static str, u32, u32, &'static str, &'static str);

fn check(cases: &[Case]) {
    for (text, line, column, reason, mend) in cases {
        let findings = parse_service("api/envforge.yml", text).expect_err(text);
        let found = findings.iter().find(|d| (d.line, d.column) == (*line, *column) && d.reason.contains(reason));
        let found = found.unwrap_or_else(|| panic!("{text}\nexpected {line}:{column} {reason}\ngot {findings:#?}"));
        assert_eq!(findings.len(), 1, "{text}\none mistake is one finding: {findings:#?}");
        assert!(found.mend.contains(mend), "{text}\n{found:#?}");
        assert_eq!(found.file, "api/envforge.yml");
        let hidden = text.is_empty() || text.contains("app:pw@");
        assert_eq!(found.snippet.contains('^'), !hidden, "{text}\n{found:#?}");
    }
}

#[test]
fn unknown_keys_are_refused_with_the_key_that_was_meant() {
    check(&[
        ("version: 1\nenviroment: {}\n", 2, 1, "`enviroment` is not a key", "did you mean `environment`?"),
        ("version: 1\nvolumes: {}\n", 2, 1, "`volumes` is not a key", "remove it"),
        ("version: 1\nservice: { comand: x }\n", 2, 12, "`comand` is not a key of `service`", "`command`"),
        ("version: 1\nservice:\n  nmae: x\n", 3, 3, "`nmae`", "`name`"),
        ("version: 1\nresources: { databse: {} }\n", 2, 14, "`databse`", "`database`"),
        ("version: 1\nresources: { cache: { seed: x.sql } }\n", 2, 23, "`seed`", "remove it"),
        ("version: 1\nruntime: { sleep: { atfer: 1m } }\n", 2, 21, "`atfer`", "`after`"),
        ("version: 1\nsetup: { a: { run: [x], layr: shell } }\n", 2, 25, "`layr`", "`layer`"),
        ("version: 1\nenvironment: { A: { from: workspace.slug, form: x } }\n", 2, 43, "`form`", "`from`"),
    ]);
}

#[test]
fn depends_on_is_refused_wherever_it_stands_and_explained() {
    check(&[
        ("version: 1\ndepends_on: [db]\n", 2, 1, "services start at the same time", "retry"),
        (
            "version: 1\nservice:\n  command: x\n  depends_on: [db]\n",
            4,
            3,
            "services start at the same time",
            "resources",
        ),
        ("version: 1\nworkers: { a: { command: x, depends_on: b } }\n", 2, 29, "`depends_on`", "remove it"),
    ]);
}

#[test]
fn references_to_other_services_and_to_hosts_are_refused() {
    check(&[
        ("version: 1\nenvironment:\n  API: http://backend:4100/v1\n", 3, 8, "names the host `backend`", "input"),
        ("version: 1\nenvironment:\n  DB: postgres://app:pw@db/app\n", 3, 7, "names the host `db`", "resource"),
        ("version: 1\nenvironment:\n  A: https://web--x--acme.dev.localhost\n", 3, 6, "names the host", "input"),
        ("version: 1\nenvironment:\n  API: { from: backend.url }\n", 3, 16, "refers to another service", "input"),
        ("version: 1\nenvironment:\n  API: { from: \"http://backend:4100\" }\n", 3, 16, "names a host", "input"),
        ("version: 1\nenvironment:\n  API: { from: api.example.com }\n", 3, 16, "names a host", "input"),
        ("version: 1\nenvironment:\n  API: { from: \"localhost:3000\" }\n", 3, 16, "names a host", "input"),
        ("version: 1\nports: {http: 1}\nhealth: { http: \"http://other/healthz\" }\n", 3, 17, "names a host", "path"),
    ]);
}

#[test]
fn references_that_nothing_declares_are_refused() {
    check(&[
        (
            "version: 1\nenvironment: { A: { from: resource.database.url } }\n",
            2,
            27,
            "`database` is not declared",
            "declare it",
        ),
        (
            "version: 1\nenvironment: { A: { from: resource.databse.url } }\n",
            2,
            27,
            "is not a resource",
            "resource.database.url",
        ),
        (
            "version: 1\nresources: { cache: {} }\nenvironment: { A: { from: resource.cache.ulr } }\n",
            3,
            27,
            "no field `ulr`",
            "`resource.cache.url`",
        ),
        (
            "version: 1\ninputs: { site_url: {} }\nenvironment: { A: { from: input.site_ulr } }\n",
            3,
            27,
            "not declared",
            "`input.site_url`",
        ),
        ("version: 1\nenvironment: { A: { from: workspace.owner } }\n", 2, 27, "no field `owner`", "`slug`"),
        ("version: 1\nenvironment: { A: { from: service.url } }\n", 2, 27, "needs a port", "ports"),
        ("version: 1\nenvironment: { A: { from: secret.a b } }\n", 2, 27, "not the name of a secret", "letters"),
        ("version: 1\nenvironment: { A: { from: inputs.x } }\n", 2, 27, "is not a reference", "`input.…`"),
        ("version: 1\nenvironment: { A: { from: production } }\n", 2, 27, "is not a reference", "without `from`"),
        ("version: 1\noutputs: { a: { port: http } }\n", 2, 23, "no port `http`", "declare it"),
        (
            "version: 1\nports: { web: 1, api: 2 }\nhealth: { http: /, port: wbe }\n",
            3,
            26,
            "no port `wbe`",
            "`web` or `api`",
        ),
        ("version: 1\nports: { web: 1, api: 2 }\nhealth: { http: / }\n", 3, 9, "which of the ports", "port: NAME"),
        ("version: 1\nhealth: { http: / }\n", 2, 9, "needs a port", "declare"),
    ]);
}

#[test]
fn the_same_key_twice_is_refused_at_the_second_place() {
    check(&[
        (
            "version: 1\nports: { http: 1 }\nports: { http: 2 }\n",
            3,
            1,
            "written twice: first in line 2",
            "one of the two",
        ),
        ("version: 1\nenvironment:\n  A: x\n  A: y\n", 4, 3, "written twice", ""),
        ("version: 1\nservice: { port: 1 }\nports: { http: 2 }\n", 3, 10, "declared twice", "service.port"),
        ("version: 1\ninputs: { a: {} }\nservice:\n  inputs: { a: {} }\n", 4, 13, "declared twice", "one of the two"),
        (
            "version: 1\nroutes: [{path: /a, family: api}, {path: /a, family: web}]\n",
            2,
            42,
            "two routes",
            "one of them",
        ),
    ]);
}

#[test]
fn ports_are_numbers_from_1_to_65535_each_once() {
    check(&[
        ("version: 1\nports: { http: 0 }\n", 2, 16, "not a port", "65535"),
        ("version: 1\nports: { http: 65536 }\n", 2, 16, "not a port", "65535"),
        ("version: 1\nports: { http: -1 }\n", 2, 16, "not a port", "65535"),
        ("version: 1\nports: { http: 4.5 }\n", 2, 16, "not a port", "65535"),
        ("version: 1\nports: { http: \"80\" }\n", 2, 16, "text", "quotes"),
        ("version: 1\nports: { http: abc }\n", 2, 16, "must be a number, but this is text", "3000"),
        ("version: 1\nports: [80]\n", 2, 8, "must be a map, but this is a list", "http"),
        ("version: 1\nports: { a: 80, b: 80 }\n", 2, 20, "same number 80", "own"),
        ("version: 1\nports: { HTTP: 80 }\n", 2, 10, "not a name", "`http`"),
        ("version: 1\nservice: { port: 70000 }\n", 2, 18, "not a port", "65535"),
    ]);
}

#[test]
fn wrong_types_words_durations_and_paths_are_refused_where_they_stand() {
    check(&[
        ("service: { command: x }\n", 1, 1, "`version` is missing", "version: 1"),
        ("version: 2\n", 1, 10, "version `2`", "version: 1"),
        ("version: \"1\"\n", 1, 10, "version `1`", "version: 1"),
        ("- version: 1\n", 1, 1, "must be a map, but this is a list", ""),
        ("version: 1\nservice: node\n", 2, 10, "must be a map, but this is text", "command"),
        ("version: 1\nservice: { command: [a, b] }\n", 2, 21, "one shell command", "one line"),
        ("version: 1\nservice: { command: 7 }\n", 2, 21, "a number", "quotes"),
        ("version: 1\nworkers: { a: {} }\n", 2, 12, "no command", "command"),
        ("version: 1\nresources: { mail: { required: yes } }\n", 2, 32, "`true` or `false`", "true"),
        ("version: 1\nresources: { database: { seed: ../x.sql } }\n", 2, 32, "`..`", "below"),
        ("version: 1\nresources: { database: { seed: /etc/passwd } }\n", 2, 32, "relative", "below"),
        ("version: 1\nresources: { database: { extensions: [\"a;b\"] } }\n", 2, 39, "extension", "pgcrypto"),
        ("version: 1\nports: {http: 1}\nhealth: { http: /, interval: 5 }\n", 3, 30, "not a duration", "1s"),
        ("version: 1\nports: {http: 1}\nhealth: { http: /, timeout: 0s }\n", 3, 29, "too short", "10ms"),
        ("version: 1\nports: {http: 1}\nhealth: { http: healthz }\n", 3, 17, "not a path", "/healthz"),
        ("version: 1\nports: {http: 1}\nhealth: { http: /, command: x }\n", 3, 20, "one of `http`", "one of them"),
        ("version: 1\nruntime: { size: huge }\n", 2, 18, "`huge` is no size", "`small`, `medium` or `large`"),
        ("version: 1\nruntime: { sleep: { after: 15 } }\n", 2, 28, "not a duration", "15m"),
        ("version: 1\nruntime: { sleep: { after: 90d } }\n", 2, 28, "30 days", ""),
        ("version: 1\nproxy: lcoalhost\n", 2, 8, "`lcoalhost`", "`localhost`"),
        ("version: 1\nroutes: [ { path: api, family: api } ]\n", 2, 19, "must begin with `/`", "/api"),
        ("version: 1\nroutes: [ { path: /.envforge/x, family: api } ]\n", 2, 19, "reserved", ""),
        ("version: 1\nroutes: [ { path: /a/../b, family: api } ]\n", 2, 19, "`..`", ""),
        ("version: 1\nroutes: [ { path: /a } ]\n", 2, 11, "no `family`", ""),
        ("version: 1\nroutes: [ { path: /a, family: soap } ]\n", 2, 31, "`soap`", "`web`"),
        ("version: 1\nsetup: { a: [] }\n", 2, 13, "nothing to run", ""),
        ("version: 1\nsetup: { a: { layer: shell } }\n", 2, 10, "nothing to run", "run"),
        ("version: 1\nsetup: { a: { run: x, changes: [/etc/passwd] } }\n", 2, 33, "relative", ""),
        ("version: 1\ntests: { a_b: [x] }\n", 2, 10, "not a name", "`a-b`"),
        ("version: 1\nenvironment: { PORT: 80 }\n", 2, 16, "set by EnvForge", "remove"),
        ("version: 1\nenvironment: { \"1A\": x }\n", 2, 16, "not the name of a variable", ""),
        ("version: 1\nenvironment: { A: }\n", 2, 16, "has no value", "\"\""),
        ("version: 1\nenvironment: { A: [x] }\n", 2, 19, "text or `{ from: … }`", ""),
        ("version: 1\noutputs: { url: { port: http } }\n", 2, 12, "taken", "remove"),
        ("version: 1\ninputs: { a-b: {} }\n", 2, 11, "not a name for an input", "underscores"),
        ("version: 1\ntools: { node: [22] }\n", 2, 16, "must be text", "write text"),
    ]);
}

#[test]
fn what_is_no_plain_yaml_data_is_refused() {
    check(&[
        ("", 1, 1, "empty", "version: 1"),
        ("# nothing\n", 1, 1, "empty", "version: 1"),
        ("version: 1\nports: { http: &p 80 }\n", 2, 16, "anchor `&p`", "write the value out"),
        ("version: 1\nports: *p\n", 2, 8, "aliases", "write the value out"),
        ("version: 1\nservice: { name: !!str x }\n", 2, 18, "tags", "remove"),
        ("version: 1\n---\nversion: 1\n", 2, 1, "second document", "---"),
        ("version: 1\nports: { ? [a] : 1 }\n", 2, 12, "cannot be a key", "name"),
    ]);
}
