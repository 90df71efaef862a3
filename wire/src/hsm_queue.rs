//! Requests about the queue of HSM requests: `"op":"hsm"`, and `do` says what.
//!
//! Operators look at and change what is queued. Workers (`lcap hsm worker`) fetch requests and
//! report what became of them; both may be repeated, so a lost message does no harm:
//!
//! * [`Fetch`] has a number of its own and says which answer came last, so what was given in one that
//!   got lost goes back into the queue.
//! * [`Report`] says everything that the worker holds. It is its sign of life, too.

use serde::{Deserialize, Serialize};

/// What is asked of the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
#[allow(missing_docs)] // each is its own struct below
pub enum HsmOp {
    /// Figures; returns what `coordinatool-client` prints, and more.
    Status(Status),
    List(List),
    /// One request; returns [`Shown`].
    Show(Which),
    /// Ends requests; returns [`Changed`], as all below.
    Cancel(Which),
    /// Keeps requests from being started.
    Hold(Which),
    /// Lets requests that are held, delayed or dead go on.
    Requeue(Which),
    Move(Move),
    Lock(Lock),
    Unlock(Lock),
    /// Takes away from a worker what it has.
    Drop(Drop),
    Import(Import),
    Fetch(Fetch),
    Report(Report),
}

/// Asks for figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Requests, too, not only their number.
    #[serde(default)]
    pub verbose: bool,
}

/// Asks for requests; returns [`Listed`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only of this kind: `archive`, `restore`, `remove`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only of this archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_id: Option<u32>,
    /// Only of this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fid: Option<String>,
    /// Only on this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Only after this id, in the order of ids.
    #[serde(default)]
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// Requests, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// In the order of ids.
    pub requests: Vec<Queued>,
    /// There are more after the last one.
    pub more: bool,
}

/// One request. (Not bare: an answer has an `id` of its own.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The request.
    pub request: Queued,
}

/// One request in the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// Its number.
    pub id: u64,
    /// `waiting`, `delayed`, `held`, `running` or `dead`.
    pub state: String,
    /// An earlier request on the same file is in the queue.
    #[serde(default, skip_serializing_if = "is_false")]
    pub blocked: bool,
    /// `ARCHIVE`, `RESTORE` or `REMOVE`.
    pub action: String,
    /// The file.
    pub fid: String,
    /// Where data goes to, if not to the file itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dfid: Option<String>,
    /// Its archive.
    pub archive_id: u32,
    /// Lustre's flags.
    pub flags: u64,
    /// The user's data in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data_b64: String,
    /// Its MDT; `<fsname>-MDTffff` for an upcall.
    pub mdt: String,
    /// `coordinator` or `upcall`.
    pub source: String,
    /// The coordinator's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
    /// When it came, in nanoseconds since 1970.
    pub received_ns: u64,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Of a kind, those of a lower one go first.
    #[serde(default, skip_serializing_if = "is_level")]
    pub rank: i32,
    /// Workers that it may go to; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// How often it failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// What was said of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its worker was told to stop.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel: bool,
}

/// Names requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Which {
    /// By their numbers.
    pub ids: Vec<u64>,
}

/// What was done with each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How many it was done with.
    pub changed: usize,
    /// Those that it could not be done with, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<(u64, String)>,
}

/// Puts requests elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// By their numbers.
    pub ids: Vec<u64>,
    /// Where to.
    pub to: Place,
}

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Before all others.
    First,
    /// Behind all others.
    Last,
    /// To any worker.
    Anywhere,
    /// To one of these workers only.
    Hosts(Vec<String>),
    /// To another archive.
    Archive(u32),
}

/// What is not to be started. What is absent matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// On this worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// Of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Of this archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_id: Option<u32>,
}

/// Names a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// Its name.
    pub worker: String,
}

