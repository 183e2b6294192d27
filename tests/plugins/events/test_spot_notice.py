"""Notice of a spot instance, from a metadata service that a thread of the test plays."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fitune import Interrupted, StepReport, hookimpl
from fitune.plugin.events import StopRequest
from fitune.testing import write_recipe
from fitune_plugins.events import spot_notice
from fitune_plugins.events.spot_notice import SpotNotice, Watch
from support.tiny import metrics, train

TOKEN, ACTION = "/latest/api/token", "/latest/meta-data/spot/instance-action"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
TIME = "2026-01-02T03:04:05Z"


class Service(HTTPServer):
    """Answers as it is told: (code, text) for a path, else 404."""

    answers: dict[str, tuple[int, str]]
    asked: list[tuple[str, str, dict[str, str]]]
    heard: threading.Event


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        code, text = self.server.answers.get(self.path, (404, "nothing"))
        self.send_response(code)
        if code == 302:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(text.encode())
        self.server.heard.set()

    do_GET = do_PUT = _answer  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The metadata service of every cloud, on this machine; a proxy that nobody is behind must not be asked."""
    server = Service(("127.0.0.1", 0), _Handler)
    server.answers, server.asked, server.heard = {}, [], threading.Event()
    place = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{place}/")
    monkeypatch.setenv("GCE_METADATA_HOST", place)
    monkeypatch.setattr(spot_notice, "LINK_LOCAL", f"http://{place}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _watch(cloud: str) -> tuple[Watch, StopRequest, list[str]]:
    stop, told = StopRequest(), list[str]()
    return Watch(cloud=cloud, stop=stop, tell=told.append), stop, told


def _events(*events: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"DocumentIncarnation": 1, "Events": list(events)})


def _event(kind: str = "Preempt", name: str = "mine_0", when: str = TIME) -> dict[str, Any]:
    return {"EventId": "a", "EventType": kind, "Resources": ["other_1", name], "NotBefore": when}


AWS = {TOKEN: (200, "a-token")}
NOTHING: dict[str, dict[str, tuple[int, str]]] = {
    "aws": AWS,
    "gcp": {PREEMPTED: (200, "FALSE\n")},
    "azure": {EVENTS: _events(_event("Freeze"), _event("Reboot"))},
}


@pytest.mark.parametrize("cloud", NOTHING)
def test_no_notice(service: Service, cloud: str) -> None:
    service.answers = NOTHING[cloud]
    watch, stop, told = _watch(cloud)
    assert watch.poll() is False
    assert (stop.reason, told, watch.answered) == (None, [], True)


@pytest.mark.parametrize(
    ("cloud", "answers", "reason"),
    [
        ("aws", {**AWS, ACTION: (200, json.dumps({"action": "terminate", "time": TIME}))},
         f"AWS will terminate this spot instance at {TIME}"),
        ("gcp", {PREEMPTED: (200, "TRUE")}, "Google Cloud takes this spot VM back within 30 seconds"),
        ("azure", {EVENTS: _events(_event("Freeze"), _event()), NAME: (200, "mine_0")},
         f"Azure takes this spot VM back, not before {TIME}"),
        ("azure", {EVENTS: _events(_event(when="")), NAME: (200, "mine_0")}, "Azure takes this spot VM back, now"),
    ],
)  # fmt: skip
def test_notice(service: Service, cloud: str, answers: dict[str, tuple[int, str]], reason: str) -> None:
    service.answers = answers
    watch, stop, told = _watch(cloud)
    assert watch.poll() is True
    assert (stop.reason, told) == (reason, [])


def test_another_machine_of_azure_is_taken_back(service: Service) -> None:
    service.answers = {EVENTS: _events(_event()), NAME: (200, "mine_7")}
    watch, stop, _ = _watch("azure")
    assert watch.poll() is False
    assert not stop.is_asked()


