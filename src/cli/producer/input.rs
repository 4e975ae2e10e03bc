//! Jobs as they come in: from flags, or line by line in bounded memory.

use std::{io, path::Path};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};

use super::{Args, LineSet, Options, Request};
use crate::{
    cli::{Error, Exit},
    config::Config,
    job::{Invalid, Job},
};

/// A job with its place in the input, or why it is none.
#[derive(Debug)]
pub(super) struct Item {
    /// From 1.
    pub(super) line: u64,
    /// Bytes of input up to and with it.
    pub(super) offset: u64,
    pub(super) job: Result<Job, Invalid>,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Where jobs come from.
pub(super) enum Source {
    /// From flags; `None` once it is taken.
    One(Option<Box<Job>>),
    /// From a file or standard input.
    Many(Box<File>),
}

/// Lines, and what flags make of each.
pub(super) struct File {
    lines: Lines<BufReader<Reader>>,
    /// The lines that are meant.
    meant: LineSet,
    request: Request,
    options: Options,
    prefix: Option<String>,
    /// A line has been read.
    begun: bool,
    /// Bytes in all, where that is known.
    size: Option<u64>,
}

impl Source {
    /// Opens what the arguments name.
    pub(super) async fn open(args: &Args, config: &Config) -> Result<Self, Error> {
        let Some(path) = &args.file else {
            return Ok(Self::One(Some(Box::new(
                args.one.job(&args.request, &args.options).await?,
            ))));
        };
        let (reader, size) = open(path).await.map_err(|e| {
            let cause = format!("cannot read {}: {e}", path.display());
            Error::new(Exit::Usage, cause, "name a file of JSON Lines, or - for standard input")
        })?;
        // A line may hold white space and an envelope that the encoded job does not.
        let limit = config.producer.max_payload.saturating_mul(2).saturating_add(64 * 1024);
        Ok(Self::Many(Box::new(File {
            lines: Lines::new(BufReader::with_capacity(64 * 1024, reader), limit),
            meant: args.lines.clone().unwrap_or_else(LineSet::all),
            request: args.request.clone(),
            options: args.options.clone(),
            prefix: args.idempotency_prefix.clone(),
            begun: false,
            size,
        })))
    }

    /// Whether the job comes from flags.
    pub(super) fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }

    /// Bytes of input in all, where that is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::One(_) => None,
            Self::Many(file) => file.size,
        }
    }

    /// The next job, `None` at the end. A call that is dropped loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Option<Item>> {
        match self {
            Self::One(job) => Ok(job.take().map(|job| Item { line: 1, offset: 0, job: Ok(*job) })),
            Self::Many(file) => loop {
                let Some(line) = file.lines.next().await? else { return Ok(None) };
                let Line { number, offset, mut bytes } = line;
                if !std::mem::replace(&mut file.begun, true) {
                    bytes = match bytes {
                        Ok(line) => Ok(first(line, number)?),
                        refused => refused,
                    };
                }
                if file.meant.is_below(number) {
                    return Ok(None);
                }
                if file.meant.contains(number) {
                    let job = bytes.and_then(|bytes| file.job(number, &bytes));
                    return Ok(Some(Item { line: number, offset, job }));
                }
            },
        }
    }
}

