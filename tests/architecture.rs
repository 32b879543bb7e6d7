//! Holds the shape of the crate: layers, spelling, headers, sizes, where `unsafe` may stand.
//!
//! A line of code names other modules as `crate::module::…` and in no other way, so that reading
//! lines is enough. A new module fails here until it is given a layer. Comments may name anything.

use std::path::{Path, PathBuf};

/// Modules by layer; each may use those of lower layers only.
const LAYERS: [&str; 10] = [
    "causes mesh quota sys",
    "api cluster task drain pipe",
    "pki telemetry source",
    "capture identify authorize tunnel deliver",
    "explain",
    "node cni control inspect check",
    "config",
    "cli",
    "lib",
    "main",
];
/// Who may look sideways, and at what alone: whoever moves bytes takes a permit.
const EXCEPTIONS: [(&str, &str); 2] = [
    ("tunnel", "crate::authorize::Permit"),
    ("deliver", "crate::authorize::Permit"),
];
/// What may lie at the top, beside dotfiles and what git ignores.
const TOP: &str = "Cargo.toml Cargo.lock src daemonset scripts tests benches README.md \
                   ARCHITECTURE.md LICENSE target";
/// Most lines of a file, its tests not counted.
const LINES: usize = 600;

fn has(list: &str, word: &str) -> bool {
    list.split(' ').any(|one| one == word)
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| has(modules, module))
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn imports_run_downward_only() {
    check(|own, line| {
        line.match_indices("crate::").find_map(|(at, _)| {
            let used = identifier(&line[at + "crate::".len()..]);
            let (Some(from), Some(to)) = (layer(own), layer(used)) else {
                return Some(format!(
                    "{own} or {used} has no layer: give it one in LAYERS"
                ));
            };
            let path = line[at..].split([';', '<', '(', ' ']).next();
            let excused = path.is_some_and(|path| EXCEPTIONS.contains(&(own, path)));
            let right = own == used || to < from || excused;
            (!right).then(|| format!("{own} (layer {from}) uses {used} (layer {to})"))
        })
    });
}

#[test]
fn modules_are_spelled_from_the_root() {
    check(|_, line| {
        let parent = line.contains("super::") && line != "use super::*;";
        (parent || line.contains("crate::{")).then(|| "write crate::module::Item".to_owned())
    });
}

#[test]
fn unsafe_stands_in_sys_and_printing_in_programs_for_people() {
    check(|own, line| {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '!');
        words.find_map(|word| match word {
            "unsafe" if own != "sys" => Some("unsafe belongs in src/sys".to_owned()),
            "println!" | "print!" if !has("cli inspect main", own) => {
                Some("log it, or write to a writer".to_owned())
            }
            _ => None,
        })
    });
}

#[test]
fn files_open_with_their_purpose_and_stay_short() {
    let mut faults = Vec::new();
    for (path, _, text) in sources() {
        let tests = text.find("\n#[cfg(test)]\nmod tests {");
        let lines = text[..tests.unwrap_or(text.len())].lines().count();
        if !text.starts_with("//! ") {
            faults.push(format!("{}:1: begin with `//! `", path.display()));
        }
        if lines > LINES && !path.ends_with("tests.rs") {
            faults.push(format!(
                "{}:{LINES}: {lines} lines, split it",
                path.display()
            ));
        }
    }
    report(&faults);
}

#[test]
fn the_top_holds_what_it_should() {
    let entries = std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the crate is here");
    let names = entries.map(|entry| entry.expect("a name").file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.retain(|name| !name.starts_with('.') && !has(TOP, name));
    report(&names);
}

/// Calls `fault` with module and text of every line of code, and fails with all that it finds.
fn check(fault: impl Fn(&str, &str) -> Option<String>) {
    let mut faults = Vec::new();
    for (path, module, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().trim();
            if let Some(what) = fault(&module, code) {
                faults.push(format!("{}:{}: {what}: {code}", path.display(), at + 1));
            }
        }
    }
    report(&faults);
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Path, top module and text of every file below `src`.
fn sources() -> Vec<(PathBuf, String, String)> {
    let mut found = Vec::new();
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory of sources");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("sources are text");
            let path = path
                .strip_prefix(env!("CARGO_MANIFEST_DIR"))
                .expect("it is below");
            let module = path.components().nth(1).expect("src/…").as_os_str();
            let module = module.to_string_lossy().trim_end_matches(".rs").to_owned();
            found.push((path.to_owned(), module, text));
        }
    }
    found.sort();
    found
}
