//! Paths of files by their FIDs, as `lfs fid2path` finds them; remembered, also what was not found.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// FIDs that are remembered.
const REMEMBERED: usize = 50_000;
/// What was not found is looked for again after this.
const MISS_LIFE: Duration = Duration::from_secs(60);

/// Finds paths below a mount point.
#[derive(Debug)]
pub(crate) struct Paths {
    mount: PathBuf,
    program: PathBuf,
    known: HashMap<String, Answer>,
    /// FIDs in the order in which they were asked for.
    order: VecDeque<String>,
}

#[derive(Clone, Debug)]
enum Answer {
    Found(String),
    NotFound(Instant),
}

impl Paths {
    /// Below this mount point of Lustre.
    pub(crate) fn new(mount: PathBuf) -> Self {
        Self { mount, program: "lfs".into(), known: HashMap::new(), order: VecDeque::new() }
    }

    /// The file's path, if it has one.
    pub(crate) fn path(&mut self, fid: &str) -> Option<String> {
        match self.known.get(fid) {
            Some(Answer::Found(path)) => return Some(path.clone()),
            Some(Answer::NotFound(at)) if at.elapsed() < MISS_LIFE => return None,
            Some(Answer::NotFound(_)) => {}
            None => {
                self.order.push_back(fid.to_owned());
                if self.order.len() > REMEMBERED
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.known.remove(&oldest);
                }
            }
        }
        let path = self.ask(fid);
        let answer = path.clone().map_or_else(|| Answer::NotFound(Instant::now()), Answer::Found);
        self.known.insert(fid.to_owned(), answer);
        path
    }

    /// The first of its paths, from the root of the file system on, as `lfs` prints it.
    fn ask(&self, fid: &str) -> Option<String> {
        let mut command = Command::new(&self.program);
        command.arg("fid2path").arg(&self.mount).arg(fid);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().filter(|line| !line.is_empty())?;
        Some(first.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn answers_are_remembered_within_bounds_and_misses_too() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("lfs");
        let asked = dir.path().join("asked");
        let script = format!(
            "#!/bin/sh\necho \"$3\" >> {}\ncase $3 in 0x9:*) exit 2;; esac\necho \"$2/file-$3\"\n",
            asked.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut paths = Paths { program, ..Paths::new("/lustre".into()) };
        for _ in 0..3 {
            assert_eq!(paths.path("0x1:0x2:0x0").as_deref(), Some("/lustre/file-0x1:0x2:0x0"));
            assert_eq!(paths.path("0x9:0x2:0x0"), None);
        }
        let n_asked = std::fs::read_to_string(&asked).unwrap().lines().count();
        assert_eq!(n_asked, 2);
    }
}
