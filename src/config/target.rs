//! `targets`: where deliveries go, signed how, with which patience.

use http::HeaderName;

use crate::config::compile::Context;
use crate::config::schema;
use crate::config::settings::{Settings, is_https};
use crate::config::source::nothing_beside;
use crate::config::spot::Spot;
use crate::config::value;
use crate::domain::signature::{Scheme, Signing};
use crate::domain::target::Target;

/// Not a target's name: tests of the rules expect it of webhooks that reach none.
const UNROUTED: &str = "unrouted";

/// Compiles all targets. `proofs` are the headers that prove something inbound.
pub(super) fn compile(
    file: &schema::File,
    root: Spot<'_>,
    proofs: &[HeaderName],
    context: &mut Context<'_>,
) -> Vec<Target> {
    let defaults = Settings::of_defaults(&file.defaults, root.key("defaults"), proofs, context);
    let spot = root.key("targets");
    let mut compiled = Vec::with_capacity(file.targets.0.len());
    for (index, (name, target)) in file.targets.0.iter().enumerate() {
        let key_at = spot.entry_key(index);
        context.take(key_at, value::name(name));
        if name == UNROUTED {
            let message = format!("\"{UNROUTED}\" can't be a target's name: it means no target");
            context.report.error(key_at, message);
        }
        let spot = spot.entry(index);
        let url = context.take(spot.key("url").at, value::url(&target.url.0));
        let sign = signing(&target.sign, spot.key("sign"), context);
        let taken = sign.as_ref().map(Signing::header_names).unwrap_or_default();
        let settings = Settings::of_target(target, spot, [&taken, proofs], context);
        if target.tls != schema::Tls::default() && url.as_ref().is_some_and(|url| !is_https(url)) {
            let at = spot.key("tls").at;
            context.report.error(at, "\"tls\" needs a url that begins with https://");
        }
        if let (Some(url), Some(sign)) = (url, sign) {
            let settings = settings.over(&defaults, &taken, context);
            compiled.push(settings.target(name, url, sign, spot, context));
        }
    }
    compiled
}

fn signing(sign: &schema::Scheme, spot: Spot<'_>, context: &mut Context<'_>) -> Option<Signing> {
    let scheme = match &*sign.scheme.0 {
        "aryeo" => Scheme::Aryeo,
        "aryeo-timestamped" => Scheme::AryeoTimestamped,
        "none" => {
            nothing_beside(sign, spot, context);
            return Some(Signing::None);
        }
        other => {
            let message = match other {
                "standard-webhooks" | "github" => {
                    format!(
                        "scheme \"{other}\" is not supported by this version: use aryeo, \
                         aryeo-timestamped or none"
                    )
                }
                _ if !value::is_like_scheme(other) => {
                    "unknown scheme: use aryeo, aryeo-timestamped or none".to_owned()
                }
                _ => format!("unknown scheme \"{other}\": use aryeo, aryeo-timestamped or none"),
            };
            let reported = context.report.error(spot.key("scheme").at, message);
            reported.suggest(other, ["aryeo", "aryeo-timestamped", "none"]);
            return None;
        }
    };
    let header = context.signature_header(scheme, sign.header.as_ref(), spot);
    // The others are accepted by the target already, or still: the first signs.
    let secret = context.secrets(sign.secrets.as_deref(), spot).into_iter().next();
    Some(Signing::With { scheme, secret: secret?, also: Vec::new(), header: header? })
}
