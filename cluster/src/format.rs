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

#[cfg(test)]
mod tests {
    use super::*;

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
