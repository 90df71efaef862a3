//! Lustre's parameters: from the files that the kernel shows, from `lctl`, or from what `lctl
//! get_param` printed elsewhere.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernel shows them: sysfs, debugfs, and procfs, where they all were once.
const TREES: [&str; 3] = ["sys/fs/lustre", "sys/kernel/debug/lustre", "proc/fs/lustre"];

/// A way to look parameters up.
#[derive(Debug)]
pub(super) enum Params {
    /// Of this machine, or of a tree that looks like one.
    Live { root: PathBuf },
    /// From a file.
    Printed(BTreeMap<String, String>),
}

impl Params {
    /// What `lctl get_param` printed.
    pub(super) fn printed(text: &str) -> Self {
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        let mut current = None;
        for line in text.lines() {
            match line.split_once('=') {
                Some((name, value)) if is_name(name) => {
                    all.insert(name.to_owned(), value.to_owned());
                    current = Some(name.to_owned());
                }
                _ => {
                    let value = current.as_ref().and_then(|name| all.get_mut(name));
                    if let Some(value) = value {
                        if !value.is_empty() {
                            value.push('\n');
                        }
                        value.push_str(line);
                    }
                }
            }
        }
        Self::Printed(all)
    }

    /// The value of e.g. `mdd.lustre-MDT0000.changelog_mask`, if it can be seen from here.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        match self {
            Self::Printed(all) => all.get(name).cloned(),
            Self::Live { root } => {
                let path = name.replace('.', "/");
                let file = TREES.iter().find_map(|tree| read(&root.join(tree).join(&path)));
                file.or_else(|| if root == Path::new("/") { lctl(name) } else { None })
            }
        }
    }

    /// The same as a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.trim().parse().ok()
    }
}

/// Names look like `mdd.lustre-MDT0000.changelog_gc`; a row of a value may have a `=`, too.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    text.contains('.') && text.chars().all(plain)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn lctl(name: &str) -> Option<String> {
    let output = Command::new("lctl").args(["get_param", "-n", name]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A row of `changelog_users`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// `cl3`, or `cl3-bob`.
    pub(super) id: String,
    /// Everything up to here was cleared for it.
    pub(super) index: u64,
    /// Seconds since it last cleared; older versions do not tell.
    pub(super) idle: Option<u64>,
}

impl User {
    /// Whether the configuration's `user` is this one; the name behind the number may be left out.
    pub(super) fn is(&self, user: &str) -> bool {
        let number = |id: &str| id.split('-').next().unwrap_or_default().to_owned();
        self.id == user || number(&self.id) == user
    }
}

/// The newest index, and the users; of every version's text.
pub(super) fn users(text: &str) -> Option<(u64, Vec<User>)> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let current = lines.next()?.rsplit_once(':')?.1.trim().parse().ok()?;
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let id = words.next().filter(|id| id.starts_with("cl"))?.to_owned();
        let index = words.next()?.parse().ok()?;
        let idle = words.next().map(|word| word.trim_matches(['(', ')']));
        Some(User { id, index, idle: idle.and_then(|text| text.parse().ok()) })
    };
    Some((current, lines.filter_map(row).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_every_version_are_understood() {
        let user = |id: &str, index, idle| User { id: id.into(), index, idle };
        let cases = [
            (
                "current_index: 1234\nID                            index (idle) mask\n\
                 cl1                             100 (12)\n\
                 cl2-dirs                       1200 (3) mask=MARK,MKDIR,RMDIR\n",
                1234,
                vec![user("cl1", 100, Some(12)), user("cl2-dirs", 1200, Some(3))],
            ),
            (
                "current index: 7\nID    index (idle seconds)\ncl1   5 (12)\n",
                7,
                vec![user("cl1", 5, Some(12))],
            ),
            ("current index: 7\nID    index\ncl1   5\n", 7, vec![user("cl1", 5, None)]),
            ("\ncurrent_index: 0\nID                            index (idle) mask\n", 0, vec![]),
        ];
        for (text, current, want) in cases {
            assert_eq!(users(text), Some((current, want)), "{text}");
        }
        for text in ["", "nonsense", "current_index: many"] {
            assert_eq!(users(text), None, "{text}");
        }
        assert!(user("cl2-dirs", 0, None).is("cl2"));
        assert!(user("cl2-dirs", 0, None).is("cl2-dirs"));
        assert!(!user("cl21", 0, None).is("cl2"));
    }

    #[test]
    fn what_lctl_printed_is_taken_apart() {
        let text = "mdd.lustre-MDT0000.changelog_gc=1\n\
                    mdd.lustre-MDT0000.changelog_users=\n\
                    current_index: 154\n\
                    ID                            index (idle) mask\n\
                    cl4                               0 (16) mask=MARK,CREAT\n\
                    mdt.lustre-MDT0000.hsm.actions=\n";
        let params = Params::printed(text);
        assert_eq!(params.number("mdd.lustre-MDT0000.changelog_gc"), Some(1));
        let (current, all) =
            users(&params.get("mdd.lustre-MDT0000.changelog_users").unwrap()).unwrap();
        assert_eq!((current, all.len()), (154, 1));
        assert_eq!(params.get("mdt.lustre-MDT0000.hsm.actions").as_deref(), Some(""));
        assert_eq!(params.get("mdt.lustre-MDT0001.hsm.actions"), None);
    }
}
