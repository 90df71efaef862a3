//! The pages in docs/, and so lcapd.toml(5), which is made from them, have every key that there is.

use std::path::Path;

use lcapd::config::Config;

use super::root;

/// What the parser says it would have expected where it met a key that is none.
fn expected(text: &str) -> Vec<String> {
    let error = Config::parse(text, Path::new("x")).unwrap_err().to_string();
    let Some((_, list)) = error.split_once("expected") else { return Vec::new() };
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_in_the_manual() {
    let docs = root().join("docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
    let mut page = String::new();
    for file in std::fs::read_dir(&docs).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            page += &read(&name);
        }
    }
    let sections = expected("no_such_key = 1\n");
    assert!(sections.len() >= 3, "{sections:?}");
    for section in sections {
        let table = expected(&format!("[{section}]\nno_such_key = 1\n"));
        let list = expected(&format!("[[{section}]]\nno_such_key = 1\n"));
        let keys = [table, list].concat();
        assert!(!keys.is_empty(), "[{section}] takes any key");
        let heading = format!("[{section}]");
        assert!(page.contains(&heading), "no page in docs/ has {heading}");
        for key in keys {
            // In the first column, alone, among others, or with its form.
            let forms = [format!("| `{key}`"), format!(", `{key}`"), format!("| `{key} = ")];
            let listed = forms.iter().any(|form| page.contains(form));
            assert!(listed, "no page in docs/ has `{key}` of [{section}]");
        }
    }
}
