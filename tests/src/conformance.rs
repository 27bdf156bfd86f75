//! libiscsi's conformance suite, `iscsi-test-cu`, and what its output really says.
//!
//! CUnit counts a skipped test as passed and the program ends with 0 also when tests failed, so the
//! verdict is read from the log: after each `Test: NAME ...` come `[SKIPPED]` lines or `FAILED`.

use std::process::Command;
use std::time::Duration;

use crate::command::{Outcome, run};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ran, and all its assertions held.
    Passed,
    /// It found that the target does not have what it tests.
    Skipped,
    /// An assertion failed.
    Failed,
}

/// One test of the suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// SUITE.TEST.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What it printed.
    pub log: String,
}

/// Runs one test, suite or family of the conformance suite; it destroys the LUN's data.
///
/// # Panics
/// If the program aborts, or ran nothing.
#[must_use]
pub fn run_suite(family: &str, url: &str, limit: Duration) -> Vec<Case> {
    let outcome = run(Command::new("iscsi-test-cu").args(["-d", "-S", "-v", "-t", family, url]), limit);
    assert!(outcome.ok(), "{outcome}");
    let cases = parse(&outcome.stdout);
    assert!(!cases.is_empty(), "no test ran: {outcome}");
    assert!(summary_is_there(&outcome), "the suite did not reach its end: {outcome}");
    cases
}

fn summary_is_there(outcome: &Outcome) -> bool {
    outcome.stdout.contains("Run Summary:")
}

/// Reads the log of a run.
///
/// What comes after a test's `passed` is the suite's own tidying up, also on the same line.
#[must_use]
pub fn parse(log: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut suite = "";
    let mut running = false;
    for line in log.lines() {
        let mut said = line.trim();
        if let Some(name) = said.strip_prefix("Suite: ") {
            suite = name.trim();
            running = false;
        } else if said.starts_with("Run Summary:") {
            break;
        } else if let Some(rest) = said.strip_prefix("Test: ") {
            let (name, rest) = rest.split_once("...").unwrap_or((rest, ""));
            cases.push(Case {
                name: format!("{suite}.{}", name.trim()),
                verdict: Verdict::Passed,
                log: String::new(),
            });
            running = true;
            said = rest.trim();
        }
        let Some(case) = cases.last_mut() else { continue };
        case.log.push_str(line);
        case.log.push('\n');
        if !running {
            continue;
        }
        if said.starts_with("passed") {
            running = false;
        } else if said.ends_with("FAILED") {
            case.verdict = Verdict::Failed;
            running = false;
        } else if said.contains("[SKIPPED]") {
            case.verdict = Verdict::Skipped;
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iscsi-test-cu 1.19.0 prints it.
    const LOG: &str = "
     CUnit - A unit testing framework for C - Version 2.1-3

Suite: Read10
  Test: Simple ...
    Test READ10 of 1-256 blocks at the start of the LUN
    [OK] READ10 returned SUCCESS.
passed
  Test: DpoFua ...
    [SKIPPED] READ10 is not implemented.
passed
  Test: BeyondEol ...
    [FAILED] READ10 returned SUCCESS
FAILED
    1. test_read10_beyond_eol.c:40  - CU_ASSERT_EQUAL(ret,0)
  Test: Async ...passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Run Summary:    Type  Total    Ran Passed Failed Inactive
";

    #[test]
    fn skipped_and_failed_are_not_passed() {
        // Guards against taking CUnit's own count, in which a skipped test has passed.
        let verdicts: Vec<_> = parse(LOG).into_iter().map(|case| (case.name, case.verdict)).collect();
        let wanted = [
            ("Read10.Simple", Verdict::Passed),
            ("Read10.DpoFua", Verdict::Skipped),
            ("Read10.BeyondEol", Verdict::Failed),
            ("Read10.Async", Verdict::Passed),
        ];
        assert_eq!(verdicts, wanted.map(|(name, verdict)| (name.to_owned(), verdict)));
    }
}
