//! `docs/examples/subscribe.py`, which knows of lcap only what docs/protocol.md says.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{ChildStdout, Command, Stdio};

use super::{Killed, Lcapd, MDT, root};

struct Subscriber {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Killed,
}

impl Subscriber {
    fn start(lcapd: &Lcapd) -> Self {
        // The system's Python has the system's pyzmq, whichever other comes first in PATH.
        let mut command = Command::new("/usr/bin/python3");
        command.arg(root().join("docs/examples/subscribe.py"));
        command.args([&lcapd.control(), "changelog", MDT]).stdout(Stdio::piped());
        let mut process = Killed(command.spawn().unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        Self { lines, _process: process }
    }

    /// The next record's index, type and name.
    fn next(&mut self) -> (u64, u32, String) {
        let line = self.lines.next().expect("the subscriber goes on").unwrap();
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap().to_owned();
        (word().parse().unwrap(), word().parse().unwrap(), word())
    }
}

#[test]
fn it_prints_every_record_of_a_capture() {
    let capture = root().join("tests/fixtures/2.17/changelog/odd-mdt0.bin");
    let lcapd = Lcapd::start(&format!("replay:{}", capture.display()));
    let mut subscriber = Subscriber::start(&lcapd);
    let json = lcapd.lcap(&["changelog", "--json", MDT]);
    let wanted: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(wanted.len(), 106);
    for record in wanted {
        let (index, _, name) = subscriber.next();
        assert_eq!(index, record["index"].as_u64().unwrap());
        let wanted = record["name"].as_str().unwrap();
        // Python escapes what is odd.
        if wanted.bytes().all(|b| b.is_ascii_alphanumeric()) {
            assert_eq!(name, format!("b'{wanted}'"));
        }
    }
}

#[test]
fn it_lives_through_a_restart_without_loss_or_repetition() {
    const RECORDS: u64 = 6000;
    let mut lcapd = Lcapd::start(&format!("sim:rate=2000,records={RECORDS},seed=5"));
    let mut subscriber = Subscriber::start(&lcapd);
    for want in 1..=RECORDS {
        if want == 1500 || want == 3000 {
            lcapd.restart();
        }
        assert_eq!(subscriber.next().0, want);
    }
}
