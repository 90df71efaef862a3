//! One-shot requests to a server.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use lcap_wire::control::{
    Clear, From, Hello, HelloReply, Op, PolicyReload, PolicyReloadReply, ReaderDeregister,
    ReaderList, ReaderRegister, ReaderStatus, Reply, Request, ServerMessage, Status, StatusRequest,
    parse_server_message,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::api::{DEFAULT_URI, env, env_timeout, keys};
use crate::endpoint;
use crate::error::ClientError;
use crate::keys::Keys;

/// A connection for requests; each is sent and its answer awaited. No thread.
pub struct Control {
    context: zmq::Context,
    keys: Option<Keys>,
    endpoints: Vec<String>,
    /// The server that answered last, and the connection to it.
    connected: Option<(usize, zmq::Socket)>,
    timeout: Duration,
    next_id: u64,
}

impl Control {
    /// As the environment says (`LCAP_REC_URI`, `LCAP_TIMEOUT_MS`, `LCAP_SERVER_KEY`,
    /// `LCAP_CLIENT_KEY_FILE`).
    ///
    /// # Errors
    /// `EINVAL` if that cannot be.
    pub fn from_env() -> Result<Self, ClientError> {
        let servers = env("LCAP_REC_URI");
        let client_file = env("LCAP_CLIENT_KEY_FILE").map(Into::into);
        let keys = keys(env("LCAP_SERVER_KEY").as_deref(), client_file.as_ref())?;
        Self::new(servers.as_deref().unwrap_or(DEFAULT_URI), keys, env_timeout()?)
    }

    /// To these servers, separated by commas and tried in turn.
    ///
    /// # Errors
    /// `EINVAL` for a list that cannot be.
    pub fn new(servers: &str, keys: Option<Keys>, timeout: Duration) -> Result<Self, ClientError> {
        let endpoints = endpoint::parse_list(servers)?;
        let context = zmq::Context::new();
        Ok(Self { context, keys, endpoints, connected: None, timeout, next_id: 1 })
    }

    /// Waits so long for each answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Asks who is there, and whether an MDT and a stream are served.
    ///
    /// # Errors
    /// `ENOENT` if not; `ETIMEDOUT` without an answer, here as everywhere.
    pub fn hello(
        &mut self,
        mdt: Option<&str>,
        stream: Option<&str>,
    ) -> Result<HelloReply, ClientError> {
        let (mdt, stream) = (mdt.map(str::to_owned), stream.map(str::to_owned));
        self.call(Op::Hello(Hello { mdt, stream }))
    }

    /// Settles up to `upto` for a reader; it is on the server's disk then. 0: all that it was sent.
    ///
    /// # Errors
    /// `ENOENT` if there is no such MDT or reader.
    pub fn clear(
        &mut self,
        stream: Option<&str>,
        mdt: &str,
        reader: &str,
        upto: u64,
    ) -> Result<(), ClientError> {
        let (stream, mdt, reader) = (stream.map(str::to_owned), mdt.to_owned(), reader.to_owned());
        self.request(Op::Clear(Clear { stream, mdt, reader, upto })).map(drop)
    }

    /// Creates a reader.
    ///
    /// # Errors
    /// `EEXIST` if there is one of that name.
    pub fn register(
        &mut self,
        stream: &str,
        name: &str,
        mask: Vec<String>,
        from: From,
    ) -> Result<(), ClientError> {
        let (stream, name) = (stream.to_owned(), name.to_owned());
        self.request(Op::ReaderRegister(ReaderRegister { stream, name, mask, from })).map(drop)
    }

    /// Removes a reader.
    ///
    /// # Errors
    /// `ENOENT` if there is none of that name.
    pub fn deregister(&mut self, stream: &str, name: &str) -> Result<(), ClientError> {
        let (stream, name) = (stream.to_owned(), name.to_owned());
        self.request(Op::ReaderDeregister(ReaderDeregister { stream, name })).map(drop)
    }

    /// The readers of one stream, or of all.
    ///
    /// # Errors
    /// `ENOENT` if there is no such stream.
    pub fn readers(&mut self, stream: Option<&str>) -> Result<Vec<ReaderStatus>, ClientError> {
        #[derive(Deserialize)]
        struct Readers {
            readers: Vec<ReaderStatus>,
        }
        let stream = stream.map(str::to_owned);
        self.call::<Readers>(Op::ReaderList(ReaderList { stream })).map(|all| all.readers)
    }

