//! C programs against the header and the shared library, with a fake lcapd.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "../../tests/fake/mod.rs"]
mod fake;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fake::{Fake, MDT, record};

/// A folder with the library under the names that the linker and the loader look for, and room for
/// programs.
struct Bench {
    dir: tempfile::TempDir,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The file as cargo built it for this test.
fn built(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let found = [deps, deps.parent().unwrap()].map(|dir| dir.join(name));
    found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no {name}"))
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["liblcapclient.so", "liblcapclient.so.1"] {
            std::os::unix::fs::symlink(built("liblcapclient.so"), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    /// Compiles a program of `tests/c`, without libzmq on the command line.
    fn compile(&self, source: &str, compiler: &[&str], more: &[&str]) -> PathBuf {
        let program =
            self.dir.path().join(format!("{}-{}", source.replace('.', "-"), more.join("")));
        run(Command::new(compiler[0])
            .args(&compiler[1..])
            .args(["-Wall", "-Wextra", "-Werror", "-O1", "-g", "-D_GNU_SOURCE"])
            .args(more)
            .arg("-I")
            .arg(root().join("include"))
            .arg(root().join("tests/c").join(source))
            .arg("-o")
            .arg(&program)
            .arg("-L")
            .arg(self.dir.path())
            .arg("-llcapclient"));
        program
    }

    fn command(&self, program: &Path, fake: &Fake) -> Command {
        let mut command = Command::new(program);
        self.environment(&mut command, fake);
        command
    }

    fn environment(&self, command: &mut Command, fake: &Fake) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LCAP_")) {
            command.env_remove(name);
        }
        command.env("LD_LIBRARY_PATH", self.dir.path()).env("LCAP_REC_URI", &fake.endpoint);
        command.env("LCAP_TIMEOUT_MS", "60000");
    }

    /// Under valgrind: no error, nothing leaked.
    fn valgrind(&self, program: &Path, fake: &Fake) -> Command {
        let mut command = Command::new("valgrind");
        self.environment(&mut command, fake);
        command.args(["--quiet", "--error-exitcode=99", "--leak-check=full"]);
        command.args(["--show-leak-kinds=definite,indirect,possible", "--trace-children=no"]);
        command.arg(program);
        command
    }
}

fn fake_with(n: u64) -> Fake {
    let fake = Fake::start();
    fake.with(|state| state.readers.insert("audit".into(), 0));
    fake.append(1..=n);
    fake
}

#[test]
fn a_program_for_the_first_lcap_compiles_unchanged_and_gets_every_record_once_in_order() {
    let (bench, fake) = (Bench::new(), fake_with(1000));
    let program = bench.compile("client_original.c", &["cc"], &[]);
    let out = run(bench.command(&program, &fake).arg(MDT));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 1000);
    for (at, line) in lines.iter().enumerate() {
        let n = at + 1;
        let name = format!("file-{n}-{}", "x".repeat(n % 7));
        let want = format!(
            "{n} 01CREAT 22:13:20.{n:09} 2023.11.14 0x0 t=[0x200000402:0x{n:x}:0x0] j=job.42 \
             p=[0x200000007:0x1:0x0] {name}"
        );
        assert_eq!(*line, want);
    }
}

#[test]
fn a_reader_from_the_environment_clears_as_it_reads() {
    let (bench, fake) = (Bench::new(), fake_with(1000));
    let program = bench.compile("client_original.c", &["cc"], &[]);
    let out = run(bench.command(&program, &fake).env("LCAP_READER", "audit").arg(MDT));
    assert_eq!(out.lines().count(), 1000);
    assert_eq!(fake.with(|state| state.readers["audit"]), 1000);
}

#[test]
fn errors_have_their_text() {
    let (bench, fake) = (Bench::new(), fake_with(1));
    let program = bench.compile("client_original.c", &["cc"], &[]);
    let failed = bench.command(&program, &fake).arg("none-MDT0000").output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(said, "lcap_changelog_start: No such file or directory\n");
}

#[test]
fn without_a_server_the_same_program_reads_the_mdt_itself() {
    let (bench, fake) = (Bench::new(), fake_with(50));
    let program = bench.compile("client_original.c", &["cc"], &[]);
    let by_lcapd = run(bench.command(&program, &fake).arg(MDT));
    let standin = bench.dir.path().join("standin.so");
    run(Command::new("cc")
        .args(["-std=gnu11", "-shared", "-fPIC", "-I"])
        .arg(root().join("include"))
        .arg(root().join("tests/c/standin_llapi.c"))
        .arg("-o")
        .arg(&standin));
    let log: Vec<u8> = (1..=50).flat_map(record).collect();
    std::fs::write(bench.dir.path().join(MDT), log).unwrap();
    let mut command = bench.command(&program, &fake);
    command.env("LCAP_LIBLUSTREAPI", &standin).env("STANDIN_DIR", bench.dir.path());
    assert_eq!(run(command.args(["-d", MDT])), by_lcapd);
    // Who is registered clears for himself.
    command.env("LCAP_READER", "cl1");
    run(&mut command);
    let cleared = std::fs::read_to_string(bench.dir.path().join("cleared")).unwrap();
    assert_eq!(cleared, (1..=50).map(|n| format!("{MDT} cl1 {n}\n")).collect::<String>());
    command.env("LCAP_LIBLUSTREAPI", "liblustreapi-is-not-there.so");
    let failed = command.output().unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert_eq!(said, "lcap_changelog_start: Function not implemented\n");
}

