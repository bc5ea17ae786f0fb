//! What the commands print: a table for people, or JSON; and how many of the things asked for were refused.

use serde_json::Value;

use super::kafka::KafkaError;

/// What a command found or did.
#[derive(Debug)]
pub(super) struct Report {
    /// For people.
    pub(super) text: String,
    /// The same for programs.
    pub(super) json: Value,
    /// How many of the things asked for were refused, of how many.
    pub(super) refused: (usize, usize),
}

impl Report {
    /// Of a command of which nothing was refused.
    pub(super) fn new(text: String, json: Value) -> Report {
        Report { text, json, refused: (0, 0) }
    }

    /// What to print.
    pub(super) fn to_print(&self, json: bool) -> String {
        if json { format!("{:#}\n", self.json) } else { self.text.clone() }
    }

    /// What the exit code says.
    pub(super) fn verdict(&self) -> Result<(), KafkaError> {
        match self.refused {
            (0, _) => Ok(()),
            (failed, asked) => Err(KafkaError::Partly { failed, asked }),
        }
    }
}

/// A table whose columns are as wide as what stands in them.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With the names of its columns.
    pub(super) fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    /// One more row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// As text; nothing where there is no row.
    pub(super) fn to_text(&self) -> String {
        if self.rows.len() == 1 {
            return String::new();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `1,2,3`.
pub(super) fn join(numbers: impl IntoIterator<Item = i32>) -> String {
    numbers.into_iter().map(|number| number.to_string()).collect::<Vec<_>>().join(",")
}

/// A number that may not be known.
pub(super) fn known(number: Option<i64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_rows_when_printed_then_columns_are_aligned_and_lines_end_with_their_last_cell() {
        let mut table = Table::new(&["NAME", "LAG"]);
        assert_eq!(table.to_text(), "");
        table.row(["a".to_owned(), known(None)]);
        table.row(["orders".to_owned(), known(Some(17))]);
        assert_eq!(table.to_text(), "NAME    LAG\na       -\norders  17\n");
    }

    #[test]
    fn given_refusals_when_judged_then_the_command_has_failed() {
        let mut report = Report::new(String::new(), Value::Null);
        assert!(report.verdict().is_ok());
        report.refused = (1, 3);
        assert_eq!(report.verdict().unwrap_err().to_string(), "1 of 3 refused");
    }
}
