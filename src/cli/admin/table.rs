//! Tables for people: columns as wide as their widest cell. Pure.

/// Between two columns.
const GAP: &str = "  ";

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Figures.
    Right,
}

/// Rows under a line of headings.
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Headings, and where the cells under each stand.
    pub fn new(headings: &[(&str, Side)]) -> Self {
        let (names, sides) =
            headings.iter().map(|(name, side)| ((*name).to_owned(), *side)).unzip();
        Table { sides, rows: vec![names] }
    }

    /// One more row, of as many cells as there are headings.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.sides.len(), "a cell for each heading");
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, side), width) in row.iter().zip(&self.sides).zip(&widths) {
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                line.push_str(&match side {
                    Side::Left => format!("{cell:width$}"),
                    Side::Right => format!("{cell:>width$}"),
                });
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("node", Side::Right), ("address", Side::Left)]);
        table.row(["1".into(), "10.0.0.1:7070".into()]);
        table.row(["12".into(), "b:1".into()]);
        assert_eq!(table.to_string(), "node  address\n   1  10.0.0.1:7070\n  12  b:1\n");
    }
}
