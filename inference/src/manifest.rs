//! `model.toml`: what a model directory says about itself. Pure.
//!
//! Reading is strict: an unknown key is an error that names the nearest known one, and every
//! message says which line. What the keys mean for a graph is decided in `model`.

use crate::error::Error;
use serde::Deserialize;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The most rows that a manifest may ask for in one batch.
pub const BATCH_ROWS_LIMIT: usize = 65_536;
/// The longest that a manifest may let a row wait for company.
pub const BATCH_WAIT_LIMIT: Duration = Duration::from_secs(1);

/// A manifest as written.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    /// `[a-z0-9-_.]`, 1 to 64 characters.
    pub name: String,
    /// Which file holds the model.
    pub format: Format,
    /// How rows are batched.
    #[serde(default)]
    pub batch: Batch,
    /// Which inputs and outputs are the entity's state.
    #[serde(default, rename = "state")]
    pub states: Vec<State>,
    /// What the graph doesn't say about its inputs.
    #[serde(default, rename = "input")]
    pub inputs: Vec<Port>,
    /// What the graph doesn't say about its outputs.
    #[serde(default, rename = "output")]
    pub outputs: Vec<Port>,
    /// For `format = "safetensors"`.
    pub architecture: Option<Architecture>,
}

/// Which file holds the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `model.onnx`.
    Onnx,
    /// `model.safetensors`, with an `[architecture]`.
    Safetensors,
}

/// `[batch]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Batch {
    /// Rows per batch; the device's default without it.
    pub rows_max: Option<usize>,
    /// Microseconds that the oldest row may wait for a batch to fill.
    #[serde(default)]
    pub wait_max_us: u64,
}

/// `[[state]]`.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// The field of the stored state.
    pub field: String,
    /// The graph input that reads it.
    pub input: String,
    /// The graph output that replaces it.
    pub output: String,
    /// What a missing state starts from.
    #[serde(default)]
    pub initial: Initial,
    /// The initial state's shape without the batch axis, if the graph leaves it open.
    pub shape: Option<Vec<usize>>,
    /// Where the batch axis is.
    #[serde(default)]
    pub batch_axis: usize,
    /// What happens to a new state with NaN or infinity.
    #[serde(default)]
    pub nan: NotFinite,
}

/// The initial value of a state.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Initial {
    /// The same number everywhere.
    Number(f64),
    /// Every element, row-major.
    List(Vec<f64>),
    /// Only `"zeros"`.
    Word(String),
}

impl Default for Initial {
    fn default() -> Self {
        Initial::Number(0.0)
    }
}

/// `[[input]]` and `[[output]]`.
#[derive(Clone, Debug, Deserialize)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// What happens to NaN or infinity.
    #[serde(default)]
    pub nan: NotFinite,
    /// Where the batch axis is.
    #[serde(default)]
    pub batch_axis: usize,
    /// Of an input: what the model may be tried with when it is loaded; see
    /// [`crate::trial::Trial`].
    pub trial: Option<toml::Value>,
}

/// What happens to NaN or infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotFinite {
    /// The row is refused.
    #[default]
    Reject,
    /// It passes.
    Allow,
}

/// `[architecture]`: a built-in graph whose weights lie in `model.safetensors` under PyTorch's
/// names.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Architecture {
    /// A GRU cell and a head of linear layers. Weights `gru.weight_ih`, `gru.weight_hh`,
    /// `gru.bias_ih`, `gru.bias_hh`, then `fc1.weight`, `fc1.bias` and so on.
    Gru {
        /// Features per row.
        inputs: usize,
        /// Units of the state.
        hidden: usize,
        /// Widths of the head's layers; empty for none.
        #[serde(default)]
        head: Vec<usize>,
        /// Between the head's layers.
        #[serde(default)]
        activation: Activation,
        /// After the last layer.
        #[serde(default = "identity")]
        output_activation: Activation,
    },
    /// Linear layers. Weights `fc1.weight`, `fc1.bias` and so on.
    Mlp {
        /// Features per row, then the width of each layer.
        sizes: Vec<usize>,
        /// Between the layers.
        #[serde(default)]
        activation: Activation,
        /// After the last layer.
        #[serde(default = "identity")]
        output_activation: Activation,
    },
}

