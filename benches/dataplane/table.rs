//! From the figures of all rounds to the table.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::carrier;
use crate::row::{Figure, Kind, ROWS, Row, Target};

/// What stands where there is nothing to say.
const NOTHING: &str = "–";

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// By row, figure of the row, and carrier; one value a round.
    values: BTreeMap<(&'static str, usize, carrier::Kind), Vec<f64>>,
}

impl Results {
    /// Adds one round of a row.
    pub(crate) fn add(&mut self, row: &Row, kind: carrier::Kind, figures: &[f64]) {
        for (index, &value) in figures.iter().enumerate() {
            let values = self.values.entry((row.name, index, kind)).or_default();
            values.push(value);
        }
    }

    fn median(&self, row: &Row, index: usize, kind: carrier::Kind) -> Option<f64> {
        let mut values = self.values.get(&(row.name, index, kind))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        Some(if values.len() % 2 == 0 {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        })
    }
}

/// One line, with the values of direct TCP, Adit and Envoy.
struct Line<'a> {
    row: &'static str,
    figure: &'a Figure,
    name: String,
    values: [Option<f64>; 3],
    /// Whether ratios to direct TCP say anything.
    against_direct: bool,
    target: Option<Target>,
}

fn lines(results: &Results) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for row in ROWS {
        for (index, figure) in row.figures.iter().enumerate() {
            let values = [
                carrier::Kind::Direct,
                carrier::Kind::Adit,
                carrier::Kind::Envoy,
            ]
            .map(|kind| results.median(row, index, kind));
            if values.iter().all(Option::is_none) {
                continue;
            }
            let whole = Line {
                row: row.name,
                figure,
                name: figure.name.to_owned(),
                values,
                against_direct: figure.kind != Kind::Cost,
                target: figure.target,
            };
            if figure.kind != Kind::Added {
                lines.push(whole);
                continue;
            }
            lines.push(Line {
                target: None,
                ..whole
            });
            let [Some(direct), adit, envoy] = values else {
                continue;
            };
            let over = |value: Option<f64>| value.map(|value| value - direct);
            lines.push(Line {
                row: row.name,
                figure,
                name: "— added to direct TCP".to_owned(),
                values: [None, over(adit), over(envoy)],
                against_direct: false,
                target: figure.target,
            });
        }
    }
    lines
}

impl Line<'_> {
    fn ratio(&self, of: usize, to: usize) -> Option<f64> {
        let (of, to) = (self.values[of]?, self.values[to]?);
        (to > 0.0).then(|| of / to)
    }

    /// Whether the target is met; `None` without a target or without the figures for it.
    fn met(&self) -> Option<bool> {
        Some(match self.target? {
            Target::AtLeast(bound) => self.ratio(1, 2)? >= bound,
            Target::AtMost(bound) => self.ratio(1, 2)? <= bound,
            Target::Absolute(bound) => self.values[1]? <= bound,
        })
    }

    fn aim(&self) -> String {
        let aim = match self.target {
            None => return String::new(),
            Some(Target::AtLeast(bound)) => format!("≥ {bound} × Envoy"),
            Some(Target::AtMost(bound)) => format!("≤ {bound} × Envoy"),
            Some(Target::Absolute(bound)) => format!("≤ {bound} {}", self.figure.unit),
        };
        match self.met() {
            None => aim,
            Some(true) => format!("{aim}: met"),
            Some(false) => format!("{aim}: **missed**"),
        }
    }

    fn cells(&self, carriers: &[carrier::Kind]) -> Vec<String> {
        let has = |kind| carriers.contains(&kind);
        let (direct, adit, envoy) = (
            has(carrier::Kind::Direct),
            has(carrier::Kind::Adit),
            has(carrier::Kind::Envoy),
        );
        let decimals = self.figure.decimals;
        let value = |index: usize| {
            let value = self.values[index].filter(|_| index > 0 || self.figure.kind != Kind::Cost);
            value.map_or(NOTHING.to_owned(), |value| format!("{value:.decimals$}"))
        };
        let ratio = |of, to| {
            let ratio = self
                .ratio(of, to)
                .filter(|_| to != 0 || self.against_direct);
            ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"))
        };
        let mut cells = vec![format!("{}, {}", self.name, self.figure.unit)];
        for (index, shown) in [direct, adit, envoy].into_iter().enumerate() {
            if shown {
                cells.push(value(index));
            }
        }
        for (shown, of, to) in [
            (direct && adit, 1, 0),
            (direct && envoy, 2, 0),
            (adit && envoy, 1, 2),
        ] {
            if shown {
                cells.push(ratio(of, to));
            }
        }
        if adit && envoy {
            cells.push(self.aim());
        }
        cells
    }
}

