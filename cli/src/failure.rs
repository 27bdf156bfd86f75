//! What a command says when it fails: one line on standard error that names what is wrong and what
//! to do, and exit code 1.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use tonic::{Code, Status};

use crate::args::Cli;

/// Prints the one line.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    complain(&chain(error));
    ExitCode::FAILURE
}

/// An error and its causes in one line. Some errors name their cause themselves: nothing is said twice.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = one_line(&cause.to_string());
        match said.as_str() {
            "" => cause,
            said if said.ends_with(&cause) => said.to_owned(),
            said => format!("{said}: {cause}"),
        }
    })
}

/// Writes `lunette: ` and the line to standard error. A closed standard error is nobody's loss.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "lunette: {}", one_line(line));
}

/// Folds all white space, line ends too, into single spaces.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// What clap found wrong, in one line; `Ok` bears the text of `--help` and `--version`.
/// `words` is the command line.
pub(crate) fn usage(error: &clap::Error, words: &[String]) -> Result<String, String> {
    let rendered = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Ok(rendered);
    }
    let help = format!("see `{} --help`", command_of(&rendered, words));
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        return Err(format!("a command is missing; {help}"));
    }
    // The first paragraph says what is wrong; what follows are tips, the usage and where help is.
    let first: Vec<&str> = rendered.lines().take_while(|line| !line.trim().is_empty()).collect();
    let wrong = one_line(&first.join(" "));
    let wrong = numbers(wrong.strip_prefix("error: ").unwrap_or(&wrong));
    let similar = match error.get(ContextKind::SuggestedSubcommand).or(error.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(one)) => format!("; did you mean '{one}'?"),
        Some(ContextValue::Strings(some)) if !some.is_empty() => {
            format!("; did you mean '{}'?", some.join("' or '"))
        }
        _ => format!("; {help}"),
    };
    Err(format!("{wrong}{similar}"))
}

/// What the standard library says of numbers, in words of ours.
fn numbers(wrong: &str) -> String {
    let what = [
        ("invalid digit found in string", "write a whole number"),
        ("cannot parse integer from empty string", "write a whole number"),
        ("number too large to fit in target type", "the number is too large"),
        ("number too small to fit in target type", "the number is too small"),
    ];
    what.iter().fold(wrong.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

/// The command that a usage message is about: the words after `Usage:` up to the first option or value, or, if it has no such
/// line, the commands that the command line names.
fn command_of(rendered: &str, words: &[String]) -> String {
    if let Some(usage) = rendered.lines().find_map(|line| line.trim().strip_prefix("Usage: ")) {
        let is_name = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
        let words: Vec<&str> = usage.split(' ').take_while(is_name).collect();
        return if words.is_empty() { "lunette".to_owned() } else { words.join(" ") };
    }
    let whole = Cli::command();
    let (mut command, mut path) = (&whole, "lunette".to_owned());
    for word in words.iter().skip(1) {
        if let Some(inner) = command.find_subcommand(word) {
            command = inner;
            path.push(' ');
            path.push_str(inner.get_name());
        }
    }
    path
}

/// What the control plane answered, as an error of ours.
pub(crate) fn answered(status: &Status, admin: &str) -> anyhow::Error {
    let message = one_line(status.message());
    match status.code() {
        // The connection broke, as opposed to the server saying that it is not ready.
        Code::Unavailable | Code::Unknown if status.source().is_some() => {
            anyhow!("the connection to the control plane at {admin} broke: {}; try again", root_cause(status))
        }
        Code::Unavailable => anyhow!("{message}; try again in a moment"),
        Code::DeadlineExceeded | Code::Cancelled => {
            anyhow!("the control plane at {admin} does not answer; see `lunette status`")
        }
        Code::Unimplemented => {
            anyhow!("what answers at {admin} is no control plane of this version of Lunette; check --admin")
        }
        Code::Internal if message.is_empty() || status.source().is_some() => {
            anyhow!("the control plane at {admin} broke off: {}", root_cause(status))
        }
        _ => anyhow!("{message}"),
    }
}

/// The innermost error: the one that says what happened.
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn complaint(line: &str) -> String {
        let words = std::iter::once("lunette").chain(line.split(' ').filter(|word| !word.is_empty()));
        let words: Vec<String> = words.map(str::to_owned).collect();
        let error = Cli::try_parse_from(&words).expect_err("wrong on purpose");
        usage(&error, &words).expect_err("not a help text")
    }

    #[test]
    fn a_usage_error_is_one_line_that_says_what_to_do() {
        // Guards against clap's page of usage where one line was promised.
        let table = [
            ("", "a command is missing; see `lunette --help`"),
            ("volume", "a command is missing; see `lunette volume --help`"),
            (
                "volume create v --size 10X",
                "invalid value '10X' for '--size <SIZE>': unknown unit 'X': use K, M, G, T or P (powers of 1024), \
                 such as 10G or 512MiB",
            ),
            (
                "volume create v --size 0",
                "invalid value '0' for '--size <SIZE>': a size of 0 holds nothing: give at least 4K",
            ),
            (
                "volume create v",
                "the following required arguments were not provided: --size <SIZE>; see `lunette volume create --help`",
            ),
            (
                "volume create v --size -5G",
                "invalid value '-5G' for '--size <SIZE>': not a size: write a number and a unit, such as 10G or 512MiB; \
                 see `lunette volume create --help`",
            ),
            (
                "volume create v --size 1G --stripe-unit 64K --stripe-width abc",
                "invalid value 'abc' for '--stripe-width <W>': write a whole number; see `lunette volume create --help`",
            ),
            (
                "up --portal foo",
                "invalid value 'foo' for '--portal <ADDR:PORT>': write ADDR:PORT, such as 10.0.0.1:3260 or [fd00::1]:3260; \
                 see `lunette up --help`",
            ),
            ("volume make v", "unrecognized subcommand 'make'; see `lunette volume --help`"),
            ("volume creat v", "unrecognized subcommand 'creat'; did you mean 'create'?"),
        ];
        for (line, want) in table {
            let got = complaint(line);
            assert!(!got.contains('\n'), "{got}");
            assert!(got.starts_with(want), "{line}: {got}");
        }
    }

    #[test]
    fn a_cause_is_named_once() {
        // Guards against `no space left: no space left`, and against causes that are left out.
        let cause = || std::io::Error::other("no space left");
        let named = anyhow::Error::new(cause()).context("disk.tmp: cannot make room: no space left");
        assert_eq!(chain(&named), "disk.tmp: cannot make room: no space left");
        let apart = anyhow::Error::new(cause()).context("cannot make room").context("disk.tmp");
        assert_eq!(chain(&apart), "disk.tmp: cannot make room: no space left");
    }

    #[test]
    fn help_is_not_an_error() {
        // Guards against `--help` on standard error, or cut to a line.
        let error = Cli::try_parse_from(["lunette", "volume", "--help"]).expect_err("clap reports help so");
        let text = usage(&error, &[]).expect("help");
        assert!(text.lines().count() > 5, "{text}");
    }
}
