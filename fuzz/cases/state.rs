//! A state store with any bytes in it: opened, or refused; never a panic of ours.

use lcapd::store::Store;

pub(crate) fn run(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, _) = Store::open(dir.path(), false).expect("a new store");
    store
        .commit(&[lcapd::store::Change::Stream(
            "changelog".to_owned(),
            "a-MDT0000".to_owned(),
            lcap_ffi::RecordIndex::new(7),
        )])
        .expect("a commit");
    drop(store);
    let path = dir.path().join("lcapd.redb");
    let mut stored = std::fs::read(&path).expect("its bytes");
    for patch in bytes.chunks_exact(5) {
        let [at @ .., byte] = *patch.first_chunk::<5>().expect("five bytes");
        let at = u32::from_le_bytes(at) as usize % stored.len();
        stored[at] = byte;
    }
    std::fs::write(&path, stored).expect("other bytes");
    let _ = Store::open(dir.path(), false);
}
