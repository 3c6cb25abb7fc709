//! A real Prometheus that scrapes a relay and follows the rules that are shipped.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::relay::{Background, command, folder};
use super::sender::get;

/// How often it looks, and follows its rules.
const EVERY: &str = "500ms";

/// The job of a program that is no relay.
pub(crate) const FOREIGN: &str = "warehouse";

/// It runs until it is dropped.
pub(crate) struct Prometheus {
    address: SocketAddr,
    _process: Background,
    _folder: TempDir,
}

/// One series of an answer: its labels, and its values with their times.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) values: Vec<(f64, f64)>,
}

impl Found {
    fn read(series: &Value) -> Self {
        let labels = series["metric"].as_object().unwrap().iter();
        let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
        let point = |point: &Value| {
            let number = point[1].as_str().unwrap().replace("Inf", "inf");
            (point[0].as_f64().unwrap(), number.parse().unwrap())
        };
        let values = match &series["value"] {
            Value::Null => series["values"].as_array().unwrap().iter().map(point).collect(),
            value => vec![point(value)],
        };
        Self { labels: labels.collect(), values }
    }

    /// The value of a label, or nothing.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

impl Prometheus {
    /// Looks at what is at this address as the job `aryeo-relay`. Another program is its job [`FOREIGN`]: it answers
    /// without a series of a relay, and another instance of it does not.
    pub(crate) fn of(admin: SocketAddr, rules: &Path) -> Self {
        let folder = folder();
        let settings = format!(
            "global: {{ scrape_interval: {EVERY}, scrape_timeout: {EVERY}, evaluation_interval: {EVERY} }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  \
             - job_name: aryeo-relay\n    \
             static_configs: [{{ targets: [\"{admin}\"], labels: {{ instance: \"relay-0:9464\" }} }}]\n  \
             - job_name: {FOREIGN}\n    \
             static_configs: [{{ targets: [\"{admin}\", \"127.0.0.1:1\"] }}]\n    \
             metric_relabel_configs:\n      \
             - {{ source_labels: [__name__], regex: \"relay_.*\", action: drop }}\n",
            rules.display()
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, settings).unwrap();
        // It tells on its standard error which port it got.
        let mut shell = command("sh");
        shell.args(["-c", "exec prometheus \"$@\" 2>&1", "prometheus"]);
        shell.arg(format!("--config.file={}", file.display()));
        shell.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        shell.arg("--web.listen-address=127.0.0.1:0");
        let process = Background::start(&mut shell);
        let address = eventually("Prometheus says where it listens", || {
            let lines = process.lines();
            let line = lines.iter().find(|line| line.contains("msg=\"Listening on\""));
            let address = line.and_then(|line| line.rsplit_once("address=")?.1.parse().ok());
            address.ok_or_else(|| lines.join("\n"))
        });
        Self { address, _process: process, _folder: folder }
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Vec<Found>, String> {
        let query =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let answer = get(self.address, &format!("/api/v1/{path}?{query}"));
        let answer = answer.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let value: Value = serde_json::from_slice(&answer.body).map_err(|_| text.clone())?;
        if answer.status != 200 || value["data"]["resultType"] == "scalar" {
            return Err(text);
        }
        Ok(value["data"]["result"].as_array().unwrap().iter().map(Found::read).collect())
    }

    /// What an expression finds now.
    pub(crate) fn query(&self, expression: &str) -> Result<Vec<Found>, String> {
        self.ask("query", &[("query", expression)])
    }

    /// What it finds from one time to another.
    pub(crate) fn range(&self, expression: &str, from: f64, to: f64, steps: u32) -> Vec<Found> {
        let (start, end) = (from.to_string(), to.to_string());
        let step = ((to - from) / f64::from(steps)).to_string();
        let parameters =
            [("query", expression), ("start", &*start), ("end", &*end), ("step", &*step)];
        self.ask("query_range", &parameters).unwrap()
    }
}