fn identity() -> Activation {
    Activation::None
}

/// An element-wise function between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Activation {
    #[default]
    Relu,
    Tanh,
    Sigmoid,
    Gelu,
    None,
}

const TOP: &[&str] = &["name", "format", "batch", "state", "input", "output", "architecture"];
const BATCH: &[&str] = &["rows_max", "wait_max_us"];
const STATE: &[&str] = &["field", "input", "output", "initial", "shape", "batch_axis", "nan"];
const INPUT: &[&str] = &["name", "nan", "batch_axis", "trial"];
const OUTPUT: &[&str] = &["name", "nan", "batch_axis"];
const ARCHITECTURE: &[&str] =
    &["kind", "inputs", "hidden", "head", "sizes", "activation", "output_activation"];

impl Manifest {
    /// Reads and checks the text of `model.toml`.
    pub fn parse(text: &str) -> Result<Manifest, Error> {
        let located = |error: toml::de::Error| {
            let line = error.span().map(|span| line_of(text, span.start));
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            Error::manifest(format!("{line}{}", error.message().trim()))
        };
        let table = DeTable::parse(text).map_err(located)?;
        check_keys(text, table.get_ref(), TOP, "")?;
        for (section, known) in [
            ("batch", BATCH),
            ("architecture", ARCHITECTURE),
            ("state", STATE),
            ("input", INPUT),
            ("output", OUTPUT),
        ] {
            for part in sections(table.get_ref(), section) {
                check_keys(text, part, known, section)?;
            }
        }
        let manifest: Manifest = toml::from_str(text).map_err(located)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |reason: String| Err(Error::manifest(reason));
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(allowed) {
            return wrong(format!("name: expected 1 to 64 of [a-z0-9-_.], got '{}'", self.name));
        }
        if let Some(rows) = self.batch.rows_max
            && !(1..=BATCH_ROWS_LIMIT).contains(&rows)
        {
            return wrong(format!("batch.rows_max: expected 1 to {BATCH_ROWS_LIMIT}, got {rows}"));
        }
        if self.wait_max() > BATCH_WAIT_LIMIT {
            return wrong(format!("batch.wait_max_us: expected at most {BATCH_WAIT_LIMIT:?}"));
        }
        if (self.format == Format::Safetensors) != self.architecture.is_some() {
            return wrong("expected [architecture] with format \"safetensors\", only".into());
        }
        let fields = self.states.iter().map(|state| ("field", state.field.as_str()));
        let inputs = self.states.iter().map(|state| ("input", state.input.as_str()));
        let outputs = self.states.iter().map(|state| ("output", state.output.as_str()));
        let mut bound: Vec<(&str, &str)> = fields.chain(inputs).chain(outputs).collect();
        bound.sort_unstable();
        if let Some(pair) = bound.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong(format!("{} '{}' is bound to two states", pair[0].0, pair[0].1));
        }
        Ok(())
    }

    /// How long the oldest row may wait for a batch to fill.
    pub fn wait_max(&self) -> Duration {
        Duration::from_micros(self.batch.wait_max_us)
    }
}

/// The tables of a section, whether it is one table or an array of them.
fn sections<'a, 'i>(table: &'a DeTable<'i>, name: &str) -> Vec<&'a DeTable<'i>> {
    let found = table.iter().find(|(key, _)| key.get_ref() == name);
    match found.map(|(_, value)| value.get_ref()) {
        Some(DeValue::Table(part)) => vec![part],
        Some(DeValue::Array(parts)) => {
            parts.iter().filter_map(|part| part.get_ref().as_table()).collect()
        }
        // Anything else is a wrong type, which the typed reading reports.
        Some(_) | None => Vec::new(),
    }
}

