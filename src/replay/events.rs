//! Rows of a CSV file, gzipped or not, as requests: read one at a time, errors with their line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use csv::{Reader, ReaderBuilder, StringRecord};
use flate2::read::MultiGzDecoder;
use statehouse_client::v1;

use super::Map;
use super::map::{Cell, Column};
use super::number::Number;
use super::shape::Shape;

/// One row, ready to send.
pub struct Event {
    /// Its line in the file.
    pub line: u64,
    /// Whose state.
    pub key: String,
    /// The model's inputs.
    pub inputs: Vec<v1::NamedTensor>,
    /// The columns shown beside it.
    pub label: String,
}

/// The rows of a file, in order.
pub struct Events {
    rows: Reader<Box<dyn Read + Send>>,
    record: StringRecord,
    /// Where each name of the map lies in a row.
    key: usize,
    inputs: Vec<Input>,
    label: Vec<(String, usize)>,
    /// Of each key, what the columns with a gap held last.
    last: HashMap<String, Vec<Option<Number>>>,
}

/// An input of the map, and where its columns lie in a row.
struct Input {
    name: String,
    shape: Shape,
    columns: Vec<(Column, usize)>,
}

impl Events {
    /// Opens a file; a name that ends in `.gz` is decompressed.
    pub fn open(path: &Path, map: &Map) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let gzipped = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn Read + Send> = if gzipped {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Box::new(BufReader::new(file))
        };
        Events::new(reader, map).with_context(|| format!("read {}", path.display()))
    }

    /// Reads rows from anything.
    pub fn new(reader: Box<dyn Read + Send>, map: &Map) -> anyhow::Result<Self> {
        let mut rows = ReaderBuilder::new().from_reader(reader);
        let header = rows.headers().context("line 1: the header")?.clone();
        let find = |name: &str| {
            header.iter().position(|column| column == name).with_context(|| {
                let columns: Vec<&str> = header.iter().collect();
                format!("line 1: no column {name:?} among {}", columns.join(", "))
            })
        };
        let input = |input: &super::map::Input| {
            let columns = input.columns.iter().map(|c| Ok((c.clone(), find(&c.column)?)));
            let columns = columns.collect::<anyhow::Result<_>>()?;
            Ok(Input { name: input.name.clone(), shape: Shape::plain(input), columns })
        };
        let label = |name: &String| Ok((name.clone(), find(name)?));
        Ok(Events {
            key: find(&map.key)?,
            inputs: map.inputs.iter().map(input).collect::<anyhow::Result<_>>()?,
            label: map.label.columns.iter().map(label).collect::<anyhow::Result<_>>()?,
            rows,
            record: StringRecord::new(),
            last: HashMap::new(),
        })
    }

    /// From now on rows are what this model takes.
    pub fn fit(&mut self, map: &Map, model: &[v1::TensorSpec]) -> anyhow::Result<()> {
        for (input, shape) in self.inputs.iter_mut().zip(Shape::all(map, model)?) {
            input.shape = shape;
        }
        Ok(())
    }

    /// The next row; an error names its line.
    pub fn read(&mut self) -> anyhow::Result<Option<Event>> {
        let before = self.rows.position().line();
        match self.rows.read_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => {
                let line = error.position().map_or(before, csv::Position::line);
                bail!("line {line}: {}", describe(&error));
            }
        }
        let line = self.record.position().map_or(before, csv::Position::line);
        self.event(line).with_context(|| format!("line {line}")).map(Some)
    }

    fn event(&mut self, line: u64) -> anyhow::Result<Event> {
        let key = self.record[self.key].to_owned();
        if key.is_empty() {
            bail!("the key is empty");
        }
        let gaps = self.gaps(&key)?;
        let mut gaps = gaps.into_iter();
        let inputs = self.inputs.iter().map(|input| self.input(input, &mut gaps));
        let inputs = inputs.collect::<anyhow::Result<_>>()?;
        let label = self
            .label
            .iter()
            .map(|(_, at)| &self.record[*at])
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        Ok(Event { line, key, inputs, label })
    }

    /// For each column with a gap, in order: how far its cell is from the one of the key's event
    /// before.
    fn gaps(&mut self, key: &str) -> anyhow::Result<Vec<Option<Number>>> {
        let columns = self.inputs.iter().flat_map(|input| &input.columns);
        let with_gap = columns.filter(|(column, _)| column.gap);
        let cells = with_gap.map(|(column, at)| match column.read(&self.record[*at])? {
            Cell::Given(number) => Ok(Some(number)),
            Cell::Mapped(_) => Ok(None),
        });
        let cells: Vec<Option<Number>> = cells.collect::<anyhow::Result<_>>()?;
        if cells.is_empty() {
            return Ok(cells);
        }
        let none = || vec![None; cells.len()];
        let last = self.last.entry(key.to_owned()).or_insert_with(none);
        let gaps = cells.iter().zip(last).map(|(cell, last)| {
            let cell = (*cell)?;
            Some(last.replace(cell).map_or(Number::Whole(0), |last| cell.minus(last)))
        });
        Ok(gaps.collect())
    }

    fn input(
        &self,
        input: &Input,
        gaps: &mut impl Iterator<Item = Option<Number>>,
    ) -> anyhow::Result<v1::NamedTensor> {
        let mut data = Vec::with_capacity(input.columns.len() * size_of::<f64>());
        for (column, at) in &input.columns {
            let gap = if column.gap { gaps.next().flatten() } else { None };
            let number = match (column.read(&self.record[*at])?, gap) {
                (Cell::Mapped(number), _) => number,
                (Cell::Given(_), Some(gap)) => column.in_unit(gap),
                (Cell::Given(number), None) => column.in_unit(number),
            };
            number
                .write(input.shape.dtype, column.precision(), &mut data)
                .with_context(|| format!("column {:?}", column.column))?;
        }
        let tensor = v1::Tensor {
            dtype: input.shape.dtype as i32,
            shape: input.shape.axes.clone(),
            data: Bytes::from(data),
        };
        Ok(v1::NamedTensor { name: input.name.clone(), tensor: Some(tensor) })
    }
}

