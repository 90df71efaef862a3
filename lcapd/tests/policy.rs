//! The policy host with real modules: built `.so` files, in Rust and in C, well-behaved or not.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lcap_ffi::{MdtName, RecordIndex};
use lcap_policy_sdk::{RecordBuilder, RecordType};
use lcapd::batch::Batch;
use lcapd::policy::{
    Chain, ChainOutput, Fault, Loader, Module, ModuleState, Nanos, OnError, Part, PolicyConfig,
    PolicyError, inspect,
};
use proptest::prelude::*;

const NONE: [u64; 0] = [];

/// Built modules of this test run.
fn build_dir() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// Compiles a C module under that name.
fn compile(name: &str, source: &str, defines: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = build_dir().join(format!("{name}.so"));
    let part = build_dir().join(format!("{name}.{:?}.part", std::thread::current().id()));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .args(defines)
        .arg("-I")
        .arg(root.join("../include"))
        .arg("-o")
        .arg(&part)
        .arg(root.join(source))
        .status()
        .expect("a C compiler");
    assert!(status.success(), "{name}");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&part, mode).unwrap();
    std::fs::rename(&part, &out).unwrap();
    out
}

fn load(path: &Path) -> Result<Arc<Module>, PolicyError> {
    Loader::default().load(path.to_str().unwrap())
}

fn toy() -> Arc<Module> {
    static TOY: OnceLock<Arc<Module>> = OnceLock::new();
    Arc::clone(TOY.get_or_init(|| load(&compile("toy", "tests/policies/toy.c", &[])).unwrap()))
}

fn mode(mode: &str) -> (Arc<Module>, PolicyConfig) {
    (toy(), PolicyConfig::of("toy").with("mode", mode))
}

fn mdt() -> MdtName {
    "lustre-MDT0000".parse().unwrap()
}

fn chain(modes: &[&str]) -> Chain {
    let modules: Vec<_> = modes.iter().map(|name| mode(name)).collect();
    Chain::new(&modules, &mdt()).unwrap()
}

fn batch(indexes: impl IntoIterator<Item = u64>) -> Arc<Batch> {
    let records = indexes.into_iter().map(|index| {
        RecordBuilder::new(RecordType::CREATE)
            .index(index)
            .name(format!("f{index}").as_bytes())
            .build()
    });
    Arc::new(Batch::parse(records.flatten().collect()).unwrap())
}

fn indexes(out: &ChainOutput) -> Vec<u64> {
    let index = |record: &[u8]| u64::from_ne_bytes(record[8..16].try_into().unwrap());
    out.iter().map(|(_, record, _)| index(record)).collect()
}

fn pull(chain: &mut Chain, now: u64, flush: bool) -> Vec<u64> {
    let mut out = ChainOutput::default();
    chain.pull(Nanos(now), flush, &mut out).unwrap();
    assert_eq!(out.len(), out.iter().count());
    indexes(&out)
}

/// The Rust modules that cargo has put beside this test.
fn beside() -> Loader {
    Loader::new([std::env::current_exe().unwrap().parent().unwrap().to_owned()])
}

#[test]
fn fifo_passes_batches_on_without_a_copy_in_rust_and_in_c() {
    let rust = beside().load("fifo").unwrap();
    let c = load(&compile("fifo_c", "../policies/fifo-c/fifo.c", &[])).unwrap();
    for modules in [vec![&rust], vec![&c], vec![&rust, &c, &rust], vec![]] {
        let modules: Vec<_> = modules
            .into_iter()
            .map(|module| (Arc::clone(module), PolicyConfig::of(module.name())))
            .collect();
        let mut chain = Chain::new(&modules, &mdt()).unwrap();
        assert_eq!(chain.is_identity(), modules.is_empty());
        assert_eq!(chain.low(), RecordIndex::ZERO);
        let batches = [batch(1..=1000), batch(1002..=2001)]; // small ones are copied together
        for batch in &batches {
            chain.push(batch, Nanos(1)).unwrap();
        }
        assert_eq!((chain.held(), chain.low().get()), (2000, 0));
        let mut out = ChainOutput::default();
        chain.pull(Nanos(2), false, &mut out).unwrap();
        for (part, pushed) in out.parts.iter().zip(&batches) {
            assert!(matches!(part, Part::Whole { batch, mdt: 0 } if Arc::ptr_eq(batch, pushed)));
        }
        assert_eq!((out.parts.len(), out.bytes.len()), (2, 0));
        assert_eq!((chain.held(), chain.low().get(), chain.pinned_bytes()), (0, 2001, 0));
        assert_eq!(chain.wake_at(), None);
        for stats in chain.stats() {
            assert_eq!((stats.records_in, stats.emitted, stats.dropped), (2000, 2000, 0));
            assert_eq!(stats.state, ModuleState::Active);
        }
    }
}

