//! A server as a child process, and just enough HTTP to talk to it.

use crate::common::{example, model};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        let mut command = example("serve");
        command.env("CANDLE_DEQUANTIZE_ALL", "1").arg(model()).args(["--listen", "127.0.0.1:0"]).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("the server has not started");
        Server { child, address: address.to_owned() }
    }

    /// Tells it to end with SIGTERM, and gives its exit code.
    pub fn end(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// Sends a request, and gives the connection.
    pub fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: critbeta\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    /// Status, headers and body.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String, String) {
        let mut answer = String::new();
        self.send(method, path, body).read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        (status, head.to_owned(), if chunked { unchunked(body) } else { body.to_owned() })
    }

    pub fn complete(&self, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.ask("POST", "/v1/completions", &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The text and the reason of its end, from a stream of events.
    pub fn stream(&self, body: &Value) -> (String, String) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let (status, head, events) = self.ask("POST", "/v1/completions", &body.to_string());
        assert!(status == 200 && head.to_lowercase().contains("text/event-stream"), "{head}");
        let (mut text, mut reason, mut done) = (String::new(), String::new(), false);
        for event in events.split("\n\n").filter(|event| !event.is_empty()) {
            let data = event.strip_prefix("data: ").expect("an event of data");
            assert!(!done, "nothing comes behind [DONE]");
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let data: Value = serde_json::from_str(data).unwrap();
            text += data["choices"][0]["text"].as_str().unwrap();
            reason = data["choices"][0]["finish_reason"].as_str().unwrap_or("").to_owned();
        }
        assert!(done, "{events}");
        (text, reason)
    }

    /// One value of /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, _, page) = self.ask("GET", "/metrics", "");
        assert_eq!(status, 200);
        let line =
            page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name} is not in\n{page}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Waits until a metric has this value.
    pub fn wait_for(&self, name: &str, value: f64) {
        let begin = Instant::now();
        while self.metric(name) != value {
            assert!(begin.elapsed().as_secs() < 60, "{name} is {}, not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Resident memory in MiB.
    pub fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole += &rest[..size];
        body = &rest[size + 2..];
    }
    panic!("the last chunk is missing");
}
