//! `make install`, into a directory of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use super::{built, root, run};

/// Installs what is built in this profile.
fn install(into: &Path) {
    let profile = built();
    let target = profile.parent().unwrap();
    let mut make = Command::new("make");
    make.current_dir(root()).env("CARGO_TARGET_DIR", target);
    make.args(["--no-print-directory", "install", "PREFIX=/usr", "LIBDIR=/usr/lib64"]);
    make.arg(format!("PROFILE={}", profile.file_name().unwrap().to_str().unwrap()));
    make.arg(format!("DESTDIR={}", into.display()));
    // Variables of a make that runs this test are not meant for that one.
    for name in ["MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "PROFILE"] {
        make.env_remove(name);
    }
    run(&mut make);
}

#[test]
fn everything_is_where_it_belongs_and_works_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path.trim_start_matches('/'));
    install(dir.path());

    for (path, executable) in [
        ("usr/bin/lcap", true),
        ("usr/sbin/lcapd", true),
        ("usr/libexec/lcap/lhsm_mdt_upcall", true),
        ("usr/bin/lhsm_worker_posix", true),
        ("usr/lib64/liblcapclient.so.1", true),
        ("usr/lib64/liblcap_llapi.so", true),
        ("usr/lib64/pkgconfig/lcapclient.pc", false),
        ("usr/lib64/lcap/policies/fifo.so", true),
        ("usr/include/lcap_client.h", false),
        ("usr/include/lcap_changelog.h", false),
        ("usr/include/lcap_policy.h", false),
        ("usr/lib/systemd/system/lcapd.service", false),
        ("usr/lib/systemd/system/lcapd@.service", false),
        ("usr/lib/systemd/system/lcap-hsm-worker@.service", false),
        ("usr/share/lcap/examples/lcapd.json", false),
        ("usr/share/lcap/examples/lcap.rules.yml", false),
        ("usr/share/lcap/examples/worker.conf", false),
        ("usr/share/bash-completion/completions/lcap", false),
        ("etc/lcap/lcapd.toml.sample", false),
    ] {
        let meta = fs::metadata(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(meta.permissions().mode() & 0o111 != 0, executable, "{path}");
    }

    let library = at("usr/lib64/liblcapclient.so");
    let dynamic = run(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains("Library soname: [liblcapclient.so.1]"), "{dynamic}");
    let unit = fs::read_to_string(at("usr/lib/systemd/system/lcapd.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/sbin/lcapd"), "{unit}");

    // The sample is good as it is, and its modules are found where they were installed.
    let check = Command::new(at("usr/sbin/lcapd"))
        .args(["--check", "-c"])
        .arg(at("etc/lcap/lcapd.toml.sample"))
        .env_remove("LCAP_POLICY_PATH")
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let fifo = at("usr/lib64/lcap/policies/fifo.so");
    let told = run(Command::new(at("usr/bin/lcap")).args(["policy", "inspect"]).arg(fifo));
    assert!(told.contains("fifo"), "{told}");

    // The C example, as its first lines say, but from the installed tree.
    let flags = run(Command::new("pkg-config")
        .args(["--cflags", "--libs", "lcapclient"])
        .env("PKG_CONFIG_PATH", at("usr/lib64/pkgconfig"))
        .env("PKG_CONFIG_SYSROOT_DIR", dir.path())
        .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
        .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1"));
    let reader = dir.path().join("reader");
    run(Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&reader)
        .arg(root().join("docs/examples/reader.c"))
        .args(flags.split_whitespace()));
    let usage = Command::new(&reader).env("LD_LIBRARY_PATH", at("usr/lib64")).output().unwrap();
    assert_eq!(usage.status.code(), Some(2), "{}", String::from_utf8_lossy(&usage.stderr));
}
