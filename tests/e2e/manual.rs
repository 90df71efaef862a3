//! The pages in docs/, and so lcapd.toml(5), which is made from them, have every key that there is.

use std::path::Path;

use lcapd::config::Config;
use lcapd::security::Clients;

use super::root;

/// What the parser says it would have expected where it met a key that is none.
fn expected(text: &str) -> Vec<String> {
    let Err(error) = Config::parse(text, Path::new("x")) else { return Vec::new() }; // any key will do
    let error = error.to_string();
    let Some((_, list)) = error.split_once("expected") else { return Vec::new() };
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The sections of docs/ that lcapd.toml(5) is made of, as `packaging/man.sh` finds them.
fn page() -> String {
    let docs = root().join("docs");
    let mut page = String::new();
    let source = std::fs::read_to_string(docs.join("man/lcapd.toml.5.md")).unwrap();
    for line in source.lines().filter_map(|line| line.strip_prefix("@section ")) {
        let (files, heading) = line.split_once(' ').unwrap();
        let heading = format!("## {}", heading.trim_matches('"'));
        let mut names: Vec<_> =
            std::fs::read_dir(&docs).unwrap().map(|f| f.unwrap().file_name()).collect();
        names.sort();
        for name in names.iter().filter_map(|name| name.to_str()) {
            let (start, end) = files.split_once('*').unwrap_or((files, ""));
            if !(name.starts_with(start) && name.ends_with(end)) {
                continue;
            }
            let text = std::fs::read_to_string(docs.join(name)).unwrap();
            let lines = text.lines().skip_while(|line| *line != heading).skip(1);
            for line in lines.take_while(|line| !line.starts_with("## ")) {
                page += line;
                page.push('\n');
            }
        }
    }
    page
}

/// Keys that a table of lists of keys in `page` has: in the first column, alone, among others, or with their
/// form, as in `` `a`, `b = { c, d }` ``.
fn has_key(page: &str, key: &str) -> bool {
    let first = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first.flat_map(|cell| cell.split('`').skip(1).step_by(2)).any(|word| {
        let word = word.split([' ', '=']).next().unwrap_or_default();
        word == key
    })
}

/// Whether `page` tells of a key of a table inside a table: in the row of that, or in a table of its own.
fn has_inner_key(page: &str, outer: &str, key: &str) -> bool {
    let quoted = |text: &str| {
        let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.any(|word| word == key)
    };
    let row = page.lines().find(|line| line.starts_with('|') && has_key(line, outer));
    row.is_some_and(quoted) || has_key(page, key)
}

#[test]
fn every_key_is_in_the_manual() {
    let page = page();
    let sections = expected("no_such_key = 1\n");
    assert!(sections.len() >= 6, "{sections:?}");
    let mut n_keys = 0;
    for section in sections {
        let table = expected(&format!("[{section}]\nno_such_key = 1\n"));
        let list = expected(&format!("[[{section}]]\nno_such_key = 1\n"));
        let keys = [table, list].concat();
        assert!(!keys.is_empty(), "[{section}] takes any key");
        for key in keys {
            assert!(has_key(&page, &key), "lcapd.toml(5) has no `{key}` of [{section}]");
            n_keys += 1;
            for open in [format!("[{section}.{key}]"), format!("[[{section}]]\n[{section}.{key}]")]
            {
                let inner = expected(&format!("{open}\nno_such_key = 1\n"));
                for inner in inner.iter().filter(|inner| !inner.contains(' ')) {
                    let told = has_inner_key(&page, &key, inner);
                    assert!(told, "lcapd.toml(5) has no `{inner}` of {open}");
                    n_keys += 1;
                }
            }
        }
    }
    assert!(n_keys > 80, "only {n_keys} keys were looked for");

    let error = Clients::parse("[[client]]\nno_such_key = 1\n").unwrap_err().to_string();
    let keys: Vec<_> = error.split('`').skip(3).step_by(2).collect();
    assert!(keys.len() >= 6, "{error}");
    for key in keys {
        assert!(has_key(&page, key), "lcapd.toml(5) has no `{key}` of [[client]]");
    }
}
