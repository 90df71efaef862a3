//! Any bytes as what a peer may send: header and body of a data message, hello topic, control
//! message.

use lcap_wire::control::{Request, parse_server_message};
use lcap_wire::frame::{Header, parse_hello_topic};

pub(crate) fn run(bytes: &[u8]) {
    let (head, body) = bytes.split_at(bytes.len().min(64));
    if let Ok(header) = Header::decode(head) {
        assert_eq!(header.encode(), head, "a header says one thing in one way");
        let _ = header.check_body(body);
    }
    let _ = parse_hello_topic(bytes);
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let again = serde_json::from_slice::<Request>(&request.encode()).expect("our own request");
        assert_eq!(again, request);
    }
    let _ = parse_server_message(bytes);
}
