"""torch's out-of-memory messages: every form, from real logs and made up, whole and mangled."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.errors import RunError
from fitune.memory.oom.message import Figure, OutOfMemoryMessage, figure, read_message
from fitune.memory.oom.traceback import model_frame
from support.cuda_messages import GIB, MIB, format_size

OLD = (
    "CUDA out of memory. Tried to allocate 172.00 MiB (GPU 0; 22.20 GiB total capacity; 21.06 GiB already allocated; "
    "122.12 MiB free; 21.60 GiB reserved in total by PyTorch) If reserved memory is >> allocated memory try setting "
    "max_split_size_mb to avoid fragmentation.  See documentation for Memory Management and PYTORCH_CUDA_ALLOC_CONF"
)
NEW = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB "
    "of which 122.12 MiB is free. Including non-PyTorch memory, this process has 22.18 GiB memory in use. Of the "
    "allocated memory 20.95 GiB is allocated by PyTorch, and 120.50 MiB is reserved by PyTorch but unallocated. If "
    "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid "
    "fragmentation.  See documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html)"
)
ASYNC = """\
torch.OutOfMemoryError: Allocation on device 1 would exceed allowed memory. (out of memory)
Currently allocated     : 4.86 GiB
Requested               : 10.12 GiB
Device limit            : 24.00 GiB
Free (according to CUDA): 0 bytes
PyTorch limit (set by user-supplied memory fraction)
                        : 17179869184.00 GiB
"""
MIB_ERROR, GIB_ERROR = 5243, 5368710  # half of 0.01 of the unit, rounded up


def mib(number: float) -> Figure:
    return Figure(bytes=round(number * MIB), error=MIB_ERROR)


def gib(number: float) -> Figure:
    return Figure(bytes=round(number * GIB), error=GIB_ERROR)


def said(message: OutOfMemoryMessage) -> dict[str, object]:
    """What a message says, without what it leaves open."""
    names = ("asked", "total", "free", "in_use", "others", "allowed", "allocated", "unallocated", "private", "device")
    return {name: value for name in names if (value := getattr(message, name)) not in (None, ())}


# ------------------------------------------------------------------------------------------------------------ forms


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


# ------------------------------------------------------------------------------------------------------------- logs

TRACEBACK = """\
Traceback (most recent call last):
  File "/old/first.py", line 1, in <module>
    1 / 0
ZeroDivisionError: division by zero
Traceback (most recent call last):
  File "/home/me/train.py", line 12, in main
    loss = model(**batch)
  File "/v/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1751, in _call_impl
    return forward_call(*args, **kwargs)
  File "/v/lib/python3.11/site-packages/transformers/models/llama/modeling_llama.py", line 189, in forward
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
  File "/v/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 125, in forward
    return F.linear(input, self.weight, self.bias)
"""


def test_the_traceback_above() -> None:
    message = read_message(TRACEBACK + NEW)
    assert [frame.name for frame in message.frames] == ["train.py", "module.py", "modeling_llama.py", "linear.py"]
    assert str(model_frame(message.frames)) == "modeling_llama.py:189 in forward"
    assert message.phase == "forward"


@pytest.mark.parametrize(
    ("call", "phase"),
    [
        ('File "/v/torch/_tensor.py", line 2, in backward', "backward"),
        ('File "/v/torch/optim/adamw.py", line 2, in step', "optimizer"),
        ('File "/v/transformers/loss/loss_utils.py", line 2, in ForCausalLMLoss', "loss"),
        ('File "/v/transformers/trainer.py", line 2, in evaluate', "evaluation"),
        ('File "/v/torch/nn/utils/clip_grad.py", line 2, in clip_grad_norm_', "gradients"),
        ('File "/v/transformers/modeling_utils.py", line 2, in from_pretrained', "load"),
        ('File "C:\\\\v\\\\torch\\\\nn\\\\modules\\\\module.py", line 2, in _apply', "load"),
        ('File "/home/me/train.py", line 2, in go', None),
    ],
)
def test_the_phase(call: str, phase: str | None) -> None:
    assert read_message(f"Traceback (most recent call last):\n  {call}\n    x\n{NEW}").phase == phase


def test_no_traceback() -> None:
    message = read_message(f"step 12 loss 0.1\n{NEW}")
    assert message.frames == ()
    assert message.phase is None


def test_the_first_of_several_counts() -> None:
    text = f"[rank1]: {NEW}\n[rank0]: {OLD}\n{ASYNC}"
    message = read_message(text)
    assert message.count == 3
    assert message.total == gib(22.30)


def test_a_message_that_breaks_off_is_passed_over() -> None:
    message = read_message(f"CUDA out of memory. Tried to allocate\n\nthen:\n{OLD}")
    assert (message.count, message.total) == (2, gib(22.20))


def test_figures_of_a_later_message_are_not_this_one_s() -> None:
    assert said(read_message(f"CUDA out of memory. Tried to allocate 4.00 MiB\n{NEW}")) == {"asked": mib(4)}


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31m" + NEW.replace(". GPU", ".\x1b[0m GPU") + "\x1b[0m",
        f"2026-11-22T10:00:00Z stderr F {NEW}",
        f"[rank3]: {NEW}",
        NEW.replace(" ", "\n> ", 30),
        NEW.replace(". ", ".\r\n# "),
        "\n".join(NEW[at : at + 80] for at in range(0, len(NEW), 80)),
        f"'error': '{NEW}'}}",
        f"epoch 1:  3%|#   |\repoch 1: 4%|#   |\r{NEW}",
    ],
    ids=["colours", "timestamp", "rank", "quoted", "commented", "hard-wrapped", "in JSON", "progress bar"],
)
def test_a_mangled_log(text: str) -> None:
    assert said(read_message(text)) == said(read_message(NEW))
    assert said(read_message(text.encode())) == said(read_message(NEW))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_log_of_windows(encoding: str) -> None:
    assert said(read_message(NEW.encode(encoding))) == said(read_message(NEW))


def test_bytes_that_are_no_text_around_it() -> None:
    assert said(read_message(b"\xff\xfa\x00\x01" + NEW.encode() + b"\x80")) == said(read_message(NEW))


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "x.log is empty"),
        (b" \n\n", "x.log is empty"),
        (b"\x7fELF\x00\x00\x00\x01" * 100, "x.log is not text"),
        (b"loss 0.1\nloss 0.2\n", 'x.log: no out-of-memory message of torch in it. Known are: "CUDA out of memory.'),
        (b"slurmstepd: Out Of Memory\nKilled\n", "x.log: no out-of-memory message of torch"),
        (b"CUDA out of memory. Tried to allocate ", "x.log: the out-of-memory message breaks off"),
    ],
)
def test_a_text_without_a_message(data: bytes, says: str) -> None:
    with pytest.raises(RunError) as error:
        read_message(data, "x.log")
    assert error.value.message.startswith(says)


@pytest.mark.parametrize("text", ["", "172", "172 MB", "-1.00 MiB", "1.0.0 GiB", "x MiB"])
def test_a_figure_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        figure(text)


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
