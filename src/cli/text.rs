//! Durations and sizes as people write them, and as they read them. Pure.

use std::time::Duration;

use crate::size::ByteSize;

/// "250us", "500ms", "5s", "2m", "1h", "7d".
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let number: f64 = number.parse().map_err(|_| expected_duration(text))?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(expected_duration(text)),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| expected_duration(text))
}

fn expected_duration(text: &str) -> String {
    format!("expected a duration such as 500ms, 5s, 2m or 1h, got {text:?}")
}

/// "512", "4KiB", "16MiB", "1GiB"; K, M and G are the same.
pub fn bytes(text: &str) -> Result<u64, String> {
    text.parse().map(|ByteSize(bytes)| bytes)
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// Bytes for people.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1_024.0 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A duration for people, from microseconds.
pub fn show_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A count with its thousands apart.
pub fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_in_every_unit() {
        assert_eq!(duration("250us").unwrap(), Duration::from_micros(250));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1_500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(bytes("4KiB").unwrap(), 4_096);
        assert_eq!(bytes("1G").unwrap(), 1 << 30);
        for wrong in ["", "5", "5 s", "-1s", "s", "1y"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn figures_are_shown_for_people() {
        assert_eq!(show_bytes(1_023), "1023 B");
        assert_eq!(show_bytes(1 << 20), "1.0 MiB");
        assert_eq!(show_us(999), "999 us");
        assert_eq!(show_us(1_500), "1.50 ms");
        assert_eq!(show_count(1_234_567), "1,234,567");
        assert_eq!(show_count(12), "12");
    }
}
