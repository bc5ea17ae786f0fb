//! As much HTTP/1.1 as it takes to read a page, and the Prometheus text format, read strictly.
//!
//! Knows nothing of the broker. Every read has a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long one read may take.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header lines, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

/// `GET path` from `addr`.
pub fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    request(
        addr,
        &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: */*\r\nConnection: close\r\n\r\n"),
    )
}

/// Sends `text` as it is and reads the answer to its end.
pub fn request(addr: SocketAddr, text: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, READ_DEADLINE)?;
    stream.set_read_timeout(Some(READ_DEADLINE))?;
    stream.write_all(text.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).context("reading the answer")?;
    parse_answer(&bytes)
}

fn parse_answer(bytes: &[u8]) -> Result<Answer> {
    let text = std::str::from_utf8(bytes).context("the answer is not UTF-8")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the header")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().context("no status line")?;
    ensure!(status_line.starts_with("HTTP/1."), "not HTTP: {status_line}");
    let status = status_line.split(' ').nth(1).context("no status")?.parse()?;
    let mut headers = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    if let Some(length) = headers.get("content-length") {
        let length: usize = length.parse()?;
        ensure!(body.len() == length, "body of {} bytes, announced {length}", body.len());
    }
    Ok(Answer { status, headers, body: body.to_owned() })
}

/// One sample of a metrics page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A metrics page that kept every rule of the text format (version 0.0.4).
#[derive(Debug, Default)]
pub struct Metrics {
    /// The declared type of each family.
    pub types: BTreeMap<String, String>,
    /// All samples in the order they came.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads a page; the error names the line.
    pub fn parse(text: &str) -> Result<Metrics> {
        ensure!(text.ends_with('\n'), "the last line has no end");
        let mut metrics = Metrics::default();
        for (number, line) in text.lines().enumerate() {
            metrics.read_line(line).with_context(|| format!("line {}: {line:?}", number + 1))?;
        }
        metrics.check_series_are_unique()?;
        metrics.check_histograms()?;
        Ok(metrics)
    }

    fn read_line(&mut self, line: &str) -> Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
            ensure!(kinds.contains(&kind), "unknown type {kind}");
            let before = self.samples.iter().any(|sample| family(&sample.name, kind) == name);
            ensure!(!before, "type after a sample");
            let again = self.types.insert(name.to_owned(), kind.to_owned()).is_some();
            ensure!(!again, "declared twice");
            return Ok(());
        }
        if line.starts_with('#') {
            return Ok(());
        }
        let sample = parse_sample(line)?;
        let declared =
            self.types.iter().any(|(name, kind)| family(&sample.name, kind) == name.as_str());
        ensure!(declared, "a sample whose type was not declared");
        self.samples.push(sample);
        Ok(())
    }

    fn check_series_are_unique(&self) -> Result<()> {
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            ensure!(
                seen.insert((&sample.name, &sample.labels)),
                "twice on one page: {} {:?}",
                sample.name,
                sample.labels
            );
        }
        Ok(())
    }

    /// Buckets rise and the last one is the count.
    fn check_histograms(&self) -> Result<()> {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut buckets: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
            for sample in self.samples.iter().filter(|s| s.name == format!("{name}_bucket")) {
                let mut labels = sample.labels.clone();
                let bound = labels.remove("le").with_context(|| format!("{name}: no le"))?;
                buckets.entry(labels).or_default().push((parse_value(&bound)?, sample.value));
            }
            for (labels, series) in buckets {
                let rising = series.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
                ensure!(rising, "{name} {labels:?}: buckets do not rise");
                let last = series.last().context("no buckets")?;
                ensure!(last.0.is_infinite(), "{name} {labels:?}: no +Inf bucket");
                let count = self.value(&format!("{name}_count"), &labels);
                ensure!(count == Some(last.1), "{name} {labels:?}: count {count:?}, +Inf {last:?}");
            }
        }
        Ok(())
    }

    /// The value of one series.
    #[must_use]
    pub fn value(&self, name: &str, labels: &BTreeMap<String, String>) -> Option<f64> {
        let found = self.samples.iter().find(|s| s.name == name && s.labels == *labels)?;
        Some(found.value)
    }

    /// All samples of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }

    /// The sum over all samples of a name; 0 where there is none.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        self.all(name).map(|sample| sample.value).sum()
    }
}

/// The family a sample's name belongs to if its family has this type.
fn family<'a>(name: &'a str, kind: &str) -> &'a str {
    let suffixes: &[&str] = match kind {
        "histogram" => &["_bucket", "_sum", "_count"],
        "summary" => &["_sum", "_count"],
        _ => &[],
    };
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn parse_sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let name = &line[..name_end];
    ensure!(is_metric_name(name), "bad name {name:?}");
    let (labels, rest) = match line[name_end..].strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (BTreeMap::new(), &line[name_end..]),
    };
    let mut fields = rest.split_whitespace();
    let value = parse_value(fields.next().context("no value")?)?;
    if let Some(timestamp) = fields.next() {
        let _milliseconds: i64 = timestamp.parse().context("a timestamp that is no number")?;
    }
    ensure!(fields.next().is_none(), "more than name, value and timestamp");
    Ok(Sample { name: name.to_owned(), labels, value })
}

fn parse_labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").context("no label value")?;
        ensure!(is_metric_name(name) && !name.contains(':'), "bad label name {name:?}");
        let (value, after) = parse_label_value(after)?;
        ensure!(labels.insert(name.to_owned(), value).is_none(), "label {name} twice");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
}

fn parse_label_value(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                other => bail!("bad escape {other:?}"),
            },
            _ => value.push(c),
        }
    }
    bail!("a label value without an end")
}

fn is_metric_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn parse_value(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => text.parse().with_context(|| format!("{text:?} is no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a_total things\n# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"\"} 3\n\
        # TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 5\nh_sum 9.5\nh_count 5\n";

    #[test]
    fn given_a_good_page_when_parsed_then_every_sample_is_there() {
        let metrics = Metrics::parse(PAGE).unwrap();
        assert_eq!(metrics.samples.len(), 5);
        assert_eq!(metrics.sum("a_total"), 3.0);
        assert_eq!(metrics.samples[0].labels["y"], "q\"");
    }

    #[test]
    fn given_a_page_with_one_fault_when_parsed_then_it_is_refused() {
        for (from, to) in [
            ("# TYPE a_total counter\n", ""),
            ("counter", "sometimes"),
            ("} 3\n", "} three\n"),
            ("y=\"q\\\"\"", "x=\"q\""),
            ("h_count 5\n", "h_count 6\n"),
            ("h_bucket{le=\"1\"} 2", "h_bucket{le=\"1\"} 7"),
            ("h_sum 9.5", "h_sum 9.5\nh_sum 9.5"),
            ("h_count 5\n", "h_count 5"),
            ("a_total{", "9a_total{"),
        ] {
            let page = PAGE.replacen(from, to, 1);
            assert_ne!(page, PAGE, "the fault {from:?} must change the page");
            assert!(Metrics::parse(&page).is_err(), "not seen: {from:?} -> {to:?}");
        }
    }
}
