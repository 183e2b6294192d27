"""torch's out-of-memory messages, read from text: a log, a terminal's copy, the output of several processes.

Forms that are known, from the sources of torch 1.13 to 2.13 (`c10/cuda/CUDACachingAllocator.cpp`, its HIP and XPU
counterparts, and `CUDAMallocAsyncAllocator.cpp`):

    CUDA out of memory. Tried to allocate A (GPU 0; T total capacity; U already allocated; F free; R reserved in total
    by PyTorch)                                                                                        until torch 2.0
    CUDA out of memory. Tried to allocate A. GPU 0 has a total capacity of T of which F is free. Process 12 has O
    memory in use. Including non-PyTorch memory, this process has P memory in use. L allowed; Of the allocated memory U
    is allocated by PyTorch, with V allocated in private pools (e.g., CUDA Graphs), and W is reserved by PyTorch but
    unallocated.                                                                                        from torch 2.1
    Allocation on device 0 would exceed allowed memory. (out of memory) ... Requested : A                cudaMallocAsync

All but A may be missing. A is not the tensor's size but that of the segment which the allocator makes for it
(`alloc_size`), except for cudaMallocAsync, which has none. "capacity" was spelled "capacty" in torch 2.1; torch 2.2
wrote the number of the GPU as a character, so a zero byte; where processes have numbers of their own (containers),
this process is called by the host's number like any other; Windows says 17179869184.00 GiB for what it cannot know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING

from fitune.errors import RunError
from fitune.memory.oom.traceback import Frame, frames_above, phase_of

if TYPE_CHECKING:
    from fitune.compose.step import Phase

FORMS = (
    '"CUDA out of memory. Tried to allocate 172.00 MiB ...", the same with HIP or XPU, and "Allocation on device 0 '
    'would exceed allowed memory ..." (cudaMallocAsync)'
)

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A size as it was printed, rounded: it may be so many bytes more or less."""

    bytes: int
    error: int = 0

    def may_be(self, size: int) -> bool:
        """Whether it stands for this size, in bytes."""
        return abs(size - self.bytes) <= self.error

    def __add__(self, other: Figure) -> Figure:
        return Figure(bytes=self.bytes + other.bytes, error=self.error + other.error)

    def __sub__(self, other: Figure) -> Figure:
        return Figure(bytes=self.bytes - other.bytes, error=self.error + other.error)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemoryMessage:
    """What a message says; None where it does not."""

    asked: Figure
    whole_segment: bool = True
    """Whether `asked` is the size of the segment that the caching allocator wanted; else it is the request's own."""
    total: Figure | None = None
    """Of the card."""
    free: Figure | None = None
    """Of the card, for all processes."""
    in_use: Figure | None = None
    """By this process, its CUDA context included."""
    others: tuple[Figure, ...] = ()
    """By other processes."""
    allowed: Figure | None = None
    """What `set_per_process_memory_fraction` leaves to torch."""
    allocated: Figure | None = None
    """By tensors."""
    unallocated: Figure | None = None
    """Reserved by torch, but held by no tensor."""
    private: Figure | None = None
    """In private pools, e.g. of CUDA graphs."""
    device: int | None = None
    frames: tuple[Frame, ...] = ()
    """The traceback above the message, outermost first."""
    count: int = 1
    """Messages in the text; this is the first of them."""
    source: str = ""
    """Where it was read."""

    @property
    def reserved(self) -> Figure | None:
        """What torch has taken of the card."""
        return self.allocated + self.unallocated if self.allocated and self.unallocated else None

    @property
    def missing(self) -> Figure | None:
        """What was asked for, less what was free, of the card or of what is allowed."""
        if self.allowed and self.reserved:
            return self.asked - (self.allowed - self.reserved)
        return self.asked - self.free if self.free else None

    @property
    def phase(self) -> Phase | None:
        """What the run was doing, as far as the traceback shows it."""
        return phase_of(self.frames)


