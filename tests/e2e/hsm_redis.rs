//! The queue of HSM requests in Redis, and what coordinatool has left in one.
#![forbid(unsafe_code)]

use lcap_tests::daemon::{Setup, wait_until};
use lcap_tests::redis::RedisServer;
use lcap_tests::upcalls::Stage;
use lcapd::sink::target::as_list;

fn fid(n: u32) -> String {
    format!("[0x200000401:{n:#x}:0x0]")
}

fn stage(more: &str) -> Stage {
    let setup = Setup::new();
    let spool = setup.directory().join("spool");
    Stage::with(setup, spool, more)
}

fn upcall(stage: &Stage, n: u32) {
    assert!(stage.upcall("ARCHIVE", "x", &[fid(n)]).status().unwrap().success());
}

#[test]
fn a_queue_in_redis_survives_lcapd_and_waits_for_redis() {
    let mut redis = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut stage = stage(&format!("redis = \"{}\"", redis.url(0)));
    (1..=3).for_each(|n| upcall(&stage, n));
    let waiting = |stage: &Stage| stage.status()["states"]["waiting"]["archive"].as_u64();
    wait_until("they are taken in", || waiting(&stage) == Some(3));
    let mut link = redis.link(0).unwrap();
    let keys = |link: &mut lcapd::sink::target::Link| {
        let answer = link.call(&[b"HKEYS", b"lcap:hsm:lustre:requests"]).unwrap();
        as_list(&answer).unwrap().len()
    };
    assert_eq!(keys(&mut link), 3);
    // One that nobody can read is set aside, and the others go on.
    link.call(&[b"HSET", b"lcap:hsm:lustre:requests", b"2", b"{\"request\":"]).unwrap();
    stage.daemon.kill();
    upcall(&stage, 4);
    stage.daemon.start();
    wait_until("the rest is there again", || waiting(&stage) == Some(3));
    // While Redis is away nothing is taken in, and status says so.
    redis.kill();
    upcall(&stage, 5);
    wait_until("it says so", || stage.status()["store_error"].is_string());
    assert_eq!(stage.spooled("new"), 1);
    redis.restart();
    let mut worker = stage.worker(&[]);
    stage.wait_empty();
    let runs: Vec<String> = stage.runs().into_iter().map(|(fid, _)| fid).collect();
    assert_eq!(runs, [fid(1), fid(3), fid(4), fid(5)], "each once, in their order");
    assert_eq!(keys(&mut redis.link(0).unwrap()), 0);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn an_lcapd_whose_queue_another_has_opened_writes_nothing_any_more() {
    let redis = RedisServer::start();
    let more = format!("redis = \"{}\"", redis.url(0));
    let first = stage(&more);
    upcall(&first, 1);
    wait_until("it is taken in", || first.status()["states"]["waiting"]["archive"] == 1);
    let second = stage(&more);
    assert_eq!(second.status()["states"]["waiting"]["archive"], 1);
    upcall(&first, 2);
    wait_until("it says so", || {
        let status = first.status();
        status["store_error"].as_str().is_some_and(|why| why.contains("another lcapd"))
    });
    upcall(&second, 3);
    wait_until("it is taken in", || second.status()["states"]["waiting"]["archive"] == 2);
}

#[test]
fn what_coordinatool_left_in_redis_is_taken_over_once() {
    let redis = RedisServer::start();
    let mut link = redis.link(0).unwrap();
    let field = |cookie: u64| format!("{cookie:016x}00000002000004000000000100000000").into_bytes();
    for (cookie, timestamp, data) in
        [(0x617d_23ef_u64, 20_u64, "tag=b"), (0x617d_23ee, 10, "tag=a")]
    {
        let item = format!(
            "{{\"hai_action\":20,\"hai_fid\":{{\"f_seq\":8589935616,\"f_oid\":1,\"f_ver\":0}},\
             \"hai_dfid\":{{\"f_seq\":8589935616,\"f_oid\":1,\"f_ver\":0}},\"hai_extent_offset\":0,\
             \"hai_extent_length\":-1,\"hai_cookie\":{cookie},\"hai_gid\":0,\"hai_data\":\"{data}\",\
             \"hal_archive_id\":1,\"hal_flags\":0,\"timestamp\":{timestamp}}}"
        );
        let put = [&b"HSET"[..], b"coordinatool_requests", &field(cookie), item.as_bytes()];
        link.call(&put).unwrap();
    }
    link.call(&[b"HSET", b"coordinatool_requests", b"00", b"nonsense"]).unwrap();
    link.call(&[b"HSET", b"coordinatool_assigned", &field(0x617d_23ee), b"agent_0"]).unwrap();
    let mut stage = stage(&format!("coordinatool_redis = \"{}\"", redis.url(0)));
    let shown = |stage: &Stage| {
        let out = stage.daemon.lcap(&["hsm", "queue", "list", "--json"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines()
            .map(|line| {
                let request: serde_json::Value = serde_json::from_str(line).unwrap();
                let of = |key: &str| request[key].as_str().unwrap_or("-").to_owned();
                format!("{} {} {} {}", request["id"], request["cookie"], of("state"), of("worker"))
            })
            .collect::<Vec<_>>()
    };
    let want = ["1 1635591150 running agent_0", "2 1635591151 waiting -"];
    assert_eq!(shown(&stage), want);
    assert!(stage.daemon.log().contains("an entry of coordinatool_requests cannot be read"));
    // Not once more: what ended meanwhile does not come back.
    assert!(stage.daemon.lcap(&["hsm", "queue", "cancel", "2"]).status().unwrap().success());
    stage.daemon.kill();
    stage.daemon.start();
    assert_eq!(shown(&stage), want[..1]);
}