#[test]
fn low_stands_before_the_oldest_record_that_any_module_holds() {
    let mut chain = chain(&["drop-odd", "hold"]);
    chain.push(&batch(1..=10), Nanos(0)).unwrap();
    assert_eq!(pull(&mut chain, 0, false), NONE);
    assert_eq!((chain.low().get(), chain.held(), chain.dropped()), (1, 5, 5));
    assert_eq!(chain.wake_at(), Some(Nanos(1_000_000_000)));
    chain.push(&batch(11..=13), Nanos(10)).unwrap();
    assert_eq!(pull(&mut chain, 10, false), NONE);
    assert_eq!((chain.low().get(), chain.held()), (1, 6));
    assert_eq!(pull(&mut chain, 1_000_000_000, false), [2, 4, 6, 8, 10, 12]);
    assert_eq!((chain.low().get(), chain.held(), chain.dropped()), (13, 0, 7));
    assert_eq!(chain.wake_at(), None);
}

#[test]
fn a_flush_leaves_nothing_held() {
    let mut chain = chain(&["hold-reverse", "merge", "hold"]);
    chain.push(&batch(1..=5), Nanos(0)).unwrap();
    assert_eq!(pull(&mut chain, 0, false), NONE);
    // 5 4 | 3 2 | 1: each pair as one record with the lower index.
    assert_eq!(pull(&mut chain, 1_000_000_000, false), NONE);
    assert_eq!(chain.low().get(), 0);
    assert_eq!(pull(&mut chain, 1_000_000_001, true), [4, 2, 1]);
    assert_eq!((chain.held(), chain.low().get()), (0, 5));
    assert_eq!(chain.dropped(), 2);
}

#[test]
fn route_keys_come_out_record_by_record() {
    let mut chain = chain(&["route", "hold"]);
    chain.push(&batch(1..=8), Nanos(0)).unwrap();
    let mut out = ChainOutput::default();
    chain.pull(Nanos(0), true, &mut out).unwrap();
    let routes: Vec<u64> = out.iter().map(|(_, _, route)| route).collect();
    assert_eq!(routes, [1, 2, 3, 0, 1, 2, 3, 0]);
    assert_eq!(indexes(&out), (1..=8).collect::<Vec<_>>());
    assert_eq!(out.parts.len(), 1, "one buffer");
}