/// Requests from elsewhere; returns [`Imported`]. What is in the queue already is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Lines of `hsm/active_requests`.
    pub text: String,
    /// The number of its first line, for messages.
    pub first_line: usize,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Now in the queue.
    pub enqueued: usize,
    /// Were there already.
    pub skipped: usize,
    /// Left out, because they are cancelled.
    pub cancelled: usize,
    /// Numbers of lines that are no requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_lines: Vec<usize>,
}

/// A worker asks for work; answered by [`Fetched`] when there is some, or with nothing when it has
/// waited long enough.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// Who, and what it holds.
    #[serde(flatten)]
    pub worker: WorkerState,
    /// Kinds that it can do; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Archives that it serves; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub archive_ids: Vec<u32>,
    /// Numbers the worker's questions, from 1.
    pub seq: u64,
    /// How many requests it has room for.
    pub n: u32,
    /// How long the answer may wait for the first, in milliseconds.
    pub wait_ms: u64,
}

/// A worker, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerState {
    /// Its name: one worker each.
    pub worker: String,
    /// One life of it, any number.
    pub instance: u64,
    /// The last [`Fetch::seq`] that it had an answer to.
    pub got: u64,
    /// Ids of everything that it holds.
    pub holding: Vec<u64>,
}

/// Work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// What is to be done.
    pub requests: Vec<Leased>,
    /// Silent for so long, a worker loses what it holds, in milliseconds.
    pub lease_ms: u64,
}

/// A request that a worker is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leased {
    /// Its number.
    pub id: u64,
    /// Names this run.
    pub lease: u64,
    /// `ARCHIVE`, `RESTORE` or `REMOVE`.
    pub action: String,
    /// The file system.
    pub fsname: String,
    /// The file.
    pub fid: String,
    /// Its archive.
    pub archive_id: u32,
    /// Lustre's flags.
    pub flags: u64,
    /// The user's data in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data_b64: String,
    /// How often it has failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
}

/// A worker says what became of requests, and that it lives. Returns [`Reported`], once it is on
/// disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Who, and what it holds besides `done` and `returned`.
    #[serde(flatten)]
    pub worker: WorkerState,
    /// What it is through with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Done>,
    /// What it gives back as it got it, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub returned: Vec<u64>,
    /// It goes, and will not come back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bye: bool,
}

/// A request that a worker is through with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Its number.
    pub id: u64,
    /// As it was given.
    pub lease: u64,
    /// 0 if it is done, else why not.
    #[serde(default)]
    pub errno: i32,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// What a worker should know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// What it said that it holds and does not: somebody else may have it. It stops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u64>,
    /// What was cancelled: it stops, and reports `ECANCELED` unless it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancel: Vec<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(flag: &bool) -> bool {
    !flag
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_level(rank: &i32) -> bool {
    *rank == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Op, Request};

    /// Frozen: what workers out there send.
    #[test]
    fn messages_look_as_documented() {
        let worker = WorkerState { worker: "h-1".into(), instance: 7, got: 2, holding: vec![4, 5] };
        let done = vec![Done { id: 4, lease: 9, errno: 5, error: "no".into() }];
        let report = Report { worker, done, ..Report::default() };
        let text = r#"{"v":1,"id":3,"op":"hsm","do":"report","worker":"h-1","instance":7,"got":2,"holding":[4,5],"done":[{"id":4,"lease":9,"errno":5,"error":"no"}]}"#;
        let request = Request::new(3, Op::Hsm(HsmOp::Report(report)));
        assert_eq!(String::from_utf8(request.encode()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        let text = r#"{"v":1,"id":3,"op":"hsm","do":"move","ids":[1],"to":{"hosts":["a"]}}"#;
        assert!(serde_json::from_str::<Request>(text).is_ok());
        let text = r#"{"v":1,"id":3,"op":"hsm","do":"dance"}"#;
        let error = serde_json::from_str::<Request>(text).unwrap_err().to_string();
        assert!(error.contains("dance"), "{error}");
    }
}
