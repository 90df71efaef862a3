//! What a service manager sees: readiness, watchdog, reloading, capabilities.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use lcap_tests::daemon::{PATIENCE, Setup, wait_until};
use lcap_tests::programs::program;
use lcap_wire::control::From;
use rustix::process::{Pid, Signal, kill_process};

const MDT: &str = "lustre-MDT0000";

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a message that says this.
fn await_message(socket: &UnixDatagram, what: &str) {
    let mut buf = [0; 4096];
    loop {
        let n = socket.recv(&mut buf).unwrap_or_else(|error| panic!("no {what}: {error}"));
        if String::from_utf8_lossy(&buf[..n]).lines().any(|line| line.starts_with(what)) {
            return;
        }
    }
}

#[test]
fn systemd_is_told_and_the_watchdog_is_fed() {
    let setup = Setup::new().mdt(MDT, "sim:rate=10").broadcast("changelog", "");
    let mut daemon = setup.start();
    daemon.stop(); // only its files are wanted
    let path = daemon.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let log = daemon.dir().join("own.log");
    let mut child = Command::new(program("lcapd"));
    child.arg("-c").arg(daemon.config()).env("NOTIFY_SOCKET", &path);
    child.env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID").env_remove("JOURNAL_STREAM");
    child.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    child.env_remove("LCAP_LOG");
    let mut child = Killed(child.spawn().unwrap());
    let pid = Pid::from_child(&child.0);
    await_message(&socket, "READY=1");
    for _ in 0..3 {
        await_message(&socket, "WATCHDOG=1");
    }

    // What `ExecReload=` does: a wrong file is told, and changes nothing.
    let reload = |config: &std::path::Path| {
        let mut lcapd = Command::new(program("lcapd"));
        lcapd.arg("-c").arg(config).arg("--reload").arg(child.0.id().to_string());
        lcapd.output().unwrap()
    };
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    std::fs::write(daemon.config(), text.replace("[server]", "[server]\nlog = \"loud=7=8\""))
        .unwrap();
    let output = reload(daemon.config());
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("server.log"), "{error}");

    let read_log = || std::fs::read_to_string(&log).unwrap();
    std::fs::write(daemon.config(), text.replace("[server]", "[server]\nlog = \"debug\"")).unwrap();
    assert!(reload(daemon.config()).status.success());
    await_message(&socket, "RELOADING=1");
    await_message(&socket, "READY=1");
    wait_until("the log is louder", || read_log().contains("DEBUG"));

    kill_process(pid, Signal::TERM).unwrap();
    await_message(&socket, "STOPPING=1");
    assert!(child.0.wait().unwrap().success());
}

/// An lcapd that only plays an MDT keeps nothing; one that reads Lustre keeps what Lustre asks for.
#[test]
fn capabilities_are_given_up() {
    let wanted = (1_u64 << 21) | (1 << 2); // CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH
    for (source, wanted) in [("sim:rate=10", 0), ("device:/nowhere", wanted)] {
        let daemon = Setup::new().mdt(MDT, source).broadcast("changelog", "").start();
        let path = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
        for task in std::fs::read_dir(path).unwrap() {
            // A thread may end meanwhile.
            let status = std::fs::read_to_string(task.unwrap().path().join("status"));
            let status = status.unwrap_or_default();
            for line in status.lines().filter(|line| line.starts_with("Cap")) {
                let (name, bits) = line.split_once(":\t").unwrap();
                let bits = u64::from_str_radix(bits, 16).unwrap();
                let allowed = match name {
                    "CapInh" | "CapAmb" => 0,
                    // An ordinary user cannot shrink it, and has no use for it.
                    "CapBnd" if !rustix::process::geteuid().is_root() => u64::MAX,
                    _ => wanted,
                };
                assert_eq!(bits & !allowed, 0, "{source}: {line}\n{status}");
            }
        }
    }
}

/// The fields of one datagram in the journal's own format.
fn fields(mut bytes: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = Vec::new();
    while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(at) = line.iter().position(|&byte| byte == b'=') {
            fields.push((text(&line[..at]), text(&line[at + 1..])));
            bytes = rest;
        } else {
            let (len, rest) = rest.split_first_chunk().expect("a length");
            let len = usize::try_from(u64::from_le_bytes(*len)).unwrap();
            fields.push((text(line), text(&rest[..len])));
            bytes = &rest[len + 1..];
        }
    }
    fields
}

/// The journal is played by the test: lcapd has a mount namespace of its own, in which the journal's socket is
/// another.
#[test]
#[cfg_attr(no_tmpfs, ignore = "no right to mount a tmpfs here")]
fn the_journal_can_be_asked_for_mdt_stream_and_reader() {
    const IN_NAMESPACE: &str = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
        mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";
    let mut daemon = Setup::new().mdt(MDT, "sim:rate=10").broadcast("changelog", "").start();
    daemon.stop(); // only its files are wanted
    let dir = daemon.dir().join("journal");
    std::fs::create_dir(&dir).unwrap();
    let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = Command::new("unshare");
    child.args(["--mount", "--propagation", "private", "sh", "-c", IN_NAMESPACE, "sh"]).arg(&dir);
    child.arg(program("lcapd")).arg("-c").arg(daemon.config());
    child.env("JOURNAL_STREAM", "8:1").env_remove("LCAP_LOG").stdin(Stdio::null());
    let child = Killed(child.spawn().unwrap());

    let await_entry = |wanted: &[(&str, &str)]| {
        let mut buf = vec![0; 64 << 10];
        let mut seen = Vec::new();
        loop {
            let n =
                socket.recv(&mut buf).unwrap_or_else(|e| panic!("no {wanted:?}: {e}\n{seen:#?}"));
            let entry = fields(&buf[..n]);
            let has = |&(name, value): &(&str, &str)| {
                entry.iter().any(|(own, is)| own == name && is.contains(value))
            };
            if wanted.iter().all(has) {
                return;
            }
            seen.push(entry);
        }
    };
    await_entry(&[
        ("MESSAGE", "lcapd is ready"),
        ("PRIORITY", "5"),
        ("SYSLOG_IDENTIFIER", "lcapd"),
    ]);
    daemon.control().register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
    await_entry(&[("STREAM", "changelog"), ("READER", "audit")]);
    let mut client = daemon.client(MDT, "changelog").reader(Some("audit")).connect().unwrap();
    client.recv().unwrap().unwrap();
    await_entry(&[("MDT", MDT), ("STREAM", "changelog"), ("READER", "audit")]);
    drop(child);
}
