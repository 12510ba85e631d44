//! Which service, and which of its ports, a link or a visit is for. Pure.

use envforge_api::{
    host::Face,
    names::{ServiceName, Slug},
    problem::{Problem, ProblemKind},
    project::ProjectSpec,
};

/// A service, and a further port of it where that is meant.
pub(super) type Target = (ServiceName, Option<ServiceName>);

/// Chooses: what was named, else the first service with an HTTP port.
///
/// # Errors
/// `invalid` for what the project has not or what has no port; `conflict` while no envforge.yml was read.
pub(super) fn choose(
    workspace: &Slug,
    spec: &ProjectSpec,
    faces: &[Face],
    service: Option<&ServiceName>,
    port: Option<&ServiceName>,
) -> Result<Target, Problem> {
    let Some(service) = service else {
        let first = faces.iter().find(|face| face.main.is_some());
        return match (first, faces.is_empty()) {
            (Some(face), _) => Ok((face.service.clone(), None)),
            (None, true) => Err(Problem::new(
                ProblemKind::Conflict,
                format!("no envforge.yml of `{workspace}` was read yet, so its first service with a port is not known"),
                "wait until its shell is ready (`envforge status`), or name the service",
            )),
            (None, false) => Err(Problem::invalid(
                format!("no service of `{workspace}` has an HTTP port"),
                "declare one in its envforge.yml: `ports: { http: 3000 }`",
            )),
        };
    };
    spec.has(service)?;
    let face = faces.iter().find(|face| face.service == *service);
    match (face, port) {
        (Some(face), Some(port)) if face.main.as_ref() == Some(port) => Ok((service.clone(), None)),
        (Some(face), Some(port)) if face.ports.contains_key(port) => Ok((service.clone(), Some(port.clone()))),
        (Some(face), Some(port)) => {
            let names = face.ports.keys().map(ToString::to_string).collect();
            Err(Problem::invalid(format!("`{service}` has no port `{port}`"), "choose one of its ports")
                .with_candidates(names))
        }
        (Some(face), None) if face.main.is_none() => Err(Problem::invalid(
            format!("`{service}` has no port called `http`, and not exactly one port"),
            "name the port too: `SERVICE.PORT`",
        )
        .with_candidates(face.ports.keys().map(|port| format!("{service}.{port}")).collect())),
        (Some(_), None) => Ok((service.clone(), None)),
        (None, None) => Ok((service.clone(), None)),
        (None, Some(_)) => Err(Problem::new(
            ProblemKind::Conflict,
            format!("the envforge.yml of `{service}` was not read yet, so its ports are not known"),
            "wait until its shell is ready (`envforge status`)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::dev_host::ProxyMode;

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    fn face(service: &str, ports: &[&str], main: Option<&str>) -> Face {
        Face {
            service: name(service),
            ports: ports.iter().map(|port| (name(port), 3000)).collect(),
            main: main.map(name),
            families: vec![],
            proxy: ProxyMode::Localhost,
        }
    }

    fn chosen(faces: &[Face], service: Option<&str>, port: Option<&str>) -> Result<String, ProblemKind> {
        let spec = serde_json::from_value(serde_json::json!({ "project": "p", "services": [
            { "name": "job", "repo": "/r" }, { "name": "web", "repo": "/r" }, { "name": "api", "repo": "/r" },
        ] }))
        .expect("a project");
        let slug = "ws".parse().expect("a slug");
        let (service, port) = (service.map(name), port.map(name));
        choose(&slug, &spec, faces, service.as_ref(), port.as_ref())
            .map(|(service, port)| port.map_or_else(|| service.to_string(), |port| format!("{service}.{port}")))
            .map_err(|problem| problem.kind)
    }

    #[test]
    fn the_default_is_the_first_service_with_a_port_and_unknown_before_any_report() {
        let faces =
            [face("job", &[], None), face("web", &["http", "admin"], Some("http")), face("api", &["a", "b"], None)];
        assert_eq!(chosen(&faces, None, None), Ok("web".into()));
        assert_eq!(chosen(&[], None, None), Err(ProblemKind::Conflict));
        assert_eq!(chosen(&faces[..1], None, None), Err(ProblemKind::Invalid));
        for (service, port, expected) in [
            ("web", None, Ok("web")),
            ("web", Some("http"), Ok("web")),
            ("web", Some("admin"), Ok("web.admin")),
            ("web", Some("none"), Err(ProblemKind::Invalid)),
            ("api", None, Err(ProblemKind::Invalid)),
            ("api", Some("a"), Ok("api.a")),
            ("job", None, Err(ProblemKind::Invalid)),
            ("nosuch", None, Err(ProblemKind::Invalid)),
        ] {
            assert_eq!(chosen(&faces, Some(service), port), expected.map(str::to_owned), "{service} {port:?}");
        }
        // Named before any report: it has a dev host of its own by then.
        assert_eq!(chosen(&[], Some("web"), None), Ok("web".into()));
        assert_eq!(chosen(&[], Some("web"), Some("admin")), Err(ProblemKind::Conflict));
    }
}