/// What a module does, and how the host must call it.
type Misdeed = (&'static str, fn(&Fault) -> bool);

/// Every way to break the contract that a module has while it runs.
fn misdeeds() -> Vec<Misdeed> {
    vec![
        ("garbage", |f| *f == Fault::Token(0xdead_beef_cafe)),
        ("drop-twice", |f| matches!(f, Fault::Token(_))),
        ("list-twice", |f| matches!(f, Fault::Token(_))),
        ("merge-twice", |f| matches!(f, Fault::Token(_))),
        ("merge-bad-index", |f| matches!(f, Fault::Record { .. })),
        ("merge-garbage", |f| matches!(f, Fault::Record { .. })),
        ("merge-huge", |f| matches!(f, Fault::Record { .. })),
        ("past-the-end", |f| *f == Fault::Count { count: 5, held: 4 }),
        ("no-verdict", |f| *f == Fault::Verdict(0)),
        ("bad-verdict", |f| *f == Fault::Verdict(7)),
        ("no-count", |f| matches!(f, Fault::Count { count: 0, .. })),
        ("unaligned-list", |f| *f == Fault::Alignment),
        ("too-many", |f| matches!(f, Fault::TooMany { .. })),
        ("fail-dequeue", |f| *f == Fault::Returned { call: "dequeue", code: -libc::EIO }),
    ]
}

#[test]
fn a_module_that_breaks_the_contract_is_bypassed_and_no_record_is_lost() {
    for (misdeed, is_right) in misdeeds() {
        let mut chain = chain(&["pass", misdeed, "pass"]);
        chain.push(&batch(1..=4), Nanos(0)).unwrap();
        let seen = pull(&mut chain, 0, false);
        // `drop-twice` decided once, rightly, before the second time.
        let want: &[u64] = if misdeed == "drop-twice" { &[2, 3, 4] } else { &[1, 2, 3, 4] };
        assert_eq!(seen, want, "{misdeed}");
        let stats = &chain.stats()[1];
        assert_eq!(stats.state, ModuleState::Bypassed, "{misdeed}");
        assert!(stats.fault.is_some());
        assert_eq!((chain.low().get(), chain.held()), (4, 0), "{misdeed}");
        // From now on it is skipped.
        chain.push(&batch(5..=6), Nanos(1)).unwrap();
        assert_eq!(pull(&mut chain, 1, false), [5, 6], "{misdeed}");
        assert_eq!(chain.low().get(), 6);

        // The same with `stop`.
        let (module, config) = mode(misdeed);
        let mut chain =
            Chain::new(&[mode("pass"), (module, config.on_error(OnError::Stop))], &mdt()).unwrap();
        chain.push(&batch(1..=4), Nanos(0)).unwrap();
        let mut out = ChainOutput::default();
        for _ in 0..2 {
            match chain.pull(Nanos(0), false, &mut out) {
                Err(PolicyError::Failed { fault, .. }) => {
                    assert!(is_right(&fault), "{misdeed}: {fault}")
                }
                other => panic!("{misdeed}: {other:?}"),
            }
            assert!(out.is_empty() && chain.low() == RecordIndex::ZERO, "{misdeed}");
        }
        assert!(chain.push(&batch(5..=6), Nanos(1)).is_err());
        let held = chain.held_records();
        let left: usize = held.batches.iter().map(|held| held.batch.len()).sum();
        assert_eq!(left, want.len(), "{misdeed}");
    }
}

#[test]
fn a_module_that_refuses_records_is_bypassed_with_what_it_had() {
    let mut chain = chain(&["fail-enqueue", "hold"]);
    chain.push(&batch(1..=3), Nanos(0)).unwrap();
    chain.push(&batch(4..=6), Nanos(0)).unwrap();
    assert_eq!(pull(&mut chain, 0, false), NONE);
    assert_eq!(chain.held(), 6);
    assert_eq!(pull(&mut chain, 0, true), [1, 2, 3, 4, 5, 6]);
    let fault = chain.stats()[0].fault.clone().unwrap();
    assert!(fault.contains("enqueue() returned -12"), "{fault}");
}

#[test]
fn a_module_that_holds_for_ever_fails_at_a_flush_or_when_its_time_is_up() {
    let mut at_flush = chain(&["hold-for-ever"]);
    at_flush.push(&batch(1..=3), Nanos(0)).unwrap();
    assert_eq!(pull(&mut at_flush, 5, false), NONE);
    assert_eq!(pull(&mut at_flush, 6, true), [1, 2, 3]);
    assert_eq!(
        at_flush.stats()[0].fault.as_deref(),
        Some("3 records are still held after a flush")
    );

    let (module, mut config) = mode("hold-for-ever");
    config.max_hold = Duration::from_secs(10);
    let mut at_last = Chain::new(&[(module, config)], &mdt()).unwrap();
    at_last.push(&batch(1..=3), Nanos(7)).unwrap();
    assert_eq!(pull(&mut at_last, 8, false), NONE);
    assert_eq!(at_last.wake_at(), Some(Nanos(10_000_000_007)), "the host asks to be called then");
    assert_eq!(pull(&mut at_last, 10_000_000_006, false), NONE);
    assert_eq!(pull(&mut at_last, 10_000_000_007, false), [1, 2, 3]);
    assert_eq!(at_last.low().get(), 3);

    // One that obeys a flush is only told to, and stays.
    let (module, mut config) = mode("hold");
    config.max_hold = Duration::from_millis(10);
    let mut obeys = Chain::new(&[(module, config)], &mdt()).unwrap();
    obeys.push(&batch(1..=3), Nanos(0)).unwrap();
    assert_eq!(pull(&mut obeys, 10_000_000, false), [1, 2, 3]);
    assert_eq!(obeys.stats()[0].state, ModuleState::Active);
}

#[test]
fn wrong_tables_and_configurations_are_refused_at_load_with_a_reason() {
    let source = "tests/policies/toy.c";
    let cases: &[(&str, &[&str], &str)] = &[
        ("abi", &["-DTOY_ABI=7"], "was built for policy ABI 7, this lcapd has 1: rebuild it"),
        ("size", &["-DTOY_SIZE=40"], "its table has 40 bytes, 72 are needed"),
        ("nodequeue", &["-DTOY_NO_DEQUEUE"], "its table lacks dequeue"),
        ("notable", &["-DTOY_NO_TABLE"], "it gives no table"),
        ("noentry", &["-Dlcap_policy_entry=something_else"], "does not export lcap_policy_entry"),
    ];
    for (name, defines, want) in cases {
        let error = load(&compile(name, source, defines)).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
    let create =
        |options: PolicyConfig| Chain::new(&[(toy(), options)], &mdt()).unwrap_err().to_string();
    let toy = || PolicyConfig::of("toy");
    let cases = [
        (toy(), "option `mode` is missing"),
        (toy().with("mode", 5), "option `mode`: expected string, got 5"),
        (toy().with("mode", "x").with("colour", 1), "unknown option `colour`; known: file, mode"),
        (toy().with("mode", "fail-create"), "the moon is not full"),
        (toy().with("mode", "fail-create-mutely"), "No space left on device"),
    ];
    for (config, want) in cases {
        let error = create(config);
        assert!(error.contains("`toy`") && error.contains(want), "{error}");
    }
}

#[test]
fn an_older_table_without_the_last_entries_works() {
    let old = compile("old", "tests/policies/toy.c", &["-DTOY_SIZE=72", "-DTOY_NO_CLEAR"]);
    let config = PolicyConfig::of("toy").with("mode", "drop-odd");
    let mut chain = Chain::new(&[(load(&old).unwrap(), config)], &mdt()).unwrap();
    chain.push(&batch(1..=4), Nanos(0)).unwrap();
    assert_eq!(pull(&mut chain, 0, false), [2, 4]);
    assert_eq!(chain.clear_upto(&[], RecordIndex::new(3)), RecordIndex::new(3));
    let told = inspect(&old).unwrap();
    assert_eq!((told.table_bytes, told.limits_clearing, told.own_stats), (72, false, false));
}

#[test]
fn a_replaced_file_is_loaded_anew() {
    let path = compile("replaced", "tests/policies/toy.c", &[]);
    let first = load(&path).unwrap();
    assert!(inspect(&path).unwrap().limits_clearing);
    compile("replaced", "tests/policies/toy.c", &["-DTOY_SIZE=72", "-DTOY_NO_CLEAR"]);
    assert!(!inspect(&path).unwrap().limits_clearing, "the new file");
    // Written over in place, as `cp` does: what is loaded does not change under our feet.
    let again = compile("again", "tests/policies/toy.c", &["-DTOY_FLAGS=LCAP_POLICY_SHARED"]);
    std::fs::write(&path, std::fs::read(&again).unwrap()).unwrap();
    assert!(load(&path).unwrap().is_shared(), "the newest file");
    assert!(Arc::ptr_eq(&load(&path).unwrap(), &load(&path).unwrap()), "loaded once");
    // The old code is still mapped, and works.
    let config = PolicyConfig::of("toy").with("mode", "clear-less");
    let mut chain = Chain::new(&[(first, config)], &mdt()).unwrap();
    assert_eq!(chain.clear_upto(&[], RecordIndex::new(3)).get(), 2);
}

#[test]
fn inspection_tells_people_and_programs_the_same() {
    let fifo = inspect(&beside().find("fifo").unwrap()).unwrap();
    assert_eq!((fifo.name.as_str(), fifo.abi, fifo.table_bytes), ("fifo", 1, 88));
    let text = fifo.to_string();
    assert!(text.starts_with("fifo 0.1.0: emits every record unchanged, in order\n"), "{text}");
    assert!(text.contains("options    none"), "{text}");
    let toy = inspect(&compile("inspected", "tests/policies/toy.c", &[])).unwrap();
    assert!(toy.to_string().contains("mode: string, required"), "{toy}");
    assert_eq!(serde_json::to_value(&toy).unwrap()["options"]["required"][0], "mode");
}

#[test]
fn clearing_is_held_back_by_modules_and_allowed_beyond_readers_only_without_any() {
    let reader = |name: &str, mark| (name.to_owned(), RecordIndex::new(mark));
    let ask = |modes: &[&str], readers: &[(String, RecordIndex)], proposed| {
        let mut chain = chain(modes);
        chain.push(&batch(1..=10), Nanos(0)).unwrap();
        pull(&mut chain, 0, false);
        let upto = chain.clear_upto(readers, RecordIndex::new(proposed)).get();
        let active = chain.stats().iter().all(|stats| stats.state == ModuleState::Active);
        (upto, active)
    };
    assert_eq!(ask(&["pass"], &[reader("a", 5)], 5), (5, true));
    assert_eq!(ask(&["clear-less"], &[reader("slow", 3)], 5), (3, true));
    assert_eq!(ask(&["clear-more"], &[reader("a", 5)], 5), (5, true), "readers are sacred");
    assert_eq!(ask(&["clear-more"], &[], 5), (10, true), "never beyond what was delivered");
    assert_eq!(ask(&["clear-more", "clear-less"], &[], 5), (9, true));
    assert_eq!(ask(&["fail-clear"], &[], 5), (5, false));
}

#[test]
fn what_a_chain_held_goes_on_in_its_successor() {
    let mut old = chain(&["drop-odd", "hold", "pass"]);
    let late = batch(7..=8);
    old.push(&batch(1..=6), Nanos(0)).unwrap();
    assert_eq!(pull(&mut old, 0, false), NONE);
    old.push(&late, Nanos(1)).unwrap(); // not even looked at yet
    let low = old.low();
    assert_eq!(low.get(), 1);
    let held = old.held_records();
    let left: Vec<u64> = held
        .batches
        .iter()
        .flat_map(|held| held.batch.records().map(|r| r.index().get()))
        .collect();
    assert_eq!(left, [2, 4, 6, 7, 8], "settled ones are not seen again");
    assert!(
        held.batches.iter().any(|held| Arc::ptr_eq(&held.batch, &late)),
        "no copy of a whole batch"
    );
    let mut new = chain(&["pass"]);
    new.adopt(&held, Nanos(2)).unwrap();
    assert_eq!(new.low(), low);
    assert_eq!(pull(&mut new, 3, false), left);
    assert_eq!(new.low().get(), 8);
}

#[test]
fn one_chain_can_serve_several_mdts_and_keeps_them_apart() {
    let mdts: Vec<MdtName> = (0..2).map(|n| format!("lustre-MDT000{n}").parse().unwrap()).collect();
    let mut chain = Chain::for_mdts(&[mode("drop-odd"), mode("hold")], &mdts).unwrap();
    chain.push_from(0, &batch(1..=4), Nanos(0)).unwrap();
    chain.push_from(1, &batch(101..=104), Nanos(0)).unwrap();
    let mut out = ChainOutput::default();
    chain.pull(Nanos(0), false, &mut out).unwrap();
    assert_eq!((chain.low_of(0).get(), chain.low_of(1).get()), (1, 101));
    chain.pull(Nanos(0), true, &mut out).unwrap();
    let seen: Vec<_> = out.iter().map(|(mdt, _, _)| mdt).zip(indexes(&out)).collect();
    assert_eq!(seen, [(0, 2), (0, 4), (1, 102), (1, 104)]);
    assert_eq!((chain.low_of(0).get(), chain.low_of(1).get()), (4, 104));
    assert_eq!(chain.clear_upto_of(1, &[], RecordIndex::new(103)).get(), 103);
}

#[test]
fn a_module_that_says_it_makes_no_records_fails_if_it_does() {
    let flags = "-DTOY_FLAGS=LCAP_POLICY_VERBATIM";
    let verbatim = load(&compile("verbatim", "tests/policies/toy.c", &[flags])).unwrap();
    for (module, may_merge) in [(toy(), true), (verbatim, false)] {
        let config = PolicyConfig::of("toy").with("mode", "merge");
        let mut chain = Chain::new(&[(module, config)], &mdt()).unwrap();
        assert_eq!(chain.merges(), may_merge);
        chain.push(&batch(1..=4), Nanos(0)).unwrap();
        let mut out = ChainOutput::default();
        chain.pull(Nanos(0), true, &mut out).unwrap();
        let stats = chain.stats();
        assert_eq!(stats[0].fault.is_none(), may_merge, "{stats:?}");
        if !may_merge {
            assert_eq!(indexes(&out), [1, 2, 3, 4], "nothing is lost by it");
        }
    }
}

#[test]
fn few_held_records_do_not_pin_the_batches_that_they_came_in() {
    let flags = "-DTOY_FLAGS=LCAP_POLICY_NO_POINTERS";
    let movable = load(&compile("movable", "tests/policies/toy.c", &[flags])).unwrap();
    for (module, may_move) in [(movable, true), (toy(), false)] {
        let config = PolicyConfig::of("toy").with("mode", "hold-one-in-1000");
        let mut chain = Chain::new(&[(module, config)], &mdt()).unwrap();
        let mut most = 0;
        for n in 0..100 {
            chain.push(&batch(n * 1000 + 1..=n * 1000 + 1000), Nanos(n)).unwrap();
            assert_eq!(pull(&mut chain, n, false), NONE);
            most = most.max(chain.pinned_bytes());
        }
        assert_eq!(chain.held(), 100);
        assert_eq!(most < 2 << 20, may_move, "{most} bytes pinned");
        let want: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        let mut out = ChainOutput::default();
        chain.pull(Nanos(100), true, &mut out).unwrap();
        assert_eq!(indexes(&out), want);
        for ((_, record, _), index) in out.iter().zip(want) {
            let name = format!("f{index}");
            assert!(record.ends_with(name.as_bytes()), "moved whole");
        }
        assert_eq!(chain.pinned_bytes(), 0);
    }
}

#[test]
fn figures_add_up() {
    let mut chain = chain(&["drop-odd", "merge", "hold"]);
    chain.push(&batch(1..=12), Nanos(0)).unwrap();
    assert_eq!(pull(&mut chain, 0, false), NONE);
    let stats = chain.stats();
    for one in &stats {
        assert_eq!(one.records_in, one.emitted + one.dropped + one.merged + one.held, "{one:?}");
    }
    assert_eq!((stats[0].dropped, stats[1].merged, stats[2].held), (6, 3, 3));
    assert_eq!(stats[0].own["calls"], 1);
    assert!(stats[0].busy_ns > 0 && stats[0].calls >= 2);
    assert!(chain.figures().watch.current().is_none(), "no call is under way");
}

#[test]
fn the_header_is_c_and_cpp() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/lcap_policy.h");
    for (compiler, language, standard) in [("cc", "c", "-std=c99"), ("c++", "c++", "-std=c++11")] {
        let status = Command::new(compiler)
            .args([
                "-fsyntax-only",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                standard,
                "-x",
                language,
            ])
            .arg(&header)
            .status()
            .expect(compiler);
        assert!(status.success(), "{language}");
    }
}

#[test]
fn every_module_that_ships_loads_and_knows_its_options() {
    let options = |name: &str| {
        let module = inspect(&beside().find(name).unwrap()).unwrap();
        assert_eq!(module.name, name);
        assert!(!module.summary.is_empty());
        assert_eq!(module.no_pointers, name != "compact", "{name}"); // it looks back
        assert_eq!(module.verbatim, name != "compact", "{name}");
        let names = module.options["properties"].as_object().unwrap().keys().cloned();
        names.collect::<Vec<_>>().join(" ")
    };
    let cases = [
        ("fifo", ""),
        ("filter", "drop keep"),
        ("window", "count memory order time"),
        ("group", "by count window"),
        ("compact", "count keep memory names window"),
        ("sample", "by one_in seed"),
        ("template-rust", "delay ending"),
    ];
    for (name, want) in cases {
        let mut names: Vec<_> = options(name).split(' ').map(str::to_owned).collect();
        names.sort();
        assert_eq!(names.join(" "), want, "{name}");
    }
    // Wrong configurations are caught by the schema, before the module sees them.
    let refused = |config: PolicyConfig| {
        let module = beside().load(&config.module).unwrap();
        module.check_options(&config).unwrap_err().to_string()
    };
    let cases = [
        (PolicyConfig::of("compact").with("window", "5"), "option `window`: expected a duration"),
        (PolicyConfig::of("compact").with("windw", "5s"), "unknown option `windw`"),
        (PolicyConfig::of("group"), "option `by` is missing"),
        (PolicyConfig::of("group").with("by", "colour"), "expected one of"),
        (PolicyConfig::of("sample").with("one_in", 0), "expected at least 1"),
        (PolicyConfig::of("filter").with("keep", 5), "expected string"),
    ];
    for (config, want) in cases {
        let error = refused(config);
        assert!(error.contains(want), "{error}");
    }
    let bad = PolicyConfig::of("filter").with("keep", "uid = bob");
    let error = Chain::new(&[(beside().load("filter").unwrap(), bad)], &mdt()).unwrap_err();
    assert!(error.to_string().contains("at character 7: expected a number, got `bob`"), "{error}");
}

#[test]
fn the_templates_work_as_they_are() {
    let c = load(&compile("template_c", "../policies/template-c/template.c", &[])).unwrap();
    let rust = beside().load("template-rust").unwrap();
    let modules = [
        (c, PolicyConfig::of("template_c").with("drop_type", 11)),
        (rust, PolicyConfig::of("template-rust").with("ending", "3")),
    ];
    let mut chain = Chain::new(&modules, &mdt()).unwrap();
    let records = (1..=20).map(|index| {
        let rec_type = if index % 5 == 0 { RecordType::CLOSE } else { RecordType::CREATE };
        RecordBuilder::new(rec_type).index(index).name(format!("f{index}").as_bytes()).build()
    });
    let batch = Arc::new(Batch::parse(records.flatten().collect()).unwrap());
    chain.push(&batch, Nanos(0)).unwrap();
    let want: Vec<u64> = (1..=20).filter(|n| n % 5 != 0 && n % 10 != 3).collect();
    assert_eq!(pull(&mut chain, 0, false), want);
    let stats = chain.stats();
    assert_eq!(
        (&stats[0].own["dropped_by_type"], &stats[1].own["dropped_by_ending"]),
        (&4.into(), &2.into())
    );
}

#[test]
fn filter_compact_and_group_work_together() {
    let modules: Vec<_> = [
        PolicyConfig::of("filter").with("drop", "name ~ *.swp"),
        PolicyConfig::of("compact").with("window", "1s"),
        PolicyConfig::of("group").with("by", "tfid"),
    ]
    .into_iter()
    .map(|config| (beside().load(&config.module).unwrap(), config))
    .collect();
    let mut chain = Chain::new(&modules, &mdt()).unwrap();
    let fid = |oid| lcap_ffi::Fid { seq: 0x2_0000_0401, oid, ver: 0 };
    let named = |rec_type, oid, name: &str| {
        RecordBuilder::new(rec_type).target(fid(oid)).parent(fid(1)).name(name.as_bytes())
    };
    let rename = RecordBuilder::new(RecordType::RENAME).parent(fid(1)).name(b"final").renamed_from(
        fid(5),
        fid(1),
        b"a.part",
    );
    let history = [
        named(RecordType::CREATE, 5, "a.part"),
        named(RecordType::CREATE, 6, "x.swp"),
        named(RecordType::CREATE, 7, "scratch"),
        RecordBuilder::new(RecordType::CLOSE).target(fid(5)),
        rename,
        named(RecordType::UNLINK, 7, "scratch").type_flags(1),
    ];
    let records =
        history.into_iter().zip(1..).flat_map(|(record, index)| record.index(index).build());
    chain.push(&Arc::new(Batch::parse(records.collect()).unwrap()), Nanos(0)).unwrap();
    let mut out = ChainOutput::default();
    chain.pull(Nanos(0), false, &mut out).unwrap();
    assert_eq!((out.len(), chain.low().get(), chain.held()), (0, 0, 2));
    assert_eq!(chain.wake_at(), Some(Nanos(1_000_000_000)));
    chain.pull(Nanos(1_000_000_000), false, &mut out).unwrap();
    let (mdt, record, route) = out.iter().next().unwrap();
    let (record, _) = lcap_ffi::record::split_first(record).unwrap();
    assert_eq!(
        (record.rec_type(), record.name(), record.index().get()),
        (RecordType::CREATE, &b"final"[..], 1)
    );
    assert!(mdt == 0 && route != 0 && out.len() == 1);
    assert_eq!((chain.low().get(), chain.dropped(), chain.held()), (6, 5, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever modules do, and however pushes and pulls mix: each record settles once, and `low`
    /// is the highest index below which all are settled.
    #[test]
    fn every_record_settles_once(
        modes in prop::collection::vec(
            prop::sample::select(vec![
                "pass", "drop-odd", "hold", "hold-reverse", "route", "merge", "garbage", "drop-twice",
                "fail-dequeue", "hold-for-ever", "merge-bad-index", "hold-one-in-1000", "fail-enqueue",
            ]),
            1..5,
        ),
        steps in prop::collection::vec((1_usize..20, 0_u64..700_000_000, 0..8), 1..30),
    ) {
        let mut chain = chain(&modes);
        let (mut next, mut now, mut emitted) = (1, 0, Vec::new());
        for (n, pause, what) in steps {
            now += pause;
            let indexes: Vec<u64> = (0..n as u64).map(|i| next + i * (pause % 3 + 1)).collect();
            next = indexes[n - 1] + 1;
            chain.push(&batch(indexes), Nanos(now)).unwrap();
            if what > 0 {
                let low = chain.low().get();
                let out = pull(&mut chain, now, what == 7);
                prop_assert!(out.iter().all(|index| *index > low), "{out:?} was settled at {low}");
                emitted.extend(out);
            }
            if what == 6 {
                let (held, low) = (chain.held(), chain.low());
                let handed_on = chain.held_records();
                chain = self::chain(&modes);
                chain.adopt(&handed_on, Nanos(now)).unwrap();
                prop_assert_eq!((chain.held(), chain.low()), (held, low));
            }
        }
        let before = chain.low().get();
        emitted.extend(pull(&mut chain, now, true));
        prop_assert_eq!(chain.held(), 0);
        prop_assert_eq!(chain.pinned_bytes(), 0);
        prop_assert_eq!(chain.low().get(), next - 1);
        prop_assert!(before < next);
        let n_emitted = emitted.len();
        emitted.sort_unstable();
        emitted.dedup();
        prop_assert_eq!(emitted.len(), n_emitted, "nothing came out twice");
    }

    /// A batch handed in and what it brings out in one call, the quick way where there is one, is the
    /// same as in two.
    #[test]
    fn the_quick_way_comes_to_the_same(
        modes in prop::collection::vec(
            prop::sample::select(vec![
                "pass", "pass", "drop-odd", "hold", "hold-reverse", "route", "merge", "garbage",
                "drop-twice", "list-twice", "past-the-end", "no-count", "fail-dequeue", "fail-enqueue",
                "hold-one-in-1000", "too-many",
            ]),
            1..5,
        ),
        steps in prop::collection::vec((1_usize..20, 0_u64..700_000_000, 0..8), 1..30),
    ) {
        let (mut quick, mut slow) = (chain(&modes), chain(&modes));
        let (mut quick_out, mut slow_out) = (ChainOutput::default(), ChainOutput::default());
        let (mut next, mut now) = (1, 0);
        let figures = |chain: &mut Chain| {
            let of = |m: lcapd::policy::ModuleStats| {
                (m.records_in, m.emitted, m.dropped, m.merged, m.held, m.fault)
            };
            chain.stats().into_iter().map(of).collect::<Vec<_>>()
        };
        for (n, pause, what) in steps {
            now += pause;
            let batch = (what > 0).then(|| batch(next..next + n as u64));
            next += n as u64;
            quick.run_batch(0, batch.as_ref(), Nanos(now), what == 7, &mut quick_out).unwrap();
            if let Some(batch) = &batch {
                slow.push(batch, Nanos(now)).unwrap();
            }
            slow.pull(Nanos(now), what == 7, &mut slow_out).unwrap();
            let all = |out: &ChainOutput| {
                let records = out.iter().map(|(mdt, bytes, route)| (mdt, bytes.to_vec(), route));
                records.collect::<Vec<_>>()
            };
            prop_assert_eq!(all(&quick_out), all(&slow_out));
            prop_assert_eq!(quick.low(), slow.low());
            prop_assert_eq!((quick.held(), quick.dropped()), (slow.held(), slow.dropped()));
            prop_assert_eq!(quick.pinned_bytes(), slow.pinned_bytes());
            prop_assert_eq!(quick.wake_at(), slow.wake_at());
            prop_assert_eq!(quick.last_of(0), slow.last_of(0));
            prop_assert_eq!(figures(&mut quick), figures(&mut slow));
        }
    }
}
