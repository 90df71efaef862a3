//! Compiles `include/lcap_changelog.h` as C and C++ with every warning an error, and runs what was
//! compiled, on captures, under the address and undefined-behaviour sanitizers.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test: to panic is to fail

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
const SANITIZERS: [&str; 3] =
    ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

#[derive(Clone, Copy, Debug)]
enum Language {
    C,
    Cpp,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture(name: &str) -> Vec<u8> {
    let path = root().join("tests/fixtures/2.17/changelog").join(name);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut plain).unwrap();
    plain
}

/// A compiled program, and the folder that goes with it.
struct Program {
    dir: TempDir,
    exe: PathBuf,
}

impl Program {
    fn compile(language: Language, source: &str, more: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let exe = dir.path().join("program");
        let (compiler, dialect) = match language {
            Language::C => ("cc", ["-xc", "-std=c11"]),
            Language::Cpp => ("c++", ["-xc++", "-std=c++17"]),
        };
        let mut command = Command::new(compiler);
        command.args(dialect).args(WARNINGS).args(SANITIZERS).args(more);
        command.arg("-I").arg(root().join("include"));
        command.arg(root().join("tests/c").join(source)).arg("-o").arg(&exe);
        let output = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
        assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
        Self { dir, exe }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(&self.exe).args(args).output().unwrap()
    }

    /// Runs it on a file with these bytes.
    fn run_on(&self, bytes: &[u8], mode: &str) -> Output {
        let input = self.dir.path().join("records.bin");
        fs::write(&input, bytes).unwrap();
        self.run(&[input.to_str().unwrap(), mode])
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn layouts_values_and_helpers_are_lustre_s() {
    for language in [Language::C, Language::Cpp] {
        let output = Program::compile(language, "changelog_header.c", &[]).run(&[]);
        assert!(output.status.success(), "{language:?}\n{}", text(&output.stderr));
    }
}

#[test]
fn accessors_read_captures_as_lfs_does() {
    let captures = [
        ("odd-mdt0.bin", "odd-mdt0.txt"),
        ("odd-mdt1.bin", "odd-mdt1.txt"),
        ("work-mdt0.bin.gz", "work-mdt0.txt.gz"),
    ];
    for language in [Language::C, Language::Cpp] {
        let program = Program::compile(language, "accessors.c", &[]);
        for (bin, txt) in captures {
            let (bytes, want) = (fixture(bin), fixture(txt));
            for mode in ["", "remap"] {
                let output = program.run_on(&bytes, mode);
                assert!(output.status.success(), "{language:?} {bin}\n{}", text(&output.stderr));
                assert!(output.stdout == want, "{language:?} {bin} {mode}");
            }
        }
    }
}

#[test]
fn remapping_takes_out_what_is_not_wanted() {
    let program = Program::compile(Language::C, "accessors.c", &[]);
    let output = program.run_on(&fixture("odd-mdt0.bin"), "bare");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (have, full) = (output.stdout, fixture("odd-mdt0.txt"));
    assert!(have.len() < full.len());
    // What is left of a line is its words without those of the extensions.
    let words = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let extension = [&b"j="[..], b"ef=", b"u=", b"nid=", b"m=", b"x="];
        let words = bytes.split(|&b| b == b' ' || b == b'\n');
        let kept = words.filter(|word| !extension.iter().any(|start| word.starts_with(start)));
        kept.map(<[u8]>::to_vec).collect()
    };
    assert_eq!(words(&have), words(&full));
}

#[test]
fn walking_stops_where_a_record_is_cut() {
    let program = Program::compile(Language::C, "accessors.c", &[]);
    let bytes = fixture("odd-mdt1.bin");
    let whole = program.run_on(&bytes, "");
    for cut in [1, 63, 64, 95, 96, 103, 104, 149, bytes.len() - 1] {
        let output = program.run_on(&bytes[..cut], "");
        assert_eq!(output.status.code(), Some(3), "cut at {cut}: {}", text(&output.stderr));
        assert!(whole.stdout.starts_with(&output.stdout));
    }
    assert_eq!(program.run_on(&[], "").status.code(), Some(0));
}

#[test]
fn lustre_s_own_header_may_come_first_or_second() {
    let stand_in = root().join("tests/c/changelog_header_lustre");
    let stand_in = stand_in.to_str().unwrap();
    let cases: [&[&str]; 3] = [
        &["-I", stand_in, "-DLUSTRE_FIRST"],
        &["-I", stand_in],
        &["-I", stand_in, "-DLUSTRE_FIRST", "-DLCAP_NO_LUSTRE_HEADERS"],
    ];
    for language in [Language::C, Language::Cpp] {
        for flags in cases {
            let program = Program::compile(language, "changelog_header_beside_lustre.c", flags);
            let output = program.run(&[]);
            assert!(output.status.success(), "{language:?} {flags:?}\n{}", text(&output.stderr));
        }
    }
}

/// lcap_client(3) and the list of exported symbols speak of every function of the header, and of every
/// option.
#[test]
fn the_manual_and_the_library_have_what_the_header_declares() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let header = read("include/lcap_client.h");
    let page = read("docs/man/lcap_client.3.md");
    let exported = read("packaging/liblcapclient.map");
    let declared: Vec<&str> = header
        .lines()
        .filter(|line| line.starts_with("int lcap_") || line.starts_with("const char *lcap_"))
        .filter_map(|line| line.split(['(', ' ', '*']).find(|word| word.starts_with("lcap_")))
        .collect();
    assert!(declared.len() >= 11, "{declared:?}");
    for name in declared {
        assert!(page.contains(&format!("{name}(")), "docs/man/lcap_client.3.md lacks {name}()");
        assert!(exported.contains(&format!("{name};")), "liblcapclient.map lacks {name}");
    }
    let words = header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for option in words.filter(|word| word.starts_with("LCAP_CL_OPT_")) {
        assert!(page.contains(option), "docs/man/lcap_client.3.md lacks {option}");
    }
}