#[test]
fn every_function_does_what_the_header_says() {
    let (bench, fake) = (Bench::new(), fake_with(500));
    let program = bench.compile("client_api.c", &["cc", "-std=c11"], &["-pedantic"]);
    run(bench.command(&program, &fake).arg("500"));
    assert_eq!(fake.with(|state| state.readers["audit"]), 500);
}

#[test]
fn valgrind_finds_nothing() {
    let (bench, fake) = (Bench::new(), fake_with(100));
    let program = bench.compile("client_api.c", &["cc", "-std=c11"], &[]);
    run(bench.valgrind(&program, &fake).args(["100", "no-fork"]));
}

#[test]
fn headers_get_along_with_libzmqs_as_c_and_as_cxx() {
    let (bench, fake) = (Bench::new(), fake_with(1));
    for compiler in [&["cc", "-std=c11"][..], &["c++", "-x", "c++", "-std=c++17"]] {
        for order in ["-DNO_ZMQ", "-DZMQ_FIRST", "-DZMQ_LAST"] {
            let more = ["-pedantic", order, if compiler[0] == "cc" { "-DC" } else { "-DCXX" }];
            let program = bench.compile("client_headers.c", compiler, &more);
            run(&mut bench.command(&program, &fake));
        }
    }
    bench.compile("client_api.c", &["c++", "-x", "c++", "-std=c++17"], &["-pedantic"]);
}

/// What `include/lcap_client.h` and `include/lcap_mover.h` declare.
fn declared() -> BTreeSet<String> {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let header = [read("lcap_client.h"), read("lcap_mover.h")].concat();
    let inlines: Vec<&str> =
        header.lines().filter(|line| line.starts_with("static inline")).collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words = header.split(|c| !is_word(c)).zip(header.split_inclusive(|c| !is_word(c)));
    words
        .filter(|(word, with)| with.ends_with('(') && word.starts_with("lcap_"))
        .map(|(word, _)| word.to_owned())
        .filter(|word| !["lcap_client", "lcap_mover"].contains(&word.as_str())) // manual pages
        .filter(|word| !inlines.iter().any(|line| line.contains(&format!("{word}("))))
        .collect()
}

/// What a shared library defines for others, without versions.
fn exported(library: &Path) -> BTreeSet<String> {
    let out = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library));
    let names = out.lines().filter(|line| !line.contains(" A ")).filter_map(|line| {
        let name = line.split(' ').nth(2)?;
        Some(name.split('@').next().unwrap_or(name).to_owned())
    });
    names.collect()
}

#[test]
fn exactly_the_interface_is_exported() {
    let library = built("liblcapclient.so");
    assert_eq!(exported(&library), declared());
    assert_eq!(declared().len(), 25);
    let dynamic = run(Command::new("readelf").arg("-d").arg(library));
    assert!(dynamic.contains("soname: [liblcapclient.so.1]"), "{dynamic}");
    assert_eq!(dynamic.matches("libzmq.so").count(), 1, "the system's libzmq");
}

#[test]
fn what_is_installed_has_versions_and_is_found_by_pkg_config() {
    let (bench, fake) = (Bench::new(), fake_with(20));
    let (out, installed) = (bench.dir.path().join("out"), bench.dir.path().join("installed"));
    std::fs::create_dir(&out).unwrap();
    std::os::unix::fs::symlink(built("liblcapclient.a"), out.join("liblcapclient.a")).unwrap();
    std::fs::write(out.join("liblcap_llapi.so"), "another package's").unwrap();
    let libdir = installed.join("opt/lcap/lib64");
    run(Command::new(root().join("packaging/install-client.sh"))
        .env("OUT", &out)
        .env("DESTDIR", &installed)
        .env("PREFIX", "/opt/lcap")
        .env("LIBDIR", "/opt/lcap/lib64"));
    let library = libdir.join("liblcapclient.so.1");
    assert_eq!(exported(&library), declared());
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    assert_eq!(symbols.matches("@@LCAP_1.").count(), declared().len(), "{symbols}");

    let flags = run(Command::new("pkg-config")
        .env("PKG_CONFIG_PATH", libdir.join("pkgconfig"))
        .env("PKG_CONFIG_SYSROOT_DIR", &installed)
        .args(["--cflags", "--libs", "lcapclient"]));
    let program = bench.dir.path().join("by-pkg-config");
    run(Command::new("cc")
        .args(["-D_GNU_SOURCE", "-Wall", "-Werror"])
        .arg(root().join("tests/c/client_original.c"))
        .arg("-o")
        .arg(&program)
        .args(flags.split_whitespace()));
    let mut command = bench.command(&program, &fake);
    let lines = run(command.env("LD_LIBRARY_PATH", &libdir).arg(MDT));
    assert_eq!(lines.lines().count(), 20);
}
