//! Fair shares by whose a file is, which is asked of the mount.

use std::path::Path;

use lcap_tests::daemon::PATIENCE;
use lcap_tests::hsm::FileSystem;
use rustix::io::Errno;

/// Requests on files 1 to 6 are one owner's, on 7 to 9 another's, who came later.
fn order_with(share_by: &str, own: impl Fn(&Path, u32)) -> Vec<u32> {
    let mut fs = FileSystem::default();
    fs.options = format!("share_by = \"{share_by}\"\nheartbeat = \"200ms\"\n");
    let by_fid = fs.mount().join(".lustre/fid");
    std::fs::create_dir_all(&by_fid).unwrap();
    for oid in 1..=9 {
        let path = by_fid.join(format!("[0x200000400:{oid:#x}:0x0]"));
        std::fs::write(&path, if oid <= 6 { "1001" } else { "1002" }).unwrap();
        own(&path, if oid <= 6 { 1001 } else { 1002 });
    }
    let lcapd = fs.lcapd();
    fs.request("archive", 6, 1, "", 1);
    fs.request("archive", 3, 1, "", 7);
    fs.wait_queued("all are there", |queued| queued.len() == 9);
    let mover = fs.mover("m", 1);
    let mut order = Vec::new();
    for _ in 0..9 {
        let action = mover.recv(Some(PATIENCE)).unwrap().expect("a request");
        order.push(action.fid.oid);
        mover.refused(action.key(), Errno::IO.raw_os_error());
    }
    fs.wait_for("all are over", |s| s["failed"] == 9);
    assert!(lcapd.terminate());
    order
}

const FAIR: [u32; 9] = [1, 7, 2, 8, 3, 9, 4, 5, 6];

#[test]
#[cfg_attr(no_chown, ignore = "no right to change owners here")]
fn users_and_groups_take_turns() {
    let chown = |path: &Path, uid, gid| std::os::unix::fs::chown(path, uid, gid).unwrap();
    assert_eq!(order_with("uid", |path, id| chown(path, Some(id), None)), FAIR);
    assert_eq!(order_with("gid", |path, id| chown(path, None, Some(id))), FAIR);
}

#[test]
fn projects_take_turns_and_else_the_oldest_goes_first() {
    // What the file says is its project, by the stand-in's ioctl.
    assert_eq!(order_with("project", |_, _| ()), FAIR);
    assert_eq!(order_with("tag:user=", |_, _| ()), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}
