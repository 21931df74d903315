//! The other `ai.onnx.ml` operators: linear models, row norms, scaling. On the host, row by row.

use super::graph::Node;
use super::trees::{class_labels, first_max};
use crate::error::Error;

/// What is done to a row's scores at the end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PostTransform {
    /// Nothing.
    None,
    /// Each score by the logistic function.
    Logistic,
    /// All scores to a distribution.
    Softmax,
    /// As softmax, but scores of zero stay zero.
    SoftmaxZero,
}

impl PostTransform {
    /// Reads the attribute; `PROBIT` is not interpreted.
    pub fn parse(node: &Node) -> Result<PostTransform, Error> {
        Ok(match node.text("post_transform", "NONE")?.as_str() {
            "NONE" => PostTransform::None,
            "LOGISTIC" => PostTransform::Logistic,
            "SOFTMAX" => PostTransform::Softmax,
            "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
            other => return Err(node.wrong(format!("post_transform '{other}' is not supported"))),
        })
    }

    /// Transforms one row's scores in place.
    pub fn apply(self, scores: &mut [f32]) {
        match self {
            PostTransform::None => {}
            PostTransform::Logistic => {
                scores.iter_mut().for_each(|score| *score = logistic(*score));
            }
            PostTransform::Softmax => softmax(scores, |_| true),
            PostTransform::SoftmaxZero => softmax(scores, |score| score.abs() > 1e-7),
        }
    }

    /// The scores of both classes from one score: a probability if all weights are positive, else a
    /// signed margin.
    pub fn one_to_two(self, score: f32, is_probability: bool) -> [f32; 2] {
        match (is_probability, self) {
            (true, _) => [1.0 - score, score],
            (false, PostTransform::Logistic) => [logistic(-score), logistic(score)],
            (false, _) => [-score, score],
        }
    }
}

fn logistic(score: f32) -> f32 {
    1.0 / (1.0 + (-score).exp())
}

fn softmax(scores: &mut [f32], counts: impl Fn(f32) -> bool) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = if counts(*score) { (*score - max).exp() } else { 0.0 };
        sum += *score;
    }
    for score in scores.iter_mut() {
        *score /= sum;
    }
}

/// A linear classifier or regressor.
#[derive(Clone, Debug)]
pub struct Linear {
    /// One row of coefficients per target.
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    features: usize,
    rows: usize,
    labels: Vec<i64>,
    post: PostTransform,
}

impl Linear {
    /// Reads a `LinearRegressor`.
    pub fn regressor(node: &Node) -> Result<Linear, Error> {
        let targets = node.int("targets", 1)?;
        Linear::read(node, targets, Vec::new())
    }

    /// Reads a `LinearClassifier` with integer labels.
    pub fn classifier(node: &Node) -> Result<Linear, Error> {
        let labels = class_labels(node)?;
        let intercepts = node.floats("intercepts")?.unwrap_or_default().len();
        let rows = if labels.len() == 2 && intercepts == 1 { 1 } else { labels.len() };
        Linear::read(node, rows as i64, labels)
    }

    fn read(node: &Node, rows: i64, labels: Vec<i64>) -> Result<Linear, Error> {
        let coefficients = node.floats("coefficients")?.unwrap_or_default();
        let rows = usize::try_from(rows).map_err(|_| node.wrong("targets is negative"))?;
        if rows == 0 || coefficients.is_empty() || coefficients.len() % rows != 0 {
            return Err(node.wrong("expected as many coefficients per target"));
        }
        let mut intercepts = node.floats("intercepts")?.unwrap_or_default();
        if intercepts.is_empty() {
            intercepts = vec![0.0; rows];
        }
        if intercepts.len() != rows {
            return Err(node.wrong(format!("expected {rows} intercepts")));
        }
        let features = coefficients.len() / rows;
        let post = PostTransform::parse(node)?;
        Ok(Linear { coefficients, intercepts, features, rows, labels, post })
    }

