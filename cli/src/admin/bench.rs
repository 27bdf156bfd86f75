//! `lunette bench`.

use std::io::Write as _;

use anyhow::{Context, Result, bail};
use lunette_control::api::admin::load::Pattern as ApiPattern;
use lunette_control::api::admin::{BenchProgress, BenchVolumeRequest, Latencies, Load};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::Connection;
use crate::args::{Bench, Pattern};
use crate::failure;
use crate::output::{Format, Table};
use crate::size::human;

const READ_PERCENT: u8 = 70;

pub(super) async fn run(bench: Bench, connection: &Connection, format: Format) -> Result<()> {
    if bench.read_percent.is_some() && bench.pattern != Pattern::Mixed {
        bail!(
            "--read-percent says how much of --pattern mixed reads; {} is no mixture",
            bench.pattern.name()
        );
    }
    let request = BenchVolumeRequest {
        name: bench.volume.clone(),
        load: Some(load(&bench)),
        destroy_data: bench.destroy_data,
    };
    let answer = connection.volumes().bench(request).await;
    let mut stream = answer.map_err(|status| connection.refused(&status))?.into_inner();
    let (mut last, mut failure) = (BenchProgress::default(), None);
    let interrupted = loop {
        let next = tokio::select! {
            next = stream.next() => next,
            signal = tokio::signal::ctrl_c() => {
                signal.context("signals cannot be waited for")?;
                break true;
            }
        };
        match next {
            Some(Ok(progress)) => {
                if !progress.ended {
                    report(&last, &progress);
                }
                last = progress;
            }
            Some(Err(status)) => {
                failure = Some(connection.refused(&status));
                break false;
            }
            None => break false,
        }
    };
    // Ends the call, and with it the load.
    drop(stream);
    // What was measured until then is worth something to people; scripts get figures of whole runs, or an error.
    let is_whole = last.ended && failure.is_none();
    if is_whole || (format == Format::Text && last.elapsed_us > 0) {
        format.print(|| text(&bench, &last), || json(&bench, &last));
    }
    match failure {
        Some(error) => Err(error),
        None if interrupted => bail!("interrupted: the load has ended before its time"),
        None if !last.ended => {
            bail!("the control plane has ended the call before the load; see `lunette status`")
        }
        None => Ok(()),
    }
}

fn load(bench: &Bench) -> Load {
    let pattern = match bench.pattern {
        Pattern::RandRead => ApiPattern::Randread,
        Pattern::RandWrite => ApiPattern::Randwrite,
        Pattern::Read => ApiPattern::Read,
        Pattern::Write => ApiPattern::Write,
        Pattern::Mixed => ApiPattern::Mixed,
    };
    Load {
        pattern: pattern.into(),
        read_percent: bench.read_percent.unwrap_or(READ_PERCENT).into(),
        block_bytes: bench.block_size,
        depth: bench.depth,
        duration_ms: u64::try_from(bench.duration.as_millis()).unwrap_or(u64::MAX),
        start_bytes: bench.range.map_or(0, |range| range.start),
        end_bytes: bench.range.and_then(|range| range.end).unwrap_or(0),
        seed: bench.seed,
        durable: bench.durable,
    }
}

/// One line on standard error: the rate since the last one, and latencies so far. Nobody has to read it.
fn report(last: &BenchProgress, now: &BenchProgress) {
    let (old, all) = (last.all.unwrap_or_default(), now.all.unwrap_or_default());
    let seconds = seconds(now.elapsed_us.saturating_sub(last.elapsed_us));
    let rate = Rate::of(&all, old.operations, old.bytes, seconds);
    let mut err = std::io::stderr().lock();
    let _ = writeln!(
        err,
        "{:>4} s  {:>9.0} ops/s  {:>8.1} MB/s  p50 {} us  p99 {} us  max {} us",
        now.elapsed_us / 1_000_000,
        rate.operations,
        rate.megabytes,
        us(all.p50_ns),
        us(all.p99_ns),
        us(all.max_ns),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a benchmark's figures have few digits")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

struct Rate {
    operations: f64,
    megabytes: f64,
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "a benchmark's figures have few digits")]
    fn of(all: &Latencies, operations: u64, bytes: u64, seconds: f64) -> Self {
        let over = if seconds > 0.0 { seconds } else { f64::INFINITY };
        Self {
            operations: all.operations.saturating_sub(operations) as f64 / over,
            megabytes: all.bytes.saturating_sub(bytes) as f64 / 1e6 / over,
        }
    }
}

/// Microseconds with one decimal.
fn us(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

/// How writes were acknowledged.
fn durability(bench: &Bench, progress: &BenchProgress) -> &'static str {
    if bench.durable || !progress.write_back { "durable" } else { "write-back" }
}

