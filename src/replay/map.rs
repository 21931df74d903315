//! How a row of a file becomes a request: `map.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::dates;

/// A map file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Scores with this model.
    pub model: String,
    /// States lie in this collection; it's created if need be.
    pub collection: String,
    /// The column that names whose state.
    pub key: String,
    /// The output that says how surprising an event is; the first one if not given.
    pub score: Option<String>,
    /// The model's inputs.
    #[serde(rename = "input")]
    pub inputs: Vec<Input>,
    /// What is shown beside an event.
    #[serde(default)]
    pub label: Label,
}

/// One input: an f32 row, a number per column.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The model's name for it.
    pub name: String,
    /// Its numbers.
    pub columns: Vec<Column>,
}

/// One number of an input.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The file's column.
    pub column: String,
    /// Words to numbers.
    pub map: Option<BTreeMap<String, f32>>,
    /// A date's form, such as "%y%m%d".
    pub format: Option<String>,
    /// What a date becomes.
    #[serde(rename = "as")]
    pub unit: Option<dates::Unit>,
    /// For a word that the map lacks, or an empty cell. None: that is an error.
    pub default: Option<f32>,
}

/// Columns shown beside an event.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Their names.
    pub columns: Vec<String>,
}

impl Map {
    /// Reads a map file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Map::parse(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Reads a map file's text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let map: Map = toml::from_str(text)?;
        for column in map.inputs.iter().flat_map(|input| &input.columns) {
            if column.format.is_some() != column.unit.is_some() {
                bail!("column {:?}: format and as go together", column.column);
            }
            if column.format.is_some() && column.map.is_some() {
                bail!("column {:?} is a date or mapped words, not both", column.column);
            }
        }
        Ok(map)
    }
}

impl Column {
    /// The number of a cell.
    pub fn number(&self, cell: &str) -> anyhow::Result<f32> {
        if let Some(words) = &self.map {
            let found = words.get(cell).copied().or(self.default);
            return found.with_context(|| {
                format!(
                    "column {:?}: {cell:?} is not in its map and there's no default",
                    self.column
                )
            });
        }
        if cell.is_empty()
            && let Some(default) = self.default
        {
            return Ok(default);
        }
        if let (Some(format), Some(unit)) = (&self.format, self.unit) {
            return dates::parse(cell, format, unit).with_context(|| {
                format!("column {:?}: expected a date like {format}, got {cell:?}", self.column)
            });
        }
        let number = cell.parse::<f32>().ok().filter(|number| number.is_finite());
        number.with_context(|| format!("column {:?}: expected a number, got {cell:?}", self.column))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = r#"
        model = "m"
        collection = "c"
        key = "id"
        [[input]]
        name = "x"
        columns = [
            { column = "amount" },
            { column = "day", format = "%y%m%d", as = "days" },
            { column = "kind", map = { A = 0, B = 1 }, default = 9 },
        ]
    "#;

    #[test]
    fn cells_become_numbers() {
        let map = Map::parse(MAP).unwrap();
        let columns = &map.inputs[0].columns;
        assert_eq!(columns[0].number("12.5").unwrap(), 12.5);
        assert_eq!(columns[1].number("930101").unwrap(), 8_401.0);
        assert_eq!(columns[2].number("B").unwrap(), 1.0);
        assert_eq!(columns[2].number("?").unwrap(), 9.0);
        assert!(columns[0].number("").is_err());
        assert!(columns[0].number("inf").is_err());
        assert!(columns[1].number("93-01-01").is_err());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(Map::parse(&format!("colection = \"x\"\n{MAP}")).is_err());
        assert!(Map::parse(&MAP.replace("as = \"days\"", "default = 1")).is_err());
    }
}