fn describe(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("expected {expected_len} columns, got {len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "model = \"m\"\ncollection = \"c\"\nkey = \"id\"\n[[input]]\nname = \"x\"\n\
        columns = [{ column = \"amount\" }]\n[label]\ncolumns = [\"id\", \"amount\"]";

    fn read_all(text: &'static str) -> anyhow::Result<Vec<Event>> {
        let mut events = Events::new(Box::new(text.as_bytes()), &Map::parse(MAP)?)?;
        let mut all = Vec::new();
        while let Some(event) = events.read()? {
            all.push(event);
        }
        Ok(all)
    }

    #[test]
    fn rows_become_events() {
        let events = read_all("amount,id\n5,a\n6,b\n").unwrap();
        let seen: Vec<_> = events.iter().map(|e| (e.line, e.key.as_str(), &e.label[..])).collect();
        assert_eq!(seen, [(2, "a", "a 5"), (3, "b", "b 6")]);
    }

    fn values(events: &[Event]) -> Vec<f32> {
        let value = |event: &Event| {
            let data = &event.inputs[0].tensor.as_ref().unwrap().data;
            f32::from_le_bytes(data[..4].try_into().unwrap())
        };
        events.iter().map(value).collect()
    }

    #[test]
    fn a_gap_is_of_the_keys_own_events() {
        let map = MAP.replace("{ column = \"amount\" }", "{ column = \"amount\", gap = true }");
        let text = "amount,id\n1795946400,a\n5,b\n1795946460,a\n8,b\n1795946520,a\n";
        let mut events =
            Events::new(Box::new(text.as_bytes()), &Map::parse(&map).unwrap()).unwrap();
        let mut all = Vec::new();
        while let Some(event) = events.read().unwrap() {
            all.push(event);
        }
        assert_eq!(values(&all), [0.0, 0.0, 60.0, 3.0, 60.0]);
    }

    #[test]
    fn rows_are_what_the_model_takes() {
        let map = Map::parse(MAP).unwrap();
        let mut events = Events::new(Box::new(&b"amount,id\n16777217,a\n"[..]), &map).unwrap();
        let spec = |name: &str| v1::TensorSpec {
            name: name.into(),
            dtype: v1::DataType::I64 as i32,
            shape: vec![],
        };
        assert!(events.fit(&map, &[spec("y")]).is_err());
        events.fit(&map, &[spec("x")]).unwrap();
        let event = events.read().unwrap().unwrap();
        let tensor = event.inputs[0].tensor.as_ref().unwrap();
        assert!(tensor.shape.is_empty());
        assert_eq!(tensor.data, 16_777_217_i64.to_le_bytes().as_slice());
    }

    #[test]
    fn a_malformed_row_is_named_by_its_line() {
        for (text, expected) in [
            ("amount,id\n5,a\nx,b\n", "line 3: column \"amount\": expected a number, got \"x\""),
            ("amount,id\n5,a,z\n", "line 2: expected 2 columns, got 3"),
            ("amount,id\n5,\n", "line 2: the key is empty"),
            ("amount,name\n5,a\n", "line 1: no column \"id\" among amount, name"),
        ] {
            let error = read_all(text).err().unwrap();
            assert_eq!(format!("{error:#}"), expected);
        }
    }
}
