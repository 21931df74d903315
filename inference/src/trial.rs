//! Rows to try a model with before anyone depends on it, and to measure a device: what the manifest
//! says that an input may be tried with (`[[input]] trial`), made-up numbers where it says nothing.

use crate::batch::gather;
use crate::error::Error;
use crate::model::{InputSpec, Model, Place, shape_fits, shape_text};
use crate::onnx::host::{self, HostTensor, Kind, Values};
use crate::tensor::{DType, Tensor};

/// Xorshift64*: a seed gives the same rows everywhere.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Random {
        Random { state: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to 1, in steps of 2^-24.
    fn share(&mut self) -> f64 {
        (self.next() >> 40) as f64 / f64::from(1 << 24)
    }
}

/// What a manifest says that an input may be tried with.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    numbers: Numbers,
    shape: Option<Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Numbers {
    /// Any.
    Open,
    /// The same everywhere.
    Same(f64),
    /// Every element, row-major.
    Each(Vec<f64>),
    /// From the first to the second.
    Between(f64, f64),
}

const KEYS: &[&str] = &["value", "values", "min", "max", "shape"];

impl Trial {
    /// Reads `trial`: a number, a list (nested for more axes), or a table with `value`, `values` or
    /// `min` and `max`, and `shape`. The error says what was expected.
    pub(crate) fn read(value: &toml::Value) -> Result<Trial, String> {
        if let toml::Value::Table(table) = value {
            return Trial::read_table(table);
        }
        let mut numbers = Vec::new();
        let shape = read_list(value, &mut numbers)?;
        match shape.is_empty() {
            true => Ok(Trial { numbers: Numbers::Same(numbers[0]), shape: None }),
            false => Ok(Trial { numbers: Numbers::Each(numbers), shape: Some(shape) }),
        }
    }

    fn read_table(table: &toml::Table) -> Result<Trial, String> {
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key '{key}', expected {}", KEYS.join(", ")));
        }
        let number = |key: &str| table.get(key).map(read_number).transpose();
        let mut listed = Vec::new();
        let nested = table.get("values").map(|list| read_list(list, &mut listed)).transpose()?;
        let numbers = match (number("value")?, &nested, number("min")?, number("max")?) {
            (None, None, None, None) => Numbers::Open,
            (Some(value), None, None, None) => Numbers::Same(value),
            (None, Some(_), None, None) => Numbers::Each(listed),
            (None, None, Some(min), Some(max)) if min <= max => Numbers::Between(min, max),
            _ => return Err("expected value, or values, or min up to max".into()),
        };
        let axis = |axis: &toml::Value| {
            let length = axis.as_integer().and_then(|length| usize::try_from(length).ok());
            length.ok_or_else(|| format!("shape: expected lengths, got {axis}"))
        };
        let shape = match table.get("shape") {
            None => nested,
            Some(toml::Value::Array(axes)) => {
                Some(axes.iter().map(axis).collect::<Result<_, _>>()?)
            }
            Some(other) => return Err(format!("shape: expected a list, got {other}")),
        };
        Ok(Trial { numbers, shape })
    }

    /// Checks that rows of this input can be made. The error says what was expected.
    pub(crate) fn check(&self, spec: &InputSpec) -> Result<(), String> {
        for draw in [Draw::First, Draw::Second] {
            let tensor = tensor(spec, 1, draw, &mut Random::new(0))?;
            crate::model::check_input(spec, &tensor).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn shape_of(&self, spec: &InputSpec) -> Result<Option<Vec<usize>>, String> {
        let Some(shape) = &self.shape else { return Ok(None) };
        if shape_fits(&spec.row_shape, shape) {
            return Ok(Some(shape.clone()));
        }
        let fixed: Option<Vec<usize>> = spec.row_shape.iter().copied().collect();
        let count: usize = shape.iter().product();
        // A flat list of all elements is as good as a nested one.
        match fixed {
            Some(fixed) if shape.len() == 1 && fixed.iter().product::<usize>() == count => {
                Ok(Some(fixed))
            }
            _ => {
                let expected = shape_text(&spec.row_shape);
                Err(format!("expected a row of shape {expected}, got {shape:?}"))
            }
        }
    }
}

fn read_list(value: &toml::Value, numbers: &mut Vec<f64>) -> Result<Vec<usize>, String> {
    let toml::Value::Array(items) = value else {
        numbers.push(read_number(value)?);
        return Ok(Vec::new());
    };
    let mut inner = None;
    for item in items {
        let shape = read_list(item, numbers)?;
        if *inner.get_or_insert_with(|| shape.clone()) != shape {
            return Err("expected nested lists of one shape".into());
        }
    }
    let mut shape = vec![items.len()];
    shape.extend(inner.unwrap_or_default());
    Ok(shape)
}

fn read_number(value: &toml::Value) -> Result<f64, String> {
    match value {
        toml::Value::Boolean(truth) => Ok(f64::from(u8::from(*truth))),
        toml::Value::Integer(whole) => Ok(*whole as f64),
        toml::Value::Float(number) => Ok(*number),
        other => Err(format!("expected a number, a list or a table, got {other}")),
    }
}

/// Which of the rows of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draw {
    /// Ones, or the least of what the manifest allows: few models have no result for these.
    First,
    /// Zeros, or the largest.
    Second,
    /// Floats from 0 to 1, indices within their table, other integers 0; or what lies between.
    Random,
}

