//! The tables, in Markdown.

use crate::contenders::Contender;
use crate::machine::Machine;
use crate::results::{ROWS, Results, Row};

/// What there is to know about the tables below it.
pub(crate) fn heading(machine: &Machine, contenders: &[Contender], rounds: usize, command: &str) -> String {
    let Machine { date, kernel, cpu, cores, congestion_control, rustc } = machine;
    let mut versions: Vec<_> = contenders.iter().filter_map(|contender| contender.version.as_deref()).collect();
    versions.dedup();
    let versions = versions.join(", ");
    format!(
        "{date}, {kernel}, {cpu}, {cores} cores, {congestion_control}, {rustc}; tinylb {}, {versions}. Medians of {rounds} rounds, \
         each contender once in each, ± half of the range; CPU is that of the proxy, which has one thread and one core \
         for itself; 1 GB = 10⁹ bytes. Repeated by `{command}`.\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Medians, with half of the range where there were several rounds.
pub(crate) fn figures(results: &Results, contenders: &[&'static str]) -> String {
    table(contenders, |row, contender| {
        let median = results.median(row.name, contender)?;
        let figure = format!("{median:.*}", row.decimals);
        let spread = results.spread(row.name, contender);
        Some(spread.map_or(figure.clone(), |spread| format!("{figure} ±{:.0} %", spread * 100.0)))
    })
}

/// What `base` takes of what each other one takes.
pub(crate) fn ratios(results: &Results, base: &'static str, contenders: &[&'static str]) -> String {
    table(contenders, |row, contender| Some(format!("{:.3}", results.ratio(row.name, base, contender)?)))
}

/// Rows without a figure are left out.
fn table(contenders: &[&'static str], cell: impl Fn(&Row, &'static str) -> Option<String>) -> String {
    let mut lines = vec![line("", contenders.iter().map(|name| (*name).to_owned()))];
    lines.push(line("---", contenders.iter().map(|_| "---:".to_owned())));
    for row in ROWS {
        let cells: Vec<_> = contenders.iter().map(|contender| cell(row, contender)).collect();
        if cells.iter().any(Option::is_some) {
            lines.push(line(row.title, cells.into_iter().map(|cell| cell.unwrap_or_else(|| "—".to_owned()))));
        }
    }
    lines.concat()
}

fn line(title: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!(" {cell} |")).collect();
    format!("| {title} |{cells}\n")
}
