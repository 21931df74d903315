//! `--field-ttl`: when fields expire by themselves, as people write it.

use std::time::Duration;

use anyhow::Context as _;
use statehouse_client::v1::{self, edit, field, field_header};

use super::text;

/// When fields expire.
#[derive(Debug, clap::Args)]
pub struct FieldTtls {
    /// Expire a field by itself: NAME=30s, or of a patch NAME=never. Of a patch the field may be
    /// set by it, or be there already. Repeat for more.
    #[arg(long = "field-ttl", value_name = "NAME=TTL", value_parser = parse)]
    ttls: Vec<(String, Option<Duration>)>,
}

fn parse(text: &str) -> Result<(String, Option<Duration>), String> {
    let expected = || format!("expected NAME=30s or NAME=never, got {text:?}");
    let (name, ttl) = text.rsplit_once('=').ok_or_else(expected)?;
    let ttl = match ttl {
        "never" => None,
        ttl => Some(text::duration(ttl)?),
    };
    Ok((name.to_owned(), ttl))
}

fn ttl_ms(ttl: Duration) -> u64 {
    (ttl.as_millis() as u64).max(1)
}

impl FieldTtls {
    /// Has fields that are put expire.
    pub fn put(&self, fields: &mut [v1::Field]) -> anyhow::Result<()> {
        for (name, ttl) in &self.ttls {
            let field = fields.iter_mut().find(|field| field.name == *name);
            let field = field.with_context(|| none_of_that_name(name))?;
            field.expiry = ttl.map(|ttl| field::Expiry::TtlMs(ttl_ms(ttl)));
        }
        Ok(())
    }

    /// Has fields that are streamed expire.
    pub fn write(&self, fields: &mut [v1::FieldHeader]) -> anyhow::Result<()> {
        for (name, ttl) in &self.ttls {
            let field = fields.iter_mut().find(|field| field.name == *name);
            let field = field.with_context(|| none_of_that_name(name))?;
            field.expiry = ttl.map(|ttl| field_header::Expiry::TtlMs(ttl_ms(ttl)));
        }
        Ok(())
    }

    /// Has fields of a state expire once everything else is done to them.
    pub fn edits(&self) -> impl Iterator<Item = edit::Edit> {
        self.ttls.iter().map(|(field, ttl)| {
            let expiry = match ttl {
                Some(ttl) => edit::expire::Expiry::TtlMs(ttl_ms(*ttl)),
                None => edit::expire::Expiry::NeverExpires(true),
            };
            edit::Edit::Expire(edit::Expire { field: field.clone(), expiry: Some(expiry) })
        })
    }
}

fn none_of_that_name(name: &str) -> String {
    format!("--field-ttl names {name:?}, which is none of the fields")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_equals_signs() {
        assert_eq!(parse("x=y=30s"), Ok(("x=y".to_owned(), Some(Duration::from_secs(30)))));
        assert_eq!(parse("onnx::h=never"), Ok(("onnx::h".to_owned(), None)));
        assert!(parse("30s").unwrap_err().contains("NAME=30s"));
    }
}
