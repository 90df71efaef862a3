//! Where servers are.
#![forbid(unsafe_code)]

use lcap_wire::DEFAULT_CONTROL_PORT;

use crate::error::ClientError;

/// Hosts that mean "every address" to who binds and nothing to who connects.
const WILDCARDS: [&str; 4] = ["*", "0.0.0.0", "[::]", "::"];

/// Takes a list of servers apart: endpoints separated by commas, each `tcp://HOST:PORT`,
/// `HOST:PORT`, `HOST` or `ipc://PATH`.
///
/// # Errors
/// If there is none, or one has another scheme.
pub fn parse_list(list: &str) -> Result<Vec<String>, ClientError> {
    let parse = |one: &str| -> Result<String, ClientError> {
        match one.split_once("://") {
            Some(("ipc", _)) => Ok(one.to_owned()),
            Some(("tcp", address)) => Ok(format!("tcp://{}", with_port(address))),
            Some((scheme, _)) => {
                let problem = format!("`{one}`: scheme `{scheme}` is neither tcp nor ipc");
                Err(ClientError::BadArgument(problem))
            }
            None => Ok(format!("tcp://{}", with_port(one))),
        }
    };
    let parts = list.split(',').map(str::trim).filter(|one| !one.is_empty());
    let endpoints = parts.map(parse).collect::<Result<Vec<_>, _>>()?;
    if endpoints.is_empty() {
        return Err(ClientError::BadArgument("no server is named".to_owned()));
    }
    Ok(endpoints)
}

fn with_port(address: &str) -> String {
    let (host, port) = split_port(address);
    if port.is_empty() { format!("{host}:{DEFAULT_CONTROL_PORT}") } else { address.to_owned() }
}

/// Host and port of an address; brackets of IPv6 stay.
fn split_port(address: &str) -> (&str, &str) {
    match address.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (address, ""),
    }
}

/// The endpoint to connect to for `publish`, as a server at `control` announced it.
pub fn resolve(publish: &str, control: &str) -> String {
    let (Some(address), Some(server)) =
        (publish.strip_prefix("tcp://"), control.strip_prefix("tcp://"))
    else {
        return publish.to_owned();
    };
    let (host, port) = split_port(address);
    if !WILDCARDS.contains(&host) {
        return publish.to_owned();
    }
    let (server, _) = split_port(server);
    format!("tcp://{server}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_briefly_or_fully() {
        let cases = [
            ("mds1", "tcp://mds1:8189"),
            ("mds1:9000", "tcp://mds1:9000"),
            ("tcp://mds1", "tcp://mds1:8189"),
            ("tcp://[fd00::1]", "tcp://[fd00::1]:8189"),
            ("tcp://[fd00::1]:1", "tcp://[fd00::1]:1"),
            ("ipc:///run/lcap.sock", "ipc:///run/lcap.sock"),
        ];
        for (text, want) in cases {
            assert_eq!(parse_list(text), Ok(vec![want.to_owned()]), "{text}");
        }
        let two = parse_list("mds1, tcp://mds2:1,").unwrap();
        assert_eq!(two, ["tcp://mds1:8189", "tcp://mds2:1"]);
        for bad in ["", " , ", "http://mds1"] {
            assert!(parse_list(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_is_where_the_server_is() {
        let cases = [
            ("tcp://*:8190", "tcp://mds1:8189", "tcp://mds1:8190"),
            ("tcp://0.0.0.0:8190", "tcp://mds1:8189", "tcp://mds1:8190"),
            ("tcp://[::]:8190", "tcp://[fd00::1]:8189", "tcp://[fd00::1]:8190"),
            ("tcp://10.0.0.1:8190", "tcp://mds1:8189", "tcp://10.0.0.1:8190"),
            ("ipc:///run/x", "tcp://mds1:8189", "ipc:///run/x"),
        ];
        for (publish, control, want) in cases {
            assert_eq!(resolve(publish, control), want);
        }
    }
}