    /// The server's state.
    ///
    /// # Errors
    /// `ETIMEDOUT` without an answer.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.call(Op::Status(StatusRequest {}))
    }

    /// Has a stream's policies read from the configuration again.
    ///
    /// # Errors
    /// `EINVAL` if they cannot be used: the old ones are at work then.
    pub fn reload_policies(&mut self, stream: &str) -> Result<PolicyReloadReply, ClientError> {
        self.call(Op::PolicyReload(PolicyReload { stream: stream.to_owned() }))
    }

    /// The server that answered last.
    pub fn endpoint(&self) -> Option<&str> {
        let (at, _) = self.connected.as_ref()?;
        self.endpoints.get(*at).map(String::as_str)
    }

    fn call<T: DeserializeOwned>(&mut self, op: Op) -> Result<T, ClientError> {
        let reply = self.request(op)?;
        serde_json::from_value(reply.body).map_err(|error| ClientError::Protocol {
            endpoint: self.endpoint().unwrap_or_default().to_owned(),
            problem: error.to_string(),
        })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// The server's refusal, or `ETIMEDOUT`.
    pub fn request(&mut self, op: Op) -> Result<Reply, ClientError> {
        let until = Instant::now() + self.timeout;
        if self.connected.is_none() {
            self.find_server()?;
        }
        let reply = self.exchange(&op, until)?;
        let Some(reply) = reply else {
            self.connected = None;
            return Err(self.timed_out());
        };
        if reply.ok {
            return Ok(reply);
        }
        Err(ClientError::Refused {
            endpoint: self.endpoint().unwrap_or_default().to_owned(),
            errno: reply.errno.unwrap_or(libc::EIO),
            error: reply.error.unwrap_or_else(|| "refused without a reason".to_owned()),
        })
    }

    /// Connects to the first server that answers a greeting. So a request is sent once only.
    fn find_server(&mut self) -> Result<(), ClientError> {
        let n = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).max(1);
        let share = (self.timeout / n).max(Duration::from_millis(100));
        for (at, endpoint) in self.endpoints.clone().into_iter().enumerate() {
            let connect = || {
                let socket = self.context.socket(zmq::DEALER)?;
                socket.set_linger(0)?;
                socket.set_ipv6(true)?;
                socket.set_reconnect_ivl(50)?;
                if let Some(keys) = &self.keys {
                    keys.apply(&socket)?;
                }
                socket.connect(&endpoint)?;
                Ok(socket)
            };
            let socket = connect().map_err(|error| ClientError::zmq(&*endpoint, error))?;
            self.connected = Some((at, socket));
            let hello = Op::Hello(Hello::default());
            if self.exchange(&hello, Instant::now() + share)?.is_some() {
                return Ok(());
            }
        }
        self.connected = None;
        Err(self.timed_out())
    }

    /// Sends `op` and waits for the answer that repeats its id. `None` if there is none in time.
    fn exchange(&mut self, op: &Op, until: Instant) -> Result<Option<Reply>, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let Some((at, socket)) = &self.connected else { return Ok(None) };
        let endpoint = || self.endpoints.get(*at).cloned().unwrap_or_default();
        let failed = |error| ClientError::zmq(endpoint(), error);
        socket.send(Request::new(id, op.clone()).encode(), zmq::DONTWAIT).map_err(failed)?;
        loop {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            match socket.poll(zmq::POLLIN, i64::try_from(left.as_millis()).unwrap_or(i64::MAX)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(zmq::Error::EINTR) => return Err(ClientError::Interrupted),
                Err(error) => return Err(failed(error)),
            }
            let frames = socket.recv_multipart(zmq::DONTWAIT).map_err(failed)?;
            let message = frames.last().map(Vec::as_slice).unwrap_or_default();
            match parse_server_message(message) {
                Ok(ServerMessage::Reply(reply)) if reply.id == Some(id) => return Ok(Some(reply)),
                _ => {} // an answer that came too late, or of somebody else's making
            }
        }
    }

    fn timed_out(&self) -> ClientError {
        ClientError::Timeout { endpoints: self.endpoints.join(", "), waited: self.timeout }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}
