//! The schemas that editors use are the ones in `docs/schema`, and they know every key that is accepted.
//!
//! `ENVFORGE_WRITE_SCHEMA=1 cargo test -p envforge-manifest --test schemas` writes them anew.

use envforge_manifest::{parse_project, parse_service, project_schema, service_schema};
use serde_json::Value;

fn is_checked_in(name: &str, schema: &Value) {
    let path = format!("{}/../../docs/schema/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("ENVFORGE_WRITE_SCHEMA").is_some() {
        let text = serde_json::to_string_pretty(schema).expect("json") + "\n";
        std::fs::write(&path, text).expect(&path);
    }
    let text = std::fs::read_to_string(&path).expect(&path);
    assert_eq!(&serde_json::from_str::<Value>(&text).expect("json"), schema, "{name} is not what the code generates");
}

#[test]
fn the_schema_of_envforge_yml_is_checked_in() {
    is_checked_in("envforge.schema.json", &service_schema());
}

#[test]
fn the_schema_of_project_files_is_checked_in() {
    is_checked_in("project.schema.json", &project_schema());
}

/// A key that the check does not know is refused as such; every key of the schema must not be.
#[test]
fn the_check_knows_every_key_of_the_schemas() {
    let keys = |schema: &Value| -> Vec<String> {
        schema["properties"].as_object().expect("properties").keys().cloned().collect()
    };
    for key in keys(&service_schema()) {
        let text = if key == "version" { "version: 1\n".to_owned() } else { format!("version: 1\n{key}: {{}}\n") };
        let findings = parse_service("f", &text).err().unwrap_or_default();
        assert!(findings.iter().all(|d| !d.reason.contains("is not a key")), "{key}: {findings:?}");
    }
    for key in keys(&project_schema()) {
        let findings = parse_project("f", &format!("{key}: {{}}\n")).err().unwrap_or_default();
        assert!(findings.iter().all(|d| !d.reason.contains("is not a key")), "{key}: {findings:?}");
    }
    let findings = parse_service("f", "version: 1\nx: 1\n").expect_err("unknown");
    for key in keys(&service_schema()) {
        assert!(findings[0].mend.contains(&format!("`{key}`")), "{key} is missing in the schema or in the check");
    }
}

#[test]
fn every_file_in_the_reference_is_accepted() {
    let reference = include_str!("../../../docs/manifest.md");
    let files: Vec<&str> = reference.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let (services, projects): (Vec<&str>, Vec<&str>) = files.into_iter().partition(|text| text.starts_with("version:"));
    assert!(!services.is_empty() && !projects.is_empty());
    for text in services {
        parse_service("docs/manifest.md", text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"));
    }
    for text in projects {
        parse_project("docs/manifest.md", text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"));
    }
}
