//! How single values are written: durations, sizes, rates, names, header texts.

use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

use crate::domain::activity;
use crate::domain::pointer::Pointers;
use crate::domain::source::SourcePath;
use crate::domain::target::{BacklogLimit, Rate};
use crate::domain::template::{HeaderText, Template, TemplateError};

/// Names are labels of metrics and words in logs.
const NAME_BYTES_MAX: usize = 100;

/// What servers commonly take as one header line.
const HEADER_VALUE_BYTES_MAX: usize = 4096;

/// A billion per second is no limit, and the limiter counts in nanoseconds.
const RATE_COUNT_MAX: u32 = 1_000_000;

/// A value that can't be used, for a person.
pub(super) type Parsed<T> = Result<T, String>;

/// A slip such as `50B` would end nearly every delivery.
const BACKLOG_BYTES_MIN: u64 = 1 << 20;

/// The units of a duration, longest first, in milliseconds.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The units of a size in bytes.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// `100ms`, `10s`, `1h30m`, `14d`.
pub fn duration(text: &str) -> Parsed<Duration> {
    let wrong = || format!("\"{text}\" is not a duration such as 100ms, 10s, 1h30m or 14d");
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    while !rest.is_empty() {
        let (digits, after) = split_digits(rest);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end).ok_or_else(wrong)?;
        let unit = DURATION_UNITS.iter().find(|(name, _)| *name == unit);
        let (Ok(count), Some((_, millis))) = (digits.parse::<u64>(), unit) else {
            return Err(wrong());
        };
        // `30m1h` is more likely a slip than meant.
        if *millis >= smallest {
            return Err(wrong());
        }
        smallest = *millis;
        let part = count.checked_mul(*millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(total)) }
}

/// A duration as one would write it.
pub(super) fn show_duration(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in DURATION_UNITS {
        if millis >= size {
            text.push_str(&format!("{}{unit}", millis / size));
            millis %= size;
        }
    }
    text
}

/// `2MiB`, `64kB`.
pub fn size(text: &str) -> Parsed<u64> {
    let wrong = || format!("\"{text}\" is not a size such as 64kB or 2MiB");
    let (digits, unit) = split_digits(text);
    let unit = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
    let (Ok(count), Some((_, bytes))) = (digits.parse::<u64>(), unit) else { return Err(wrong()) };
    count.checked_mul(*bytes).ok_or_else(wrong)
}

/// `50%`, `2GiB`.
pub(super) fn backlog_limit(text: &str) -> Parsed<BacklogLimit> {
    let wrong = || format!("\"{text}\" is neither a share such as 50% nor a size such as 2GiB");
    if let Some(digits) = text.strip_suffix('%') {
        let (number, rest) = split_digits(digits);
        let share = number.parse().ok().filter(|_| rest.is_empty()).ok_or_else(wrong)?;
        if !(1..=100).contains(&share) {
            return Err(format!("a share of the store's limit is between 1% and 100%, not {text}"));
        }
        return Ok(BacklogLimit::Percent(share));
    }
    let bytes = size(text).map_err(|_| wrong())?;
    if bytes < BACKLOG_BYTES_MIN {
        let min = show_size(BACKLOG_BYTES_MIN);
        return Err(format!("backlog_limit is at least {min}, not {text}"));
    }
    Ok(BacklogLimit::Bytes(bytes))
}

/// A size as one would write it.
pub(super) fn show_size(bytes: u64) -> String {
    let whole = |(_, size): &&(&str, u64)| bytes >= *size && bytes.is_multiple_of(*size);
    let (unit, size) = SIZE_UNITS.iter().rfind(whole).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / size)
}

/// `100/s`, `600/m`, `1000/h`.
pub fn rate(text: &str) -> Parsed<Rate> {
    let wrong = || format!("\"{text}\" is not a rate such as 100/s, 600/m or 1000/h");
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(wrong()),
    };
    if split_digits(count) != (count, "") || count.is_empty() {
        return Err(wrong());
    }
    let in_range = count.parse::<u32>().ok().filter(|count| *count <= RATE_COUNT_MAX);
    match in_range.and_then(NonZeroU32::new) {
        Some(count) => Ok(Rate { count, per }),
        None => {
            Err(format!("the rate \"{text}\" is not between 1 and {RATE_COUNT_MAX} per {unit}"))
        }
    }
}

/// The name of a source, target or route.
pub(super) fn name(text: &str) -> Parsed<()> {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || !text.chars().all(letters) {
        return Err(format!("the name \"{text}\" has more in it than letters, digits, - _ and ."));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("a name is at most {NAME_BYTES_MAX} characters long"));
    }
    Ok(())
}

