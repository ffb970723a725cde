"""The HTTP server of vLLM in processes of its own: critbeta is found by its entry point."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import critbeta
import pytest
from served import MODEL

PORT = 8765


@contextmanager
def server(log, *options, **environment):
    """Starts the server, and stops it as a service manager would."""
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        MODEL,
        "--port",
        str(PORT),
    ]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4"]
    command += ["--served-model-name", "smollm2", *options]
    given = os.environ | environment
    # The tests in one process have settings that are not for a server.
    for name in ("VLLM_PLUGINS", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        given.pop(name, None)
    with open(log, "w") as out:
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=given)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(60)
        except subprocess.TimeoutExpired:
            running.kill()


def ready(running, log, seconds=400):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.poll() is not None:
            pytest.fail(f"the server ended: {Path(log).read_text()[-3000:]}")
        try:
            with socket.create_connection(("127.0.0.1", PORT), 1):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(f"the server is not ready: {Path(log).read_text()[-3000:]}")


def ask(path, body=None):
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", headers={"content-type": "application/json"}
    )
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=120) as answer:
        return answer.read().decode()


# What inductor compiles in pieces takes 2 minutes more, so that CI leaves it out.
COMPILED = pytest.mark.skipif(
    "CRITBETA_TEST_COMPILED" not in os.environ, reason="CRITBETA_TEST_COMPILED is not set"
)


@pytest.mark.parametrize(
    "options", [["--enforce-eager"], pytest.param([], marks=COMPILED)], ids=["eager", "compiled"]
)
def test_the_server_rescales_records_and_shows_metrics(tmp_path, options):
    records, log = tmp_path / "records", tmp_path / "log"
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"record": str(records), "every": 1}))
    prompt = {"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 40, "temperature": 0}
    rule = "qwen-logn:train=16"
    with server(log, *options, CRITBETA_RESCALE=rule, CRITBETA_CONFIG=str(settings)) as running:
        ready(running, log)
        first = json.loads(ask("/v1/completions", prompt))["choices"][0]["text"]
        assert " Paris" in first
        assert json.loads(ask("/v1/completions", prompt))["choices"][0]["text"] == first
        end = time.monotonic() + 30
        while "critbeta_rows_total" not in (shown := ask("/metrics")) and time.monotonic() < end:
            time.sleep(1)
    assert 'critbeta_recording{process="dp0-r0"} 1.0' in shown
    assert 'critbeta_rows_total{layer="model.layers.29.self_attn",process="dp0-r0"}' in shown
    (file,) = records.glob("rows-*.parquet")
    critbeta.report(file, tmp_path / "report.html")
    assert "recording has ended" not in log.read_text()


@pytest.mark.parametrize(
    "rule, message",
    [
        ("qwen-logn", "train is missing"),
        ("calibrated:none.json", "none.json"),
        ("critical:ratio=1", "model.layers.0.self_attn: critical:ratio=1 gives a row with a tied maximum"),
    ],
)
def test_a_rule_that_cannot_apply_ends_the_start(tmp_path, rule, message):
    log = tmp_path / "log"
    with server(log, "--enforce-eager", CRITBETA_RESCALE=rule) as running:
        assert running.wait(400) != 0
    assert message in log.read_text()
    # Only the last one needs a model to be refused.
    assert ("Loading" in log.read_text()) == rule.startswith("critical")
