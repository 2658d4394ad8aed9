"""`dooly simulate`: bad workloads and stores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dooly.cli._output import TEXT_WIDTH, warn_if_extrapolated
from dooly.cli._simulate import _warn_if_uncertain
from dooly.predict import StepLatency

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POISSON = "poisson:rate=2,requests=4,prompt=64,output=16"


def test_a_bad_row_is_named_by_its_line(db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A workload file with a bad row exits with 2; the line holds file and line number."""
    workload = tmp_path / "requests.csv"
    workload.write_text("request_id,arrival_s,num_prompt_tokens,num_output_tokens\n0,0.0,10,2\n1,0.5,ten,2\n")
    code, out, err = dooly("simulate", "smollm2-135m", "--db", db, "--workload", workload)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{workload}:3" in err
    assert "'ten'" in err


@pytest.mark.parametrize("workload", ["no-such-file.csv", "poisson:rate=2", "poisson:rate=x,requests=4,prompt=64,output=16"])
def test_a_bad_specification_is_named(workload: str, db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A workload that is neither a file nor a valid specification exits with 2 and is quoted."""
    code, out, err = dooly("simulate", "smollm2-135m", "--db", db, "--workload", workload)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert workload in err


def test_a_missing_store_is_not_made(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A store that does not exist exits with 2, names the command that makes one, and is not created."""
    code, out, err = dooly("simulate", "smollm2-135m", "--db", tmp_path / "db", "--workload", POISSON)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "dooly profile" in err
    assert not (tmp_path / "db").exists()


def test_an_unprofiled_model_is_told_the_command(db: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A store without the model's operations exits with 1 and names the command that measures them."""
    code, out, err = dooly("simulate", "smollm2-135m", "--db", db, "--workload", POISSON)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "dooly profile" in err


@pytest.mark.parametrize(("uncertainty_s", "warned"), [(0.0005, ""), (0.0045, "45%")])
def test_latencies_that_are_badly_known_are_told(uncertainty_s: float, warned: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A store measured by half, or under load, is one line of warning with the share; a good one is none."""
    _warn_if_uncertain("made-up", StepLatency(0.01, uncertainty_s, {}, extrapolated=False, provenance={"measured": 1.0}))
    err = capsys.readouterr().err
    assert err.count("\n") == bool(warned)
    assert warned in err


@pytest.mark.parametrize(("share", "warned"), [(0.0, ""), (0.02, ""), (0.4, "made-up: 40% of the seconds")])
def test_much_extrapolation_is_told(share: float, warned: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a good part of the seconds is beyond what attention was measured to read, one line says how much."""
    warn_if_extrapolated("made-up", share)
    err = capsys.readouterr().err
    assert err.count("\n") == bool(warned)
    assert warned in err


def test_what_an_answer_stands_on_says_how_much_lies_beyond(dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Seconds of steps beyond what was measured stand beside the shares of sources, which count them as measured."""
    arguments = ("simulate", "llama-3.1-8b", "--hardware", "rtxpro6000", "--workload")
    _, out, _ = dooly(*arguments, "constant:rate=1,requests=1,prompt=4000,output=2")
    assert "beyond what was measured, whose error nobody knows" in " ".join(out.split())
    assert "whole runs of real engines by more: docs/gpu-answers.md" in " ".join(out.split())
    assert max(map(len, out[out.index("it stands on") :].splitlines())) <= TEXT_WIDTH
    _, out, _ = dooly(*arguments, "constant:rate=1,requests=1,prompt=64,output=2")
    assert "nobody knows" not in out


def test_a_simulation_leaves_a_page_and_a_trace(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """With `--html` and `--perfetto`, limits are judged on the page and every step is in the trace; a bad limit is named."""
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    arguments = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", "poisson:rate=9,requests=3,prompt=16,output=3")
    code, _, err = dooly(*arguments, "--html", page, "--perfetto", trace, "--slo", "ttft-p90=1us")
    assert (code, err) == (0, "")
    assert "at most 0.001 ms: <b>missed</b>" in page.read_text()
    assert sum(event["ph"] == "X" for event in json.loads(trace.read_text())["traceEvents"]) > 3
    code, _, err = dooly(*arguments, "--slo", "ttft=1s")
    assert (code, err.count("\n")) == (2, 1)
    assert "--slo: 'ttft' is none of" in err


def test_limits_are_judged_where_there_is_no_page(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Each limit has a line and an entry in JSON; one on what no request has is met; a time without its unit is refused."""
    file = tmp_path / "r.json"
    arguments = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", "poisson:rate=9,requests=3,prompt=16,output=3")
    code, out, _ = dooly(*arguments, "--slo", "ttft-p90=1us", "--slo", "e2e-mean=10s", "--json", file)
    assert code == 0
    assert "limit 0.001 ms: missed" in out
    assert "limit 10000 ms: met" in out
    found = json.loads(file.read_text())["slo"]
    assert {name: judged["met"] for name, judged in found.items()} == {"ttft_p90": False, "e2e_mean": True}
    assert found["ttft_p90"]["limit_s"] == pytest.approx(1e-6)
    single = (*arguments[:-1], "poisson:rate=9,requests=3,prompt=16,output=1")
    assert "tpot-p90: no request has it, limit 1 ms: met" in dooly(*single, "--slo", "tpot-p90=1ms")[1]
    code, _, err = dooly(*arguments, "--slo", "ttft-p90=500")
    assert (code, err.count("\n")) == (2, 1)
    assert "'500' is no time with its unit; write 500ms or 0.5s" in err


DRAFTS = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", "poisson:rate=20,requests=6,prompt=64,output=20")
NGRAM = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}')
EAGLE = ("--speculative-config", '{"method": "eagle3", "num_speculative_tokens": 3}')


def test_drafts_are_simulated_and_said(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The table says what is drafted and taken for granted; the page has the drafter's share; the JSON has the settings."""
    files = [tmp_path / name for name in ("f.json", "f.html", "f.perfetto")]
    outputs = ("--json", files[0], "--html", files[1], "--perfetto", files[2])
    code, out, _ = dooly(*DRAFTS, *EAGLE, "--acceptance-rate", "0.8,0.6,0.4", "--draft-cost", "0.06", *outputs)
    assert code == 0
    assert "2.80 tokens a step" in " ".join(out.split())
    found = json.loads(files[0].read_text())
    assert found["serving"]["speculative_config"]["acceptance_rates"] == [0.8, 0.6, 0.4]
    plain = tmp_path / "plain.json"
    assert dooly(*DRAFTS, "--json", plain)[0] == 0
    assert found["tpot_s"]["mean"] < json.loads(plain.read_text())["tpot_s"]["mean"]
    assert "drafter" in files[1].read_text()
    assert '"decode"' in files[2].read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*EAGLE, "--acceptance-rate", "0.7"), "--draft-cost: eagle3 drafts by a model of its own"),
        (NGRAM, "--acceptance-rate: say once"),
        (("--acceptance-rate", "0.7"), "no tokens are drafted"),
        (("--draft-cost", "0.1"), "no tokens are drafted"),
    ],
)
def test_drafts_are_never_free_in_silence(
    options: tuple[str, ...], message: str, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """What would be guessed is refused, in one line."""
    code, _, err = dooly(*DRAFTS, *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_the_lowest_priority_number_is_served_first(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """With one seat, a workload file's column decides who waits; without the policy it is the order of arrival."""
    file = tmp_path / "workload.csv"
    rows = [f"{number},0.0,64,5,{priority}" for number, priority in enumerate((3, 2, -1))]
    file.write_text("\n".join(["request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority", *rows]) + "\n")
    orders = []
    for policy in ("fcfs", "priority"):
        words = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", file, "--scheduling-policy", policy)
        assert dooly(*words, "--max-num-active-seqs", 1, "--csv", tmp_path / "times.csv")[0] == 0
        times = [line.split(",") for line in (tmp_path / "times.csv").read_text().splitlines()[1:]]
        orders.append([row[0] for row in sorted(times, key=lambda row: float(row[-1]))])
    assert orders == [["0", "1", "2"], ["2", "1", "0"]]


def test_a_priority_that_is_no_number_is_refused(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """The row is named."""
    file = tmp_path / "workload.csv"
    file.write_text("request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority\n0,0.0,64,5,high\n")
    code, _, err = dooly("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", file)
    assert code == 2
    assert "workload.csv:2: priority must be a whole number" in " ".join(err.split())


LONG = "closed:concurrency=2,requests=3,prompt=8000,output=8"


def test_a_policy_is_simulated_term_by_term(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Each term stands in JSON and in the terminal, the last with what the whole simulation comes to; and what it stands on."""
    command = ("simulate", "smollm2-135m", "--hardware", "h200", "--max-model-len", 8192, "--workload", LONG)
    code, out, _ = dooly(*command, "--kv-policy", "Ada-KV", "--kv-budget", 0.2, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert code == 0
    document = found["kv_policy"]
    assert (document["policy"], document["budget"], document["pages"]) == ("adakv", 0.2, "head-wise pages")
    assert [term["term"] for term in document["terms"]] == ["none", "no prefix caching", "selection", "reads", "blocks"]
    assert document["terms"][-1]["ttft_s"] == found["ttft_s"]["mean"]
    assert found["serving"]["kv_policy"]["name"] == "adakv"
    assert 0 < found["provenance"]["estimated"] < 0.5
    assert sum(found["provenance"].values()) == pytest.approx(1)
    for words in ("+ reads", "+ blocks", "pages of their own", "selecting of 8,000 tokens takes", "(estimated)"):
        assert words in " ".join(out.split())


@pytest.mark.parametrize("policy", ["laprox", "critiprefill"])
def test_a_policy_at_budget_1_is_none_to_the_byte(
    policy: str, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """CSV and JSON are those without a policy, but for how long simulating took."""
    command = ("simulate", "smollm2-135m", "--hardware", "h200", "--max-model-len", 8192, "--workload", LONG)
    texts = []
    for name, options in (("plain", ()), ("policy", ("--kv-policy", policy, "--kv-budget", "1.0"))):
        assert dooly(*command, *options, "--csv", tmp_path / f"{name}.csv", "--json", tmp_path / f"{name}.json")[0] == 0
        document = json.loads((tmp_path / f"{name}.json").read_text())
        del document["wall_s"]
        texts.append((json.dumps(document), (tmp_path / f"{name}.csv").read_bytes()))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kv-policy", "snap", "--kv-budget", "0.2"), "--kv-policy: 'snap' is not one of snapkv, adakv, "),
        (("--kv-policy", "snap", "--kv-budget", "0.2"), "critiprefill, or none"),
        (("--kv-policy", "none", "--kv-budget", "0.2"), "--kv-budget: of which policy? give --kv-policy too, other than none"),
        (("--kv-policy", "snapkv,adakv", "--kv-budget", "0.2"), "--kv-policy: 'snapkv,adakv' are several; give one"),
        (("--kv-policy", "snapkv", "--kv-budget", "0.1,0.2"), "--kv-budget: '0.1,0.2' are several; give one"),
        (("--kv-policy", "snapkv"), "give --kv-budget too"),
        (("--kv-budget", "0.2"), "give --kv-policy too"),
        (("--kv-policy", "snapkv", "--kv-budget", "much"), "'much' is no number"),
        (("--kv-policy", "snapkv", "--kv-budget", "1.2"), "--kv-budget: 1.2 does not lie above 0 and up to 1"),
        (("--kv-policy", "snapkv", "--kv-budget", "0.001"), "changes nothing for prompts of 8,000 tokens"),
    ],
)
def test_bad_policies_are_one_line(options: tuple[str, ...], message: str, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """A wrong name or budget exits with 2; the line names it."""
    code, out, err = dooly("simulate", "smollm2-135m", "--hardware", "h200", "--workload", LONG, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_slower_host_is_simulated_and_said(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """First tokens come later, and the answer says by how much its host was slowed, for people and in JSON."""
    asked = (
        "simulate",
        "llama-3.1-8b",
        "--hardware",
        "h200",
        "--max-model-len",
        4096,
        "--workload",
        POISSON.replace("64", "1024"),
    )
    found = []
    for flags in ((), ("--host-slowdown", 2.5)):
        assert dooly(*asked, *flags, "--json", tmp_path / "found.json")[0] == 0
        found.append(json.loads((tmp_path / "found.json").read_text()))
    assert [each["host_slowdown"] for each in found] == [None, 2.5]
    assert found[1]["ttft_s"]["mean"] > 1.3 * found[0]["ttft_s"]["mean"]
    code, out, err = dooly(*asked, "--host-slowdown", 2.5)
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "2.5 times as long as one took beside an H200" in words
    assert "power limit adds nothing here: products of prompts without a pause take 18 % longer after 65 ms" in words


def test_what_the_power_limit_adds_is_said(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """For people as a share, in JSON in seconds: of prompts behind each other."""
    workload = "poisson:rate=inf,requests=8,prompt=2048,output=1"
    asked = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--max-model-len", 4096, "--workload", workload)
    assert dooly(*asked, "--json", tmp_path / "found.json")[0] == 0
    found = json.loads((tmp_path / "found.json").read_text())
    share = found["power_limit_s"] / found["duration_s"]
    assert 0.03 < share < 0.18
    assert f"power limit adds {share:.1%} of the time: products" in " ".join(dooly(*asked)[1].split())


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "1e9"])
def test_what_no_host_is_slowed_by_is_refused(factor: str, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """In one line that names the flag."""
    asked = ("simulate", "llama-3.1-8b", "--hardware", "h200", "--workload", POISSON)
    code, out, err = dooly(*asked, "--host-slowdown", factor)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--host-slowdown" in err
