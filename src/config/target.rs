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
    let name = &*sign.scheme.0;
    if name == "none" {
        nothing_beside(sign, spot, context);
        return Some(Signing::None);
    }
    let Some(scheme) = Scheme::named(name) else {
        let known = "use aryeo, aryeo-timestamped, standard-webhooks, github or none";
        let message = if value::is_like_scheme(name) {
            format!("unknown scheme \"{name}\": {known}")
        } else {
            format!("unknown scheme: {known}")
        };
        let reported = context.report.error(spot.key("scheme").at, message);
        reported.suggest(name, Scheme::ALL.map(Scheme::name).into_iter().chain(["none"]));
        return None;
    };
    let header = context.signature_header(scheme, sign.header.as_ref(), spot);
    let mut secrets = context.secrets(scheme, sign.secrets.as_deref(), spot).into_iter();
    let secret = secrets.next();
    let also = match scheme {
        // The others are accepted by the target already, or still: the first signs.
        Scheme::Aryeo | Scheme::AryeoTimestamped | Scheme::Github => Vec::new(),
        Scheme::StandardWebhooks => secrets.collect(),
    };
    Some(Signing::With { scheme, secret: secret?, also, header: header? })
}
