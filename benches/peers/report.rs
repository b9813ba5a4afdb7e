//! The report, in Markdown.

use crate::contenders::Contender;
use crate::machine::Machine;
use crate::results::{ROWS, Results, Row};

/// What there is to know about the figures.
pub(crate) fn conditions(machine: &Machine, contenders: &[&Contender], rounds: usize) -> String {
    let Machine { date, kernel, cpu, cores, congestion_control, rustc } = machine;
    let mut versions: Vec<_> =
        contenders.iter().filter_map(|contender| contender.version.as_deref()).collect();
    versions.dedup();
    let versions: String = versions.into_iter().map(|version| format!(", {version}")).collect();
    format!(
        "{date}: {kernel}, {cpu}, {cores} cores, {congestion_control}, {rustc}; tinylb {}{versions}. Medians of {rounds} \
         rounds, each contender once in each; CPU time is that of the proxy, with one thread on a core of its own; \
         1 GB = 10⁹ bytes.",
        env!("CARGO_PKG_VERSION")
    )
}

/// Medians, with half of the range where there were several rounds.
pub(crate) fn figures(results: &Results, contenders: &[&Contender]) -> String {
    table(contenders, |row, contender| figure(results, row, contender))
}

/// What tinylb takes of what each other one takes.
pub(crate) fn ratios(results: &Results, base: &Contender, contenders: &[&Contender]) -> String {
    table(contenders, |row, contender| {
        Some(format!("{:.3}", results.ratio(row.name, base.name, contender.name)?))
    })
}

/// Variants of tinylb: their figures, and what they take of what it takes without.
pub(crate) fn variants(results: &Results, base: &Contender, variants: &[&Contender]) -> String {
    table(variants, |row, variant| {
        let ratio = results.ratio(row.name, variant.name, base.name)?;
        Some(format!("{} ({ratio:.3} ×)", figure(results, row, variant)?))
    })
}

fn figure(results: &Results, row: &Row, contender: &Contender) -> Option<String> {
    let median = results.median(row.name, contender.name)?;
    let spread = results.spread(row.name, contender.name);
    let spread = spread.map(|spread| format!(" ±{:.0} %", spread * 100.0)).unwrap_or_default();
    Some(format!("{median:.*}{spread}", row.decimals))
}

/// Rows without a figure are left out.
fn table(contenders: &[&Contender], cell: impl Fn(&Row, &Contender) -> Option<String>) -> String {
    let titles = contenders.iter().map(|contender| contender.title.to_owned());
    let mut lines =
        vec![line("", titles), line("---", contenders.iter().map(|_| "---:".to_owned()))];
    for row in ROWS {
        let cells: Vec<_> = contenders.iter().map(|contender| cell(row, contender)).collect();
        if cells.iter().any(Option::is_some) {
            lines.push(line(
                row.title,
                cells.into_iter().map(|cell| cell.unwrap_or_else(|| "—".to_owned())),
            ));
        }
    }
    lines.concat()
}

fn line(title: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!(" {cell} |")).collect();
    format!("| {title} |{cells}\n")
}