def test_each_service_is_asked_as_it_wants(service: Service) -> None:
    for cloud in ("aws", "gcp", "azure"):
        service.answers = NOTHING[cloud]
        _watch(cloud)[0].poll()
    asked = [(method, path) for method, path, _ in service.asked]
    assert asked == [("PUT", TOKEN), ("GET", ACTION), ("GET", PREEMPTED), ("GET", EVENTS)]
    headers = [headers for _, _, headers in service.asked]
    assert headers[0]["x-aws-ec2-metadata-token-ttl-seconds"] == "60"
    assert headers[1]["x-aws-ec2-metadata-token"] == "a-token"
    assert headers[2]["metadata-flavor"] == "Google"
    assert headers[3]["metadata"] == "true"


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {TOKEN: (403, "")},
        {TOKEN: (302, "http://127.0.0.1:9/elsewhere")},
        {**AWS, ACTION: (401, "")},
        {**AWS, ACTION: (200, "<html>")},
        {**AWS, ACTION: (200, "{}")},
        {**AWS, ACTION: (200, "7")},
    ],
)
def test_what_is_no_metadata_service_is_told_once_and_ends_nothing(
    service: Service, answers: dict[str, tuple[int, str]]
) -> None:
    service.answers = answers
    watch, stop, told = _watch("aws")
    assert [watch.poll(), watch.poll()] == [False, False]
    assert not stop.is_asked()
    (line,) = told
    assert line.startswith('listener "spot-notice": no metadata service of aws answers (')
    service.answers = {**AWS, ACTION: (200, json.dumps({"action": "stop", "time": TIME}))}
    assert watch.poll() is True  # it is asked again all the same


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    watch, stop, told = _watch("aws")
    assert watch.poll() is False
    assert (len(told), stop.is_asked()) == (1, False)


def test_a_service_that_fails_once_is_no_news(service: Service) -> None:
    service.answers = NOTHING["gcp"]
    watch, _, told = _watch("gcp")
    watch.poll()
    service.answers = {PREEMPTED: (503, "")}
    assert (watch.poll(), told) == (False, [])


def test_the_thread_ends_with_the_run_and_with_a_notice(service: Service) -> None:
    service.answers = NOTHING["gcp"]
    watch, stop, _ = _watch("gcp")
    watch.every = 3600
    ended = threading.Event()
    thread = threading.Thread(target=watch.run, args=(ended,))
    thread.start()
    assert service.heard.wait(60)
    ended.set()
    thread.join(60)
    assert not thread.is_alive()
    service.answers = {PREEMPTED: (200, "TRUE")}
    watch.run(threading.Event())  # comes back by itself
    assert stop.is_asked()


class WaitsForNotice:
    """Holds the first step until the run is asked to stop."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @hookimpl
    def ft_step_done(self, run: Any, step: StepReport) -> None:
        """Let the cloud give notice, and see it come."""
        self.service.answers = {PREEMPTED: (200, "TRUE")}
        arrived = threading.Event()
        while not run.stop.is_asked():
            arrived.wait(0.01)


def test_a_run_is_stopped_and_saved(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpotNotice.__init__, "__defaults__", (0.01,))
    service.answers = NOTHING["gcp"]
    recipe = write_recipe(tmp_path / "recipe", {"listener": [{"use": "spot-notice", "cloud": "gcp"}]})
    with pytest.raises(Interrupted, match="stopped after 1 of 3 steps: Google Cloud takes this spot VM back"):
        train(recipe, tmp_path / "run", plugins=[WaitsForNotice(service)])
    assert (tmp_path / "run" / "checkpoints" / "step-1" / "manifest.json").is_file()
    assert len(metrics(tmp_path / "run")) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "spot notice"]


def test_nothing_is_asked_unless_a_recipe_names_it(service: Service, recipe_path: Path, tmp_path: Path) -> None:
    train(recipe_path, tmp_path / "run", "train.steps=1")
    assert service.asked == []
