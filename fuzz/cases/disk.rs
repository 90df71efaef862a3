//! Any bytes in what is read from disk: a trace, a segment of the journal of HSM events, a request in the
//! spool, small files.

use std::fs;
use std::time::Duration;

use lcap_ffi::record::records;
use lcap_upcall::request::Request;
use lcap_upcall::settings::{self, Upcall};
use lcapd::actions::Journal;
use lcapd::lease::Lease;
use lcapd::lease::files::Files;
use lcapd::source::replay::{Pace, ReplayUpstream};
use lcapd::source::trace::Trace;

pub(crate) fn run(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, bytes).expect("a file");

    if let Ok(trace) = Trace::open(&path) {
        let mut body = Vec::new();
        let mut n_records = 0;
        for block in trace.blocks() {
            body.clear();
            if trace.read_block(block, &mut body).is_ok() {
                n_records += records(&body).map_while(Result::ok).count() as u64;
            }
        }
        assert!(n_records <= trace.n_records());
    }
    let mdt = "lustre-MDT0000".parse().expect("a name");
    fs::write(dir.path().join("emulated-lustre-MDT0000.json"), bytes).expect("a file");
    let _ = ReplayUpstream::new(&path, Pace::Full, false, &mdt, dir.path());

    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(Request::decode(&request.encode()).expect("our own request"), request);
    }
    let _ = Upcall::load(&path);
    let _ = settings::archive_root(&path);

    let journal = dir.path().join("journal");
    fs::create_dir(&journal).expect("a directory");
    let segment = "00000000000000000001.events";
    fs::write(journal.join(segment), bytes).expect("a segment");
    let _ = Journal::open(&journal, 1000);

    let shared = dir.path().join("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::write(shared.join("lease-00000001"), bytes).expect("a lease");
    let _ = Lease::acquire(
        Box::new(Files::new(&shared).expect("a directory")),
        Duration::from_secs(3600),
        || true,
    );
}
