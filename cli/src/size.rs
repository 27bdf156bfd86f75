//! Sizes as people write them: `10G`, `512MiB`, `1.5TiB`, `4096`.
//!
//! K, M, G, T and P are powers of 1024, with or without `iB`. `KB`, `MB`, ... are refused: half of
//! the world means powers of 1000 by them, and a disk of the wrong size cannot be shrunk again.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Visitor};

use lunette_proto::limits::BLOCK_BYTES;

/// A size that is not 0 and a whole number of 4 KiB blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    bytes: u64,
}

/// Units by their letter: the power of two.
const UNITS: [(char, u32); 5] = [('k', 10), ('m', 20), ('g', 30), ('t', 40), ('p', 50)];
/// Digits that are looked at; more could not be a size that fits.
const DIGITS_MAX: usize = 20;

impl Size {
    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }

    fn from_bytes(bytes: u64) -> Result<Self, SizeError> {
        if bytes == 0 {
            return Err(SizeError::Zero);
        }
        if !bytes.is_multiple_of(u64::from(BLOCK_BYTES)) {
            return Err(SizeError::NotBlocks);
        }
        Ok(Self { bytes })
    }
}

/// What is wrong with a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    NotANumber,
    UnknownUnit(String),
    Decimal(char),
    Zero,
    NotBlocks,
    TooLarge,
}

impl std::error::Error for SizeError {}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANumber => f.write_str("not a size: write a number and a unit, such as 10G or 512MiB"),
            Self::UnknownUnit(unit) => {
                write!(
                    f,
                    "unknown unit '{unit}': use K, M, G, T or P (powers of 1024), such as 10G or 512MiB"
                )
            }
            Self::Decimal(letter) => {
                let letter = letter.to_ascii_uppercase();
                write!(f, "'{letter}B' is ambiguous: write {letter} or {letter}iB, a power of 1024")
            }
            Self::Zero => f.write_str("a size of 0 holds nothing: give at least 4K"),
            Self::NotBlocks => {
                f.write_str("not a whole number of 4 KiB blocks: round it to a multiple of 4K")
            }
            Self::TooLarge => f.write_str("too large: the largest volume has 1P"),
        }
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(SizeError::NotANumber);
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let shift = unit_shift(unit.trim())?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let dotted_badly = number.contains('.') && fraction.is_empty();
        if whole.is_empty() || dotted_badly || fraction.contains('.') {
            return Err(SizeError::NotANumber);
        }
        let fraction = fraction.trim_end_matches('0');
        let whole = whole.trim_start_matches('0');
        if whole.len() > DIGITS_MAX {
            return Err(SizeError::TooLarge);
        }
        if fraction.len() > DIGITS_MAX {
            return Err(SizeError::NotBlocks);
        }
        // 20 digits times 2^50 stay below 2^117: nothing overflows in 128 bits.
        let whole = digits(whole) << shift;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most DIGITS_MAX"));
        let part = digits(fraction) << shift;
        if !part.is_multiple_of(scale) {
            return Err(SizeError::NotBlocks);
        }
        Self::from_bytes(u64::try_from(whole + part / scale).map_err(|_| SizeError::TooLarge)?)
    }
}

/// The value of at most [`DIGITS_MAX`] ASCII digits; none are 0.
fn digits(text: &str) -> u128 {
    text.bytes().fold(0, |value, digit| value * 10 + u128::from(digit - b'0'))
}

fn unit_shift(unit: &str) -> Result<u32, SizeError> {
    let unknown = || SizeError::UnknownUnit(unit.to_owned());
    let lower = unit.to_ascii_lowercase();
    let mut letters = lower.chars();
    let Some(letter) = letters.next() else { return Ok(0) };
    if lower == "b" {
        return Ok(0);
    }
    let &(letter, shift) = UNITS.iter().find(|(known, _)| *known == letter).ok_or_else(unknown)?;
    match letters.as_str() {
        "" | "ib" => Ok(shift),
        "b" => Err(SizeError::Decimal(letter)),
        _ => Err(unknown()),
    }
}

/// In the largest unit that gives a whole number, else with one decimal: `10GiB`, `1.5TiB`, `512B`.
pub(crate) fn human(bytes: u64) -> String {
    for (letter, shift) in UNITS.iter().rev() {
        let unit = 1_u64 << shift;
        if bytes >= unit {
            let letter = letter.to_ascii_uppercase();
            let tenths = (u128::from(bytes) * 10) >> shift;
            return if bytes.is_multiple_of(unit) {
                format!("{}{letter}iB", bytes >> shift)
            } else {
                format!("{}.{}{letter}iB", tenths / 10, tenths % 10)
            };
        }
    }
    format!("{bytes}B")
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS.iter().rev() {
            if self.bytes.is_multiple_of(1 << shift) {
                return write!(f, "{}{}iB", self.bytes >> shift, letter.to_ascii_uppercase());
            }
        }
        write!(f, "{}", self.bytes)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"10G\", or a number of bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                let bytes = u64::try_from(bytes).map_err(|_| E::custom(SizeError::NotANumber))?;
                Size::from_bytes(bytes).map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Size::from_bytes(bytes).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        // Guards against units of 1000, against case mattering, and against floats that round.
        let table = [
            ("4096", 4096),
            ("4096B", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("512MiB", 536_870_912),
            ("512m", 536_870_912),
            ("10G", 10_737_418_240),
            ("10 GiB", 10_737_418_240),
            (" 10gib ", 10_737_418_240),
            ("1.5G", 1_610_612_736),
            ("1T", 1_099_511_627_776),
            ("1TiB", 1_099_511_627_776),
            ("1P", 1_125_899_906_842_624),
            ("2.25T", 2_473_901_162_496),
            ("010G", 10_737_418_240),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_its_reason() {
        // Guards against a volume of another size than the one that was meant.
        let table = [
            ("", SizeError::NotANumber),
            ("G", SizeError::NotANumber),
            ("-1G", SizeError::NotANumber),
            ("1.G", SizeError::NotANumber),
            (".5G", SizeError::NotANumber),
            ("1.2.3G", SizeError::NotANumber),
            ("0", SizeError::Zero),
            ("0G", SizeError::Zero),
            ("0.0G", SizeError::Zero),
            ("10X", SizeError::UnknownUnit("X".into())),
            ("10GiBs", SizeError::UnknownUnit("GiBs".into())),
            ("10Gb", SizeError::Decimal('g')),
            ("10MB", SizeError::Decimal('m')),
            ("4097", SizeError::NotBlocks),
            ("512", SizeError::NotBlocks),
            ("0.3G", SizeError::NotBlocks),
            ("1.0000000000000000000001G", SizeError::NotBlocks),
            ("99999999999999999999999999P", SizeError::TooLarge),
            ("18446744073709551616", SizeError::TooLarge),
            ("16384P", SizeError::TooLarge),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Size>(), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        // Guards against a listing that says 0GiB, or rounds a size up.
        let table = [
            (0, "0B"),
            (512, "512B"),
            (4096, "4KiB"),
            (1_610_612_736, "1.5GiB"),
            (10_737_418_240, "10GiB"),
            (10_737_418_239, "9.9GiB"),
            (u64::MAX, "16383.9PiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text);
        }
        for text in ["4KiB", "1536MiB", "10GiB", "4100KiB"] {
            assert_eq!(text.parse::<Size>().expect("valid").to_string(), text);
        }
    }
}
