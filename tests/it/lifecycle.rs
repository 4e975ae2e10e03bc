//! `docs/LIFECYCLE.md` says what the code does.

use std::collections::BTreeSet;

use millstream::{error::Code, state::TRANSITIONS};

const DOC: &str = include_str!("../../docs/LIFECYCLE.md");

/// `from --> to : transition` of the diagram; `[*]` is a job that does not exist yet.
#[test]
fn the_diagram_is_the_table_of_transitions() {
    let diagram = DOC.split("```mermaid\nstateDiagram-v2\n").nth(1).expect("a state diagram");
    let diagram = diagram.split("```").next().unwrap();
    let mut drawn = BTreeSet::new();
    for line in diagram.lines().filter(|line| line.contains("-->")) {
        let (from, rest) = line.trim().split_once(" --> ").unwrap();
        let (to, names) = rest.split_once(" : ").unwrap_or((rest, ""));
        if to == "[*]" {
            continue;
        }
        for name in names.split(", ") {
            assert!(drawn.insert(format!("{from} {name} {to}")), "twice: {line}");
        }
    }
    let name = |value: String| value.to_lowercase();
    let table: BTreeSet<String> = TRANSITIONS
        .iter()
        .map(|(from, transition, to)| {
            let from = from.map_or("[*]".to_owned(), |state| state.to_string());
            format!("{from} {} {to}", name(format!("{transition:?}")))
        })
        .collect();
    let missing: Vec<_> = table.difference(&drawn).collect();
    let invented: Vec<_> = drawn.difference(&table).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not drawn {missing:?}, not so {invented:?}"
    );
}

#[test]
fn every_reason_stands_in_the_table_of_failures() {
    for code in Code::all() {
        let again = if code.is_transient() { "yes" } else { "no" };
        let row = DOC.lines().find(|line| line.starts_with(&format!("| `{code}` | {again} |")));
        assert!(row.is_some(), "no row `| `{code}` | {again} | …`");
    }
}
