//! Where in a trace something happens, in the words of W3C Trace Context.
//!
//! All of a webhook's trace follows from its id: the id is the trace's, and its second half is the span
//! of the request that brought it. So what happens hours and restarts later still finds its place, and
//! nothing has to be stored for that. Whether a trace is sampled follows from the id as well.

use std::fmt;

use http::HeaderValue;

use crate::domain::webhook::WebhookId;

/// The length of a `traceparent` of version 00.
const TRACEPARENT_LEN: usize = 55;

/// A span, and in which trace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Never zero.
    pub trace_id: [u8; 16],
    /// Never zero.
    pub span_id: [u8; 8],
    /// It is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Of the request that brought a webhook.
    pub fn of_webhook(id: WebhookId, sampling: Sampling) -> Self {
        let trace_id = *id.as_bytes();
        // The bits of a UUID's variant are in it: it is not zero.
        let [.., a, b, c, d, e, f, g, h] = trace_id;
        Self { trace_id, span_id: [a, b, c, d, e, f, g, h], sampled: sampling.takes(&trace_id) }
    }

    /// Of something else in the same trace, with chance for its id.
    #[must_use]
    pub fn with_span(self, random: u64) -> Self {
        Self { span_id: random.max(1).to_be_bytes(), ..self }
    }

    /// Reads a `traceparent`, by the rules of W3C: what is not one is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(TRACEPARENT_LEN)?;
        let [version, trace_id, span_id, flags] = {
            let mut parts = known.split(|byte| *byte == b'-');
            [parts.next()?, parts.next()?, parts.next()?, parts.next()?]
        };
        let [version] = hex(version)?;
        // Of a later version it is known that it begins like this.
        let ends_well =
            if version == 0 { more.is_empty() } else { matches!(more, [] | [b'-', ..]) };
        let [flags] = hex(flags)?;
        let (trace_id, span_id) = (hex(trace_id)?, hex(span_id)?);
        let is_one = version != 0xff && ends_well && trace_id != [0; 16] && span_id != [0; 8];
        is_one.then_some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// As others are told it.
    pub fn traceparent(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("hex digits and dashes can be sent")
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, span_id) =
            (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Exactly so many bytes, in lower-case hex.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Which share of all traces is recorded.
///
/// The 56 bits at the end of a trace's id decide, which are chance in a webhook's: as OpenTelemetry's
/// samplers do it, so that others who take a larger share take these as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What the bits have to be at least.
    threshold: u64,
}

impl Sampling {
    /// All of them.
    pub const ALL: Self = Self { threshold: 0 };

    /// A share above 0 and up to 1.
    pub fn share(ratio: f64) -> Option<Self> {
        const ALL: f64 = (1_u64 << 56) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and 2^56"
        )]
        let threshold = ((1.0 - ratio) * ALL) as u64;
        (ratio > 0.0 && ratio <= 1.0).then_some(Self { threshold })
    }

    fn takes(self, trace_id: &[u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g] = *trace_id;
        u64::from_be_bytes([0, a, b, c, d, e, f, g]) >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::domain::webhook::WebhookIds;

    const ID: &str = "018f0000-0000-7000-8000-00000000000a";

    #[test]
    fn a_webhook_s_id_is_its_trace_s_and_always_the_same() {
        let id = WebhookId::parse(ID).unwrap();
        let context = TraceContext::of_webhook(id, Sampling::ALL);
        let text = "00-018f000000007000800000000000000a-800000000000000a-01";
        assert_eq!(context.to_string(), text);
        assert_eq!(context.traceparent(), text);
        assert_eq!(TraceContext::parse(text.as_bytes()), Some(context));
        let attempt = context.with_span(0);
        assert_eq!(attempt.trace_id, context.trace_id);
        assert_eq!(attempt.span_id, 1_u64.to_be_bytes(), "zero is no span");
        assert!(!TraceContext::of_webhook(id, Sampling::share(0.5).unwrap()).sampled);
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(TraceContext::parse(good.as_bytes()).unwrap().sampled);
        let not_sampled = good.replace("-01", "-02");
        assert!(!TraceContext::parse(not_sampled.as_bytes()).unwrap().sampled);
        let later = format!("cc{}-more-and-more", good.get(2..).unwrap());
        assert!(TraceContext::parse(later.as_bytes()).is_some());
        let zero = |from: &str| good.replace(from, &"0".repeat(from.len()));
        for wrong in [
            String::new(),
            good.to_uppercase(),
            good.replace("00-", "ff-"),
            good.replace('-', "_"),
            format!("{good}-"),
            format!("{good} "),
            format!("cc{}.more", good.get(2..).unwrap()),
            good.get(..54).unwrap().to_owned(),
            good.replace("4bf9", "4bg9"),
            zero("4bf92f3577b34da6a3ce929d0e0e4736"),
            zero("00f067aa0ba902b7"),
            "-".repeat(TRACEPARENT_LEN),
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_sampled_and_a_larger_share_has_them_too() {
        let ids = WebhookIds::default();
        let mut random = fastrand::Rng::with_seed(7);
        let [tenth, half, all] = [0.1, 0.5, 1.0].map(|ratio| Sampling::share(ratio).unwrap());
        let mut counts = [0; 2];
        for _ in 0..10_000 {
            let id = ids.next(Timestamp::from_millis(1_700_000_000_000), random.u64(..));
            let sampled = |sampling| TraceContext::of_webhook(id, sampling).sampled;
            assert!(sampled(all) && (sampled(half) || !sampled(tenth)));
            counts[0] += u32::from(sampled(tenth));
            counts[1] += u32::from(sampled(half));
        }
        assert!(
            (900..1100).contains(&counts[0]) && (4800..5200).contains(&counts[1]),
            "{counts:?}"
        );
        for none in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Sampling::share(none), None, "{none}");
        }
    }
}
