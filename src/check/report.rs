//! How findings are printed: for people, in groups; for programs, as JSON.

use std::io::{self, Write};

use serde_json::json;

use crate::check::facts::{Asked, Facts};
use crate::check::finding::{Finding, State};

/// Objects of one finding that people are shown; programs get all.
const SHOWN: usize = 10;

/// Prints findings in their groups, and how many there are of each state.
pub(crate) fn text(findings: &[Finding], to: &mut dyn Write) -> io::Result<()> {
    let mut group = "";
    for finding in findings {
        if finding.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = finding.group;
            writeln!(to, "{gap}{group}")?;
        }
        one(finding, to)?;
    }
    let many = |state| findings.iter().filter(|one| one.state == state).count();
    writeln!(
        to,
        "\n{} passed, {} to look at, {} failed, {} skipped",
        many(State::Pass),
        many(State::Warn),
        many(State::Fail),
        many(State::Skipped),
    )
}

fn one(finding: &Finding, to: &mut dyn Write) -> io::Result<()> {
    let sign = match finding.state {
        State::Pass => "✓",
        State::Warn => "!",
        State::Fail => "✗",
        State::Skipped => "-",
    };
    let skipped = match finding.state {
        State::Skipped => "skipped: ",
        _ => "",
    };
    writeln!(to, "  {sign} {}: {skipped}{}", finding.name, finding.found)?;
    for item in finding.items.iter().take(SHOWN) {
        writeln!(to, "      {item}")?;
    }
    if let Some(more) = finding
        .items
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        writeln!(to, "      and {more} more (all with -o json)")?;
    }
    if !finding.hint.is_empty() {
        writeln!(to, "    mend: {}", finding.hint)?;
    }
    if !finding.link.is_empty() {
        writeln!(to, "    see: {}", finding.link)?;
    }
    Ok(())
}

/// Prints everything.
pub(crate) fn json(facts: &Facts, findings: &[Finding], to: &mut dyn Write) -> io::Result<()> {
    let failed = findings.iter().any(|one| one.state == State::Fail);
    // Of a cluster that does not answer nobody knows.
    let failed = failed || matches!(facts.cluster, Asked::InVain);
    let all = json!({
        "version": facts.version,
        "pre": facts.pre,
        "ok": !failed,
        "findings": findings,
    });
    writeln!(to, "{all:#}")
}