/// The path of a source.
pub(super) fn path(text: &str) -> Parsed<()> {
    if !text.starts_with('/') {
        return Err(format!("the path \"{text}\" does not begin with /"));
    }
    if text.contains(['?', '#']) {
        return Err(format!(
            "the path \"{text}\" has a query or fragment: only a path is compared"
        ));
    }
    let literal = text.replace(SourcePath::ACTIVITY, "a");
    if literal.contains(['{', '}']) {
        return Err(format!("the only placeholder of a path is {}", SourcePath::ACTIVITY));
    }
    let named = |segment: &&str| segment.contains(SourcePath::ACTIVITY);
    let named: Vec<_> = text.split('/').filter(named).collect();
    if named.len() > 1 || named.iter().any(|segment| *segment != SourcePath::ACTIVITY) {
        return Err(format!(
            "{} is one whole segment of a path, as in /webhooks/{0}",
            SourcePath::ACTIVITY
        ));
    }
    let text = &*literal;
    let odd =
        |c: char| !c.is_ascii_graphic() || matches!(c, '"' | '<' | '>' | '\\' | '^' | '`' | '|');
    if text.contains(odd) || text.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(format!("the path {text:?} has characters that no request's path has"));
    }
    Ok(())
}

/// The URL of a target.
pub(super) fn url(text: &str) -> Parsed<Uri> {
    // Not quoted in full: a URL may hold a password or a token.
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err("a target's url begins with https:// or http://".to_owned());
    }
    if text.contains('#') {
        return Err("the url has a fragment, which is never sent".to_owned());
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(
            "the url has a user or password: use `sign`, or `headers` with a secret".to_owned()
        );
    }
    if authority.is_empty() {
        return Err("the url has no host".to_owned());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = "a url has only printable ASCII characters and no blanks: write %20 for one";
        return Err(message.to_owned());
    }
    let uri: Uri = text.parse().map_err(|error| format!("this is not a url: {error}"))?;
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || host.starts_with('.') || host.contains("..") {
        return Err("the url has no host".to_owned());
    }
    if host.contains(['{', '}']) || uri.path().contains(['{', '}']) {
        return Err("a url has no placeholders: a header can have them".to_owned());
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && host.parse::<std::net::Ipv4Addr>().is_err()
    {
        return Err(format!("\"{host}\" is no IPv4 address, and no host has such a name"));
    }
    let port = authority.rsplit_once(':').filter(|_| !authority.ends_with(']'));
    if port.is_some() && uri.port_u16().is_none_or(|port| port == 0) {
        return Err("the url's port is not between 1 and 65535".to_owned());
    }
    Ok(uri)
}

/// The name of a header.
pub(super) fn header_name(text: &str) -> Parsed<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is not a header name"))
}

/// Whether it could be meant for the name of a scheme. A forgotten comma, or a line that ends too
/// early, brings what follows here, which may be a secret.
pub(super) fn is_like_scheme(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphabetic() || b"-_".contains(&byte))
}

/// The text of a header, with placeholders; `{{` and `}}` are braces.
pub(super) fn header_text(
    text: &str,
    pointers: &mut Pointers,
) -> Result<HeaderText, TemplateError> {
    let whole = |message| TemplateError { at: 0..text.len(), message };
    let template = Template::parse(text, |pointer| pointers.add(pointer))?;
    match template.plain() {
        Some(plain) => header_value(plain).map(HeaderText::Fixed),
        // What stands between the placeholders is held to the same.
        None => header_value(text).map(|_| HeaderText::Template(template)),
    }
    .map_err(whole)
}

/// The value of a header as it is. The message does not show it.
pub(super) fn header_value(text: &str) -> Parsed<HeaderValue> {
    if text.len() > HEADER_VALUE_BYTES_MAX {
        return Err(format!("a header's value is at most {HEADER_VALUE_BYTES_MAX} bytes long"));
    }
    if text.contains(|c: char| !(' '..='~').contains(&c)) {
        return Err("a header's value has only printable ASCII characters".to_owned());
    }
    HeaderValue::from_str(text).map_err(|_| "this can't be a header's value".to_owned())
}

/// The name of an activity, fixed for a source.
pub(super) fn activity(text: &str) -> Parsed<()> {
    if !activity::is_fit(text)
        || text.contains(['*', '?', '!'])
        || text.contains(char::is_whitespace)
    {
        return Err(format!("{text:?} is not the name of an activity such as ORDER_CREATED"));
    }
    Ok(())
}

/// A name, or a pattern with `*`, `?` and a leading `!`.
pub(super) fn pattern(text: &str) -> Parsed<()> {
    let name = text.strip_prefix('!').unwrap_or(text);
    if name.is_empty() || name.starts_with('!') || name.contains(char::is_whitespace) {
        return Err(format!(
            "\"{text}\" is not a name or pattern such as ORDER_* or !ORDER_VIEWED"
        ));
    }
    Ok(())
}

