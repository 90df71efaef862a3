//! What the fuzz targets run, over their seeds and corpus, and over bytes that differ a little from these:
//! the same each time. `fuzz/README.md` says how to look for more.
#![forbid(unsafe_code)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lcap_tests::rng::Rng;

#[path = "../../fuzz/cases/disk.rs"]
mod disk;
#[path = "../../fuzz/cases/files.rs"]
mod files;
#[path = "../../fuzz/cases/filter.rs"]
mod filter;
#[path = "../../fuzz/cases/header.rs"]
mod header;
#[path = "../../fuzz/cases/hsm_line.rs"]
mod hsm_line;
#[path = "../../fuzz/cases/hsm_state.rs"]
mod hsm_state;
#[path = "../../fuzz/cases/http.rs"]
mod http;
#[path = "../../fuzz/cases/mover.rs"]
mod mover;
#[path = "../../fuzz/cases/port.rs"]
mod port;
#[path = "../../fuzz/cases/record.rs"]
mod record;
#[path = "../../fuzz/cases/state.rs"]
mod state;

/// Bytes of no input are more; what fuzz/run.sh says to libFuzzer, too.
const MAX_BYTES: usize = 4096;

/// Runs a case over what is checked in for it, and over `n_variants` of that.
fn replay(name: &str, n_variants: usize, run: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut inputs = Vec::new();
    for folder in ["seeds", "corpus"] {
        let folder = root.join(folder).join(name);
        let mut paths: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", folder.display());
        inputs.extend(paths.iter().map(|path| (path.clone(), fs::read(path).expect("its bytes"))));
    }
    for (path, bytes) in &inputs {
        survives(&path.display().to_string(), bytes, run);
    }
    let mut rng = Rng::new(1);
    for nth in 0..n_variants {
        let (path, bytes) = &inputs[nth % inputs.len()];
        let (_, other) = &inputs[rng.index(inputs.len())];
        let bytes = vary(&mut rng, bytes, other);
        survives(&format!("a variant of {}", path.display()), &bytes, run);
    }
}

fn survives(what: &str, bytes: &[u8], run: fn(&[u8])) {
    if catch_unwind(AssertUnwindSafe(|| run(bytes))).is_err() {
        panic!("{what} breaks it: {}", bytes.escape_ascii());
    }
}

/// Bytes that differ in one to four places.
fn vary(rng: &mut Rng, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    let mut bytes = bytes.to_vec();
    for _ in 0..=rng.below(3) {
        let at = rng.index(bytes.len() + 1);
        match rng.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.any().to_le_bytes()[0]),
            2 => {
                let end = rng.index(bytes.len() - at + 1) + at;
                bytes.drain(at..end);
            }
            3 => {
                let from = rng.index(other.len() + 1);
                let end = from + rng.index(other.len() - from + 1);
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            kind => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if kind == 4 {
                        EDGES[rng.index(EDGES.len())]
                    } else {
                        *byte ^ (1 << rng.below(8))
                    };
                }
            }
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

macro_rules! cases {
    ($($name:ident: $n_variants:expr),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name), $n_variants, crate::$name::run);
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/targets");
            let mut targets: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().display().to_string())
                .collect();
            targets.sort();
            let mut replayed = [$(stringify!($name)),*];
            replayed.sort_unstable();
            assert_eq!(targets, replayed);
        }
    };
}

mod replayed {
    use super::*;

    // Those of files open a new one for each variant.
    cases! {
        record: 20_000,
        header: 20_000,
        hsm_line: 20_000,
        files: 5_000,
        http: 20_000,
        port: 20_000,
        filter: 20_000,
        mover: 5_000,
        disk: 500,
        state: 50,
        hsm_state: 50,
    }
}