async fn open(path: &Path) -> io::Result<(Reader, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let file = tokio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    // A pipe or device has no size.
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

impl File {
    fn job(&self, number: u64, bytes: &[u8]) -> Result<Job, Invalid> {
        let mut job = Job::draft(bytes)?;
        self.request.apply(&mut job.request)?;
        self.options.apply(&mut job);
        if let (Some(prefix), None) = (&self.prefix, &job.idempotency_key) {
            job.idempotency_key = Some(key(prefix, job.custom_id.as_deref(), number));
        }
        job.check()?;
        Ok(job)
    }
}

/// The key of a job without one. The `#` keeps the line 7 apart from a `custom_id` of 7.
fn key(prefix: &str, custom_id: Option<&str>, line: u64) -> String {
    match custom_id {
        Some(id) => format!("{prefix}:{id}"),
        None => format!("{prefix}:#{line}"),
    }
}

/// The first line without a byte order mark; an error that names the format, where the file is of another.
fn first(mut line: Vec<u8>, number: u64) -> io::Result<Vec<u8>> {
    if line.starts_with(b"\xEF\xBB\xBF") {
        line.drain(..3);
    }
    let begins = line.trim_ascii_start();
    let other = if is_utf16(&line) {
        "it is UTF-16; allowed: JSON Lines in UTF-8, such as `iconv -f UTF-16 -t UTF-8 FILE` makes"
    } else if begins.starts_with(b"[") {
        "it is a JSON array; allowed: JSON Lines, one object a line, such as `jq -c '.[]' FILE` makes"
    } else if begins.starts_with(b"\x1F\x8B") {
        "it is compressed by gzip; allowed: JSON Lines, such as `gzip -dc FILE` makes"
    } else if !begins.starts_with(b"{") && begins.contains(&b',') && !begins.contains(&b'{') {
        "it looks like CSV; allowed: JSON Lines, one object a line, such as {\"messages\": [...]}"
    } else {
        return Ok(line);
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {other}")))
}

/// Whether a line begins as UTF-16 does: by its byte order mark, or by a brace or bracket of two bytes.
fn is_utf16(line: &[u8]) -> bool {
    let begins: [&[u8]; 6] = [b"\xFF\xFE", b"\xFE\xFF", b"{\0", b"\0{", b"[\0", b"\0["];
    begins.iter().any(|begin| line.starts_with(begin))
}

/// The exit code of an input that cannot be read, or is in a format that is not taken.
pub(super) fn unread(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::InvalidData => Exit::Usage,
        _ => Exit::Unexpected,
    }
}

/// One line of the input that is not empty.
#[derive(Debug)]
struct Line {
    number: u64,
    offset: u64,
    bytes: Result<Vec<u8>, Invalid>,
}

/// Reads lines of at most `limit` bytes; of a longer one only the length is kept.
struct Lines<R> {
    reader: R,
    limit: usize,
    number: u64,
    offset: u64,
    /// What was read of the current line.
    part: Vec<u8>,
    length: usize,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, number: 0, offset: 0, part: Vec::new(), length: 0 }
    }

    /// The next line that is not empty. A call that is dropped goes on at the next call.
    async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            let at_end = bytes.is_empty();
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let text = &bytes[..newline.unwrap_or(bytes.len())];
            let room = self.limit.saturating_sub(self.part.len());
            self.part.extend_from_slice(&text[..text.len().min(room)]);
            self.length += text.len();
            let used = text.len() + usize::from(newline.is_some());
            self.reader.consume(used);
            self.offset += used as u64;
            if at_end && self.length == 0 {
                return Ok(None);
            }
            if (newline.is_some() || at_end)
                && let Some(line) = self.take()
            {
                return Ok(Some(line));
            }
        }
    }

    /// Ends the current line; `None` when it is empty.
    fn take(&mut self) -> Option<Line> {
        self.number += 1;
        let (bytes, length) = (std::mem::take(&mut self.part), std::mem::take(&mut self.length));
        if length <= self.limit && bytes.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let bytes = if length > self.limit {
            let text =
                format!("line of {length} bytes; allowed: {} (producer.max_payload)", self.limit);
            Err(Invalid(text))
        } else {
            Ok(bytes)
        };
        Some(Line { number: self.number, offset: self.offset, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(
        text: &str,
        limit: usize,
        buffer: usize,
    ) -> Vec<(u64, u64, Result<String, String>)> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, text.as_bytes()), limit);
        let mut all = Vec::new();
        while let Some(Line { number, offset, bytes }) = lines.next().await.unwrap() {
            let bytes = bytes.map(|b| String::from_utf8(b).unwrap()).map_err(|e| e.to_string());
            all.push((number, offset, bytes));
        }
        all
    }

    #[tokio::test]
    async fn lines_are_counted_from_1_and_empty_ones_too() {
        for buffer in [1, 2, 3, 100] {
            let lines = read("a\n\n \r\nbc\nd", 10, buffer).await;
            let ok = |text: &str| Ok(text.to_owned());
            assert_eq!(lines, [(1, 2, ok("a")), (4, 9, ok("bc")), (5, 10, ok("d"))]);
        }
        assert!(read("", 10, 5).await.is_empty());
        assert!(read("\n\n", 10, 5).await.is_empty());
    }

    #[tokio::test]
    async fn a_line_too_long_is_passed_over_without_being_kept() {
        let text = format!("ab\n{}\ncd\n", "x".repeat(5000));
        let lines = read(&text, 4, 16).await;
        assert_eq!(lines[0].2, Ok("ab".to_owned()));
        assert!(lines[1].2.as_ref().unwrap_err().contains("5000 bytes; allowed: 4"));
        assert_eq!((lines[2].0, &lines[2].2), (3, &Ok("cd".to_owned())));
    }

    /// A byte order mark was "not JSON", and so was each line of a file of another format.
    #[test]
    fn other_formats_are_known_by_their_first_line() {
        let line = br#"{"messages":[]}"#.to_vec();
        assert_eq!(first([b"\xEF\xBB\xBF", &line[..]].concat(), 1).unwrap(), line);
        assert_eq!(first(b"no JSON".to_vec(), 1).unwrap(), b"no JSON");
        let utf16: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (line, format) in [
            (&b"prompt,model"[..], "CSV"),
            (b"  [{\"messages\":[]},", "JSON array"),
            (b"[", "JSON array"),
            (&utf16, "UTF-16"),
            (&[b"\xFF\xFE", &utf16[..]].concat(), "UTF-16"),
            (b"\x1F\x8B\x08", "gzip"),
        ] {
            let text = first(line.to_vec(), 7).unwrap_err().to_string();
            assert!(text.contains(format) && text.starts_with("line 7: it "), "{text}");
        }
    }

    fn file(prefix: Option<&str>, options: Options) -> File {
        let reader: Reader = Box::new(tokio::io::empty());
        let lines = Lines::new(BufReader::new(reader), 100);
        let (meant, request) = (LineSet::all(), Request::default());
        File {
            lines,
            meant,
            request,
            options,
            prefix: prefix.map(str::to_owned),
            begun: false,
            size: None,
        }
    }

    #[tokio::test]
    async fn a_key_is_prefix_and_custom_id_or_line() {
        let file = file(Some("run"), Options::default());
        let key = |text: &str| file.job(7, text.as_bytes()).unwrap().idempotency_key.unwrap();
        let request = r#"{"model":"m","messages":[{}]}"#;
        assert_eq!(key(request), "run:#7");
        assert_eq!(key(&format!(r#"{{"request":{request},"custom_id":"c"}}"#)), "run:c");
        assert_eq!(key(&format!(r#"{{"request":{request},"idempotency_key":"own"}}"#)), "own");
    }

    #[tokio::test]
    async fn flags_overrule_a_line() {
        let options = Options {
            lane: Some(crate::job::Lane::High),
            labels: vec![("a".to_owned(), "2".to_owned())],
            ..Options::default()
        };
        let line = r#"{"request":{"model":"m","messages":[{}]},"lane":"low","queue":"q",
            "labels":{"a":"1","b":"1"}}"#;
        let job = file(None, options).job(1, line.as_bytes()).unwrap();
        assert_eq!((job.lane.as_str(), job.queue.as_str()), ("high", "q"));
        assert_eq!(serde_json::to_string(&job.labels).unwrap(), r#"{"a":"2","b":"1"}"#);
    }
}
