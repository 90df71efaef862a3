//! A state store with any bytes in it: opened, or refused; never a panic of ours.
#![no_main]

use lcapd::store::Store;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|patches: Vec<(u32, u8)>| {
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
    let mut bytes = std::fs::read(&path).expect("its bytes");
    for (at, byte) in patches {
        let at = at as usize % bytes.len();
        bytes[at] = byte;
    }
    std::fs::write(&path, bytes).expect("other bytes");
    let _ = Store::open(dir.path(), false);
});
