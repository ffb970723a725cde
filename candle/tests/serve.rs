//! The example `serve` on SmolLM2, as clients see it.

mod common;
#[path = "common/http.rs"]
mod http;

use http::Server;
use serde_json::{Value, json};
use std::io::Read;
use std::time::{Duration, Instant};

const PROMPTS: [&str; 4] = [
    "The capital of France is",
    "In 1969 the first men walked on",
    "Water boils at",
    "<|im_start|>user\nWho wrote Hamlet?<|im_end|>\n<|im_start|>assistant\n",
];

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn an_answer_is_the_same_whole_streamed_and_by_generate() {
    let server = Server::start(&["--measure-every", "1"]);
    for prompt in PROMPTS {
        let body = json!({ "prompt": prompt, "max_tokens": 20, "model": "SmolLM2-135M-Instruct.Q4_1" });
        let (status, whole) = server.complete(&body);
        assert_eq!(status, 200, "{whole}");
        let choice = &whole["choices"][0];
        let (text, reason) = server.stream(&body);
        assert_eq!((&json!(text), &json!(reason)), (&choice["text"], &choice["finish_reason"]));
        let generated = common::generate(&[prompt, "--raw", "--tokens", "20"]);
        assert_eq!(common::text(&generated.stdout), text.clone() + "\n");
        let usage = &whole["usage"];
        assert_eq!(
            usage["total_tokens"].as_u64(),
            Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
        );
        assert_eq!(reason, if usage["completion_tokens"] == 20 { "length" } else { "stop" });
    }
    // A drawn text follows its seed.
    let draw = |seed: u64| server.stream(&json!({ "prompt": "Once", "temperature": 1.0, "seed": seed })).0;
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    // Every layer reports operating ratios in order.
    for layer in ["blk.0", "blk.29"] {
        let quantile = |q: &str| {
            server.metric(&format!("critbeta_operating_ratio{{layer=\"{layer}\",quantile=\"{q}\"}}"))
        };
        let quantiles = ["0.05", "0.25", "0.5", "0.75", "0.95"].map(quantile);
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
        assert!(server.metric(&format!("critbeta_rows_total{{layer=\"{layer}\"}}")) > 9.0 * 100.0);
    }
    assert_eq!(server.metric("critbeta_requests_total{outcome=\"failed\"}"), 0.0);
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_critical_rule_holds_the_operating_ratio() {
    let server = Server::start(&["--measure-every", "1", "--rescaling", "critical:ratio=1.5"]);
    assert_eq!(server.complete(&json!({ "prompt": PROMPTS[0] })).0, 200);
    for q in ["0.05", "0.95"] {
        let ratio = server.metric(&format!("critbeta_operating_ratio{{layer=\"blk.7\",quantile=\"{q}\"}}"));
        assert!((ratio - 1.5).abs() < 1e-12, "{ratio}");
    }
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn bad_requests_get_a_json_error_that_names_them() {
    let server = Server::start(&["--context", "64"]);
    let long = "word ".repeat(100);
    let cases = [
        ("POST", "/v1/completions", "{".to_owned(), 400, "the body"),
        ("POST", "/v1/completions", "{}".to_owned(), 400, "prompt"),
        ("POST", "/v1/completions", "[\"a\", null, 4]".to_owned(), 400, "an array: expected an object"),
        ("POST", "/v1/completions", "[".repeat(100_000), 400, "the body"),
        (
            "POST",
            "/v1/completions",
            json!({ "prompt": 5 }).to_string(),
            400,
            "prompt is 5: expected a string",
        ),
        ("POST", "/v1/completions", json!({ "prompt": null }).to_string(), 400, "prompt is missing"),
        ("POST", "/v1/completions", json!({ "prompt": "" }).to_string(), 400, "at least one token"),
        ("POST", "/v1/completions", json!({ "prompt": "a", "n": 2 }).to_string(), 400, "`n`"),
        (
            "POST",
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": 0 }).to_string(),
            400,
            "max_tokens 0",
        ),
        (
            "POST",
            "/v1/completions",
            json!({ "prompt": "a", "max_tokens": -1 }).to_string(),
            400,
            "max_tokens is -1: expected a whole number",
        ),
        ("POST", "/v1/completions", json!({ "prompt": "a", "max_tokens": 64 }).to_string(), 400, "1 to 63"),
        ("POST", "/v1/completions", json!({ "prompt": long }).to_string(), 400, "at most 63"),
        ("POST", "/v1/completions", json!({ "prompt": long.repeat(100) }).to_string(), 400, "50000 bytes"),
        (
            "POST",
            "/v1/completions",
            json!({ "prompt": "a", "temperature": 3 }).to_string(),
            400,
            "temperature is 3: expected a number from 0 to 2",
        ),
        ("POST", "/v1/completions", json!({ "prompt": "a", "model": "gpt" }).to_string(), 404, "gpt"),
        ("POST", "/v1/completions", json!({ "prompt": "x".repeat(3 << 20) }).to_string(), 413, "limit"),
        ("GET", "/v1/completions", String::new(), 405, "method"),
        ("POST", "/v1/chat", "{}".to_owned(), 404, "/v1/completions"),
    ];
    let count = cases.len() as f64;
    for (method, path, body, status, part) in cases {
        let (found, _, answer) = server.ask(method, path, &body);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(
            found == status && message.contains(part),
            "{found} {message}: expected {status} and {part:?}"
        );
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert!(!["usize", "u64", "struct "].iter().any(|word| message.contains(word)), "{message}");
    }
    // Two of them have no handler that counts.
    assert_eq!(server.metric("critbeta_requests_total{outcome=\"refused\"}"), count - 2.0);
    assert_eq!(server.complete(&json!({ "prompt": "a", "max_tokens": 63, "user": null })).0, 200);
    for (flag, value) in [("--waiting", "18446744073709551615"), ("--slots", "0")] {
        let output = common::example("serve").arg(common::model()).args([flag, value]).output().unwrap();
        let said = common::text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(flag) && said.contains(value), "{said}");
    }
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_client_that_goes_frees_its_slot() {
    let server = Server::start(&["--slots", "1", "--waiting", "1"]);
    for (drops, stream) in [(1.0, true), (2.0, false)] {
        // An answer is out before its slot counts as free.
        server.wait_for("critbeta_slots_used", 0.0);
        let body =
            json!({ "prompt": "Once upon a time", "max_tokens": 2000, "stream": stream, "temperature": 1.0 });
        let mut client = server.send("POST", "/v1/completions", &body.to_string());
        if stream {
            // The first bytes are there, so the slot is in use.
            client.read_exact(&mut [0; 16]).unwrap();
        }
        server.wait_for("critbeta_slots_used", 1.0);
        drop(client);
        server.wait_for("critbeta_slots_used", 0.0);
        assert_eq!(server.metric("critbeta_requests_total{outcome=\"dropped\"}"), drops);
        assert_eq!(server.complete(&json!({ "prompt": "a", "max_tokens": 2 })).0, 200);
    }
    assert!(server.metric("critbeta_generated_tokens_total") < 3000.0);
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_full_queue_is_said_and_leaves_nothing_behind() {
    let server = Server::start(&["--slots", "1", "--waiting", "1"]);
    let long =
        json!({ "prompt": "Once", "max_tokens": 2000, "stream": true, "temperature": 1.0 }).to_string();
    let runs = server.send("POST", "/v1/completions", &long);
    server.wait_for("critbeta_slots_used", 1.0);
    let waits = server.send("POST", "/v1/completions", &long);
    server.wait_for("critbeta_waiting", 1.0);
    let (status, head, body) = server.ask("POST", "/v1/completions", &long);
    assert_eq!(status, 503, "{body}");
    assert!(
        head.to_lowercase().contains("retry-after: 1") && body.contains("all 1 slots and 1 places"),
        "{head}\n{body}"
    );
    // A client that waits and goes gives its place to another.
    drop(waits);
    server.wait_for("critbeta_waiting", 0.0);
    let waits = server.send("POST", "/v1/completions", &long);
    server.wait_for("critbeta_waiting", 1.0);
    drop((runs, waits));
    server.wait_for("critbeta_waiting", 0.0);
    server.wait_for("critbeta_slots_used", 0.0);
    assert_eq!(server.metric("critbeta_requests_total{outcome=\"busy\"}"), 1.0);
    assert_eq!(server.complete(&json!({ "prompt": "a" })).0, 200);
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn eight_clients_at_once_get_what_each_gets_alone() {
    let server = Server::start(&[]);
    let ask = |client: usize| {
        let body = json!({ "prompt": PROMPTS[client % PROMPTS.len()], "max_tokens": 12 + client });
        if client < 4 { server.stream(&body).0 } else { answer(&server.complete(&body).1) }
    };
    let alone: Vec<String> = (0..8).map(ask).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|client| scope.spawn(move || ask(client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn all_slots_and_places_are_given_and_no_more() {
    let server = Server::start(&["--slots", "2", "--waiting", "3"]);
    let body = json!({ "prompt": PROMPTS[0], "max_tokens": 24 }).to_string();
    let clients: Vec<_> = (0..5).map(|_| server.send("POST", "/v1/completions", &body)).collect();
    server.wait_for("critbeta_waiting", 3.0);
    let (status, _, answer) = server.ask("POST", "/v1/completions", &body);
    assert!(status == 503 && answer.contains("all 2 slots and 3 places"), "{status} {answer}");
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(server.metric("critbeta_requests_total{outcome=\"busy\"}"), 1.0);
    // Each of five clients asks again as soon as it has its answer, and is never refused.
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                (0..4).for_each(|_| {
                    assert_eq!(server.complete(&json!({ "prompt": PROMPTS[2], "max_tokens": 1 })).0, 200)
                });
            });
        }
    });
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn every_eighth_token_of_each_sequence_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    // Prometheus escapes a quote and a backslash, and nothing else.
    let odd = folder.path().join("a\"b\\c\u{200b}");
    std::fs::create_dir(&odd).unwrap();
    let rule = format!("calibrated:{}", common::calibration(&odd, 9, -0.5));
    let server = Server::start(&["--rescaling", &rule]);
    let shown = rule.parse::<critbeta::calibration::RescalingSpec>().unwrap().to_string();
    let label = shown.replace('\\', r"\\").replace('"', "\\\"");
    assert_eq!(server.metric(&format!("critbeta_info{{rescaling=\"{label}\"}}")), 1.0);
    let measured = |body: &Value, clients: usize| {
        let before = server.metric("critbeta_rows_total{layer=\"blk.29\"}");
        let ask = || {
            let (status, answer) = server.complete(body);
            assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("length")), "{answer}");
        };
        std::thread::scope(|scope| (0..clients).for_each(|_| drop(scope.spawn(ask))));
        server.metric("critbeta_rows_total{layer=\"blk.29\"}") - before
    };
    // The tokens 1 and 9 of 12 by 9 heads. The first token comes from the prompt.
    let body = json!({ "prompt": PROMPTS[1].repeat(2), "max_tokens": 12 });
    assert_eq!([1, 2, 3].map(|clients| measured(&body, clients)), [18.0, 36.0, 54.0]);
}

