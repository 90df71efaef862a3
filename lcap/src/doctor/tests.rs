//! The parameters are those of a real Lustre 2.17.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::lustre::{Ours, check};
use super::params::Params;
use super::report::{Level, Report};
use super::{DoctorArgs, examine, machine};

const GC: &str = include_str!("../../../tests/fixtures/2.17/params/changelog-gc-params.txt");
const MASKS: &str =
    include_str!("../../../tests/fixtures/2.17/params/changelog_current_mask-all.txt");
const FRESH: &str =
    include_str!("../../../tests/fixtures/2.17/params/changelog_users-4users-idle0.txt");
const USED: &str =
    include_str!("../../../tests/fixtures/2.17/params/changelog_users-after-ops.txt");
const EMPTY: &str = include_str!("../../../tests/fixtures/2.17/params/changelog_users-empty.txt");
const HSM: &str = include_str!("../../../tests/fixtures/2.17/params/hsm-params-initial.txt");
const MARK_ONLY: &str = "mdd.lustre-MDT0000.changelog_current_mask=MARK \n";

fn findings(params: &[&str], user: Option<&str>, keep_alive: Duration) -> Report {
    let mut report = Report::default();
    let ours = Ours { mdt: "lustre-MDT0000", user, keep_alive };
    check(&mut report, &Params::printed(&params.concat()), ours);
    report
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_registered_user_with_a_full_mask_is_well() {
    for user in ["cl1", "cl3", "cl3-bob"] {
        let report = findings(&[GC, MASKS, USED, HSM], Some(user), HOUR);
        assert_eq!(report.errors(), 0, "{}", report.text());
        let text = report.text();
        assert!(text.contains(&format!("changelog user {user}")), "{text}");
        assert!(text.contains("154 records behind, last cleared 16 s ago"), "{text}");
        assert!(
            text.contains("removed after 30 days; lcapd clears at least every 3600 s"),
            "{text}"
        );
    }
}

#[test]
fn what_is_wrong_comes_with_what_to_type() {
    let slow = Duration::from_secs(2_592_000);
    let stale = "mdd.lustre-MDT0000.changelog_users=\ncurrent_index: 5000\n\
                 ID                            index (idle) mask\n\
                 cl1                            4999 (2)\n\
                 cl9                             100 (864000)\n";
    let doomed = "mdd.lustre-MDT0000.changelog_users=\ncurrent_index: 5000\n\
                  ID                            index (idle) mask\n\
                  cl1                            4999 (2000000)\n";
    let few = "mdd.lustre-MDT0000.changelog_current_mask=MARK CREAT MKDIR HLINK SLINK MKNOD RMDIR \
               RENME RNMTO CLOSE LYOUT TRUNC SATTR XATTR \n";
    let off = "mdd.lustre-MDT0000.changelog_gc=0\n";
    let stopped = "mdt.lustre-MDT0000.hsm_control=stopped\n";
    use Level::{Error, Note, Warning};
    type Case<'a> = (&'a str, &'a [&'a str], Option<&'a str>, Duration, Level, &'a str, &'a str);
    let cases: [Case<'_>; 11] = [
        (
            "no user configured",
            &[GC, MASKS, FRESH],
            None,
            HOUR,
            Error,
            "no `user` is configured",
            "lctl --device lustre-MDT0000 changelog_register",
        ),
        (
            "unknown user",
            &[GC, MASKS, FRESH],
            Some("cl7"),
            HOUR,
            Error,
            "there is no changelog user cl7",
            "changelog_register",
        ),
        (
            "another user's number begins alike",
            &[GC, MASKS, FRESH],
            Some("cl"),
            HOUR,
            Error,
            "there is no changelog user cl:",
            "changelog_register",
        ),
        (
            "nobody registered",
            &[GC, MARK_ONLY, EMPTY],
            Some("cl1"),
            HOUR,
            Note,
            "nothing is logged",
            "",
        ),
        (
            "mask of marks only",
            &[GC, MARK_ONLY, FRESH],
            Some("cl1"),
            HOUR,
            Error,
            "the mask leaves out CREAT",
            "lctl set_param -P mdd.lustre-MDT0000.changelog_mask=+CREAT",
        ),
        (
            "mask without one type",
            &[GC, few, FRESH],
            Some("cl1"),
            HOUR,
            Error,
            "leaves out UNLNK:",
            "changelog_mask=+UNLNK",
        ),
        (
            "mask without HSM",
            &[GC, few, FRESH],
            Some("cl1"),
            HOUR,
            Note,
            "leaves out HSM, which policy engines want",
            "changelog_mask=+HSM",
        ),
        (
            "clears too seldom",
            &[GC, MASKS, FRESH],
            Some("cl1"),
            slow,
            Error,
            "removes users that are idle for 2592000 s",
            "clear_keep_alive = \"648000s\"",
        ),
        (
            "a stale user",
            &[GC, MASKS, stale],
            Some("cl1"),
            HOUR,
            Warning,
            "user cl9 holds 4,900 records and has cleared nothing for 10 days",
            "changelog_deregister cl9",
        ),
        (
            "ours will be removed",
            &[GC, MASKS, doomed],
            Some("cl1"),
            HOUR,
            Error,
            "our user cl1 is on its way to be removed",
            "lcap status",
        ),
        (
            "no collection, no coordinator",
            &[off, MASKS, FRESH, stopped],
            Some("cl1"),
            HOUR,
            Note,
            "the HSM coordinator is stopped",
            "mdt.lustre-MDT0000.hsm_control=enabled",
        ),
    ];
    for (name, params, user, keep_alive, level, what, fix) in cases {
        let report = findings(params, user, keep_alive);
        let found = report.findings.iter().any(|finding| {
            finding.level == level
                && finding.what.contains(what)
                && finding.fix.as_deref().unwrap_or_default().contains(fix)
        });
        assert!(found, "{name}:\n{}", report.text());
    }
}

