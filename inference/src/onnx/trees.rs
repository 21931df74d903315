//! Tree ensembles in flat arrays: one pass per row, on the host.
//!
//! Classifier scores follow onnxruntime where the standard is vague (two classes with weights for
//! one). The trees are checked when read, so a walk can neither leave the arrays nor loop.

mod roots;

use super::graph::Node;
use super::linear::PostTransform;
use crate::error::Error;
use std::collections::HashMap;

/// A checked ensemble.
#[derive(Clone, Debug)]
pub struct Trees {
    nodes: Vec<Branch>,
    roots: Vec<u32>,
    leaves: Vec<Leaf>,
    features_min: usize,
    targets: usize,
    base: Vec<f64>,
    finish: Finish,
    post: PostTransform,
}

#[derive(Clone, Copy, Debug)]
struct Branch {
    test: Test,
    missing_is_true: bool,
    feature: u32,
    threshold: f32,
    /// The children, or for a leaf the range of its weights.
    yes: u32,
    no: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Test {
    LessOrEqual,
    Less,
    GreaterOrEqual,
    Greater,
    Equal,
    NotEqual,
    Leaf,
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    target: u32,
    weight: f32,
}

#[derive(Clone, Debug)]
enum Finish {
    Regress(Aggregate),
    Classify { labels: Vec<i64>, weighted_class: WeightedClass },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// With two classes, whether the weights name both or only one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WeightedClass {
    Each,
    OnePositive,
    OneSigned,
}

impl Trees {
    /// Reads a `TreeEnsembleRegressor`.
    pub fn regressor(node: &Node) -> Result<Trees, Error> {
        let aggregate = match node.text("aggregate_function", "SUM")?.as_str() {
            "SUM" => Aggregate::Sum,
            "AVERAGE" => Aggregate::Average,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            other => return Err(node.wrong(format!("unknown aggregate_function '{other}'"))),
        };
        let targets = usize::try_from(node.int("n_targets", 1)?)
            .map_err(|_| node.wrong("n_targets is negative"))?;
        Trees::read(node, "target", targets, Finish::Regress(aggregate))
    }

    /// Reads a `TreeEnsembleClassifier` with integer labels.
    pub fn classifier(node: &Node) -> Result<Trees, Error> {
        let labels = class_labels(node)?;
        let weights = node.floats("class_weights")?.unwrap_or_default();
        let ids = node.ints("class_ids")?.unwrap_or_default();
        let one_class = labels.len() == 2 && ids.iter().all(|id| Some(id) == ids.first());
        let weighted_class = match (one_class, weights.iter().all(|&weight| weight >= 0.0)) {
            (false, _) => WeightedClass::Each,
            (true, true) => WeightedClass::OnePositive,
            (true, false) => WeightedClass::OneSigned,
        };
        let targets = labels.len();
        Trees::read(node, "class", targets, Finish::Classify { labels, weighted_class })
    }

    fn read(node: &Node, prefix: &str, targets: usize, finish: Finish) -> Result<Trees, Error> {
        let columns = Columns::read(node, prefix)?;
        let index = columns.index(node)?;
        let (leaves, ranges) = columns.leaves(node, &index, targets)?;
        let nodes = columns.branches(node, &index, &ranges)?;
        let roots = roots::roots(node, &nodes, &columns.tree_ids)?;
        let base: Vec<f64> =
            node.floats("base_values")?.unwrap_or_default().into_iter().map(f64::from).collect();
        if base.len() > targets {
            return Err(node.wrong(format!("expected at most {targets} base values")));
        }
        let features_min = nodes
            .iter()
            .filter(|branch| branch.test != Test::Leaf)
            .map(|branch| branch.feature as usize + 1)
            .max()
            .unwrap_or(0);
        let post = PostTransform::parse(node)?;
        Ok(Trees { nodes, roots, leaves, features_min, targets, base, finish, post })
    }

    /// The least number of columns an input must have.
    pub fn features_min(&self) -> usize {
        self.features_min
    }

    /// Scores per row.
    pub fn targets(&self) -> usize {
        self.targets
    }

    /// Whether labels are computed too.
    pub fn is_classifier(&self) -> bool {
        matches!(self.finish, Finish::Classify { .. })
    }

    /// Runs every tree for every row of `features` columns. Returns labels (empty for a regressor)
    /// and `targets` scores per row.
    pub fn run(&self, rows: &[f32], features: usize) -> (Vec<i64>, Vec<f32>) {
        assert!(features >= self.features_min, "every tested feature is a column");
        let mut labels = Vec::new();
        let mut scores = Vec::with_capacity(rows.len() / features.max(1) * self.targets);
        for row in rows.chunks_exact(features.max(1)) {
            match &self.finish {
                Finish::Regress(aggregate) => self.regress(row, *aggregate, &mut scores),
                Finish::Classify { labels: names, weighted_class } => {
                    let winner = self.classify(row, *weighted_class, &mut scores);
                    labels.push(names[winner]);
                }
            }
        }
        (labels, scores)
    }

