//! libiscsi's conformance suite, `iscsi-test-cu`, and what its output really says.
//!
//! CUnit counts a skipped test as passed, and how the program ends does not always say whether tests failed, so the
//! verdict is read from the log: after each `Test: NAME ...` come `[SKIPPED]` lines or `FAILED`.

use std::process::Command;
use std::time::Duration;

use crate::command::run;

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

/// Runs tests of the conformance suite, `FAMILY[.SUITE[.TEST]]` with the wildcards of a shell, over one path or two; it
/// destroys the LUN's data.
///
/// # Panics
/// If the program aborts, runs nothing, or counts other tests or failures than its log shows.
#[must_use]
pub fn run_suite(tests: &[&str], urls: &[&str], limit: Duration) -> Vec<Case> {
    let tests = tests.join(",");
    let mut command = Command::new("iscsi-test-cu");
    let outcome = run(command.args(["-d", "-S", "-v", "-t", &tests]).args(urls), limit);
    let cases = parse(&outcome.stdout);
    assert!(!cases.is_empty(), "no test ran: {outcome}");
    let failed = cases.iter().filter(|case| case.verdict == Verdict::Failed).count();
    assert!(outcome.ok() || failed > 0, "{outcome}");
    let summary = Summary { total: cases.len(), ran: cases.len(), failed, inactive: 0 };
    assert_eq!(Summary::of(&outcome.stdout), Some(summary), "the suite's own count: {outcome}");
    cases
}

/// The names of all tests of the suite, as SUITE.TEST, in their order.
#[must_use]
pub fn all_tests() -> Vec<String> {
    let list = run(Command::new("iscsi-test-cu").arg("-l"), Duration::from_secs(10)).success();
    let names = list.lines().filter_map(|line| line.strip_prefix("ALL."));
    names.filter(|name| name.contains('.')).map(str::to_owned).collect()
}

/// What CUnit counts of the tests at the end. Those that were skipped have passed, there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    total: usize,
    ran: usize,
    failed: usize,
    inactive: usize,
}

impl Summary {
    fn of(log: &str) -> Option<Self> {
        let (_, summary) = log.split_once("Run Summary:")?;
        let line = summary.lines().find_map(|line| line.trim().strip_prefix("tests "))?;
        let numbers = line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<_>>>()?;
        match numbers[..] {
            [total, ran, _, failed, inactive] => Some(Self { total, ran, failed, inactive }),
            _ => None,
        }
    }
}

/// A test that does not pass, and why that is right.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    /// SUITE.TEST.
    pub name: &'static str,
    /// Skipped, or failed.
    pub verdict: Verdict,
    /// Where its assertions fail, as `FILE:LINE`; none if it is skipped.
    pub at: &'static [&'static str],
    /// Why.
    pub reason: &'static str,
}

impl Exception {
    /// A test that says of itself that it cannot be run here.
    #[must_use]
    pub const fn skipped(name: &'static str, reason: &'static str) -> Self {
        Self { name, verdict: Verdict::Skipped, at: &[], reason }
    }

    /// A test whose assertions at these places are wrong.
    #[must_use]
    pub const fn wrong(name: &'static str, at: &'static [&'static str], reason: &'static str) -> Self {
        Self { name, verdict: Verdict::Failed, at, reason }
    }
}

/// What is not as it should be, for people to read: tests that neither passed nor are an exception, exceptions that ran
/// after all or failed elsewhere, and exceptions that no test has the name of. Nothing is an empty text.
#[must_use]
pub fn deviations(cases: &[Case], exceptions: &[Exception]) -> String {
    let mut wrong = String::new();
    for case in cases {
        let expected = exceptions.iter().find(|exception| exception.name == case.name);
        let verdict = expected.map_or(Verdict::Passed, |exception| exception.verdict);
        let at = expected.map_or(&[][..], |exception| exception.at);
        if case.verdict != verdict {
            let reason = expected.map_or("", |exception| exception.reason);
            wrong += &format!(
                "=== {}: {:?}, expected {verdict:?} {reason}\n{}",
                case.name, case.verdict, case.log
            );
        } else if failures(&case.log) != at {
            wrong += &format!("=== {}: fails elsewhere than at {at:?}\n{}", case.name, case.log);
        }
    }
    for exception in exceptions {
        if !cases.iter().any(|case| case.name == exception.name) {
            wrong += &format!("=== {}: no such test ran\n", exception.name);
        }
    }
    wrong
}

/// Where assertions failed: CUnit numbers them after the test, as `1. FILE:LINE  - ASSERTION`.
fn failures(log: &str) -> Vec<&str> {
    fn place(line: &str) -> Option<&str> {
        let (number, rest) = line.trim().split_once(". ")?;
        let (place, _) = rest.split_once("  - CU_")?;
        number.parse::<u32>().is_ok().then_some(place)
    }
    log.lines().filter_map(place).collect()
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

    #[test]
    fn deviations_are_told() {
        // Guards against an exception that hides another failure, or outlives its reason.
        let cases = parse(LOG);
        let skipped = Exception::skipped("Read10.DpoFua", "");
        let wrong = Exception::wrong("Read10.BeyondEol", &["test_read10_beyond_eol.c:40"], "");
        let told = |exceptions: &[Exception]| -> Vec<String> {
            let all = deviations(&cases, exceptions);
            let heads = all.lines().filter_map(|line| line.strip_prefix("=== "));
            heads.filter_map(|head| Some(head.split_once(':')?.0.to_owned())).collect()
        };
        assert_eq!(deviations(&cases, &[skipped, wrong]), "");
        assert_eq!(told(&[]), ["Read10.DpoFua", "Read10.BeyondEol"]);
        assert_eq!(
            told(&[skipped, Exception { at: &["test_read10_beyond_eol.c:41"], ..wrong }]),
            ["Read10.BeyondEol"]
        );
        let (ran, gone) = (Exception::skipped("Read10.Simple", ""), Exception::skipped("Read10.Gone", ""));
        assert_eq!(told(&[skipped, wrong, ran, gone]), ["Read10.Simple", "Read10.Gone"]);
        assert_eq!(told(&[wrong, Exception { name: "Read10.DpoFua", ..wrong }]), ["Read10.DpoFua"]);
    }

    #[test]
    fn the_count_is_read() {
        // Guards against a suite that ends early, or runs more than its log shows.
        let line = "     tests    230    229    226      3        1\n";
        let summary = Summary { total: 230, ran: 229, failed: 3, inactive: 1 };
        assert_eq!(Summary::of(&format!("{LOG} suites 51 51 n/a 0 0\n{line}")), Some(summary));
        assert_eq!(Summary::of(LOG), None);
        assert_eq!(Summary::of(line), None);
    }
}
