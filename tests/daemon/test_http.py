"""Real sockets: what Prometheus, a probe, a person and `ckzd status` get to see."""

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from serving import settings_for

import ckzd
from ckzd.daemon import http, page, status
from ckzd.daemon.clock import SystemClock
from ckzd.daemon.identity import Identity
from ckzd.daemon.journal import Journal
from ckzd.daemon.metrics import Metrics
from ckzd.daemon.telling import Teller
from ckzd.errors import ConfigError

NASTY = "<script>alert(1)</script>&\"'"


class Get:
    """A GET that does not raise for an error status."""

    def __init__(self, url: str, accept: str = "*/*") -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=5) as answer:
                self.code, self.headers, self.text = answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                self.code, self.headers, self.text = error.code, error.headers, error.read().decode()


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "state").mkdir()
    return settings_for(tmp_path)


@pytest.fixture
def teller(settings, clock):
    made = Teller(settings, clock)
    made.listen()
    yield made
    made.close()


@pytest.fixture
def rows(settings):
    journal = Journal(settings.daemon.state_dir / status.JOURNAL)
    run = settings.watch[0].path / "gpt"
    for step, name in enumerate(["step_1.pt", NASTY.replace("/", "")]):
        row = journal.see(run, run / name, Identity(step, 1_000_000, 5), 10.0)
        journal.settled(row.number, step, 11.0)
        journal.encoding(row.number, 12.0)
    journal.verified(1, 13.0, archive=run / "a.ckz", reference=None, nbytes=10_000, seconds=2.0, again=False)
    journal.replaced(1, 14.0, 1_000_000)
    journal.failed(2, 15.0, NASTY, not_before=99.0)
    found = journal.rows()
    journal.close()
    return found


def live(**changes) -> status.Live:
    job = {"kind": "compress", "checkpoint": f"/r/{NASTY}", "stage": "encode", "fraction": 0.4, "seconds": 3.0}
    worker = {"worker": "cpu-0", "up": True, "restarts": 0, "busy": True}
    return status.Live(**({"state": "running", "started": 5.0, "jobs": [job], "workers": [worker]} | changes))


def test_what_is_kept_exact_says_so(settings, tmp_path):
    path = tmp_path / "exact" / "step_1.pt"
    path.parent.mkdir()
    torch.save({"weight": torch.arange(4096.0).reshape(64, 64) % 7}, path)
    archive = Path(ckzd.compress(path).archive)
    journal = Journal(tmp_path / "exact.sqlite3")
    number = journal.see(path.parent, path, Identity(1, 2, 3), 10.0).number
    journal.settled(number, 1, 11.0)
    journal.encoding(number, 12.0)
    journal.verified(number, 13.0, archive=archive, reference=None, nbytes=9, seconds=2.0, again=False)
    live_now = status.Live(why={path: "one of the newest 1"})
    (found,) = status.build(journal.rows(), live_now, settings, 1.0)["checkpoints"]
    journal.close()

    assert (found["kept_exact"], found["why"]) == (True, "one of the newest 1; no weights are known in it: kept exact")


