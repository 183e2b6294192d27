"""Notice of a spot instance: a run stops and saves when the cloud says that it takes the machine back.

A recipe asks for it, `[[listener]] use = "spot-notice"`; nothing is asked otherwise. A thread asks the machine's own
metadata service, over its link-local address and through no proxy, every few seconds.

aws     instance-action of the instance metadata service, version 2: 404 until about two minutes before
        (docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html)
gcp     instance/preempted, TRUE some 30 seconds before
        (cloud.google.com/compute/docs/instances/create-use-spot)
azure   scheduled events, one of the type Preempt at least 30 seconds before
        (learn.microsoft.com/azure/virtual-machines/linux/scheduled-events)
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Literal
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from fitune import Listener, Run, StopRequest, hookimpl

EVERY = 5.0
"""Seconds between two questions, as AWS recommends."""

PATIENCE = 2.0
"""Seconds that an answer may take."""

FIRST_PATIENCE = 120.0
"""Seconds for Azure's first answer, which switches the service on and may take two minutes."""

LINK_LOCAL = "http://169.254.169.254"

LARGEST = 2**20
"""Bytes of an answer that are read."""


class _NoRedirect(HTTPRedirectHandler):
    """A metadata service never redirects: what does is something else, and gets no token."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow none."""
        return


_OPENER = build_opener(ProxyHandler({}), _NoRedirect())


def _ask(url: str, headers: Mapping[str, str], *, method: str = "GET", patience: float = PATIENCE) -> str:
    """The answer's text. Raises `OSError` (an `HTTPError` among them) or `HTTPException`."""
    request = Request(url, headers=dict(headers), method=method)
    with _OPENER.open(request, timeout=patience) as answer:
        text: bytes = answer.read(LARGEST)
    return text.decode(errors="replace")


def aws(patience: float = PATIENCE) -> str | None:
    """Why a spot instance of AWS ends; None while it does not. Raises what `_ask` raises, and `ValueError`."""
    service = (os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL).rstrip("/")
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{service}/latest/api/token", lifetime, method="PUT", patience=patience)
    try:
        said = _ask(f"{service}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except HTTPError as error:
        if error.code == 404:  # nothing is planned
            return None
        raise
    notice = json.loads(said)
    return f"AWS will {notice['action']} this spot instance at {notice['time']}"


def gcp(patience: float = PATIENCE) -> str | None:
    """Why a spot VM of Google Cloud ends; None while it does not. Raises what `_ask` raises."""
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    said = _ask(url, {"Metadata-Flavor": "Google"}, patience=patience)
    return "Google Cloud takes this spot VM back within 30 seconds" if said.strip() == "TRUE" else None


def azure(patience: float = PATIENCE) -> str | None:
    """Why a spot VM of Azure ends; None while it does not. Raises what `_ask` raises, and `ValueError`.

    Events of the other machines of a scale set may be among those that are told: they name theirs.
    """
    header = {"Metadata": "true"}
    said = _ask(f"{LINK_LOCAL}/metadata/scheduledevents?api-version=2020-07-01", header, patience=patience)
    preempted = [event for event in json.loads(said)["Events"] if event["EventType"] == "Preempt"]
    if not preempted:
        return None
    own = _ask(f"{LINK_LOCAL}/metadata/instance/compute/name?api-version=2021-02-01&format=text", header).strip()
    for event in preempted:
        if own in event["Resources"]:
            when = f"not before {event['NotBefore']}" if event.get("NotBefore") else "now"
            return f"Azure takes this spot VM back, {when}"
    return None


CLOUDS: dict[str, Callable[[float], str | None]] = {"aws": aws, "gcp": gcp, "azure": azure}

FAILURES = (OSError, HTTPException, ValueError, KeyError, TypeError)
"""What an answer that is none raises: no network, a timeout, an error page, JSON of another shape."""


@dataclass(slots=True)
class Watch:
    """Asks one cloud, until it has given notice or the run has ended."""

    cloud: str
    stop: StopRequest
    tell: Callable[[str], None]
    every: float = EVERY
    answered: bool = False
    complained: bool = False

    def poll(self) -> bool:
        """Ask once, and the run to stop if there is notice; gives whether there is. Raises nothing."""
        slow = self.cloud == "azure" and not self.answered and not self.complained
        try:
            why = CLOUDS[self.cloud](FIRST_PATIENCE if slow else PATIENCE)
        except FAILURES as error:
            self._complain(error)
            return False
        self.answered = True
        if why is not None:
            self.stop.ask(why)
        return why is not None

    def run(self, ended: threading.Event) -> None:
        """Ask every few seconds."""
        while not self.poll() and not ended.wait(self.every):
            pass

    def _complain(self, error: BaseException) -> None:
        """Say once that nobody answers; one that has answered may fail now and then."""
        if self.answered or self.complained:
            return
        self.complained = True
        said = " ".join(str(error).split()) or type(error).__name__
        self.tell(
            f'listener "spot-notice": no metadata service of {self.cloud} answers ({said}), so that no notice can be '
            "seen. Is this a machine of that cloud, and may it reach the service (in a container, a hop limit of 2)? "
            "It is asked again, and the run goes on"
        )


class SpotNotice:
    """Watches one run."""

    def __init__(self, cloud: str, every: float = EVERY) -> None:
        """`every` is in seconds."""
        self._cloud, self._every = cloud, every
        self._ended = threading.Event()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Begin to watch."""
        watch = Watch(cloud=self._cloud, stop=run.stop, tell=_tell, every=self._every)
        threading.Thread(target=watch.run, args=(self._ended,), name="spot notice", daemon=True).start()

    @hookimpl
    def ft_run_finished(self) -> None:
        """End the watch. A question that is being asked is not waited for: the thread ends once it is answered."""
        self._ended.set()


def _tell(what: str) -> None:
    print(f"note: {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotNoticeOptions:
    """Options of `spot-notice`."""

    cloud: Literal["aws", "gcp", "azure"]
    """Whose machine it is: the metadata service of this cloud is asked every few seconds."""


@hookimpl
def ft_listeners() -> Iterable[Listener[SpotNoticeOptions]]:
    """Offer `spot-notice`."""
    yield Listener(
        name="spot-notice",
        summary="Stops and saves the run when the cloud says that it takes the machine, a spot instance, back",
        options=SpotNoticeOptions,
        make=lambda options: SpotNotice(options.cloud),
    )
