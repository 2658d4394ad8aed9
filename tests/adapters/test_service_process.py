"""The HTTP service as a process: where it listens, and how it ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from dooly.adapters.service import ModelSlot, ServiceLimits, create_app, run_service
from dooly.errors import InvalidInputError

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_the_command_serves_and_stops_in_good_order(tmp_path: Path, idle: dict[str, float]) -> None:
    """`dooly serve` says where it listens, on this machine alone; SIGTERM ends it with 0 and no word."""
    command = (sys.executable, "-m", "dooly", "serve", "llama-3.1-8b", "--hardware", "rtxpro6000", "--port", "0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) serves llama-3\.1-8b on NVIDIA RTX PRO 6000", line)
        assert found is not None
        assert httpx.post(f"{found[1]}/predict", json=idle).json()["ttft_ms"] > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


SLOW = """
import time
from dooly.adapters.service import ModelSlot, ServiceLimits, _app, create_app, run_service
from dooly.engines import find_model
from dooly.predict import default_serving

_app._steps = lambda *_asked: time.sleep(120)
model = find_model("llama-3.1-8b")
serving = default_serving(model, "rtxpro6000", max_model_len=512, max_num_batched_tokens=128, max_num_seqs=8)
app = create_app(ModelSlot(model, serving, hardware="rtxpro6000"), ServiceLimits(seconds=0.2))
run_service(app, "127.0.0.1", 0, stop_s=1, listening=lambda url: print(url, flush=True))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_work_that_was_given_up_does_not_hold_the_process() -> None:
    """A bulk that goes on when its request has its answer is left where it is at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SLOW], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        body = {"batches": [{"num_new_tokens": [1], "num_computed_tokens": [1]}] * 65}
        assert httpx.post(f"{url}/step", json=body).status_code == 503
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", r"127\.0\.0\.1"), ("::1", r"\[::1\]")])
def test_the_url_is_one_whatever_the_address(slot: ModelSlot, host: str, place: str) -> None:
    """An IPv6 address stands in brackets."""
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"{host} is no address of this machine")
    found: list[str] = []

    def listening(url: str) -> None:
        found.append(url)
        signal.raise_signal(signal.SIGTERM)

    run_service(create_app(slot, ServiceLimits()), host, 0, stop_s=1, listening=listening)
    assert re.fullmatch(rf"http://{place}:\d+", found[0])


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_signal_before_it_listens_ends_it(slot: ModelSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    """An orchestrator that gives up at once does not have to kill it."""
    monkeypatch.setattr(gc, "freeze", lambda: signal.raise_signal(signal.SIGTERM))
    again: list[str] = []

    def end() -> None:
        again.append("SIGTERM")
        signal.raise_signal(signal.SIGTERM)

    later = threading.Timer(60, end)
    run_service(create_app(slot, ServiceLimits()), "127.0.0.1", 0, stop_s=1, listening=lambda _url: later.start())
    later.cancel()
    assert not again


def test_an_address_that_nobody_can_listen_on_is_told(slot: ModelSlot) -> None:
    """A port that another process has, and a host that is none of this machine's, are told in one line with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=rf"--host, --port: 127\.0\.0\.1:{port} cannot be listened on \(.*--port 0"):
            run_service(create_app(slot, ServiceLimits()), "127.0.0.1", port, stop_s=1, listening=print)
    with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1:0 cannot be listened on"):
        run_service(create_app(slot, ServiceLimits()), "192.0.2.1", 0, stop_s=1, listening=print)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_process_that_has_served_is_as_before(slot: ModelSlot) -> None:
    """Signal handlers, how threads take turns and what the garbage collector looks at are the caller's again."""

    def state() -> tuple[float, int, Any, Any]:
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        return sys.getswitchinterval(), gc.get_freeze_count(), *handlers

    during: list[tuple[float, int, Any, Any]] = []

    def listening(_url: str) -> None:
        during.append(state())
        signal.raise_signal(signal.SIGTERM)

    before = state()
    run_service(create_app(slot, ServiceLimits()), "127.0.0.1", 0, stop_s=1, listening=listening)
    assert state() == before
    assert during[0][0] < before[0]
    assert during[0][1] > before[1]
