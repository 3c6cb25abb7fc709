//! Durations and sizes as operators write them.

use std::time::Duration;

/// `100ms`, `10s`, `1h30m`, `14d`: numbers with units, largest unit first, each unit once.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let wrong = || "write a duration such as 100ms, 10s, 1h30m or 14d".to_owned();
    let (mut rest, mut units, mut total) = (text, UNITS.iter(), 0_u64);
    while !rest.is_empty() {
        let (count, after) = number(rest).ok_or_else(wrong)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, ms) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        total = count
            .checked_mul(*ms)
            .and_then(|ms| total.checked_add(ms))
            .ok_or_else(|| "this is longer than a duration can be".to_owned())?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(total)) }
}

/// A [`duration`] that is not zero.
pub fn wait(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than zero".to_owned()),
        wait => Ok(wait),
    }
}

/// `2MiB`, `64kB`, `512B`, more than zero: `k`, `M`, `G` are thousands, `Ki`, `Mi`, `Gi` 1,024s.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "write a size such as 2MiB, 64kB or 512B".to_owned();
    let (count, unit) = number(text).ok_or_else(wrong)?;
    let factor: u64 = match unit {
        "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    match count.checked_mul(factor) {
        None => Err("this is larger than a size can be".to_owned()),
        Some(0) => Err("it must be larger than zero".to_owned()),
        Some(bytes) => Ok(bytes),
    }
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_numbers_with_units() {
        for (text, ms) in [
            ("100ms", 100),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("14d", 1_209_600_000),
            ("1m5ms", 60_005),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "1.5s", "-1s", "1s1h", "1s1s", "1 s", "5y", "99999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(wait("0s").is_err());
    }

    #[test]
    fn a_size_is_a_number_with_a_unit() {
        for (text, bytes) in [("2MiB", 2 << 20), ("64kB", 64_000), ("1B", 1), ("3GiB", 3 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "MiB", "2mib", "1.5MiB", "512", "0B", "99999999999999999999B", "99999999999GiB"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
