//! Full-screen views on a terminal that goes away, as when a connection over ssh breaks.

use std::process::Command;

use lcap_tests::daemon::{Setup, wait_until};

/// Starts a program on a terminal of its own, waits until it has drawn, and takes the terminal away. Its
/// first argument says whether the program is told (`told`), or ignores that, as under nohup.
const ON_A_TERMINAL: &str = "
import fcntl, os, pty, signal, struct, sys, termios
pid, master = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    if sys.argv[1] != 'told':
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.argv[2], sys.argv[2:])
seen = b''
while b'MDT0000' not in seen:
    seen += os.read(master, 65536)
os.close(master)
os.waitpid(pid, 0)
";

#[test]
fn a_view_ends_with_its_terminal() {
    let daemon = Setup::new().mdt("lustre-MDT0000", "sim:records=10").broadcast("c", "").start();
    for told in ["told", "ignored"] {
        let view = daemon.lcap(&["top"]);
        let mut python = Command::new("python3");
        python.args(["-c", ON_A_TERMINAL, told]).arg(view.get_program()).args(view.get_args());
        for (name, value) in view.get_envs() {
            value.map(|value| python.env(name, value));
        }
        let mut python = python.env("TERM", "xterm").spawn().unwrap();
        wait_until("the end of lcap top", || python.try_wait().unwrap().is_some());
        assert!(python.wait().unwrap().success(), "{told}");
    }
}