#[test]
fn parameters_that_cannot_be_seen_are_asked_for() {
    let report = findings(&[], Some("cl1"), HOUR);
    assert_eq!(report.errors(), 0);
    assert!(report.text().contains("lcap doctor --params"), "{}", report.text());
    let odd = "mdd.lustre-MDT0000.changelog_users=\nsomething new\n";
    assert!(findings(&[odd], Some("cl1"), HOUR).text().contains("any version of Lustre"));
}

/// A tree that looks like a client node, with the MDS's parameters in its /sys.
fn tree(dir: &Path) {
    let write = |path: &str, text: &str| {
        let file = dir.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    write("proc/self/status", "Name:\tlcap\nUid:\t0\t0\t0\t0\nCapEff:\t0000000000200004\n");
    write("proc/meminfo", "MemTotal:       16384000 kB\n");
    write("proc/77/comm", "lcapd\n");
    write(
        "proc/77/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            1024                 65536                files     \n",
    );
    write("sys/fs/lustre/version", "2.15.4\n");
    write("sys/fs/lustre/mdd/lustre-MDT0000/changelog_gc", "1\n");
    write("sys/fs/lustre/mdd/lustre-MDT0000/changelog_max_idle_time", "2592000\n");
    let users = "current_index: 9\nID                            index (idle) mask\n\
                 cl1                               9 (3)\n";
    write("sys/kernel/debug/lustre/mdd/lustre-MDT0000/changelog_users", users);
    write("dev/changelog-lustre-MDT0000", "");
    write("var/lib/lcap/x", "");
    write(
        "etc/lcap/lcapd.toml",
        "[server]\nmemory_limit = \"12GiB\"\n[[mdt]]\nname = \"lustre-MDT0000\"\nuser = \"cl1\"\n\
         [[stream]]\nname = \"changelog\"\ndelivery = \"broadcast\"\n\
         publish = \"tcp://127.0.0.1:8190\"\n",
    );
}

fn args(root: &Path) -> DoctorArgs {
    DoctorArgs { config: None, params: None, root: root.to_owned(), offline: true, json: false }
}

#[test]
fn a_tree_is_looked_through_like_a_machine() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let errors = || -> Vec<String> {
        let report = examine(&args(dir.path())).unwrap();
        let errors = report.findings.into_iter().filter(|finding| finding.level == Level::Error);
        // How full the disk is under the test does not matter here.
        errors.filter(|finding| finding.about != "state").map(|finding| finding.what).collect()
    };
    assert_eq!(errors(), [""; 0]);

    fs::remove_file(dir.path().join("dev/changelog-lustre-MDT0000")).unwrap();
    assert!(errors()[0].contains("is not mounted here"), "{:?}", errors());
    fs::remove_file(dir.path().join("etc/lcap/lcapd.toml")).unwrap();
    assert!(errors()[0].starts_with("there is no "), "{:?}", errors());
}

#[test]
fn limits_and_rights_of_the_machine_are_told() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let root = dir.path();
    let config = lcapd::config::Config::load(&root.join("etc/lcap/lcapd.toml")).unwrap();
    let mut report = Report::default();
    assert!(machine::rights(&mut report, root));
    machine::release(&mut report, root);
    machine::limits(&mut report, root, &config.server);
    let text = report.text();
    for want in [
        "uid 0 with CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH",
        "version 2.15.4",
        "memory_limit is 12288 MiB, this machine has 16000",
        "process 77) has 0 files open and may open 1024",
        "LimitNOFILE=65536",
    ] {
        assert!(text.contains(want), "{want}:\n{text}");
    }

    let status = root.join("proc/self/status");
    for (text, errors, want) in [
        ("Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000004\n", 1, "CAP_SYS_ADMIN missing"),
        ("Uid:\t0\t1000\t0\t0\nCapEff:\t0000000000000000\n", 0, "you are uid 1000"),
    ] {
        fs::write(&status, text).unwrap();
        let mut report = Report::default();
        machine::rights(&mut report, root);
        assert_eq!(report.errors(), errors);
        assert!(report.text().contains(want), "{}", report.text());
    }
}
