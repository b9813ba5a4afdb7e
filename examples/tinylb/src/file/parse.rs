//! What a backends file looks like: `KEY=TARGET` a line, with comments and blank lines.

use std::collections::HashSet;
use std::path::Path;

use crate::targets::{KeyedTarget, twice};

/// What is wrong with the file, and in which line, if in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) line: Option<usize>,
    pub(crate) what: String,
}

impl Problem {
    /// The message to the user.
    pub(crate) fn in_file(&self, path: &Path) -> String {
        let (path, what) = (path.display(), &self.what);
        match self.line {
            Some(line) => format!("{path}:{line}: {what}"),
            None => format!("{path}: {what}"),
        }
    }
}

impl From<String> for Problem {
    fn from(what: String) -> Self {
        Self { line: None, what }
    }
}

/// A line that is neither blank nor a comment.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) backend: KeyedTarget,
}

/// Returns the lines of a file that have backends, whose keys differ.
pub(crate) fn parse(content: &[u8]) -> Result<Vec<Line>, Problem> {
    let mut keys = HashSet::new();
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(raw_lines(content)) {
        let problem = |what| Problem { line: Some(number), what };
        let line = std::str::from_utf8(line).map_err(|_| problem("not UTF-8".to_owned()))?;
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        let backend: KeyedTarget = line.parse().map_err(problem)?;
        if !keys.insert(backend.key.clone()) {
            return Err(problem(twice(&backend.key)));
        }
        lines.push(Line { number, backend });
    }
    Ok(lines)
}

/// Returns whether a line is neither blank nor a comment, whatever it says.
pub(crate) fn has_backends(content: &[u8]) -> bool {
    raw_lines(content)
        .map(String::from_utf8_lossy)
        .any(|line| !without_comment(&line).trim().is_empty())
}

fn raw_lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Some editors put a mark before the text, which is no part of the first key.
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    content.split(|byte| *byte == b'\n')
}

/// A `#` within a word is part of it.
fn without_comment(line: &str) -> &str {
    let begins_comment =
        |(at, _): &(usize, &str)| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    line.match_indices('#').find(begins_comment).map_or(line, |(at, _)| &line[..at])
}