def figure(text: str) -> Figure:
    """A printed size, e.g. `172.00 MiB`; its error is half of the last digit. Raises `ValueError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(bytes|[KMG]iB)", text.strip())
    if found is None:
        raise ValueError(f"not a size: {text}")
    number, unit = Decimal(found[1]), UNITS[found[2]]
    digits = len(found[1].partition(".")[2])
    error = 0 if unit == 1 else math.ceil(unit * Decimal("0.5").scaleb(-digits))
    return Figure(bytes=round(number * unit), error=error)


def read_message(data: bytes | str, source: str = "the log") -> OutOfMemoryMessage:
    """The first out-of-memory message of a text. Raises `RunError` where there is none, or none that is whole."""
    text = clean(decoded(data) if isinstance(data, bytes) else data)
    starts = [match.start() for match in _START.finditer(text)]
    for start, end in pairwise([*starts, len(text)]):
        found = _parse(text[start:end], frames_above(text[:start]), len(starts), source)
        if found is not None:
            return found
    raise RunError(_nothing(data, source, cut=bool(starts)))


def decoded(data: bytes) -> str:
    """Text of a log: UTF-8, or the UTF-16 that PowerShell writes."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def clean(text: str) -> str:
    """Without colours, without what marks each line's process or quotes it, with `\\n` as line ends."""
    text = re.sub(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))", "", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"^[ \t]*(?:\[(?:rank|default)\d+\]:|[#>|│]+)[ \t]?", "", text, flags=re.MULTILINE)


def _nothing(data: bytes | str, source: str, *, cut: bool) -> str:
    """What to say where nothing was found."""
    if not data.strip():
        return f"{source} is empty. Give the log of the run that ran out of memory"
    if cut:
        return f"{source}: the out-of-memory message breaks off before the size that was asked for. Give all of the log"
    raw = data if isinstance(data, bytes) else data.encode("utf-8", errors="replace")
    if raw[:2] not in (b"\xff\xfe", b"\xfe\xff") and raw.count(0) > len(raw) // 100:
        return f"{source} is not text. Give the log of the run that ran out of memory"
    return f"{source}: no out-of-memory message of torch in it. Known are: {FORMS}"


def _loose(words: str) -> str:
    """A pattern for these words however they are wrapped, even within a word."""
    return r"\s*".join(re.escape(letter) for letter in words if letter != " ")


_START = re.compile(
    rf"(?:CUDA|HIP|XPU)?\s*{_loose('out of memory. Tried to allocate')}"
    rf"|{_loose('Allocation on device')}\s*\S+\s*{_loose('would exceed allowed memory')}",
)

SIZE = r"(\d+(?:\.\d+)?(?:bytes|[KMG]iB))"

_OF_CARD = re.compile(rf"(?:{SIZE}totalcapacity|totalcapaci?tyof{SIZE}|Devicelimit:{SIZE})")

_FREE = re.compile(rf"(?:{SIZE}free;|ofwhich{SIZE}isfree|Free\(accordingto\w+\):{SIZE})")

_ALLOCATED = re.compile(
    rf"(?:{SIZE}alreadyallocated|Oftheallocatedmemory{SIZE}isallocatedbyPyTorch|Currentlyallocated:{SIZE})"
)

_UNALLOCATED = re.compile(rf"{SIZE}isreservedbyPyTorchbutunallocated")

_RESERVED = re.compile(rf"{SIZE}reservedintotalbyPyTorch")

_ALLOWED = re.compile(rf"(?:{SIZE}allowed;|PyTorchlimit\(setbyuser-suppliedmemoryfraction\):{SIZE})")

_PRIVATE = re.compile(rf"with{SIZE}allocatedinprivatepools")

_ASKED = re.compile(rf"(?:Triedtoallocate{SIZE}|Requested:{SIZE})")

_PROCESS = re.compile(rf"(thisprocess|Process\d+)has{SIZE}memoryinuse")

_DEVICE = re.compile(r"GPU(\d+)(?:;|has)|Allocationondevice(\d+)")


def _find(pattern: re.Pattern[str], text: str) -> Figure | None:
    found = pattern.search(text)
    return figure(next(group for group in found.groups() if group)) if found else None


def _parse(text: str, frames: Sequence[Frame], count: int, source: str) -> OutOfMemoryMessage | None:
    """The message that a text begins with; None if it breaks off before the size that was asked for."""
    text = re.sub(r"\s+", "", text[:4000])  # words are told apart by what stands around them, so wrapping is no matter
    asked = _find(_ASKED, text)
    if asked is None:
        return None
    total = _known(_find(_OF_CARD, text))
    allocated, unallocated, reserved = _find(_ALLOCATED, text), _find(_UNALLOCATED, text), _find(_RESERVED, text)
    if unallocated is None and reserved is not None and allocated is not None:
        unallocated = reserved - allocated
    in_use, others = _processes(text, total, allocated + unallocated if allocated and unallocated else None)
    allowed = _find(_ALLOWED, text)
    device = _DEVICE.search(text)
    return OutOfMemoryMessage(
        asked=asked,
        whole_segment="Triedtoallocate" in text,
        total=total,
        free=_find(_FREE, text),
        in_use=in_use,
        others=others,
        allowed=allowed if allowed and (total is None or allowed.bytes < total.bytes) else None,
        allocated=allocated,
        unallocated=unallocated,
        private=_find(_PRIVATE, text),
        device=int(device[1] or device[2]) if device else None,
        frames=tuple(frames),
        count=count,
        source=source,
    )


def _known(total: Figure | None) -> Figure | None:
    return total if total is not None and total.bytes > 0 else None


def _processes(text: str, total: Figure | None, reserved: Figure | None) -> tuple[Figure | None, tuple[Figure, ...]]:
    """What this process uses, and what each other one does."""
    most = total.bytes + total.error if total else math.inf
    said = [(name, figure(size)) for name, size in _PROCESS.findall(text)]
    said = [(name, size) for name, size in said if size.bytes <= most]  # more than all is what no driver knows
    this = next((size for name, size in said if name == "thisprocess"), None)
    others = [size for name, size in said if name != "thisprocess"]
    if this is None and others and reserved is not None:
        # In a container this process goes by a number of the host's: it is the least that can hold what torch has.
        able = [size for size in others if size.bytes + size.error >= reserved.bytes - reserved.error]
        this = min(able, key=lambda size: size.bytes, default=None)
        if this is not None:
            others.remove(this)
    return this, tuple(others)
