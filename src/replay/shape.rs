//! What a model's inputs are, and how a map's columns fill them. Pure.

use anyhow::{bail, ensure};
use statehouse_client::v1::{self, DataType};

use super::map::{Input, Map};

/// The type and shape that an input's numbers are sent as.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The element type.
    pub dtype: DataType,
    /// One row's axes.
    pub axes: Vec<u64>,
}

impl Shape {
    /// A plain row of f32, for a model that nobody asked.
    pub fn plain(input: &Input) -> Shape {
        Shape { dtype: DataType::F32, axes: vec![input.columns.len() as u64] }
    }

    /// Of each of the map's inputs, as the model declares them.
    pub fn all(map: &Map, model: &[v1::TensorSpec]) -> anyhow::Result<Vec<Shape>> {
        let name = &map.model;
        for spec in model {
            let mapped = map.inputs.iter().any(|input| input.name == spec.name);
            ensure!(mapped, "model {name:?} has an input {:?}, which the map lacks", spec.name);
        }
        let of_input = |input: &Input| {
            let Some(spec) = model.iter().find(|spec| spec.name == input.name) else {
                let known: Vec<&str> = model.iter().map(|spec| spec.name.as_str()).collect();
                bail!("model {name:?} has no input {:?}, it has {}", input.name, known.join(", "));
            };
            Shape::of(spec, input.columns.len() as u64)
        };
        map.inputs.iter().map(of_input).collect()
    }

    fn of(spec: &v1::TensorSpec, columns: u64) -> anyhow::Result<Shape> {
        let dtype = DataType::try_from(spec.dtype).unwrap_or_default();
        let fixed: u64 =
            spec.shape.iter().filter(|axis| **axis >= 0).map(|axis| *axis as u64).product();
        let open = spec.shape.iter().filter(|axis| **axis < 0).count();
        let fits = match open {
            0 => columns == fixed,
            1 => fixed > 0 && columns.is_multiple_of(fixed),
            _ => false,
        };
        if !fits {
            let axis = |axis: &i64| if *axis < 0 { "?".to_owned() } else { axis.to_string() };
            let shape: Vec<String> = spec.shape.iter().map(axis).collect();
            let (name, shape) = (&spec.name, shape.join(", "));
            bail!("input {name:?} has the shape [{shape}], and the map gives it {columns} columns");
        }
        let axis = |axis: &i64| u64::try_from(*axis).unwrap_or(columns / fixed.max(1));
        Ok(Shape { dtype, axes: spec.shape.iter().map(axis).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fill_the_models_shape_or_are_refused() {
        let of = |shape: &[i64], columns| {
            let spec = v1::TensorSpec {
                name: "x".into(),
                dtype: DataType::I64 as i32,
                shape: shape.to_vec(),
            };
            Shape::of(&spec, columns).map(|shape| shape.axes)
        };
        assert_eq!(of(&[], 1).unwrap(), Vec::<u64>::new());
        assert_eq!(of(&[3], 3).unwrap(), [3]);
        assert_eq!(of(&[2, 3], 6).unwrap(), [2, 3]);
        assert_eq!(of(&[-1, 3], 6).unwrap(), [2, 3]);
        for (shape, columns) in [(&[][..], 2), (&[3], 2), (&[-1, 3], 4), (&[-1, -1], 4)] {
            let refused = of(shape, columns).unwrap_err().to_string();
            assert!(refused.contains(&format!("{columns} columns")), "{refused}");
        }
    }
}