/// A host name or address that a certificate can be for.
pub(super) fn server_name(text: &str) -> Parsed<()> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_host = text.len() <= 253 && text.split('.').all(is_label);
    if is_host || text.parse::<std::net::IpAddr>().is_ok() {
        Ok(())
    } else {
        Err(format!("{text:?} is not a host name or address"))
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, millis) in [
            ("100ms", 100),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("14d", 1_209_600_000),
            ("0s", 0),
            ("1d2h3m4s5ms", 93_784_005),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "1.5h",
            "-1s",
            "1 s",
            "10S",
            "1m1h",
            "1s1s",
            "1w",
            "é",
            "1é",
            "99999999999999999999s",
            "99999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_rates_are_read_as_written() {
        assert_eq!(size("2MiB"), Ok(2 * 1024 * 1024));
        assert_eq!(size("64kB"), Ok(64_000));
        for text in ["", "2", "MiB", "2 MiB", "2mib", "2M", "-2MiB", "99999999999GiB", "1.5MiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        let rate_of = |text| rate(text).map(|rate| (rate.count.get(), rate.per.as_secs()));
        assert_eq!(rate_of("100/s"), Ok((100, 1)));
        assert_eq!(rate_of("600/m"), Ok((600, 60)));
        assert_eq!(rate_of("1/h"), Ok((1, 3600)));
        for text in ["", "100", "/s", "0/s", "+1/s", "1/d", "1.5/s", "1 /s", "1000001/s", "1/s/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(show_size(2 * 1024 * 1024), "2MiB");
        assert_eq!(show_size(64_000), "64kB");
        assert_eq!(show_size(1001), "1001B");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn the_limit_of_a_backlog_is_a_share_or_a_size() {
        assert_eq!(backlog_limit("50%"), Ok(BacklogLimit::Percent(50)));
        assert_eq!(backlog_limit("1%"), Ok(BacklogLimit::Percent(1)));
        assert_eq!(backlog_limit("100%"), Ok(BacklogLimit::Percent(100)));
        assert_eq!(backlog_limit("2GiB"), Ok(BacklogLimit::Bytes(2 << 30)));
        for text in [
            "",
            "50",
            "%",
            "0%",
            "101%",
            "99999999999%",
            "12.5%",
            "50 %",
            "-5%",
            "+5%",
            "50%%",
            "half",
            "0B",
            "1023KiB",
        ] {
            assert!(backlog_limit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn urls_have_a_scheme_a_host_and_nothing_secret() {
        for text in [
            "https://crm.internal/hooks",
            "http://127.0.0.1:9000",
            "HTTPS://a/b?c=d",
            "http://[::1]:8080/x",
            "http://[::1]/x",
        ] {
            assert!(url(text).is_ok(), "{text}: {:?}", url(text));
        }
        for text in [
            "",
            "crm.internal",
            "/x",
            "ftp://a/b",
            "https://",
            "https:///x",
            "https://u:p@a/",
            "https://u@a/",
            "https://a/b#c",
            "https://a:0/",
            "https://a:99999/",
            "https://a:/",
            "https://a b/",
            "https://.a/",
            "https://:80/",
            "https://a..b/",
            "http://[::1",
            "http://10.0.0.256/",
            "http://10.1/",
            "https://a/{activity}",
            "é://a",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
        assert!(!url("https://u:p4ss@a/").unwrap_err().contains("p4ss"));
    }

    #[test]
    fn a_header_is_text_or_has_placeholders() {
        let mut pointers = Pointers::default();
        let mut read = |text| header_text(text, &mut pointers);
        assert_eq!(read("a{{b}}c"), Ok(HeaderText::Fixed(HeaderValue::from_static("a{b}c"))));
        assert!(matches!(read("x {activity}"), Ok(HeaderText::Template(_))));
        assert!(read("{activty}").unwrap_err().message.contains("unknown placeholder {activty}"));
        assert!(read("é").is_err() && read("é {source}").is_err() && read("a\nb").is_err());
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(millis in 0_u64..100_000_000_000) {
            let written = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(written)), Ok(written));
        }

        #[test]
        fn nothing_written_makes_a_value_panic(text in "\\PC{0,20}") {
            let _ = (duration(&text).is_ok(), size(&text).is_ok(), rate(&text).is_ok());
            let _ = (name(&text).is_ok(), path(&text).is_ok(), url(&text).is_ok());
            drop(header_text(&text, &mut Pointers::default()));
            let _ = (pattern(&text).is_ok(), server_name(&text).is_ok());
        }

        #[test]
        fn nothing_that_looks_like_a_url_panics(text in "https?://[a@:/?#\\[\\]{}0-9.-]{0,20}") {
            drop(url(&text));
        }
    }
}
