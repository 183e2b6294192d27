"""torch's out-of-memory messages within logs: below a traceback, mangled, broken off, or not there."""

from __future__ import annotations

import pytest

from fitune.errors import RunError
from fitune.memory.oom.message import figure, read_message
from fitune.memory.oom.traceback import model_frame
from support.oom_texts import ASYNC, NEW, OLD, gib, mib, said

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
