//! What this machine gives lcapd: rights, devices, memory, disk, descriptors.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use lcapd::config::Server;
use rustix::fs::{OFlags, StatVfs, statfs, statvfs};

use super::report::Report;

const RIGHTS: &str = "rights";
const LIMITS: &str = "limits";
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// `f_type` of Lustre.
const LUSTRE_MAGIC: u64 = 0x0BD0_0BD0;

/// A line `name: value` of a file below /proc.
fn field(file: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}

/// Whether whoever runs this could do what lcapd does. Returns whether it is root, since others
/// cannot look at the rest.
pub(super) fn rights(report: &mut Report, root: &Path) -> bool {
    let status = root.join("proc/self/status");
    let uid = field(&status, "Uid").and_then(|ids| Some(ids.split_whitespace().nth(1)?.to_owned()));
    if uid.as_deref() != Some("0") {
        let who = uid.unwrap_or_else(|| "?".into());
        report.note(
            RIGHTS,
            format!("you are uid {who}, not root as lcapd: what only root may see is left out"),
            "sudo lcap doctor",
        );
        return false;
    }
    let capabilities = field(&status, "CapEff");
    let set = capabilities.and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    let wanted = [("CAP_SYS_ADMIN", CAP_SYS_ADMIN), ("CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH)];
    let missing: Vec<&str> =
        wanted.iter().filter(|(_, bit)| set & bit == 0).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        report.ok(RIGHTS, "uid 0 with CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH");
    } else {
        report.error(
            RIGHTS,
            format!(
                "{} missing (a container?): Lustre refuses to clear without the first, and HSM \
                 without the second",
                missing.join(" and ")
            ),
            format!("e.g.  podman run --cap-add={} …", missing.join(",")),
        );
    }
    true
}

/// The release of Lustre whose client runs here.
pub(super) fn release(report: &mut Report, root: &Path) {
    let files = ["sys/fs/lustre/version", "proc/fs/lustre/version"];
    match files.iter().find_map(|file| fs::read_to_string(root.join(file)).ok()) {
        Some(text) => {
            let version = text.lines().next().unwrap_or_default();
            let version = version.trim_start_matches("lustre:").trim();
            report.ok("Lustre", format!("version {version}"));
        }
        None => report.note(
            "Lustre",
            "its modules are not loaded here",
            "modprobe lustre    # and mount the file system; needed for `source = \"device:\"`",
        ),
    }
}

/// The device of an MDT, `/dev/changelog-<MDT>` or in another directory.
pub(super) fn device(report: &mut Report, mdt: &str, device: &Path) {
    let file = device.display();
    let fsname = mdt.rsplit_once('-').map_or(mdt, |(fsname, _)| fsname);
    let meta = match fs::metadata(device) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            report.error(
                mdt,
                format!(
                    "there is no {file}: the file system is not mounted here, or Lustre is \
                         older than the device"
                ),
                format!(
                    "mount -t lustre MGS:/{fsname} /mnt/{fsname}\nor in its [[mdt]]:  source = \
                     \"llapi:\""
                ),
            );
            return;
        }
        Err(error) => {
            report.error(mdt, format!("{file}: {error}"), format!("ls -l {file}"));
            return;
        }
    };
    // Anything that reads like a log may be configured; only the kernel's is known to be a device.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    match fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(device) {
        Ok(_) => {
            let kind = if meta.file_type().is_char_device() { "device" } else { "file" };
            report.ok(mdt, format!("{file}: a {kind} that can be opened"));
        }
        Err(error) => report.error(
            mdt,
            format!("{file} cannot be opened: {error}"),
            "dmesg | tail    # is the MDT reachable? does its nodemap grant this node `admin`?",
        ),
    }
}

/// Where lcapd keeps its state.
pub(super) fn state_dir(report: &mut Report, root: &Path, server: &Server) {
    let dir = root.join(server.state_dir.strip_prefix("/").unwrap_or(&server.state_dir));
    let shown = server.state_dir.display();
    let about = "state";
    let meta = match fs::metadata(&dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let make = format!("install -d -m 700 {shown}    # systemd does it by itself");
            report.note(about, format!("{shown} does not exist yet"), make);
            return;
        }
        Err(error) => {
            report.error(about, format!("{shown}: {error}"), format!("ls -ld {shown}"));
            return;
        }
    };
    if meta.mode() & 0o022 != 0 {
        report.error(
            about,
            format!("others may write to {shown}, and so change what is acknowledged"),
            format!("chmod 700 {shown}"),
        );
    }
    // The type of `f_type` differs between architectures.
    let on_lustre = statfs(&dir).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(LUSTRE_MAGIC));
    if on_lustre {
        report.error(
            about,
            format!("{shown} lies on Lustre, so lcapd hangs when what it looks after does"),
            "in [server]:  state_dir = \"/var/lib/lcap\"",
        );
    }
    match statvfs(&dir) {
        Ok(StatVfs { f_bavail, f_frsize, .. }) => {
            let free = f_bavail.saturating_mul(f_frsize) >> 20;
            if free < 64 {
                report.error(
                    about,
                    format!("{free} MiB are free in {shown}: without room nothing is cleared"),
                    format!("df {shown}"),
                );
            } else {
                report.ok(about, format!("{shown}: {free} MiB free"));
            }
        }
        Err(error) => report.error(about, format!("{shown}: {error}"), format!("df {shown}")),
    }
}

/// Memory, and the descriptors of a daemon that runs.
pub(super) fn limits(report: &mut Report, root: &Path, server: &Server) {
    let kib = field(&root.join("proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let limit = server.memory_limit_bytes >> 20;
    if let Some(total) = kib.map(|kib| kib >> 10) {
        let total_mib = usize::try_from(total).unwrap_or(usize::MAX);
        if limit > total_mib / 2 {
            report.warning(
                LIMITS,
                format!("memory_limit is {limit} MiB, this machine has {total}"),
                format!("in [server]:  memory_limit = \"{}MiB\"", (total / 4).max(4)),
            );
        } else {
            report.ok(LIMITS, format!("memory_limit {limit} MiB of {total}"));
        }
    }
    let Ok(processes) = fs::read_dir(root.join("proc")) else { return };
    for process in processes.flatten() {
        let dir = process.path();
        if !fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == "lcapd") {
            continue;
        }
        let pid = process.file_name().display().to_string();
        let soft = field(&dir.join("limits"), "Max open files")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let open = fs::read_dir(dir.join("fd")).map(|all| all.count() as u64).unwrap_or(0);
        let Some(soft) = soft else { continue };
        if soft < 4096 || open > soft / 4 * 3 {
            report.warning(
                LIMITS,
                format!("lcapd (process {pid}) has {open} files open and may open {soft}"),
                "systemctl edit lcapd    # [Service]  LimitNOFILE=65536",
            );
        } else {
            report.ok(LIMITS, format!("lcapd (process {pid}): {open} files open of {soft}"));
        }
    }
}
