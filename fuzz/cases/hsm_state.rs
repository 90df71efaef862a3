//! A store of HSM requests with any bytes in it: opened, or refused; what it holds makes a queue.

use std::sync::Arc;
use std::time::Duration;

use lcap_ffi::Fid;
use lcapd::hsm::queue::{Arrival, Queue, Settings};
use lcapd::hsm::request::{Kind, Request, Source};
use lcapd::hsm::store::{HsmStore, SpoolMarks};

pub(crate) fn run(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = HsmStore::open(dir.path(), false).expect("a new store");
    let mut queue = Queue::new(Settings::default());
    let fid = Fid { seq: 0x2_0000_0401, oid: 1, ver: 0 };
    let source = Source::Coordinator { cookie: 7 };
    let request = Request::new(source, Arc::from("lustre-MDTffff"), Kind::Archive, fid, 1);
    queue.admit(request, Arrival::Sent, Duration::from_secs(1));
    let changes = queue.take_changes();
    store.commit(changes.as_ref(), &SpoolMarks::default()).expect("a commit");
    drop(store);
    let path = dir.path().join("hsm.redb");
    let mut stored = std::fs::read(&path).expect("its bytes");
    for patch in bytes.chunks_exact(5) {
        let [at @ .., byte] = *patch.first_chunk::<5>().expect("five bytes");
        let at = u32::from_le_bytes(at) as usize % stored.len();
        stored[at] = byte;
    }
    std::fs::write(&path, stored).expect("other bytes");
    if let Ok((_, loaded)) = HsmStore::open(dir.path(), false) {
        let _ = Queue::recover(
            Settings::default(),
            loaded.meta,
            loaded.requests,
            Duration::from_secs(60),
        );
    }
}