fn check_keys(text: &str, table: &DeTable<'_>, known: &[&str], section: &str) -> Result<(), Error> {
    for (key, _) in table {
        let name = key.get_ref().as_ref();
        if known.contains(&name) {
            continue;
        }
        let line = line_of(text, key.span().start);
        let place = if section.is_empty() { String::new() } else { format!(" in [{section}]") };
        let nearest = nearest(name, known.iter().copied()).unwrap_or_default();
        return Err(Error::manifest(format!(
            "line {line}: unknown key '{name}'{place}, nearest is '{nearest}'"
        )));
    }
    Ok(())
}

/// The most similar known name.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .max_by(|one, other| {
            let similar = |known: &str| strsim::jaro_winkler(name, known);
            similar(one).total_cmp(&similar(other))
        })
        .map(str::to_string)
}

fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn reads_every_key() {
        let manifest = Manifest::parse(
            r#"
            name = "bank-gru"
            format = "onnx"
            [batch]
            rows_max = 32
            wait_max_us = 500
            [[state]]
            field = "h"
            input = "h_in"
            output = "h_out"
            initial = [0.5, 1.0]
            batch_axis = 1
            [[input]]
            name = "x"
            nan = "allow"
            [[output]]
            name = "score"
            "#,
        )
        .unwrap();
        assert_eq!(manifest.batch.rows_max, Some(32));
        assert_eq!(manifest.wait_max(), Duration::from_micros(500));
        assert_eq!(manifest.states[0].initial, Initial::List(vec![0.5, 1.0]));
        assert_eq!(manifest.states[0].batch_axis, 1);
        assert_eq!(manifest.inputs[0].nan, NotFinite::Allow);
        assert_eq!(manifest.outputs[0].nan, NotFinite::Reject);
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest() {
        let text = "name = \"a\"\nformat = \"onnx\"\n[batch]\nrow_max = 4\n";
        assert_eq!(
            refusal(text),
            "model.toml: line 4: unknown key 'row_max' in [batch], nearest is 'rows_max'"
        );
        let text = "nmae = \"a\"\nformat = \"onnx\"\n";
        assert_eq!(refusal(text), "model.toml: line 1: unknown key 'nmae', nearest is 'name'");
        let text = "name = \"a\"\nformat = \"onnx\"\n[[state]]\nfeild = \"h\"\n";
        assert!(
            refusal(text).contains("line 4: unknown key 'feild' in [state], nearest is 'field'")
        );
    }

    #[test]
    fn wrong_values_name_their_line() {
        assert!(refusal("name = 3\nformat = \"onnx\"").contains("line 1"));
        assert!(refusal("name = \"a\"\nformat = \"onyx\"").contains("line 2"));
        assert!(refusal("name = \"a\n").contains("line 1"));
        assert!(refusal("name = \"A b\"\nformat = \"onnx\"").contains("1 to 64 of [a-z0-9-_.]"));
        let text = "name = \"a\"\nformat = \"onnx\"\n[batch]\nrows_max = 0";
        assert!(refusal(text).contains("expected 1 to 65536, got 0"));
        assert!(refusal("name = \"a\"\nformat = \"safetensors\"").contains("[architecture]"));
    }

    #[test]
    fn a_name_is_bound_once() {
        let state = |output: &str| {
            format!("[[state]]\nfield = \"{output}\"\ninput = \"i\"\noutput = \"{output}\"\n")
        };
        let text = format!("name = \"a\"\nformat = \"onnx\"\n{}{}", state("o"), state("p"));
        assert!(refusal(&text).contains("input 'i' is bound to two states"));
    }

    #[test]
    fn no_two_states_have_a_field_or_an_output_in_common() {
        let state = |[field, input, output]: [&str; 3]| {
            format!("[[state]]\nfield = \"{field}\"\ninput = \"{input}\"\noutput = \"{output}\"\n")
        };
        let both = |second: [&str; 3]| {
            let states = state(["f", "i", "o"]) + &state(second);
            refusal(&format!("name = \"a\"\nformat = \"onnx\"\n{states}"))
        };
        assert!(both(["f", "j", "p"]).contains("field 'f' is bound to two states"));
        assert!(both(["g", "j", "o"]).contains("output 'o' is bound to two states"));
    }
}
