//! Figures, with the real Prometheus: every panel of the dashboard shows something, and alerts fire.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lcap_tests::daemon::{Setup, free_port, http_get, wait_until};
use lcap_wire::control::From;
use serde_json::Value;

const MDT: &str = "lustre-MDT0000";

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").canonicalize().unwrap()
}

struct Prometheus {
    child: Child,
    address: String,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes `target` five times a second, with the packaged rules but for their `for:`.
    fn start(dir: &Path, target: &str) -> Self {
        let rules = fs::read_to_string(packaging().join("prometheus/lcap.rules.yml")).unwrap();
        let hasty = |line: &str| !line.trim_start().starts_with("for:");
        let rules: Vec<&str> = rules.lines().filter(|line| hasty(line)).collect();
        fs::write(dir.join("rules.yml"), rules.join("\n")).unwrap();
        let config = format!(
            "global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: lcapd\n    static_configs:\n      - targets: [\"{target}\"]\n"
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let log = fs::File::create(dir.join("prometheus.log")).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().expect("prometheus; `make setup` installs it");
        wait_until("prometheus answers", || std::net::TcpStream::connect(&address).is_ok());
        Self { child, address }
    }

    fn get(&self, path: &str) -> Value {
        let answer = http_get(&self.address, path);
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// How many samples a query gives now.
    fn n_results(&self, query: &str) -> usize {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        answer["data"]["result"].as_array().map_or(0, Vec::len)
    }

    fn is_firing(&self, alert: &str) -> bool {
        let alerts = self.get("/api/v1/alerts");
        let alerts = alerts["data"]["alerts"].as_array().cloned().unwrap_or_default();
        alerts.iter().any(|a| a["labels"]["alertname"] == alert && a["state"] == "firing")
    }
}

/// Title and query of each panel of the dashboard.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(packaging().join("grafana/lcapd.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap().to_owned();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr.replace("$__rate_interval", "10s").replace("[1h]", "[10s]");
            let expr = ["$instance", "$mdt", "$stream"]
                .iter()
                .fold(expr, |expr, variable| expr.replace(variable, ".*"));
            assert!(!expr.contains('$'), "{title}: {expr}");
            queries.push((title.clone(), expr));
        }
    }
    queries
}

#[test]
fn every_panel_shows_something_and_alerts_fire() {
    let setup = Setup::new().server("http = \"127.0.0.1:0\"").mdt(MDT, "sim:rate=500");
    let setup = setup.mdt("lustre-MDT0001", "device:/nowhere");
    let setup = setup.broadcast("changelog", "policies = [ { module = \"fifo\" } ]");
    let mut daemon = setup.queue("work", "").start();
    daemon.control().register("changelog", "audit", Vec::new(), From::Oldest).unwrap();
    daemon.control().register("changelog", "away", Vec::new(), From::Oldest).unwrap();
    let mut reader = daemon.client(MDT, "changelog").reader(Some("audit")).follow(true);
    reader.options_mut().ack_interval = std::time::Duration::from_millis(50);
    let mut reader = reader.connect().unwrap();
    for _ in 0..500 {
        let index = reader.recv().unwrap().unwrap().index();
        reader.clear(index).unwrap();
    }
    let prometheus = Prometheus::start(daemon.dir(), &daemon.http_address());
    let mut queries = queries();
    assert!(queries.len() > 30, "{} queries", queries.len());
    wait_until("every panel has data", || {
        queries.retain(|(_, query)| prometheus.n_results(query) == 0);
        queries.is_empty()
    });
    let alerts = ["LcapSourceDown", "LcapQueueWithoutMembers", "LcapReaderAway"];
    for alert in alerts {
        wait_until(alert, || prometheus.is_firing(alert));
    }
    assert!(!prometheus.is_firing("LcapDown") && !prometheus.is_firing("LcapEngineStuck"));
    let health = daemon.http("/healthz");
    assert!(health.starts_with("HTTP/1.1 503 ") && health.contains("\"live\":true"), "{health}");
    assert!(health.contains("lustre-MDT0001: waiting: "), "{health}");

    daemon.kill();
    wait_until("LcapDown", || prometheus.is_firing("LcapDown"));
}

#[test]
fn rules_are_valid_and_in_the_manual() {
    let rules = packaging().join("prometheus/lcap.rules.yml");
    let check = Command::new("promtool").args(["check", "rules"]).arg(&rules).output();
    let check = check.expect("promtool; `make setup` installs it");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let manual = fs::read_to_string(packaging().join("../docs/operating.md")).unwrap();
    let text = fs::read_to_string(&rules).unwrap();
    for line in text.lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(manual.contains(&format!("`{alert}`")), "{alert} is not in the manual");
        }
    }
}
