//! The format number that each shared row begins with. Pure.
//!
//! A row of another format is refused where it is read, before anything guesses what is in it.

use serde::{Deserialize, Serialize};

/// Written as the number `N`; anything else is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct Format<const N: u32>;

impl<const N: u32> From<Format<N>> for u32 {
    fn from(_: Format<N>) -> u32 {
        N
    }
}

impl<const N: u32> TryFrom<u32> for Format<N> {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        match found == N {
            true => Ok(Format),
            false => Err(format!("its format is {found}, expected {N}")),
        }
    }
}

/// The format of a row that has had several: every one through `NEWEST` is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct Formats<const NEWEST: u32>(pub u32);

impl<const NEWEST: u32> From<Formats<NEWEST>> for u32 {
    fn from(format: Formats<NEWEST>) -> u32 {
        format.0
    }
}

impl<const NEWEST: u32> TryFrom<u32> for Formats<NEWEST> {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        match (1..=NEWEST).contains(&found) {
            true => Ok(Formats(found)),
            false => Err(format!("its format is {found}, expected 1 to {NEWEST}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_several_formats_is_read_up_to_the_newest() {
        for format in [1, 2] {
            let read: Formats<2> = serde_json::from_str(&format.to_string()).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), format.to_string());
        }
        for format in [0, 3] {
            assert!(serde_json::from_str::<Formats<2>>(&format.to_string()).is_err());
        }
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Row {
        format: Format<2>,
    }

    #[test]
    fn a_row_of_another_format_is_not_read() {
        let json = serde_json::to_string(&Row { format: Format }).unwrap();
        assert_eq!(json, r#"{"format":2}"#);
        assert!(serde_json::from_str::<Row>(&json).is_ok());
        let error = serde_json::from_str::<Row>(r#"{"format":3}"#).unwrap_err().to_string();
        assert!(error.contains("its format is 3, expected 2"), "{error}");
        assert!(serde_json::from_str::<Row>("{}").is_err());
    }
}
