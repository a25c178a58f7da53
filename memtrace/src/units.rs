//! Sizes, counts and times: as people read them, and as people type them.
//!
//! Sizes are binary throughout: `K`, `KB` and `KiB` are all 1024 bytes.

use std::time::Duration;

const SIZE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const TIME_UNITS: [&str; 4] = ["ns", "µs", "ms", "s"];
const SECOND: u64 = 1_000_000_000;

/// Why a size or a duration could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing was typed.
    #[error("empty {what}; write it like {example}")]
    Empty {
        /// `size` or `duration`.
        what: &'static str,
        /// A valid one.
        example: &'static str,
    },
    /// It does not begin with a number.
    #[error("{text:?} is no {what}: a number comes first, as in {example}")]
    NotANumber {
        /// As typed.
        text: String,
        /// `size` or `duration`.
        what: &'static str,
        /// A valid one.
        example: &'static str,
    },
    /// A duration without a unit could mean anything.
    #[error("{text:?} has no unit; write {text}s for seconds or {text}ms for milliseconds")]
    NoUnit {
        /// As typed.
        text: String,
    },
    /// The unit is not known.
    #[error("{text:?}: unknown unit {unit:?}; units are {known}")]
    UnknownUnit {
        /// As typed.
        text: String,
        /// The part that is not understood.
        unit: String,
        /// What would be.
        known: &'static str,
    },
    /// It does not fit into 64 bits of bytes or nanoseconds.
    #[error("{text:?} is too large; the largest {what} is {largest}")]
    TooLarge {
        /// As typed.
        text: String,
        /// `size` or `duration`.
        what: &'static str,
        /// The limit.
        largest: &'static str,
    },
}

/// One decimal of `value` in the largest of `units` that keeps it at or above 1.
fn scaled(value: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 1u128;
    let mut index = 0;
    // The tenths decide, so that 1023.96 KiB becomes 1.0 MiB and not 1024.0 KiB.
    let tenths = |unit: u128| (u128::from(value) * 10 + unit / 2) / unit;
    while index + 1 < units.len() && tenths(unit) >= u128::from(base) * 10 {
        unit *= u128::from(base);
        index += 1;
    }
    if index == 0 {
        return format!("{value} {}", units[0]);
    }
    let tenths = tenths(unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[index])
}

/// `1.5 GiB`.
pub fn bytes(value: u64) -> String {
    scaled(value, 1024, &SIZE_UNITS)
}

/// `1.2 µs`, `3.4 ms`.
pub fn latency(ns: u64) -> String {
    scaled(ns, 1000, &TIME_UNITS)
}

