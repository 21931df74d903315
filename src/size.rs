//! Sizes as people write them: "512", "4KiB", "16MiB", "1GiB". Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        ByteSize(mib << 20)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    /// K, M and G mean the same as KiB, MiB and GiB.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a size such as 512, 4KiB, 16MiB or 1GiB, got {text:?}");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            _ => return Err(expected()),
        };
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(expected)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match self.0 {
            bytes if exact(30) => write!(f, "{} GiB", bytes >> 30),
            bytes if exact(20) => write!(f, "{} MiB", bytes >> 20),
            bytes if exact(10) => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    /// A number of bytes, or text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size: a number of bytes, or text such as \"512MiB\"")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit_and_shown_exactly() {
        for (text, bytes, shown) in [
            ("512", 512, "512 bytes"),
            ("4KiB", 4_096, "4 KiB"),
            ("1537M", 1_537 << 20, "1537 MiB"),
            ("1G", 1 << 30, "1 GiB"),
            ("0", 0, "0 bytes"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for wrong in ["", "x", "-1", "1.5K", "1T", "1 G", "99999999999999999999"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong:?}");
        }
    }
}