    /// The number of columns an input must have.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Scores per row.
    pub fn targets(&self) -> usize {
        if self.is_classifier() { self.labels.len() } else { self.rows }
    }

    /// Whether labels are computed too.
    pub fn is_classifier(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Labels (empty for a regressor) and `targets` scores per row.
    pub fn run(&self, rows: &[f32]) -> (Vec<i64>, Vec<f32>) {
        let mut labels = Vec::new();
        let mut scores = Vec::with_capacity(rows.len() / self.features * self.targets());
        for row in rows.chunks_exact(self.features) {
            let sums: Vec<f64> = self
                .coefficients
                .chunks_exact(self.features)
                .zip(&self.intercepts)
                .map(|(weights, &intercept)| {
                    let products =
                        weights.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    products.sum::<f64>() + f64::from(intercept)
                })
                .collect();
            let start = scores.len();
            if self.is_classifier() && self.rows == 1 {
                labels.push(self.labels[usize::from(sums[0] > 0.0)]);
                scores.extend(self.post.one_to_two(sums[0] as f32, false));
                if matches!(self.post, PostTransform::Softmax | PostTransform::SoftmaxZero) {
                    self.post.apply(&mut scores[start..]);
                }
                continue;
            }
            if self.is_classifier() {
                labels.push(self.labels[first_max(&sums)]);
            }
            scores.extend(sums.iter().map(|&sum| sum as f32));
            self.post.apply(&mut scores[start..]);
        }
        (labels, scores)
    }
}

/// Which norm a row is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Normalize {
    Max,
    L1,
    L2,
}

impl Normalize {
    /// Reads a `Normalizer`.
    pub fn parse(node: &Node) -> Result<Normalize, Error> {
        Ok(match node.text("norm", "MAX")?.as_str() {
            "MAX" => Normalize::Max,
            "L1" => Normalize::L1,
            "L2" => Normalize::L2,
            other => return Err(node.wrong(format!("unknown norm '{other}'"))),
        })
    }

    /// Divides each row of `columns` by its norm; a row of zeros stays.
    pub fn run(self, values: &mut [f32], columns: usize) {
        for row in values.chunks_exact_mut(columns.max(1)) {
            let norm = match self {
                // onnxruntime takes the largest value here, not the largest magnitude.
                Normalize::Max => row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                Normalize::L1 => row.iter().map(|value| value.abs()).sum(),
                Normalize::L2 => row.iter().map(|value| value * value).sum::<f32>().sqrt(),
            };
            if norm != 0.0 {
                row.iter_mut().for_each(|value| *value /= norm);
            }
        }
    }
}

/// `(x - offset) * scale` per column.
#[derive(Clone, Debug)]
pub struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Scaler {
    /// Reads a `Scaler`.
    pub fn parse(node: &Node) -> Result<Scaler, Error> {
        let offset = node.floats("offset")?.unwrap_or_else(|| vec![0.0]);
        let scale = node.floats("scale")?.unwrap_or_else(|| vec![1.0]);
        let lengths_agree = offset.len() == scale.len() || offset.len() == 1 || scale.len() == 1;
        if offset.is_empty() || scale.is_empty() || !lengths_agree {
            return Err(node.wrong("expected offset and scale of equal length"));
        }
        Ok(Scaler { offset, scale })
    }

    /// The number of columns an input must have; `None` if any will do.
    pub fn columns(&self) -> Option<usize> {
        let columns = self.offset.len().max(self.scale.len());
        (columns > 1).then_some(columns)
    }

    /// Scales rows of `columns` in place.
    pub fn run(&self, values: &mut [f32], columns: usize) {
        for row in values.chunks_exact_mut(columns.max(1)) {
            for (column, value) in row.iter_mut().enumerate() {
                let offset = self.offset[if self.offset.len() == 1 { 0 } else { column }];
                let scale = self.scale[if self.scale.len() == 1 { 0 } else { column }];
                *value = (*value - offset) * scale;
            }
        }
    }
}