/// `1.2 s`, `5 min 3 s`, `2 h 5 min`, `3 d 4 h`.
pub fn duration(ns: u64) -> String {
    if ns == 0 {
        return "0 s".to_owned();
    }
    if ns < 60 * SECOND - SECOND / 20 {
        return latency(ns);
    }
    let seconds = ns / SECOND + u64::from(ns % SECOND >= SECOND / 2);
    match seconds {
        ..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `1,600,000`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 block`, `1,000 blocks`.
pub fn counted(value: u64, singular: &str, plural: &str) -> String {
    let noun = if value == 1 { singular } else { plural };
    format!("{} {noun}", count(value))
}

/// `12.5 %`; `-` of nothing, since no share can be told.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let permille = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", permille / 10, permille % 10)
}

/// A size as typed: `0`, `512`, `64KiB`, `1.5MiB`, `2G`.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    const WHAT: &str = "size";
    const EXAMPLE: &str = "512, 64KiB or 1.5GiB";
    let typed = text.trim();
    if typed.is_empty() {
        return Err(UnitError::Empty {
            what: WHAT,
            example: EXAMPLE,
        });
    }
    let (number, rest) = Number::split(typed).ok_or_else(|| UnitError::NotANumber {
        text: typed.to_owned(),
        what: WHAT,
        example: EXAMPLE,
    })?;
    let unit = rest.trim();
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        "e" | "eb" | "eib" => 60,
        _ => {
            return Err(UnitError::UnknownUnit {
                text: typed.to_owned(),
                unit: unit.to_owned(),
                known: "B, KiB, MiB, GiB, TiB (or K, M, G, T)",
            });
        }
    };
    number.times(1 << shift).ok_or_else(|| UnitError::TooLarge {
        text: typed.to_owned(),
        what: WHAT,
        largest: "16 EiB less one byte",
    })
}

/// A duration as typed: `500ms`, `30s`, `5m`, `2h`, `1m30s`, and `0`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    const WHAT: &str = "duration";
    const EXAMPLE: &str = "500ms, 30s, 5m or 2h";
    let typed = text.trim();
    if typed.is_empty() {
        return Err(UnitError::Empty {
            what: WHAT,
            example: EXAMPLE,
        });
    }
    if typed.bytes().all(|byte| byte == b'0') {
        return Ok(Duration::ZERO);
    }
    let too_large = || UnitError::TooLarge {
        text: typed.to_owned(),
        what: WHAT,
        largest: "584 years",
    };
    let mut total = 0u64;
    let mut rest = typed;
    while !rest.is_empty() {
        let (number, after) = Number::split(rest).ok_or_else(|| UnitError::NotANumber {
            text: typed.to_owned(),
            what: WHAT,
            example: EXAMPLE,
        })?;
        let after = after.trim_start();
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.' || c.is_whitespace())
            .unwrap_or(after.len());
        let ns = duration_unit(typed, &after[..end])?;
        total = number
            .times(ns)
            .and_then(|ns| total.checked_add(ns))
            .ok_or_else(too_large)?;
        rest = after[end..].trim_start();
    }
    Ok(Duration::from_nanos(total))
}

fn duration_unit(typed: &str, unit: &str) -> Result<u64, UnitError> {
    Ok(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" | "sec" => SECOND,
        "m" | "min" => 60 * SECOND,
        "h" => 3600 * SECOND,
        "d" => 86_400 * SECOND,
        "" => {
            return Err(UnitError::NoUnit {
                text: typed.to_owned(),
            });
        }
        _ => {
            return Err(UnitError::UnknownUnit {
                text: typed.to_owned(),
                unit: unit.to_owned(),
                known: "ns, us, ms, s, m, h, d",
            });
        }
    })
}

/// A decimal number before a unit is known, so that no bit is lost in a float.
struct Number {
    whole: Option<u64>,
    fraction: u64,
    divisor: u64,
}

impl Number {
    /// The number at the beginning, and the rest.
    fn split(text: &str) -> Option<(Self, &str)> {
        let digits = |text: &str| {
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len())
        };
        let end = digits(text);
        if end == 0 {
            return None;
        }
        let mut number = Self {
            whole: text[..end].parse().ok(),
            fraction: 0,
            divisor: 1,
        };
        let Some(after) = text[end..].strip_prefix('.') else {
            return Some((number, &text[end..]));
        };
        let end = digits(after);
        if end == 0 {
            return None;
        }
        // Past 18 digits the divisor no longer fits, and no unit is large enough for them to matter.
        for digit in after[..end].bytes().take(18) {
            number.fraction = number.fraction * 10 + u64::from(digit - b'0');
            number.divisor *= 10;
        }
        Some((number, &after[end..]))
    }

    fn times(&self, unit: u64) -> Option<u64> {
        let whole = u128::from(self.whole?) * u128::from(unit);
        let part = u128::from(self.fraction) * u128::from(unit) / u128::from(self.divisor);
        u64::try_from(whole + part).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn times_read_well() {
        let cases = [
            (0, "0 s"),
            (999, "999 ns"),
            (1_234, "1.2 µs"),
            (999_960, "1.0 ms"),
            (3_400_000, "3.4 ms"),
            (1_200_000_000, "1.2 s"),
            (59_960_000_000, "1 min 0 s"),
            (303_000_000_000, "5 min 3 s"),
            (7_500_000_000_000, "2 h 5 min"),
            (273_600_000_000_000, "3 d 4 h"),
            (u64::MAX, "213503 d 23 h"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(latency(137_438_953_471), "137.4 s");
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_600_000), "1,600,000");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(counted(1, "block", "blocks"), "1 block");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(percent(u64::MAX, u64::MAX), "100.0 %");
    }

    #[test]
    fn typed_sizes() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("64KiB", 64 << 10),
            ("1.5MiB", 3 << 19),
            ("2G", 2 << 30),
            (" 1 kb ", 1024),
            ("0.0000000000000000000000001K", 0),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, value) in cases {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn typed_sizes_that_are_none() {
        let cases = [
            ("", "empty size; write it like 512, 64KiB or 1.5GiB"),
            (
                "-1",
                "\"-1\" is no size: a number comes first, as in 512, 64KiB or 1.5GiB",
            ),
            (
                "1.",
                "\"1.\" is no size: a number comes first, as in 512, 64KiB or 1.5GiB",
            ),
            (
                "5 apples",
                "\"5 apples\": unknown unit \"apples\"; units are B, KiB, MiB, GiB, TiB (or K, M, G, T)",
            ),
            (
                "16E",
                "\"16E\" is too large; the largest size is 16 EiB less one byte",
            ),
            (
                "99999999999999999999",
                "\"99999999999999999999\" is too large; the largest size is 16 EiB less one byte",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse_size(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn typed_durations() {
        let cases = [
            ("0", 0),
            ("500ms", 500_000_000),
            ("30s", 30 * SECOND),
            ("1.5s", 3 * SECOND / 2),
            ("5m", 300 * SECOND),
            ("2h", 7200 * SECOND),
            ("1m30s", 90 * SECOND),
            ("1h 5 µs", 3600 * SECOND + 5000),
        ];
        for (text, ns) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn typed_durations_that_are_none() {
        let cases = [
            ("", "empty duration; write it like 500ms, 30s, 5m or 2h"),
            (
                "30",
                "\"30\" has no unit; write 30s for seconds or 30ms for milliseconds",
            ),
            (
                "soon",
                "\"soon\" is no duration: a number comes first, as in 500ms, 30s, 5m or 2h",
            ),
            (
                "3 weeks",
                "\"3 weeks\": unknown unit \"weeks\"; units are ns, us, ms, s, m, h, d",
            ),
            (
                "999999999h",
                "\"999999999h\" is too large; the largest duration is 584 years",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), message);
        }
    }
}
