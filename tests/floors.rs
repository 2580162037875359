//! The library's floors: a file imports its own floor and those below, never one above.

use std::fs;
use std::path::Path;

/// From the ground up, by the longest name that fits; a `*` stands for any beginning.
const FLOORS: [&[&str]; 13] = [
    &["error", "files", "model_file", "product", "real", "rng", "signals"],
    &["custom", "device", "kernel", "map", "tensor", "twin"],
    &["plan"],
    &["kernels"],
    &["kernels::sequence"],
    &["kernels::*_forward", "kernels::*_backward"],
    &["kernels::cell"],
    &["self_check"],
    &["open"],
    &["kernels::generate"],
    &["graph"],
    &["data", "io", "nn", "onnx", "optim", "schedule", "text"],
    &["autosave", "checkpoint", "evaluate", "generate", "log", "plans", "predict", "read", "stream", "train"],
];

/// The floor of a path like `kernels::gru_forward::KERNEL`.
fn floor(path: &[String]) -> Option<usize> {
    let fits = |name: &str| {
        let parts: Vec<_> = name.split("::").collect();
        let fits = |(part, of): (&&str, &String)| part.strip_prefix('*').map_or(of == part, |end| of.ends_with(end));
        (parts.len() <= path.len() && parts.iter().zip(path).all(fits)).then_some(parts.len())
    };
    let all = FLOORS.iter().enumerate().flat_map(|(floor, names)| names.iter().map(move |name| (floor, name)));
    all.filter_map(|(floor, name)| Some((fits(name)?, floor))).max().map(|(_, floor)| floor)
}

/// The paths that `{a, b::{c, d}}`, `a::b` and the like stand for, up to where the code goes on.
fn expand(code: &str) -> (Vec<Vec<String>>, &str) {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        let mut all = Vec::new();
        loop {
            let (paths, after) = expand(rest);
            all.extend(paths);
            rest = after.trim_start().trim_start_matches(',').trim_start();
            match rest.strip_prefix('}') {
                Some(after) => return (all, after),
                None if rest.is_empty() => return (all, rest),
                None => {}
            }
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(end.max(usize::from(end == 0 && !code.is_empty())));
    match rest.strip_prefix("::") {
        Some(rest) => {
            let (paths, rest) = expand(rest);
            (paths.into_iter().map(|path| [vec![name.to_owned()], path].concat()).collect(), rest)
        }
        None => (vec![vec![name.to_owned()]], rest),
    }
}

/// The paths from the crate's root that the code of a module names, tests and comments aside.
fn imports(module: &[String], code: &str) -> Vec<Vec<String>> {
    let code = code.split("#[cfg(test)]").next().unwrap_or("");
    let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = lines.join("\n");
    let mut found = Vec::new();
    for (at, start) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let follows = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$';
        if code[..at].ends_with(follows) {
            continue;
        }
        for mut path in expand(&code[at..]).0 {
            let ups = path.iter().take_while(|part| *part == "super").count();
            let from = if start == "crate::" { 0 } else { module.len().checked_sub(ups).unwrap() };
            path.drain(..ups.max(1));
            found.push([&module[..from], &path].concat());
        }
    }
    found
}

/// All files below a folder, with the path of their module.
fn modules(folder: &Path, path: &[String]) -> Vec<(Vec<String>, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner = if name == "mod" { path.to_vec() } else { [path, &[name]].concat() };
        // The command stands on all of them, and has a crate of its own.
        if inner == ["cli"] || entry.extension().is_some_and(|end| end != "rs") {
            continue;
        }
        if entry.is_dir() {
            all.extend(modules(&entry, &inner));
        } else if inner != ["lib"] && inner != ["main"] {
            all.push((inner, fs::read_to_string(entry).unwrap()));
        }
    }
    all
}

/// What is wrong with an import, if anything.
fn problem(module: &[String], import: &[String]) -> Option<&'static str> {
    let (Some(from), Some(to)) = (floor(module), floor(import)) else { return Some("stands on no floor") };
    (to > from).then_some("is of a floor above")
}

#[test]
fn nothing_imports_a_floor_above() {
    let modules = modules(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &[]);
    let mut count = 0;
    for (module, code) in &modules {
        for import in imports(module, code) {
            count += 1;
            if let Some(problem) = problem(module, &import) {
                panic!("{}: {} {problem}", module.join("::"), import.join("::"));
            }
        }
    }
    assert!(modules.len() > 80 && count > 500, "{} modules, {count} imports", modules.len());
}

#[test]
fn an_import_of_a_floor_above_is_found() {
    let path = |path: &str| path.split("::").map(str::to_owned).collect::<Vec<_>>();
    let code = "use crate::{graph::{Graph, loss::Loss}, error::Result};\n// crate::nn\nfn f() { super::nll(crate::kernels::KERNEL) }";
    let found: Vec<_> = imports(&path("kernels::adam"), code).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["graph::Graph", "graph::loss::Loss", "error::Result", "kernels::KERNEL", "kernels::nll"]);
    for (module, import, is_wrong) in [
        ("kernels::adam", "graph::Graph", true),
        ("kernels::sequence::tile", "kernels::gru_forward", true),
        ("kernels::gru_forward", "kernels::sequence::twin", false),
        ("kernels::cell::gru", "kernels::gru_forward", false),
        ("kernels::sequence::path", "kernels::cell", true),
        ("graph", "kernels", false),
        ("train", "optim", false),
        ("optim", "train", true),
        ("plan", "Graph", true),
    ] {
        assert_eq!(problem(&path(module), &path(import)).is_some(), is_wrong, "{module} {import}");
    }
}