def test_metrics_are_those_of_our_own_registry(teller, rows):
    teller.metrics.checkpoints.labels("archived").inc()
    teller.tell(rows, live())
    answer = Get(f"{teller.url}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}

    assert answer.code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert all(name.startswith("ckzd_") for name in families)
    assert not any(sample.name.endswith("_created") for family in families.values() for sample in family.samples)
    assert any(s.labels == {"outcome": "archived"} and s.value == 1 for s in families["ckzd_checkpoints"].samples)
    assert families["ckzd_queue_bytes"].samples[0].value == 1_000_000
    assert families["ckzd_queue_oldest_timestamp_seconds"].samples[0].value == 10.0


def test_no_metric_shows_a_path(teller, rows, tmp_path):
    teller.tell(rows, live())

    assert str(tmp_path) not in Get(f"{teller.url}/metrics").text


def test_openmetrics_is_given_to_those_who_ask(teller):
    answer = Get(f"{teller.url}/metrics", accept="application/openmetrics-text; version=1.0.0")

    assert answer.text.rstrip().endswith("# EOF")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_about(teller, rows):
    teller.tell(rows, live())
    text = Get(f"{teller.url}/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def connected(teller):
    return socket.create_connection(("127.0.0.1", int(teller.url.rpartition(":")[2])), timeout=10)


def test_a_client_that_never_comes_to_an_end_is_cut_off(teller, monkeypatch):
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)
    with connected(teller) as client:
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 10:
                client.sendall(b"G")
                time.sleep(0.05)
    assert time.monotonic() - began < 5
    assert Get(f"{teller.url}/healthz").code == 200


def test_many_connections_cost_few_threads_and_lock_nobody_out(teller):
    before = threading.active_count()
    with ExitStack() as clients:
        for _ in range(3 * http.MAX_CONNECTIONS):
            clients.enter_context(connected(teller))
        assert Get(f"{teller.url}/healthz").code == 200
        assert threading.active_count() - before <= http.MAX_CONNECTIONS + 5


LABELS = {"outcome", "kind", "reason", "preset", "effort", "stage", "state", "le", "version", "watch", "worker"}


def test_names_follow_the_conventions_of_prometheus():
    metrics = Metrics("1.0")
    for family in metrics.registry.collect():
        assert family.documentation
        assert not family.name.endswith(("_ms", "_kb", "_count", "_total"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        labels = {name for sample in family.samples for name in sample.labels}
        assert labels <= LABELS


def test_an_unknown_reason_or_stage_makes_no_new_series():
    metrics = Metrics("1.0")
    metrics.failed("/some/path")
    metrics.stage("/some/path", 1.0)

    assert metrics.registry.get_sample_value("ckzd_jobs_failed_total", {"reason": "unexpected"}) == 1
    assert metrics.registry.get_sample_value("ckzd_stage_duration_seconds_count", {"stage": "other"}) == 1


def test_healthy_means_that_the_loop_comes_round(teller, clock):
    assert Get(f"{teller.url}/healthz").code == 200
    clock.sleep(200)
    dead = Get(f"{teller.url}/healthz")
    assert (dead.code, dead.text) == (503, "the service has not come round for 200 s\n")
    teller.came_round()

    assert Get(f"{teller.url}/healthz").code == 200


def test_ready_gives_reasons_when_it_is_not(teller, rows, settings):
    assert Get(f"{teller.url}/readyz").code == 503  # starting
    teller.tell(rows, live())
    assert Get(f"{teller.url}/readyz").code == 200
    teller.tell(rows, live(problems=["/ckpts: is not there"], paused="waiting for space"))
    answer = Get(f"{teller.url}/readyz")
    assert (answer.code, answer.text) == (503, "/ckpts: is not there\nwaiting for space\n")

    (settings.daemon.state_dir / status.STOPPED).write_text("replacing is stopped: x\n\nmore\n")
    teller.tell(rows, live())
    answer = Get(f"{teller.url}/readyz")
    assert (answer.code, answer.text) == (503, "replacing is stopped: x\n")


def test_any_other_path_is_not_found(teller):
    answer = Get(f"{teller.url}/metricsx")

    assert answer.code == 404
    assert "/metrics" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(teller, method):
    request = urllib.request.Request(f"{teller.url}/status.json", method=method, data=b"")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)

    assert caught.value.code == 501
    caught.value.close()


def test_head_has_no_body(teller):
    with urllib.request.urlopen(urllib.request.Request(teller.url, method="HEAD"), timeout=5) as answer:
        assert (answer.status, answer.read()) == (200, b"")


def test_rubbish_does_not_end_the_server(teller):
    host, port = teller.url.removeprefix("http://").split(":")
    for rubbish in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b""):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(rubbish)

    assert Get(f"{teller.url}/healthz").code == 200


def test_a_taken_port_is_a_config_error(settings, teller):
    taken = settings.model_copy(
        update={"daemon": settings.daemon.model_copy(update={"port": int(teller.url.split(":")[-1])})}
    )
    other = Teller(taken, SystemClock())
    with pytest.raises(ConfigError, match="cannot listen"):
        other.listen()
    other.close()


# --- status -------------------------------------------------------------------------------------------------


def test_status_tells_of_runs_checkpoints_and_totals(teller, rows):
    teller.tell(rows, live())
    told = json.loads(Get(f"{teller.url}/status.json").text)

    assert (told["schema_version"], told["state"], told["ready"]) == (1, "running", True)
    assert told["totals"]["reclaimed_bytes"] == 1_000_000
    assert told["totals"]["ratio"] == 100.0
    assert told["runs"][0]["checkpoints"] == {"replaced": 1, "failed": 1}
    assert [found["state"] for found in told["checkpoints"]] == ["failed", "replaced"]


def test_read_status_asks_the_running_daemon(teller, rows, settings):
    teller.tell(rows, live())

    assert status.read_status(settings) == json.loads(Get(f"{teller.url}/status.json").text)


def test_read_status_without_a_daemon_reads_the_journal(settings, rows):
    told = status.read_status(settings)

    assert (told["state"], told["pid"], told["ready"]) == ("stopped", None, False)
    assert told["totals"]["checkpoints"] == {"replaced": 1, "failed": 1}


def test_read_status_before_the_first_start(settings):
    told = status.read_status(settings)

    assert (told["state"], told["runs"], told["checkpoints"]) == ("stopped", [], [])


def test_read_status_does_not_believe_somebody_else_on_the_port(teller, settings):
    file = settings.daemon.state_dir / status.ENDPOINT
    place = json.loads(file.read_text())
    file.write_text(json.dumps(place | {"pid": 1}))

    assert status.read_status(settings)["state"] == "stopped"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"host": "127.0.0.1", "port": 1, "pid": 3}'])
