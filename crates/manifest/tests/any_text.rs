//! Whatever a person or a program writes into a file, reading it ends soon, with a value or with findings.

use envforge_manifest::{parse_project, parse_service};
use proptest::prelude::*;

fn read(text: &str) {
    for result in [parse_service("f", text).err(), parse_project("f", text).err()] {
        let Some(findings) = result else { continue };
        assert!(!findings.is_empty(), "a refusal says why");
        for finding in findings {
            assert!(finding.line > 0 && finding.column > 0 && !finding.reason.is_empty() && !finding.mend.is_empty());
            assert!(!finding.reason.contains('\u{1b}') && !finding.snippet.contains('\u{1b}'));
        }
    }
}

/// Words and signs of the two files, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "version: 1",
        "service:",
        "ports:",
        "health:",
        "environment:",
        "resources:",
        "bindings:",
        "routes:",
        "setup:",
        "http",
        "project: a",
        "services:",
        "repo: /x",
        "from:",
        "database",
        "route /",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "?",
        "|",
        ">",
        "&a ",
        "*a",
        "!!x ",
        "\"",
        "'",
        "#",
        "---\n",
        "...",
        "%YAML 1.2\n",
        "<<",
        "\t",
        "~",
        "0",
        "99999999999",
        "é",
        "\u{feff}",
        "\u{1b}",
        "\0",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gives_a_value_or_findings(text in any::<String>()) {
        read(&text);
    }

    #[test]
    fn any_mixture_of_yaml_gives_a_value_or_findings(text in pieces()) {
        read(&text);
    }

    #[test]
    fn a_file_cut_anywhere_gives_a_value_or_findings(at in 0_usize..600) {
        let text = include_str!("../../../examples/scheduler/backend/envforge.yml");
        if let Some(part) = text.get(..at) {
            read(part);
        }
    }
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let mut laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (new, old) in "bcdefghij".chars().zip("abcdefghi".chars()) {
        laughs += &format!("{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n");
    }
    for (text, reason) in [
        ("[".repeat(100_000), "nested deeper"),
        ("- ".repeat(5_000), "nested deeper"),
        ("{a: ".repeat(40) + &"}".repeat(40), "nested deeper"),
        (format!("a: [{}]", "x,".repeat(20_000)), "more than 10000 values"),
        ("#".repeat(300 * 1024), "too many"),
        (laughs, "anchor"),
        ((0..4_900).map(|n| format!("k{n}: x\n")).collect::<String>(), "not a key"),
    ] {
        read(&text);
        let findings = parse_service("f", &text).expect_err(reason);
        assert!(findings.len() <= 100);
        assert!(findings.iter().any(|d| d.reason.contains(reason)), "{reason}: {:?}", findings[0]);
    }
}
