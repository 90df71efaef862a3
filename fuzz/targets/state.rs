#![no_main]

#[path = "../cases/state.rs"]
mod case;

libfuzzer_sys::fuzz_target!(
    // libFuzzer's would end the process at each panic, but those of redb are caught.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| case::run(bytes)
);
