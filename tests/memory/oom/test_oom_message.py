"""torch's out-of-memory messages: every form, from real logs and made up."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.errors import RunError
from fitune.memory.oom.message import Figure, figure, read_message
from support.cuda_messages import GIB, MIB, format_size
from support.oom_texts import ASYNC, GIB_ERROR, MIB_ERROR, NEW, OLD, gib, mib, said


def test_the_form_until_torch_2_0() -> None:
    message = read_message(OLD)
    assert said(message) == {
        "asked": mib(172),
        "total": gib(22.20),
        "free": mib(122.12),
        "allocated": gib(21.06),
        "unallocated": Figure(bytes=gib(21.60).bytes - gib(21.06).bytes, error=2 * GIB_ERROR),
        "device": 0,
    }
    assert message.missing == Figure(bytes=round(172 * MIB) - round(122.12 * MIB), error=2 * MIB_ERROR)


def test_the_form_from_torch_2_1_on() -> None:
    message = read_message(NEW)
    assert said(message) == {
        "asked": mib(172),
        "total": gib(22.30),
        "free": mib(122.12),
        "in_use": gib(22.18),
        "allocated": gib(20.95),
        "unallocated": mib(120.5),
        "device": 0,
    }
    assert message.reserved == Figure(bytes=gib(20.95).bytes + mib(120.5).bytes, error=GIB_ERROR + MIB_ERROR)
    assert message.whole_segment


def test_the_spelling_and_the_zero_byte_of_torch_2_1_and_2_2() -> None:
    text = NEW.replace("capacity", "capacty").replace("GPU 0", "GPU \0")
    assert said(read_message(text.encode())) == {k: v for k, v in said(read_message(NEW)).items() if k != "device"}


@pytest.mark.parametrize("name", ["HIP", "XPU"])
def test_other_makers(name: str) -> None:
    assert said(read_message(NEW.replace("CUDA out", f"{name} out"))) == said(read_message(NEW))


def test_what_the_xpu_of_torch_2_6_leaves_out() -> None:
    text = (
        "XPU out of memory. Tried to allocate 32.00 GiB. GPU 1 has a total capacity of 11.59 GiB. Of the allocated "
        "memory 0 bytes is allocated by PyTorch, and 1.50 KiB is reserved by PyTorch but unallocated. Please use"
    )
    assert said(read_message(text)) == {
        "asked": gib(32),
        "total": gib(11.59),
        "allocated": Figure(bytes=0),
        "unallocated": Figure(bytes=1536, error=6),
        "device": 1,
    }


def test_a_limit_and_private_pools() -> None:
    text = (
        "HIP out of memory. Tried to allocate 76.00 MiB. GPU 0 has a total capacity of 255.69 GiB of which 252.82 GiB "
        "is free. 1.20 GiB allowed; Of the allocated memory 1.14 GiB is allocated by PyTorch, with 17.00 MiB allocated "
        "in private pools (e.g., HIP Graphs), and 18.63 MiB is reserved by PyTorch but unallocated."
    )
    message = read_message(text)
    assert (message.allowed, message.private, message.unallocated) == (gib(1.20), mib(17), mib(18.63))
    assert message.missing is not None
    limit = 76 * MIB - (gib(1.20).bytes - gib(1.14).bytes - mib(18.63).bytes)
    assert message.missing.bytes == limit  # what is free of the card does not help


def test_the_limit_of_the_old_form() -> None:
    assert read_message(OLD.replace("free; ", "free; 21.00 GiB allowed; ")).allowed == gib(21)


def test_cuda_malloc_async_tells_the_request_itself() -> None:
    message = read_message(ASYNC)
    assert said(message) == {
        "asked": gib(10.12),
        "total": gib(24),
        "free": Figure(bytes=0),
        "allocated": gib(4.86),
        "device": 1,
    }
    assert not message.whole_segment


def test_other_processes() -> None:
    text = NEW.replace(
        "Including", "Process 12 has 458.00 MiB memory in use. Process 13 has 0 bytes memory in use. Including"
    )
    message = read_message(text)
    assert message.others == (mib(458), Figure(bytes=0))
    assert message.in_use == gib(22.18)


def test_in_a_container_this_process_goes_by_a_number() -> None:
    text = NEW.replace(
        "Including non-PyTorch memory, this process",
        "Process 77 has 1.00 GiB memory in use. Process 78 has 22.25 GiB memory in use. Process 1234",
    )
    message = read_message(text)
    assert message.in_use == gib(22.18)  # the least that can hold what torch has reserved
    assert message.others == (gib(1), gib(22.25))


def test_where_no_process_can_be_this_one() -> None:
    text = NEW.replace("Including non-PyTorch memory, this process has 22.18 GiB", "Process 9 has 3.00 GiB")
    message = read_message(text)
    assert message.in_use is None
    assert message.others == (gib(3),)


def test_what_windows_does_not_know() -> None:
    message = read_message(NEW.replace("22.18 GiB", "17179869184.00 GiB"))
    assert message.in_use is None


# ------------------------------------------------------------------------------------------------------- round trip


SIZES = st.integers(0, 200 * GIB)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SIZES)
def test_a_size_is_within_what_its_figure_may_be(size: int) -> None:
    found = figure(format_size(size))
    assert found.may_be(size)
    assert found.error <= max(6, size // 100)  # a hundredth at most, so it tells tensors apart


@settings(derandomize=True, deadline=None, max_examples=200)
@given(SIZES, SIZES, SIZES, st.lists(SIZES, max_size=3), SIZES, SIZES, SIZES, st.integers(1, 120), st.booleans())
def test_what_is_written_is_read(
    asked: int, total: int, free: int, others: list[int], own: int, allocated: int, cached: int, width: int, fold: bool
) -> None:
    """Any figures, however the line is folded."""
    processes = "".join(f"Process {n} has {format_size(size)} memory in use. " for n, size in enumerate(others, 10))
    text = (
        f"CUDA out of memory. Tried to allocate {format_size(asked)}. GPU 3 has a total capacity of "
        f"{format_size(total)} of which {format_size(free)} is free. {processes}Including non-PyTorch memory, this "
        f"process has {format_size(own)} memory in use. Of the allocated memory {format_size(allocated)} is allocated "
        f"by PyTorch, and {format_size(cached)} is reserved by PyTorch but unallocated. If"
    )
    if fold:
        text = "\n".join(text[at : at + width] for at in range(0, len(text), width))
    message = read_message(text)
    assert message.asked == figure(format_size(asked))
    assert message.free == figure(format_size(free))
    assert (message.allocated, message.unallocated) == (figure(format_size(allocated)), figure(format_size(cached)))
    most = figure(format_size(total))
    if most.bytes:
        assert message.total == most
        possible = [size for size in map(figure, map(format_size, others)) if size.bytes <= most.bytes + most.error]
        if figure(format_size(own)).bytes <= most.bytes + most.error:
            assert message.others == tuple(possible)
            assert message.in_use == figure(format_size(own))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text())
def test_any_other_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(RunError):
        read_message(text)