/// The table, as Markdown that also reads well as it is.
pub(crate) fn render(results: &Results, carriers: &[carrier::Kind]) -> String {
    let has = |kind| carriers.contains(&kind);
    let (direct, adit, envoy) = (
        has(carrier::Kind::Direct),
        has(carrier::Kind::Adit),
        has(carrier::Kind::Envoy),
    );
    let head = [
        (true, "figure"),
        (direct, "direct TCP"),
        (adit, "Adit"),
        (envoy, "Envoy"),
        (direct && adit, "Adit ÷ direct"),
        (direct && envoy, "Envoy ÷ direct"),
        (adit && envoy, "Adit ÷ Envoy"),
        (adit && envoy, "target"),
    ];
    let head = head
        .iter()
        .filter(|(shown, _)| *shown)
        .map(|(_, name)| (*name).to_owned());
    let mut rows: Vec<Vec<String>> = vec![head.collect()];
    rows.extend(lines(results).iter().map(|line| line.cells(carriers)));
    let words = |column| column == 0 || adit && envoy && column + 1 == rows[0].len();
    written(&rows, words)
}

/// The rows of Adit with several numbers of workers: each figure, and in brackets its ratio to
/// direct TCP's of the same turns, where that says anything.
pub(crate) fn by_workers(all: &[Results], workers: &[usize]) -> String {
    let name = |count: &usize| format!("{count} worker{}", if *count == 1 { "" } else { "s" });
    let head = std::iter::once("Adit".to_owned()).chain(workers.iter().map(name));
    let mut rows: Vec<Vec<String>> = vec![head.collect()];
    let columns: Vec<_> = all.iter().map(lines).collect();
    let longest = columns.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..longest {
        let mut cells = Vec::new();
        for lines in &columns {
            let Some(line) = lines.get(at) else {
                cells.push(NOTHING.to_owned());
                continue;
            };
            if cells.is_empty() {
                cells.push(format!("{}, {}", line.name, line.figure.unit));
            }
            let decimals = line.figure.decimals;
            let value = line.values[1].map(|value| format!("{value:.decimals$}"));
            let ratio = line.ratio(1, 0).filter(|_| line.against_direct);
            let ratio = ratio.map_or(String::new(), |ratio| format!(" ({ratio:.2})"));
            cells.push(value.unwrap_or(NOTHING.to_owned()) + &ratio);
        }
        rows.push(cells);
    }
    written(&rows, |column| column == 0)
}

/// Rows of cells, the first of them the head, as Markdown.
fn written(rows: &[Vec<String>], words: impl Fn(usize) -> bool) -> String {
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let gap = widths[column] - cell.chars().count();
            let (left, right) = if words(column) { (0, gap) } else { (gap, 0) };
            let _ = write!(text, "| {:left$}{cell}{:right$} ", "", "");
        }
        text.push_str("|\n");
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let end = if words(column) { "--" } else { "-:" };
                let _ = write!(text, "|{:-<width$}{end}", "");
            }
            text.push_str("|\n");
        }
    }
    text
}

/// How many targets there are in what was measured, and a line for each that is not shown to be
/// met: a ratio that cannot be told (of what nobody adds, say) is not met.
pub(crate) fn checked(results: &Results) -> (usize, Vec<String>) {
    let lines = lines(results);
    let aims = lines.iter().filter(|line| line.target.is_some());
    let missed = aims.clone().filter(|line| line.met() != Some(true));
    let missed = missed.map(|line| {
        let figure = match line.target {
            Some(Target::Absolute(_)) => line.values[1],
            _ => line.ratio(1, 2),
        };
        let figure = figure.map_or(NOTHING.to_owned(), |figure| format!("{figure:.2}"));
        format!("{}, {}: {figure}, {}", line.row, line.name, line.aim())
    });
    (aims.count(), missed.collect())
}
