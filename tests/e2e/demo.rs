//! `lcap demo`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Killed, built, program, run};

#[test]
fn flat_out_every_number_is_right() {
    const SIM: u64 = 20_000;
    const CAPTURE: u64 = 40_000;
    let out = run(Command::new(program("lcap")).args(["demo", "--records", "20000", "--json"]));
    let summary: Value = serde_json::from_str(&out).unwrap();
    for total in ["records_read", "records_delivered", "records_cleared"] {
        assert_eq!(summary[total], 2 * SIM + CAPTURE, "{total} of {summary:#}");
    }
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    let mdts = [("demo-MDT0000", SIM), ("demo-MDT0001", SIM), ("demo-MDT0002", CAPTURE)];
    for (stream, clients) in [("changelog", 2), ("work", 2)] {
        let stream = &summary["streams"][stream];
        assert_eq!(stream["clients"].as_object().unwrap().len(), clients);
        for (mdt, n) in mdts {
            let numbers = &stream["mdts"][mdt];
            assert_eq!(numbers["delivered"], n, "{stream:#}");
            assert_eq!((&numbers["repeated"], &numbers["out_of_order"]), (&0.into(), &0.into()));
            let each = stream["clients"].as_object().unwrap().values();
            let each: Vec<u64> = each.map(|client| client[mdt].as_u64().unwrap()).collect();
            match stream["delivery"].as_str() {
                Some("broadcast") => assert_eq!(each, [n, n]),
                _ => assert_eq!(each.iter().sum::<u64>(), n),
            }
        }
    }
    // Built by `make`, the C example is one of the readers.
    let has_c = summary["streams"]["changelog"]["clients"]["c-example"].is_object();
    assert_eq!(has_c, built().join("examples-c/reader").is_file());
}

#[test]
fn it_shows_what_flows_and_ends_by_itself() {
    let out = run(Command::new(program("lcap")).args(["demo", "--seconds", "2", "--rate", "2000"]));
    assert!(out.contains(" s  read "), "a line per second: {out}");
    assert!(out.contains("All 48,000 records were read and delivered"), "{out}");
}

#[test]
fn a_daemon_that_dies_fails_it_and_no_process_stays() {
    let mut command = Command::new(program("lcap"));
    command.args(["demo", "--seconds", "600"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut demo = Killed(command.spawn().unwrap());
    let mut out = BufReader::new(demo.0.stdout.take().unwrap());
    let mut processes: Vec<String> = Vec::new();
    // lcapd, then three clients, are introduced by their numbers.
    while processes.len() < 4 {
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "{processes:?}");
        let number = line.split_once("(process ").and_then(|(_, rest)| rest.split_once(')'));
        processes.extend(number.map(|(number, _)| number.to_owned()));
    }
    run(Command::new("kill").args(["-9", &processes[0]]));
    assert_eq!(demo.0.wait().unwrap().code(), Some(1));
    let errors = std::io::read_to_string(demo.0.stderr.take().unwrap()).unwrap();
    assert!(errors.contains("lcapd ended: signal: 9"), "{errors}");
    for process in processes {
        assert!(!Path::new("/proc").join(&process).exists(), "{process} is still there");
    }
}