/// Three rows beside the initial states: one tensor per graph input, without the batch axis. An
/// axis that may have any length has `length`, unless the manifest says another.
pub fn rows(model: &Model, length: usize, seed: u64) -> Result<Vec<Vec<Tensor>>, Error> {
    let mut random = Random::new(seed);
    let draws = [Draw::First, Draw::Second, Draw::Random];
    draws.into_iter().map(|draw| row(model, length, draw, &mut random)).collect()
}

/// One row of random numbers beside the initial states: floats from 0 to 1, indices within their
/// table, other integers 0, unless the manifest says what to try.
pub fn random(model: &Model, random: &mut Random) -> Result<Vec<Tensor>, Error> {
    row(model, 1, Draw::Random, random)
}

/// Joins rows to whole graph inputs.
pub fn batch(model: &Model, rows: &[&Vec<Tensor>]) -> Vec<Tensor> {
    let bindings = model.graph_inputs().iter().enumerate();
    bindings
        .map(|(position, binding)| {
            let column: Vec<&Tensor> = rows.iter().map(|row| &row[position]).collect();
            gather(&column, binding.batch_axis, rows.len())
        })
        .collect()
}

fn row(
    model: &Model,
    length: usize,
    draw: Draw,
    random: &mut Random,
) -> Result<Vec<Tensor>, Error> {
    let bindings = model.graph_inputs().iter();
    bindings
        .map(|binding| match binding.place {
            Place::State(position) => Ok(model.states()[position].initial.clone()),
            Place::Request(position) => {
                tensor(&model.inputs()[position], length, draw, random).map_err(Error::internal)
            }
        })
        .collect()
}

fn tensor(
    spec: &InputSpec,
    length: usize,
    draw: Draw,
    random: &mut Random,
) -> Result<Tensor, String> {
    let open = spec.row_shape.iter().map(|axis| axis.unwrap_or(length)).collect();
    let (numbers, shape) = match &spec.trial {
        Some(trial) => (&trial.numbers, trial.shape_of(spec)?.unwrap_or(open)),
        None => (&Numbers::Open, open),
    };
    let count = crate::tensor::byte_count(spec.dtype, &shape).map_err(|error| error.to_string())?
        / spec.dtype.size_bytes();
    let values = match numbers {
        Numbers::Open => made_up(spec, count, draw, random),
        Numbers::Same(number) => given(spec.dtype, &vec![*number; count])?,
        Numbers::Each(all) if all.len() == count => given(spec.dtype, all)?,
        Numbers::Each(all) => return Err(format!("expected {count} numbers, got {}", all.len())),
        Numbers::Between(min, max) => match draw {
            Draw::First => given(spec.dtype, &vec![*min; count])?,
            Draw::Second => given(spec.dtype, &vec![*max; count])?,
            Draw::Random => {
                let numbers = (0..count).map(|_| between(spec.dtype, *min, *max, random));
                of_kind(Kind::of(spec.dtype), &numbers.collect::<Vec<f64>>())
            }
        },
    };
    HostTensor { shape, values }.to_tensor(spec.dtype).map_err(|error| error.to_string())
}

fn made_up(spec: &InputSpec, count: usize, draw: Draw, random: &mut Random) -> Values {
    let limit = spec.index_limit.unwrap_or(1).max(1) as u64;
    // Without a known table the id 1 is a likelier one than 0, which often stands for none.
    let first = if spec.index_limit == Some(1) { 0 } else { 1 };
    let mut all = |of: &mut dyn FnMut(&mut Random) -> f64| -> Vec<f64> {
        (0..count).map(|_| of(random)).collect()
    };
    let numbers = match (draw, Kind::of(spec.dtype)) {
        (Draw::First, Kind::Int) => all(&mut |_| f64::from(first)),
        (Draw::First, Kind::Float | Kind::Bool) => all(&mut |_| 1.0),
        (Draw::Second, _) => all(&mut |_| 0.0),
        (Draw::Random, Kind::Float) => all(&mut Random::share),
        (Draw::Random, Kind::Int) => all(&mut |random| (random.next() % limit) as f64),
        (Draw::Random, Kind::Bool) => all(&mut |random| (random.next() & 1) as f64),
    };
    of_kind(Kind::of(spec.dtype), &numbers)
}

fn between(dtype: DType, min: f64, max: f64, random: &mut Random) -> f64 {
    match Kind::of(dtype) {
        Kind::Float => min + random.share() * (max - min),
        Kind::Int | Kind::Bool => (min + random.share() * (max - min + 1.0)).floor().min(max),
    }
}

/// The numbers as a type holds them, which a manifest's must fit.
pub(crate) fn given(dtype: DType, numbers: &[f64]) -> Result<Values, String> {
    let values = of_kind(Kind::of(dtype), numbers);
    if let Values::Int(whole) = &values {
        let kept = host::ints(dtype, &host::int_bytes(dtype, whole));
        let fits = |(at, number): (usize, &f64)| kept[at] as f64 == *number;
        if let Some(at) = numbers.iter().enumerate().position(|pair| !fits(pair)) {
            return Err(format!("expected whole numbers of {dtype}, got {}", numbers[at]));
        }
    }
    Ok(values)
}

fn of_kind(kind: Kind, numbers: &[f64]) -> Values {
    match kind {
        Kind::Float => Values::Float(numbers.iter().map(|&number| number as f32).collect()),
        Kind::Int => Values::Int(numbers.iter().map(|&number| number as i64).collect()),
        Kind::Bool => Values::Bool(numbers.iter().map(|&number| number != 0.0).collect()),
    }
}