    fn leaf(&self, root: u32, row: &[f32]) -> &[Leaf] {
        let mut branch = &self.nodes[root as usize];
        while branch.test != Test::Leaf {
            let value = row[branch.feature as usize];
            let next = if branch.passes(value) { branch.yes } else { branch.no };
            branch = &self.nodes[next as usize];
        }
        &self.leaves[branch.yes as usize..branch.no as usize]
    }

    fn regress(&self, row: &[f32], aggregate: Aggregate, scores: &mut Vec<f32>) {
        let mut totals: Vec<Option<f64>> = vec![None; self.targets];
        for &root in &self.roots {
            for leaf in self.leaf(root, row) {
                let total = &mut totals[leaf.target as usize];
                let weight = f64::from(leaf.weight);
                *total = Some(match (*total, aggregate) {
                    (None, _) => weight,
                    (Some(total), Aggregate::Sum | Aggregate::Average) => total + weight,
                    (Some(total), Aggregate::Min) => total.min(weight),
                    (Some(total), Aggregate::Max) => total.max(weight),
                });
            }
        }
        let divisor =
            if aggregate == Aggregate::Average { self.roots.len().max(1) as f64 } else { 1.0 };
        let start = scores.len();
        scores.extend(totals.iter().enumerate().map(|(target, total)| {
            let base = self.base.get(target).or(self.base.first()).copied().unwrap_or(0.0);
            match total {
                // As onnxruntime: an average over no weight at all is 0, without the base value.
                None if aggregate == Aggregate::Average && self.targets > 1 => 0.0,
                None => base as f32,
                Some(total) => (total / divisor + base) as f32,
            }
        }));
        self.post.apply(&mut scores[start..]);
    }

    /// Appends the scores and returns the position of the winning label.
    fn classify(&self, row: &[f32], weighted: WeightedClass, scores: &mut Vec<f32>) -> usize {
        let mut totals = vec![0.0_f64; self.targets];
        for &root in &self.roots {
            for leaf in self.leaf(root, row) {
                totals[leaf.target as usize] += f64::from(leaf.weight);
            }
        }
        if weighted == WeightedClass::Each {
            for (target, total) in totals.iter_mut().enumerate() {
                *total += self.base.get(target).copied().unwrap_or(0.0);
            }
            let start = scores.len();
            scores.extend(totals.iter().map(|&total| total as f32));
            // As onnxruntime: of two classes the second wins with any positive weight.
            let winner = match totals[..] {
                [_, second] => usize::from(second > 0.0),
                _ => first_max(&totals),
            };
            self.post.apply(&mut scores[start..]);
            return winner;
        }
        let base = self.base.last().copied().unwrap_or(0.0);
        let total = (totals.iter().sum::<f64>() + base) as f32;
        let positive = weighted == WeightedClass::OnePositive;
        scores.extend(self.post.one_to_two(total, positive));
        usize::from(total > if positive { 0.5 } else { 0.0 })
    }
}

impl Branch {
    fn passes(&self, value: f32) -> bool {
        let passes = match self.test {
            Test::LessOrEqual => value <= self.threshold,
            Test::Less => value < self.threshold,
            Test::GreaterOrEqual => value >= self.threshold,
            Test::Greater => value > self.threshold,
            Test::Equal => value == self.threshold,
            Test::NotEqual => value != self.threshold,
            Test::Leaf => false,
        };
        passes || (self.missing_is_true && value.is_nan())
    }
}

/// The position of the largest value; the first one if several are.
pub fn first_max(values: &[f64]) -> usize {
    let mut best = 0;
    for (position, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = position;
        }
    }
    best
}

/// Integer class labels; texts can't be an output tensor here.
pub fn class_labels(node: &Node) -> Result<Vec<i64>, Error> {
    let labels = match node.ints("classlabels_int64s")? {
        Some(labels) => Some(labels),
        None => node.ints("classlabels_ints")?,
    };
    let labels =
        labels.ok_or_else(|| node.wrong("expected integer class labels: encode text labels"))?;
    if labels.len() < 2 { Err(node.wrong("expected two or more class labels")) } else { Ok(labels) }
}

/// The node's parallel attribute lists.
struct Columns {
    tree_ids: Vec<i64>,
    node_ids: Vec<i64>,
    features: Vec<i64>,
    thresholds: Vec<f32>,
    tests: Vec<String>,
    yes: Vec<i64>,
    no: Vec<i64>,
    missing: Vec<i64>,
    leaf_trees: Vec<i64>,
    leaf_nodes: Vec<i64>,
    leaf_targets: Vec<i64>,
    leaf_weights: Vec<f32>,
}

/// The first weight of a node and the one after its last.
type LeafRange = (u32, u32);

/// Where each (tree, node) stands.
type Index = HashMap<(i64, i64), u32>;

