//! The Python package in `python/`, with the system's Python and the library that was built.

use std::fs;
use std::process::Command;

use lcap_tests::daemon::{Daemon, Setup};

use super::{built, program, root, run};

/// Two MDTs with what a real file system wrote.
fn captures() -> Daemon {
    let capture = |name: &str| {
        let file = root().join(format!("tests/fixtures/2.17/changelog/{name}.bin"));
        format!("replay:{}", file.display())
    };
    Setup::new()
        .mdt("lustre-MDT0000", &capture("odd-mdt0"))
        .mdt("lustre-MDT0001", &capture("odd-mdt1"))
        .broadcast("changelog", "")
        .start()
}

/// Python that finds the package, the library, the tool, and the daemon.
fn python(daemon: &Daemon) -> Command {
    // The tool's own command has the daemon's address.
    let mut command = Command::new("/usr/bin/python3");
    for (name, value) in daemon.lcap(&[]).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
        .env("PYTHONPATH", root().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LCAP_CLIENT_LIBRARY", built().join("liblcapclient.so"))
        .env("LCAP_COMMAND", program("lcap"))
        .current_dir(root().join("python"));
    command
}

#[test]
fn it_reads_acknowledges_and_filters() {
    let daemon = captures();
    run(python(&daemon).args(["-m", "unittest", "discover", "-s", "tests"]));
}

#[test]
fn the_scripts_of_the_documentation_do_what_they_say() {
    let daemon = captures();
    for reader in ["audit", "alert"] {
        let from = ["--from", "oldest"];
        run(daemon.lcap(&["reader", "register", "changelog", reader]).args(from));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let audit = || {
        run(python(&daemon).args(["examples/audit.py", "--once"]).arg(file.path()));
        fs::read_to_string(file.path()).unwrap().lines().count()
    };
    assert_eq!(audit(), 120);
    assert_eq!(audit(), 120, "all was acknowledged");

    let counted = run(python(&daemon).arg("examples/count_by_jobid.py"));
    let total: u64 = counted
        .lines()
        .map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 120, "{counted}");

    let alert = ["examples/hsm_alert.py", "--once", "--stream", "changelog", "echo", "alert:"];
    let told = run(python(&daemon).args(alert));
    let json = run(&mut daemon.lcap(&["changelog", "--json", "lustre-MDT0000"]));
    let failed = json.lines().filter(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["type"] == "HSM" && record["flags"].as_u64().unwrap() & 0x7f != 0
    });
    assert_eq!(told.lines().count(), failed.count(), "{told}");
}
