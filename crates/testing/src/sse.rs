//! A client of server-sent events over plain TCP, which notes when each one comes.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The longest time without a byte.
const PATIENCE: Duration = Duration::from_secs(120);

/// Posts a body of JSON and hands on the data of each event and the time when it came, until
/// `[DONE]` or until `on_event` answers `false`.
///
/// # Errors
/// No connection, another status than 200 (with the answer's body), or an end without `[DONE]`.
pub fn post(
    address: SocketAddr,
    path: &str,
    body: &str,
    mut on_event: impl FnMut(&str, Instant) -> bool,
) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, and is not divided into chunks.
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    if line.split(' ').nth(1) != Some("200") {
        let mut rest = String::new();
        answer.read_to_string(&mut rest)?;
        let body = rest.split_once("\r\n\r\n").map_or(rest.as_str(), |(_, body)| body);
        return Err(Error::other(format!("{}: {}", line.trim_end(), body.trim())));
    }
    loop {
        line.clear();
        if answer.read_line(&mut line)? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the stream ended without `[DONE]`"));
        }
        let now = Instant::now();
        match line.trim_end().strip_prefix("data: ") {
            Some("[DONE]") => return Ok(()),
            Some(data) if !on_event(data, now) => return Ok(()),
            _ => {}
        }
    }
}

/// The time that this share of the times does not exceed; zero where there are none.
///
/// ```
/// use std::time::Duration;
/// let times: Vec<Duration> = (0..=100).rev().map(Duration::from_millis).collect();
/// assert_eq!(tunebook_testing::sse::percentile(&times, 0.99), Duration::from_millis(99));
/// ```
pub fn percentile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let place = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What the client makes of an answer, which is sent in two parts.
    fn read(parts: [&'static str; 2]) -> (Vec<String>, Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 512];
            let read = stream.read(&mut asked).unwrap();
            for part in parts {
                stream.write_all(part.as_bytes()).unwrap();
            }
            String::from_utf8_lossy(&asked[..read]).into_owned()
        });
        let mut data = Vec::new();
        let result = post(address, "/path", "{}", |event, _| {
            data.push(event.to_owned());
            event != "enough"
        });
        let asked = server.join().unwrap();
        assert!(asked.starts_with("POST /path HTTP/1.0\r\n") && asked.ends_with("\r\n\r\n{}"));
        (data, result)
    }

    #[test]
    fn events_come_whole_until_the_last() {
        let head = "HTTP/1.0 200 OK\r\n\r\ndata: {\"a\":1}\n\n: a comment\n\nda";
        let (data, result) = read([head, "ta: b\n\ndata: [DONE]\n\ndata: c\n\n"]);
        assert_eq!(data, ["{\"a\":1}", "b"]);
        result.unwrap();
        let (data, result) = read([head, "ta: enough\n\ndata: b\n\n"]);
        assert_eq!(data, ["{\"a\":1}", "enough"]);
        result.unwrap();
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let (_, result) = read(["HTTP/1.0 200 OK\r\n\r\ndata: a\n\n", ""]);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let (_, result) = read(["HTTP/1.0 429 Too Many Requests\r\n\r\n", "{\"error\": 1}"]);
        let error = result.unwrap_err().to_string();
        assert_eq!(error, "HTTP/1.0 429 Too Many Requests: {\"error\": 1}");
    }
}