def test_read_status_survives_a_strange_endpoint_file(settings, text):
    (settings.daemon.state_dir / status.ENDPOINT).write_text(text)

    assert status.read_status(settings)["state"] == "stopped"


def test_the_endpoint_file_goes_with_the_server(settings, clock):
    teller = Teller(settings, clock)
    teller.listen()
    assert (settings.daemon.state_dir / status.ENDPOINT).exists()
    teller.close()

    assert not (settings.daemon.state_dir / status.ENDPOINT).exists()


# --- the page -----------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Tags, the attributes that load something, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.words, self.loads = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_what_matters_and_escapes_everything(teller, rows):
    store = {"store": "/ckpts/.ckzd", "archive_bytes": 1, "cache_bytes": 2, "trash_bytes": 3e9, "free_bytes": 4}
    store |= {"trash_until": 5e4, "check": {"archives": 0, "pass_ratio": 1.0, "pass_completed": None}}
    teller.tell(rows, live(problems=[f"watch {NASTY}"], stores=[store]))
    answer = Get(teller.url)
    outline = Outline(answer.text)
    words = " ".join(outline.words)

    assert outline.open == []
    assert "script" not in outline.tags
    assert outline.loads == []
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for shown in (
        "running",
        "1.0 MB",
        "100×",
        "step_1.pt",
        "encode",
        "quarantined",
        "3.0 GB",
        "next try",
        f"watch {NASTY}",
    ):
        assert shown in words
    assert "prefers-color-scheme: dark" in answer.text


def test_the_page_of_a_fresh_daemon(settings, clock):
    text = page.render(status.build([], status.Live("starting"), settings, clock.time()))

    assert "No run found yet" in text


def test_the_page_says_how_to_let_replacing_go_on(settings, rows):
    (settings.daemon.state_dir / status.STOPPED).write_text("replacing is stopped: x\n")
    text = page.render(status.build(rows, live(), settings, 20.0))

    assert f"rm {settings.daemon.state_dir / status.STOPPED}" in text
