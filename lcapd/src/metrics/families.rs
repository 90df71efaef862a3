//! The families, each declared once. docs/operating.md lists them; a test compares.
#![forbid(unsafe_code)]

use super::{Family, Kind};

macro_rules! families {
    ($($(#[$about:meta])* $kind:ident $constant:ident = $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            $(#[$about])*
            pub static $constant: Family = Family {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    Gauge BUILD_INFO = "lcap_build_info" ["version"] "1; the release is in the label.";
    Gauge START_TIME = "lcap_start_time_seconds" [] "When this lcapd began, in seconds since 1970.";
    Gauge READY = "lcap_ready" [] "1 if /healthz says that all is well.";
    Gauge ENGINE_UP = "lcap_engine_up" [] "1 if the engine answered this scrape in time; what it knows is missing otherwise.";
    Gauge STATE_ERROR = "lcap_state_write_failing" [] "1 while the state store cannot be written; nothing is cleared then.";

    Counter MDT_READ_RECORDS = "lcap_mdt_read_records_total" ["mdt"] "Records read from the MDT.";
    Counter MDT_READ_BYTES = "lcap_mdt_read_bytes_total" ["mdt"] "Bytes of records read from the MDT.";
    Counter MDT_READ_ERRORS = "lcap_mdt_read_errors_total" ["mdt"] "Times that the MDT's source failed and was opened again.";
    Counter MDT_GAPS = "lcap_mdt_gaps_total" ["mdt"] "Times that records were found missing, or known indexes issued again.";
    Gauge MDT_HEAD = "lcap_mdt_head_index" ["mdt"] "Newest index read.";
    Gauge MDT_CLEARED = "lcap_mdt_cleared_index" ["mdt"] "Index up to which the MDT was told to forget.";
    Gauge MDT_LAG_RECORDS = "lcap_mdt_lag_records" ["mdt"] "Indexes read and not cleared: what the MDT keeps for us.";
    Gauge MDT_LAG_SECONDS = "lcap_mdt_lag_seconds" ["mdt"] "Age of the oldest record that is not cleared.";
    Gauge MDT_WAITING = "lcap_mdt_source_down" ["mdt"] "1 while the MDT's source cannot be read.";
    Gauge HSM_HERE = "lcap_hsm_list_here" ["mdt"] "1 while the MDT's list of HSM actions is here and can be read.";
    Gauge HSM_LIVE = "lcap_hsm_actions" ["mdt"] "HSM actions in the MDT's list.";
    Counter HSM_READINGS = "lcap_hsm_readings_total" ["mdt"] "Readings of the MDT's list of HSM actions.";
    Counter HSM_ERRORS = "lcap_hsm_reading_errors_total" ["mdt"] "Times that the list could not be read, or its changes not written down.";
    Counter HSM_BAD_LINES = "lcap_hsm_bad_lines_total" ["mdt"] "Lines of the list that were not understood.";
    Counter HSM_EVENTS = "lcap_hsm_events_total" ["mdt"] "HSM events noticed.";
    Gauge HSM_READING_SECONDS = "lcap_hsm_reading_seconds" ["mdt"] "How long the last reading of the list took.";
    Gauge MDT_NOT_CLEARING = "lcap_mdt_clear_refused" ["mdt"] "1 if the MDT refused the last clear.";

    Counter STREAM_IN = "lcap_stream_in_records_total" ["stream", "mdt"] "Records that the stream's policies have taken in: sent, dropped and held.";
    Counter STREAM_SENT = "lcap_stream_sent_records_total" ["stream", "mdt"] "Records sent live, or given to the queue.";
    Counter STREAM_DROPPED = "lcap_stream_dropped_records_total" ["stream", "mdt"] "Records that policies dropped or merged into others.";
    Gauge STREAM_HELD = "lcap_stream_held_records" ["stream", "mdt"] "Records that policies hold now.";
    Gauge STREAM_LAG = "lcap_stream_lag_records" ["stream", "mdt"] "Indexes read from the MDT that the stream has neither sent nor dropped.";
    Gauge STREAM_STOPPED = "lcap_stream_stopped" ["stream", "mdt"] "1 if a policy with on_error = \"stop\" has failed.";
    Gauge STREAM_WATERMARK = "lcap_stream_watermark_index" ["stream", "mdt"] "Every index up to here is acknowledged by all.";
    Histogram STREAM_LATENCY = "lcap_stream_latency_seconds" ["stream"] "From the read of a batch to its publication.";
    Counter STREAM_CATCH_UPS = "lcap_stream_catch_ups_total" ["stream"] "Times that a client was served from the past.";
    Gauge STREAM_CATCHING_UP = "lcap_stream_catching_up" ["stream"] "Clients that are served from the past now.";
    Gauge STREAM_SESSIONS = "lcap_stream_sessions" ["stream"] "Open sessions.";
    Gauge QUEUE_OUTSTANDING = "lcap_queue_outstanding_records" ["stream", "mdt"] "Records that members hold and have not acknowledged.";
    Counter QUEUE_REDELIVERED = "lcap_queue_redelivered_records_total" ["stream", "mdt"] "Records sent again because a member was lost.";
    Gauge QUEUE_MEMBERS = "lcap_queue_members" ["stream"] "Members that are connected.";

    Counter POLICY_IN = "lcap_policy_in_records_total" ["stream", "mdt", "place", "module"] "Records that the module was given.";
    Counter POLICY_EMITTED = "lcap_policy_emitted_records_total" ["stream", "mdt", "place", "module"] "Records that the module gave.";
    Counter POLICY_DROPPED = "lcap_policy_dropped_records_total" ["stream", "mdt", "place", "module"] "Records that the module dropped.";
    Counter POLICY_MERGED = "lcap_policy_merged_records_total" ["stream", "mdt", "place", "module"] "Records that went into others of the module's making, less those.";
    Gauge POLICY_HELD = "lcap_policy_held_records" ["stream", "mdt", "place", "module"] "Records that the module holds now.";
    Counter POLICY_BUSY = "lcap_policy_busy_seconds_total" ["stream", "mdt", "place", "module"] "Time spent in the module.";
    Gauge POLICY_FAILED = "lcap_policy_failed" ["stream", "mdt", "place", "module"] "1 if the module has failed and is skipped, or has stopped the stream.";
    Gauge POLICY_STUCK = "lcap_policy_stuck" ["stream", "mdt", "place", "module"] "1 if the module has been in one call for longer than policy_timeout.";
    Counter POLICY_LONG_CALLS = "lcap_policy_long_calls_total" ["stream"] "Calls into modules that took longer than policy_timeout.";
    Counter POLICY_RELOADS = "lcap_policy_reloads_total" ["stream", "result"] "Times that the policies were replaced (done), or were to be and could not (refused).";

    Gauge READER_WATERMARK = "lcap_reader_watermark_index" ["stream", "reader", "mdt"] "Every index up to here is acknowledged by the reader.";
    Gauge READER_LAG_RECORDS = "lcap_reader_lag_records" ["stream", "reader", "mdt"] "Indexes read from the MDT that the reader has not acknowledged.";
    Gauge READER_LAG_SECONDS = "lcap_reader_lag_seconds" ["stream", "reader", "mdt"] "Age of the oldest record that the reader has not acknowledged.";
    Gauge READER_SUSPENDED = "lcap_reader_suspended" ["stream", "reader"] "1 if the reader was suspended: it no longer keeps records.";
    Gauge READER_SESSIONS = "lcap_reader_sessions" ["stream", "reader"] "Open sessions of the reader.";
    Gauge READER_IDLE = "lcap_reader_idle_seconds" ["stream", "reader"] "Time since the reader was heard of; 0 while it is connected.";

    Counter SINK_ENTRIES = "lcap_sink_entries_total" ["stream", "sink", "mdt"] "Entries that Redis has confirmed.";
    Counter SINK_BATCHES = "lcap_sink_batches_total" ["stream", "sink", "mdt"] "Transactions that Redis has carried out.";
    Counter SINK_FAILURES = "lcap_sink_failures_total" ["stream", "sink", "mdt"] "Times that the sink was interrupted: no connection, a refusal, a failed source.";
    Gauge SINK_CONNECTED = "lcap_sink_connected" ["stream", "sink", "mdt"] "1 while the sink is connected and works.";
    Gauge SINK_FENCED = "lcap_sink_fenced" ["stream", "sink", "mdt"] "1 while another lcapd has the MDT and writes its stream.";

    Counter REQUESTS = "lcap_requests_total" [] "Requests of clients.";
    Counter REFUSED = "lcap_requests_refused_total" ["reason"] "Requests and connections refused.";

    Counter HTTP_REQUESTS = "lcap_http_requests_total" ["code"] "Answers given over HTTP.";

    Gauge HSM_REQUESTS = "lcap_hsm_requests" ["state", "action"] "HSM requests in the queue.";
    Counter HSM_ADMITTED = "lcap_hsm_admitted_requests_total" ["action"] "HSM requests that came into the queue.";
    Counter HSM_DONE = "lcap_hsm_done_requests_total" ["action"] "HSM requests that were done.";
    Counter HSM_FAILURES = "lcap_hsm_failures_total" ["action"] "Times that work on an HSM request failed.";
    Counter HSM_CANCELLED = "lcap_hsm_cancelled_requests_total" ["action"] "HSM requests that were cancelled.";
    Gauge HSM_OLDEST = "lcap_hsm_oldest_waiting_seconds" [] "Age of the oldest HSM request that does not run; 0 if there is none.";
    Gauge HSM_WORKERS = "lcap_hsm_workers" [] "Workers and movers that are there.";
    Counter HSM_WORKER_DONE = "lcap_hsm_worker_done_requests_total" ["worker", "action"] "HSM requests that a worker or mover has done.";
    Gauge HSM_AGE = "lcap_hsm_waiting_seconds" ["quantile"] "Age of HSM requests that do not run: so many of them are not older.";
    Counter HSM_WAITED = "lcap_hsm_in_queue_seconds_total" [] "How long requests that are done had been in the queue, all together.";
    Gauge HSM_WORKER_UP = "lcap_hsm_worker_up" ["worker"] "1 if the worker or mover is there, 0 while its grace time runs.";
    Gauge HSM_WORKER_RUNNING = "lcap_hsm_worker_running_requests" ["worker", "action"] "HSM requests that a worker or mover has.";
    Counter HSM_WORKER_FAILURES = "lcap_hsm_worker_failures_total" ["worker", "action"] "Times that a worker or mover failed at an HSM request.";
    Gauge HSM_MOVER_ROOM = "lcap_hsm_mover_room_requests" ["mover"] "HSM requests that a mover would take now.";
    Gauge HSM_REGISTERED = "lcap_hsm_registered" [] "1 while lcapd is registered with Lustre as a copytool.";
    Counter HSM_REGISTRATIONS = "lcap_hsm_registrations_total" [] "Registrations with Lustre that were made or renewed.";
    Counter HSM_LISTS = "lcap_hsm_lists_total" [] "Lists of requests received from Lustre.";
    Counter HSM_KEEP_ALIVES = "lcap_hsm_keep_alives_total" [] "Times that Lustre was told of a request that waits.";
    Counter HSM_ENDED = "lcap_hsm_ended_requests_total" [] "Requests that lcapd itself ended with Lustre: cancelled, or of no use.";
    Counter HSM_LUSTRE_ERRORS = "lcap_hsm_lustre_errors_total" [] "Calls to Lustre that failed, but for answers about a request.";
    Counter HSM_UNPLACED = "lcap_hsm_unplaced_requests_total" [] "HSM requests whose mover the placer did not choose in time.";
    Gauge HSM_STORE_FAILING = "lcap_hsm_write_failing" [] "1 while the queue cannot be written to disk; nothing is handed out then.";
    Counter HSM_SPOOL_TAKEN = "lcap_hsm_spool_files_total" [] "Files taken in from the spool of upcalls.";
    Counter HSM_SPOOL_BAD = "lcap_hsm_spool_bad_files_total" [] "Files of the spool that were set aside.";
    Gauge HSM_SPOOL_WAITING = "lcap_hsm_spool_waiting_files" [] "Files that lay in the spool when it was looked at last.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are_and_in_which_unit() {
        for (at, family) in ALL.iter().enumerate() {
            let name = family.name;
            assert!(name.starts_with("lcap_"), "{name}");
            assert!(!ALL[..at].iter().any(|other| other.name == name), "{name} is declared twice");
            assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(family.kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(family.help.ends_with('.'), "{name}: a sentence");
        }
    }

    #[test]
    fn each_is_in_the_manual() {
        let manual = include_str!("../../../docs/operating.md");
        for family in ALL {
            assert!(manual.contains(&format!("`{}`", family.name)), "{} is missing", family.name);
        }
    }
}