#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_row_of_one_key_has_no_operating_ratio() {
    let server = Server::start(&["--measure-every", "1"]);
    assert_eq!(server.complete(&json!({ "prompt": "a", "max_tokens": 1 })).0, 200);
    assert_eq!(server.metric("critbeta_rows_total{layer=\"blk.0\"}"), 9.0);
    let (_, _, page) = server.ask("GET", "/metrics", "");
    assert!(!page.contains("critbeta_operating_ratio{"), "{page}");
}

#[cfg(unix)]
#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn a_signal_to_end_lets_running_requests_end() {
    let mut server = Server::start(&[]);
    assert_eq!(server.ask("GET", "/health", "").0, 200);
    let body = json!({ "prompt": PROMPTS[0], "max_tokens": 16, "stream": true, "temperature": 1.0 });
    let mut client = server.send("POST", "/v1/completions", &body.to_string());
    client.read_exact(&mut [0; 16]).unwrap();
    assert_eq!(server.end(), Some(0));
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}

fn answer(body: &Value) -> String {
    body["choices"][0]["text"].as_str().unwrap().to_owned()
}

/// Eight clients of every kind for a minute, or for CRITBETA_LOAD_SECONDS: whole, streamed, dropped, refused.
#[test]
#[ignore = "needs the model of scripts/candle-test.sh"]
fn load_leaves_no_growth() {
    let seconds = std::env::var("CRITBETA_LOAD_SECONDS").map_or(60, |text| text.parse().unwrap());
    let server = Server::start(&["--slots", "4", "--waiting", "4"]);
    let begin = Instant::now();
    let load = |until: u64| {
        std::thread::scope(|scope| {
            for client in 0..8usize {
                let (server, begin) = (&server, &begin);
                scope.spawn(move || {
                    let mut turn = client;
                    while begin.elapsed().as_secs() < until {
                        turn += 1;
                        let (prompt, max_tokens) = (PROMPTS[turn % 4].repeat(1 + turn % 7), 4 + turn % 23);
                        let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.7 });
                        let mut streamed = body.clone();
                        streamed["stream"] = json!(true);
                        match turn % 8 {
                            0 => assert_eq!(
                                server.complete(&json!({ "prompt": prompt, "max_tokens": 0 })).0,
                                400
                            ),
                            1 => {
                                let mut gone = server.send("POST", "/v1/completions", &streamed.to_string());
                                gone.read_exact(&mut [0; 16]).unwrap();
                            }
                            2 => drop(server.ask("GET", "/metrics", "")),
                            _ => {
                                let body = if turn % 8 == 3 { streamed } else { body };
                                let (status, _, answer) =
                                    server.ask("POST", "/v1/completions", &body.to_string());
                                // Those who went may hold their places until the next step.
                                assert!(status == 200 || status == 503, "{status} {answer}");
                                assert!(answer.contains("finish_reason") == (status == 200), "{answer}");
                                if status == 503 {
                                    std::thread::sleep(Duration::from_millis(200));
                                }
                            }
                        }
                    }
                });
            }
        });
    };
    // The first third fills what the threads keep.
    load(seconds / 3);
    let before = server.resident();
    load(seconds);
    let after = server.resident();
    let served =
        ["stop", "length"].map(|how| server.metric(&format!("critbeta_requests_total{{outcome={how:?}}}")));
    println!(
        "{served:?} requests in {seconds} s, {before:.0} MiB resident after a third and {after:.0} at the end"
    );
    assert!(after < before + 24.0, "{before:.1} MiB grew to {after:.1}");
    assert!(served.iter().sum::<f64>() > 20.0, "{served:?}");
    server.wait_for("critbeta_slots_used", 0.0);
    assert_eq!(server.metric("critbeta_requests_total{outcome=\"failed\"}"), 0.0);
}