impl Columns {
    fn read(node: &Node, prefix: &str) -> Result<Columns, Error> {
        let ints = |name: &str| node.ints(name).map(Option::unwrap_or_default);
        let columns = Columns {
            tree_ids: ints("nodes_treeids")?,
            node_ids: ints("nodes_nodeids")?,
            features: ints("nodes_featureids")?,
            thresholds: node.floats("nodes_values")?.unwrap_or_default(),
            tests: node.texts("nodes_modes")?.unwrap_or_default(),
            yes: ints("nodes_truenodeids")?,
            no: ints("nodes_falsenodeids")?,
            missing: ints("nodes_missing_value_tracks_true")?,
            leaf_trees: ints(&format!("{prefix}_treeids"))?,
            leaf_nodes: ints(&format!("{prefix}_nodeids"))?,
            leaf_targets: ints(&format!("{prefix}_ids"))?,
            leaf_weights: node.floats(&format!("{prefix}_weights"))?.unwrap_or_default(),
        };
        let nodes = columns.tree_ids.len();
        let leaves = columns.leaf_trees.len();
        let node_lists = [
            columns.node_ids.len(),
            columns.features.len(),
            columns.thresholds.len(),
            columns.tests.len(),
            columns.yes.len(),
            columns.no.len(),
        ];
        let leaf_lists =
            [columns.leaf_nodes.len(), columns.leaf_targets.len(), columns.leaf_weights.len()];
        let same = node_lists.iter().all(|&length| length == nodes)
            && leaf_lists.iter().all(|&length| length == leaves)
            && (columns.missing.is_empty() || columns.missing.len() == nodes);
        if same && nodes > 0 {
            Ok(columns)
        } else {
            Err(node.wrong("expected tree attributes of equal length"))
        }
    }

    fn index(&self, node: &Node) -> Result<Index, Error> {
        let mut index = Index::with_capacity(self.node_ids.len());
        for (position, key) in self.tree_ids.iter().zip(&self.node_ids).enumerate() {
            let position =
                u32::try_from(position).map_err(|_| node.wrong("too many tree nodes"))?;
            if index.insert((*key.0, *key.1), position).is_some() {
                return Err(node.wrong(format!("tree node {key:?} is given twice")));
            }
        }
        Ok(index)
    }

    /// Weights sorted by node, and each node's range in them.
    fn leaves(
        &self,
        node: &Node,
        index: &Index,
        targets: usize,
    ) -> Result<(Vec<Leaf>, Vec<LeafRange>), Error> {
        let mut placed = Vec::with_capacity(self.leaf_trees.len());
        for entry in 0..self.leaf_trees.len() {
            let key = (self.leaf_trees[entry], self.leaf_nodes[entry]);
            let position =
                *index.get(&key).ok_or_else(|| node.wrong(format!("unknown tree node {key:?}")))?;
            let target = u32::try_from(self.leaf_targets[entry])
                .ok()
                .filter(|&target| (target as usize) < targets)
                .ok_or_else(|| node.wrong("a weight's target is out of range"))?;
            placed.push((position, Leaf { target, weight: self.leaf_weights[entry] }));
        }
        placed.sort_by_key(|(position, _)| *position);
        let mut ranges = vec![(0, 0); self.tree_ids.len()];
        for (entry, (position, _)) in placed.iter().enumerate() {
            let range = &mut ranges[*position as usize];
            if range.1 == 0 {
                range.0 = entry as u32;
            }
            range.1 = entry as u32 + 1;
        }
        Ok((placed.into_iter().map(|(_, leaf)| leaf).collect(), ranges))
    }

    fn branches(
        &self,
        node: &Node,
        index: &Index,
        ranges: &[LeafRange],
    ) -> Result<Vec<Branch>, Error> {
        (0..self.tree_ids.len())
            .map(|position| {
                let test = test(&self.tests[position]).ok_or_else(|| {
                    node.wrong(format!("unknown mode '{}'", self.tests[position]))
                })?;
                let child = |id: i64| {
                    let key = (self.tree_ids[position], id);
                    index.get(&key).copied().ok_or_else(|| node.wrong(format!("no node {key:?}")))
                };
                let (yes, no) = match test {
                    Test::Leaf => ranges[position],
                    _ => (child(self.yes[position])?, child(self.no[position])?),
                };
                let feature = u32::try_from(self.features[position])
                    .map_err(|_| node.wrong("a feature index is out of range"))?;
                Ok(Branch {
                    test,
                    missing_is_true: self.missing.get(position).is_some_and(|&flag| flag != 0),
                    feature,
                    threshold: self.thresholds[position],
                    yes,
                    no,
                })
            })
            .collect()
    }
}

fn test(name: &str) -> Option<Test> {
    Some(match name {
        "BRANCH_LEQ" => Test::LessOrEqual,
        "BRANCH_LT" => Test::Less,
        "BRANCH_GTE" => Test::GreaterOrEqual,
        "BRANCH_GT" => Test::Greater,
        "BRANCH_EQ" => Test::Equal,
        "BRANCH_NEQ" => Test::NotEqual,
        "LEAF" => Test::Leaf,
        _ => return None,
    })
}
