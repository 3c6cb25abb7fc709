//! `routes.yaml` for a test.

use std::fmt::Write as _;

/// The secret that senders share with the relay unless a test says otherwise.
pub(crate) const SECRET: &str = "the sender's secret";

/// Where the default source listens.
pub(crate) const PATH: &str = "/webhooks/aryeo";

/// A retry schedule that a test can wait for.
pub(crate) const SOON: &str = "retry: { first: 50ms, max: 200ms, for: 1h }";

/// A routing table, and the environment its secrets come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    sources: String,
    targets: String,
    routes: String,
    more: String,
    secrets: Vec<(String, String)>,
}

impl Routes {
    /// With the source `aryeo` on [`PATH`] and [`SECRET`].
    pub(crate) fn new() -> Self {
        Self::bare().source("aryeo", PATH, &[SECRET], &[])
    }

    /// With nothing.
    pub(crate) fn bare() -> Self {
        Self::default()
    }

    /// A source that takes any of these secrets; `lines` are more keys of it.
    pub(crate) fn source(self, name: &str, path: &str, secrets: &[&str], lines: &[&str]) -> Self {
        self.source_verified(name, path, secrets, "scheme: aryeo", lines)
    }

    /// The same, verified as `verify` says: keys but `secrets`.
    pub(crate) fn source_verified(
        mut self,
        name: &str,
        path: &str,
        secrets: &[&str],
        verify: &str,
        lines: &[&str],
    ) -> Self {
        let names: Vec<String> = (0..secrets.len())
            .map(|n| format!("{}_WEBHOOK_SECRET_{n}", name.to_uppercase()))
            .collect();
        let list: Vec<String> = names.iter().map(|name| format!("{{ env: {name} }}")).collect();
        writeln!(self.sources, "  {name}:\n    path: {path}").unwrap();
        writeln!(self.sources, "    verify: {{ {verify}, secrets: [{}] }}", list.join(", "))
            .unwrap();
        for line in lines {
            writeln!(self.sources, "    {line}").unwrap();
        }
        self.secrets.extend(names.into_iter().zip(secrets.iter().map(|text| (*text).to_owned())));
        self
    }

    /// A target that is signed for with [`target_secret`]; `lines` are more keys of it.
    pub(crate) fn target(mut self, name: &str, url: &str, lines: &[&str]) -> Self {
        let variable = format!("{}_SECRET", name.to_uppercase());
        writeln!(self.targets, "  {name}:\n    url: {url}").unwrap();
        writeln!(self.targets, "    sign: {{ scheme: aryeo, secrets: [{{ env: {variable} }}] }}")
            .unwrap();
        for line in lines {
            writeln!(self.targets, "    {line}").unwrap();
        }
        self.secrets.push((variable, target_secret(name)));
        self
    }

    /// A route; `lines` are its keys but `name` and `to`.
    pub(crate) fn route(mut self, name: &str, lines: &[&str], to: &[&str]) -> Self {
        writeln!(self.routes, "  - name: {name}").unwrap();
        for line in lines {
            writeln!(self.routes, "    {line}").unwrap();
        }
        writeln!(self.routes, "    to: [{}]", to.join(", ")).unwrap();
        self
    }

    /// Everything from everywhere to these.
    pub(crate) fn all_to(self, to: &[&str]) -> Self {
        self.route("everything", &[], to)
    }

    /// A line at the top level.
    pub(crate) fn line(mut self, line: &str) -> Self {
        writeln!(self.more, "{line}").unwrap();
        self
    }

    /// The file.
    pub(crate) fn yaml(&self) -> String {
        format!(
            "sources:\n{}\ntargets:\n{}\nroutes:\n{}\n{}",
            self.sources, self.targets, self.routes, self.more
        )
    }

    /// The environment variables it names.
    pub(crate) fn secrets(&self) -> &[(String, String)] {
        &self.secrets
    }
}

/// The secret a target shares with the relay.
pub(crate) fn target_secret(name: &str) -> String {
    format!("the secret of {name}, ünlike any other")
}
