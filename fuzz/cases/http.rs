//! Any bytes as the head of an HTTP request, in any pieces.

use lcapd::http::{Answer, Router, answer};

pub(crate) fn run(bytes: &[u8]) {
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
}