fn parts(progress: &BenchProgress) -> [(&'static str, Latencies); 3] {
    let latencies = |of: Option<Latencies>| of.unwrap_or_default();
    [
        ("all", latencies(progress.all)),
        ("reads", latencies(progress.reads)),
        ("writes", latencies(progress.writes)),
    ]
}

fn text(bench: &Bench, progress: &BenchProgress) -> String {
    let elapsed = seconds(progress.elapsed_us);
    let mut text = format!(
        "{} of {}, {} at a time, {elapsed:.1} s on volume {} at gateway {}",
        bench.pattern.name(),
        human(bench.block_size.into()),
        bench.depth,
        failure::one_line(&bench.volume),
        progress.gateway,
    );
    let parts = parts(progress);
    if parts.iter().any(|(name, part)| *name == "writes" && part.operations > 0) {
        text.push_str(&format!(", {} writes", durability(bench, progress)));
    }
    text.push('\n');
    let headings = ["", ">OPS/S", ">MB/S", ">MEAN us", ">P50", ">P90", ">P99", ">P99.9", ">MAX"];
    let mut table = Table::new(&headings);
    let is_mixed = bench.pattern == Pattern::Mixed;
    for (name, part) in parts.iter().filter(|(name, _)| is_mixed || *name == "all") {
        let rate = Rate::of(part, 0, 0, elapsed);
        table.row([
            (*name).to_owned(),
            format!("{:.0}", rate.operations),
            format!("{:.1}", rate.megabytes),
            us(part.mean_ns),
            us(part.p50_ns),
            us(part.p90_ns),
            us(part.p99_ns),
            us(part.p999_ns),
            us(part.max_ns),
        ]);
    }
    text.push_str(&table.text());
    text
}

fn json(bench: &Bench, progress: &BenchProgress) -> Value {
    let elapsed = seconds(progress.elapsed_us);
    let mut value = json!({
        "volume": bench.volume, "gateway": progress.gateway, "pattern": bench.pattern.name(),
        "block_bytes": bench.block_size, "depth": bench.depth, "seed": bench.seed,
        "start_bytes": bench.range.map_or(0, |range| range.start),
        "end_bytes": bench.range.and_then(|range| range.end),
        "writes_are": durability(bench, progress),
        "elapsed_s": elapsed,
    });
    if bench.pattern == Pattern::Mixed {
        value["read_percent"] = bench.read_percent.unwrap_or(READ_PERCENT).into();
    }
    for (name, part) in parts(progress) {
        let rate = Rate::of(&part, 0, 0, elapsed);
        value[name] = json!({
            "operations": part.operations, "bytes": part.bytes,
            "operations_s": rate.operations, "megabytes_s": rate.megabytes,
            "mean_us": micros(part.mean_ns), "p50_us": micros(part.p50_ns), "p90_us": micros(part.p90_ns),
            "p99_us": micros(part.p99_ns), "p999_us": micros(part.p999_ns), "max_us": micros(part.max_ns),
        });
    }
    value
}

#[expect(clippy::cast_precision_loss, reason = "a benchmark's figures have few digits")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn bench(line: &str) -> Bench {
        let words = ["lunette", "bench"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).expect(line).command {
            Command::Bench(bench) => bench,
            other => panic!("{other:?}"),
        }
    }

    fn progress() -> BenchProgress {
        let reads = Latencies {
            operations: 20_000,
            bytes: 81_920_000,
            mean_ns: 1500,
            p50_ns: 1449,
            p90_ns: 90_000,
            p99_ns: 99_000,
            p999_ns: 999_000,
            max_ns: 1_000_000,
        };
        let writes = Latencies { operations: 10_000, bytes: 40_960_000, ..reads };
        let all = Latencies { operations: 30_000, bytes: 122_880_000, ..reads };
        BenchProgress {
            gateway: "gateway1".to_owned(),
            elapsed_us: 2_000_000,
            write_back: true,
            all: Some(all),
            reads: Some(reads),
            writes: Some(writes),
            ended: true,
        }
    }

    #[test]
    fn rates_are_over_the_time_that_was_measured() {
        // Guards against figures of another unit, and against write-back writes that are called durable.
        let bench = bench("v --pattern mixed");
        let value = json(&bench, &progress());
        assert_eq!(value["all"]["operations_s"], 15_000.0);
        assert_eq!(value["all"]["megabytes_s"], 61.44);
        assert_eq!(value["reads"]["p99_us"], 99.0);
        assert_eq!((&value["read_percent"], &value["writes_are"]), (&json!(70), &json!("write-back")));
        let text = text(&bench, &progress());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "mixed of 4KiB, 32 at a time, 2.0 s on volume v at gateway gateway1, write-back writes"
        );
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            cells(lines[2]),
            ["all", "15000", "61.4", "1.5", "1.4", "90.0", "99.0", "999.0", "1000.0"]
        );
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn durable_is_what_was_asked_for_or_what_the_volume_is() {
        // Guards against the speed of one kind of write under the name of the other.
        let of = |line, write_back| {
            durability(&bench(line), &BenchProgress { write_back, ..BenchProgress::default() })
        };
        assert_eq!(of("v", false), "durable");
        assert_eq!(of("v --durable", true), "durable");
        assert_eq!(of("v", true), "write-back");
    }

    #[test]
    fn nothing_measured_has_a_result() {
        // Guards against a division by no time.
        let value = json(&bench("v"), &BenchProgress::default());
        assert_eq!(value["all"]["operations_s"], 0.0);
    }
}
