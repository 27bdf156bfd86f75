//! CHAP secrets and join tokens: from a file or from standard input, never from an argument, which every user of
//! the machine can read in the list of processes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use lunette_control::join::JoinToken;
use zeroize::Zeroizing;

/// The longest secret that the control plane takes, with its line end.
const LINE_BYTES_MAX: u64 = 258;

/// What was read.
pub(super) struct Secrets {
    /// Of the initiator.
    pub(super) initiator: String,
    /// Of the target, if it is to prove itself too.
    pub(super) target: Option<String>,
}

/// Reads a join token from its file, or from standard input if that is `-`.
pub(crate) fn read_token(file: &Path) -> Result<JoinToken> {
    let file = Some(file).filter(|file| *file != Path::new("-"));
    let line = Zeroizing::new(one(file, &mut io::stdin().lock(), "the join token")?);
    Ok(JoinToken::parse(&line)?)
}

/// Reads each secret from its file; what has no file is the next line of standard input.
pub(super) fn read(initiator: Option<&Path>, mutual: bool, target: Option<&Path>) -> Result<Secrets> {
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() && (initiator.is_none() || (mutual && target.is_none())) {
        bail!("no secret: give --secret-file FILE, or pipe the secret to standard input");
    }
    Ok(Secrets {
        initiator: one(initiator, &mut stdin, "the initiator's secret")?,
        target: if mutual { Some(one(target, &mut stdin, "the target's secret")?) } else { None },
    })
}

fn one(file: Option<&Path>, stdin: &mut impl BufRead, what: &str) -> Result<String> {
    let Some(path) = file else {
        let line = first_line(stdin).context("standard input cannot be read")?;
        return nonempty(line, &format!("standard input holds no line for {what}"));
    };
    let name = path.display();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let line = first_line(&mut BufReader::new(file)).with_context(|| format!("{name} cannot be read"))?;
    nonempty(line, &format!("{name} is empty: write {what} to its first line"))
}

/// The first line without its end; the length is bounded, and what is too long stays so.
fn first_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(LINE_BYTES_MAX).read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn nonempty(line: String, otherwise: &str) -> Result<String> {
    if line.is_empty() {
        bail!("{otherwise}");
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_are_no_part_of_a_secret() {
        // Guards against a secret that ends with the newline that every editor writes.
        for (input, want) in [("abc\n", "abc"), ("abc\r\n", "abc"), ("abc", "abc"), (" a b \nx", " a b ")] {
            assert_eq!(first_line(&mut input.as_bytes()).expect("readable"), want);
        }
        let mut two = "first secret\nsecond secret\n".as_bytes();
        assert_eq!(one(None, &mut two, "a").expect("a line"), "first secret");
        assert_eq!(one(None, &mut two, "b").expect("a line"), "second secret");
        assert!(one(None, &mut two, "c").is_err());
    }
}
