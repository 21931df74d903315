//! How a row of a file becomes a request: `map.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::dates;
use super::number::{Number, Precision};

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

/// One input: a number per column, as the type and in the shape that the model's input has.
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
    pub map: Option<BTreeMap<String, Number>>,
    /// A date's form, such as "%y%m%d".
    pub format: Option<String>,
    /// What a date becomes.
    #[serde(rename = "as")]
    pub unit: Option<dates::Unit>,
    /// For a word that the map lacks, or an empty cell. None: that is an error.
    pub default: Option<Number>,
    /// Is taken away: a number, or a date of the column's form.
    pub since: Option<Since>,
    /// Give the difference to the key's event before, 0 for its first.
    #[serde(default)]
    pub gap: bool,
    /// The nearest number that the input's type has will do.
    #[serde(default)]
    pub rounded: bool,
}

/// From where a column counts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Since {
    /// A number.
    Number(Number),
    /// A date of the column's form.
    Date(String),
}

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell {
    /// A number; of a date, seconds since 1970 or since the map's `since`.
    Given(Number),
    /// The map's own number for a word, or for nothing.
    Mapped(Number),
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
            if column.map.is_some() && (column.gap || column.since.is_some()) {
                bail!("column {:?}: mapped words have no since and no gap", column.column);
            }
            if column.gap && column.since.is_some() {
                bail!("column {:?}: a gap has no since", column.column);
            }
            column.origin()?;
        }
        Ok(map)
    }
}

impl Column {
    /// What a cell holds.
    pub fn read(&self, cell: &str) -> anyhow::Result<Cell> {
        if let Some(words) = &self.map {
            let found = words.get(cell).copied().or(self.default);
            return found.map(Cell::Mapped).with_context(|| {
                format!(
                    "column {:?}: {cell:?} is not in its map and there's no default",
                    self.column
                )
            });
        }
        if cell.is_empty()
            && let Some(default) = self.default
        {
            return Ok(Cell::Mapped(default));
        }
        let number = match &self.format {
            Some(format) => self.date(cell, format)?,
            None => Number::parse(cell).with_context(|| {
                format!("column {:?}: expected a number, got {cell:?}", self.column)
            })?,
        };
        Ok(Cell::Given(self.origin()?.map_or(number, |origin| number.minus(origin))))
    }

    /// A number of the column's cells in the unit that the map asks for.
    pub fn in_unit(&self, number: Number) -> Number {
        self.unit.map_or(number, |unit| number.divided(unit.seconds()))
    }

    /// How closely the input's type must hold it: a date within half of its form's least step.
    pub fn precision(&self) -> Precision {
        match (&self.format, self.unit) {
            _ if self.rounded => Precision::Nearest,
            (Some(format), Some(unit)) => {
                Precision::Within(dates::resolution(format) as f64 / 2.0 / unit.seconds() as f64)
            }
            _ => Precision::Units,
        }
    }

    /// What `since` says, in the numbers of [`Cell::Given`].
    fn origin(&self) -> anyhow::Result<Option<Number>> {
        match (&self.since, &self.format) {
            (None, _) => Ok(None),
            (Some(Since::Number(number)), None) => Ok(Some(*number)),
            (Some(Since::Date(date)), Some(format)) => self.date(date, format).map(Some),
            (Some(Since::Number(number)), Some(format)) => {
                bail!(
                    "column {:?}: since: expected a date like {format}, got {number}",
                    self.column
                )
            }
            (Some(Since::Date(date)), None) => {
                bail!("column {:?}: since: expected a number, got {date:?}", self.column)
            }
        }
    }

    fn date(&self, text: &str, format: &str) -> anyhow::Result<Number> {
        dates::parse(text, format).map(Number::Whole).with_context(|| {
            format!("column {:?}: expected a date like {format}, got {text:?}", self.column)
        })
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
        let given = |number| Cell::Given(number);
        assert_eq!(columns[0].read("12.5").unwrap(), given(Number::Real(12.5)));
        let day = columns[1].read("930101").unwrap();
        assert_eq!(day, given(Number::Whole(8_401 * 86_400)));
        assert_eq!(columns[1].in_unit(Number::Whole(8_401 * 86_400)), Number::Whole(8_401));
        assert_eq!(columns[2].read("B").unwrap(), Cell::Mapped(Number::Whole(1)));
        assert_eq!(columns[2].read("?").unwrap(), Cell::Mapped(Number::Whole(9)));
        assert!(columns[0].read("").is_err());
        assert!(columns[0].read("inf").is_err());
        assert!(columns[1].read("93-01-01").is_err());
    }

    #[test]
    fn times_count_from_where_the_map_says() {
        let with = |column: &str| Map::parse(&MAP.replace("{ column = \"amount\" }", column));
        let date = "format = \"%Y-%m-%d %H:%M\", as = \"days\"";
        let map = with(&format!("{{ column = \"amount\", {date}, since = \"2026-01-01 00:00\" }}"));
        let column = &map.unwrap().inputs[0].columns[0];
        let noon = column.read("2026-01-02 12:00").unwrap();
        assert_eq!(noon, Cell::Given(Number::Whole(129_600)));
        assert_eq!(column.in_unit(Number::Whole(129_600)), Number::Real(1.5));
        let map = with("{ column = \"amount\", since = 1_700_000_000 }").unwrap();
        let cell = map.inputs[0].columns[0].read("1700000060").unwrap();
        assert_eq!(cell, Cell::Given(Number::Whole(60)));
        assert!(with("{ column = \"amount\", since = \"2026-01-01\" }").is_err());
        assert!(with(&format!("{{ column = \"amount\", {date}, since = 5 }}")).is_err());
        assert!(with("{ column = \"amount\", since = 5, gap = true }").is_err());
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(Map::parse(&format!("colection = \"x\"\n{MAP}")).is_err());
        assert!(Map::parse(&MAP.replace("as = \"days\"", "default = 1")).is_err());
    }
}
