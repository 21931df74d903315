//! The shape of an ensemble: where each tree begins, and that no walk down it can loop.

use super::{Branch, Test};
use crate::error::Error;
use crate::onnx::graph::Node;

/// Each tree's root. Branches may share what is below them, as a test for several categories does;
/// every node must be reached from a root, and none from itself.
pub fn roots(node: &Node, nodes: &[Branch], tree_ids: &[i64]) -> Result<Vec<u32>, Error> {
    let mut is_child = vec![false; nodes.len()];
    for branch in nodes.iter().filter(|branch| branch.test != Test::Leaf) {
        is_child[branch.yes as usize] = true;
        is_child[branch.no as usize] = true;
    }
    let roots: Vec<u32> = (0..nodes.len() as u32).filter(|&at| !is_child[at as usize]).collect();
    let mut trees: Vec<i64> = tree_ids.to_vec();
    trees.sort_unstable();
    trees.dedup();
    if roots.len() != trees.len() {
        return Err(node.wrong("expected one root per tree and no loops"));
    }
    let mut marks = vec![Mark::Unseen; nodes.len()];
    for &root in &roots {
        visit(nodes, root, &mut marks).map_err(|()| node.wrong("a tree has a loop"))?;
    }
    // What no root reaches is a loop of its own, as everything in it is somebody's child.
    match marks.iter().all(|mark| *mark == Mark::Done) {
        true => Ok(roots),
        false => Err(node.wrong("expected one root per tree and no loops")),
    }
}

/// How far a walk over a tree has come with a node.
#[derive(Clone, Copy, PartialEq)]
enum Mark {
    Unseen,
    /// What is below it is being visited.
    Open,
    Done,
}

/// Visits all below `root` once, with an explicit stack: a long chain of tests must not exhaust the
/// thread's. Fails at a loop.
fn visit(nodes: &[Branch], root: u32, marks: &mut [Mark]) -> Result<(), ()> {
    let mut pending = vec![root];
    while let Some(&at) = pending.last() {
        let branch = nodes[at as usize];
        match marks[at as usize] {
            Mark::Unseen if branch.test != Test::Leaf => {
                marks[at as usize] = Mark::Open;
                for child in [branch.yes, branch.no] {
                    match marks[child as usize] {
                        Mark::Unseen => pending.push(child),
                        Mark::Open => return Err(()),
                        Mark::Done => {}
                    }
                }
            }
            Mark::Unseen | Mark::Open => {
                marks[at as usize] = Mark::Done;
                pending.pop();
            }
            Mark::Done => {
                pending.pop();
            }
        }
    }
    Ok(())
}
