//! Two hops: one lcapd reads the MDT, another one reads the first.

use lcap_tests::daemon::{Setup, wait_until};
use lcap_wire::control::From;

const MDT: &str = "lustre-MDT0000";
const RECORDS: u64 = 30_000;

/// Both daemons are killed while a client reads through both: it gets every record once, and the
/// MDT is cleared only of what the client has acknowledged at the far end.
#[test]
fn acknowledgements_travel_both_hops_and_kills_lose_nothing() {
    let source = format!("sim:rate=10000,records={RECORDS}");
    let near = Setup::new().on_tcp().mdt(MDT, &source).broadcast("changelog", "");
    let mut near = near.start();
    near.control().register("changelog", "site", Vec::new(), From::Oldest).unwrap();
    let site = Setup::new().relayed(MDT, near.setup(), "changelog", "site");
    let mut site = site.broadcast("changelog", "").start();
    site.control().register("changelog", "rbh", Vec::new(), From::Oldest).unwrap();

    let mut client =
        site.client(MDT, "changelog").reader(Some("rbh")).follow(true).connect().unwrap();
    for expected in 1..=RECORDS {
        let index = client.recv().unwrap().unwrap().index();
        assert_eq!(index.get(), expected, "every record once, in order");
        client.clear(index).unwrap();
        match expected {
            5_000 | 20_000 => {
                let cleared = near.cleared(MDT);
                assert!(cleared <= expected, "cleared {cleared}, acknowledged {expected}");
                near.kill();
                near.start();
            }
            10_000 | 25_000 => {
                site.kill();
                site.start();
            }
            _ => {}
        }
    }
    wait_until("all of it is cleared on the MDT", || near.cleared(MDT) == RECORDS);
}

/// `lcap changelog` at the second hop ends where the MDT ends now.
#[test]
fn the_present_end_is_that_of_the_first_hop() {
    let near = Setup::new().on_tcp().mdt(MDT, "sim:records=5000").broadcast("changelog", "");
    let near = near.start();
    near.control().register("changelog", "site", Vec::new(), From::Oldest).unwrap();
    let site = Setup::new().relayed(MDT, near.setup(), "changelog", "site");
    let site = site.broadcast("changelog", "").start();
    let output = site.lcap(&["changelog", "--json", MDT]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 5000);
}
