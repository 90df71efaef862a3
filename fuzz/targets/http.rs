//! Any bytes as the head of an HTTP request, in any pieces.
#![no_main]

use lcapd::http::{Answer, Router, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut router: Router = Box::new(|path| {
        assert!(!path.contains('?'));
        Answer::text(200, path)
    });
    for end in (0..=bytes.len()).step_by(7).chain([bytes.len()]) {
        if let Some((answer, _)) = answer(&bytes[..end], &mut router) {
            assert!([200, 400, 405, 431].contains(&answer.code));
            break;
        }
    }
});
