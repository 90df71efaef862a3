//! What happens to Lustre's requests is a reason to read the MDTs' lists of actions.
//!
//! A request that Lustre has sent stands in the list of its MDT, and how it ends will. Which MDT that is,
//! Lustre does not say; so all of them are due.
#![forbid(unsafe_code)]

use super::queue::What;
use super::request::Source;
use super::service::Observer;
use crate::actions::Due;

/// Marks lists whenever one of them may show something else.
pub fn observer(lists: Vec<Due>) -> Observer {
    Box::new(move |event, _| {
        let is_listed = matches!(event.request.source, Source::Coordinator { .. });
        let is_shown = match event.what {
            What::New | What::Cancelled { .. } | What::Done(..) | What::Dead(_) => true,
            What::Assigned(_)
            | What::Sent(_)
            | What::Returned(_)
            | What::CancelRunning(_)
            | What::Retry(_)
            | What::Held(_) => false,
        };
        if is_listed && is_shown {
            lists.iter().for_each(Due::mark);
        }
    })
}
