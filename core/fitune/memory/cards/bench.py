"""Measures the card of this machine, in about a minute: what `ft bench` does, and what forecasts of time are made from.

Each operation is timed by the card's own clock: its launches wait until all of them are there, so that what the card
takes counts, and not what Python takes. Operands are taken in turn from several copies, more than the card's cache
holds, as in a step of training.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from fitune.errors import RunError
from fitune.memory.cards.bench_clock import Clock, OnCard, link
from fitune.memory.cards.bench_host import host_rates
from fitune.memory.cards.bench_shapes import Shape, attention_sizes, passes_of, products_of
from fitune.memory.cards.cards import local_card
from fitune.memory.cards.pace import is_aligned, product
from fitune.memory.cards.rates import Attention, Direction, Pass, Passing, Product, Rates

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Say = Callable[[str], None]

CACHE = 2**28
"""Bytes of operands that are taken in turn: more than any card's cache holds."""

KERNELS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
"""Attention, as fitune and as torch's `SDPBackend` call it."""


def measure(say: Say) -> Rates:
    """Measure this machine's NVIDIA GPU; `say` is told of each part. Raises `RunError` without one."""
    import torch

    card = local_card()
    if card is None:
        raise RunError("ft bench needs an NVIDIA GPU, and torch finds none here. Run it on the machine that trains")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    say(f"{properties.name}, torch {torch.__version__}: about a minute. Nothing else should use the card meanwhile")
    clock = OnCard(device)
    clock.warm_up()
    return Bench(device, clock, say).rates(
        card=card.name,
        driver=_driver(),
        multiprocessors=properties.multi_processor_count,
        seconds_of_link=link(device),
        float8=(properties.major, properties.minor) >= (8, 9),
    )


class Bench:
    """Measurements on one device."""

    def __init__(self, device: torch.device, clock: Clock, say: Say, *, divisor: int = 1) -> None:
        """Large sizes are divided by `divisor`: a test has no time for the whole of them."""
        self.device, self.clock, self.say, self.divisor = device, clock, say, divisor

    def rates(self, *, card: str, driver: str, multiprocessors: int, seconds_of_link: float, float8: bool) -> Rates:
        """All that is measured, beside what was found elsewhere."""
        import torch

        gap = self.clock.on_card([torch.ones(1, device=self.device).neg_])
        host = host_rates(self.device, self.clock)
        self.say(
            f"launches    of the host {1e6 * host.forward:.1f} us forward, {1e6 * host.backward:.1f} us backward; "
            f"of the card {1e6 * gap:.1f} us at least; link to the host {2**30 / 1e9 / seconds_of_link:.1f} GB/s"
        )
        return Rates(
            card=card,
            torch=importlib.metadata.version("torch").partition("+")[0],
            cuda=str(torch.version.cuda),
            driver=driver,
            date=datetime.date.today().isoformat(),
            source="ft bench",
            multiprocessors=multiprocessors,
            gap=gap,
            forward=host.forward,
            backward=host.backward,
            listed=host.listed,
            link=seconds_of_link,
            products=tuple(self.products(float8=float8)),
            attention=tuple(self.attention()),
            passes=tuple(self.passes()),
        )

    def products(self, *, float8: bool) -> Iterator[Product]:
        """Of several types and sizes."""
        for name, shapes in products_of(float8=float8).items():
            found = [self._product(name, self._smaller(shape)) for shape in shapes]
            best = max(found, key=lambda one: one.batch * one.rows * one.columns * one.inner / one.seconds)
            flops = 2 * best.batch * best.rows * best.columns * best.inner / best.seconds
            what = f"{best.rows} x {best.columns} x {best.inner}"
            self.say(f"products    {name}: {len(found)} sizes, at best {flops / 1e12:.0f} TFLOP/s ({what})")
            yield from found

    def attention(self) -> Iterator[Attention]:
        """Causal, by each kernel that works for a size."""
        for kernel in KERNELS:
            found = [one for sizes in attention_sizes(kernel) for one in self._attention(kernel, sizes)]
            if not found:
                self.say(f"attention   {kernel}: not on this card")
                continue
            longest = max((one for one in found if one.size == 128), key=lambda one: one.tokens)
            alike = [one for one in found if (one.tokens, one.size) == (longest.tokens, 128)]
            times = ", ".join(f"{one.direction} {1e3 * one.seconds:.2f} ms" for one in alike)
            said = f"{longest.tokens} tokens, {longest.heads} heads of 128: {times}"
            self.say(f"attention   {kernel}: {len(found)} sizes; {said}")
            yield from found

    def passes(self) -> Iterator[Pass]:
        """Operations that are bound by the card's memory."""
        for kind, sizes in passes_of().items():
            found = [self._pass(kind, max(2**14, size // self.divisor)) for size in sizes]
            rate = max(one.bytes / one.seconds for one in found)
            self.say(f"memory      {kind}: {len(found)} sizes, at best {rate / 1e9:,.0f} GB/s")
            yield from found

    # ------------------------------------------------------------------------------------------------ one at a time
    def _product(self, name: str, shape: Shape) -> Product:
        import torch

        dtype = torch.bfloat16 if name.startswith("float8") else getattr(torch, name)
        sizes = shape.batch, shape.rows, shape.columns, shape.inner
        times = self._times(product(name, sizes, aligned=True, added=shape.added).bytes)
        operands = [self._operands(shape, dtype) for _ in range(times)]
        if name.startswith("float8"):
            calls: list[Callable[[], Any]] = [_scaled(left, right) for left, right, _ in operands]
        elif shape.batch > 1:
            calls = [partial(torch.bmm, left, right) for left, right, _ in operands]
        elif shape.added:
            calls = [partial(c[0].addmm_, a[0], b[0], beta=0.5, alpha=0.5) for a, b, c in operands]
        else:
            calls = [partial(torch.mm, left[0], right[0]) for left, right, _ in operands]
        return Product(
            dtype=name,
            batch=shape.batch,
            rows=shape.rows,
            columns=shape.columns,
            inner=shape.inner,
            aligned=all(is_aligned(tensor) for tensor in operands[0]),
            added=shape.added,
            seconds=self.clock.on_card(calls),
        )

    def _operands(self, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        batch, rows, columns, inner = shape.batch, shape.rows, shape.columns, shape.inner
        out = self._random((batch, rows, columns), dtype)
        if shape.across:
            return self._random((batch, inner, rows), dtype).mT, self._random((batch, inner, columns), dtype), out
        return self._random((batch, rows, inner), dtype), self._random((batch, columns, inner), dtype).mT, out

    def _attention(self, kernel: str, sizes: tuple[int, int, int]) -> Iterator[Attention]:
        import torch
        from torch.nn import functional
        from torch.nn.attention import SDPBackend, sdpa_kernel

        heads, tokens, size = sizes[0], max(16, sizes[1] // self.divisor), sizes[2]
        heads = max(1, heads // self.divisor)
        query, key, value, gradient = (
            self._random((1, tokens, heads, size), torch.bfloat16).transpose(1, 2) for _ in range(4)
        )
        given = [one.requires_grad_() for one in (query, key, value)]

        def forward() -> Tensor:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, KERNELS[kernel])):
            out = forward()
            calls: dict[Direction, Callable[[], Any]] = {
                "forward": forward,
                "backward": lambda: torch.autograd.grad(out, given, gradient, retain_graph=True),
            }
            for direction, call in calls.items():
                seconds = self.clock.on_card([call])
                yield Attention(
                    direction=direction,
                    kernel=kernel,
                    dtype="bfloat16",
                    heads=heads,
                    tokens=tokens,
                    size=size,
                    seconds=seconds,
                )

    def _pass(self, kind: Passing, size: int) -> Pass:
        import torch

        rows, width = max(1, size // (2 * 4096)), 4096
        operands = [
            [self._random((rows, width), torch.bfloat16) for _ in range(3)] for _ in range(self._times(3 * size))
        ]
        turned = self._random((rows, 128), torch.bfloat16)
        weight = self._random((width,), torch.bfloat16)
        one = rows * width * 2
        calls: list[Callable[[], Any]]
        if kind == "copy":
            calls, moved = [partial(b.copy_, a) for a, b, _ in operands], 2 * one
        elif kind == "pointwise":
            calls, moved = [partial(torch.mul, a, b, out=c) for a, b, c in operands], 3 * one
        elif kind == "strided":
            heads = [a.view(1, rows, 32, 128).transpose(1, 2) for a, _, _ in operands]
            calls = [partial(torch.mul, a, turned) for a in heads]
            moved = 2 * one + turned.nbytes
        else:
            calls = [partial(torch.rms_norm, a, (width,), weight, 1e-6) for a, _, _ in operands]
            moved = 2 * one + weight.nbytes
        return Pass(kind=kind, bytes=moved, seconds=self.clock.on_card(calls))

    # -------------------------------------------------------------------------------------------------------- help
    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As weights and activations are: a card that multiplies zeros needs less power, and is faster."""
        import torch

        return torch.randn(shape, dtype=dtype, device=self.device)

    def _times(self, size: int) -> int:
        return max(1, min(16, CACHE // max(1, size)))

    def _smaller(self, shape: Shape) -> Shape:
        return shape if self.divisor == 1 else shape.smaller(self.divisor)


def _scaled(left: Tensor, right: Tensor) -> Callable[[], Any]:
    """A product of 8-bit numbers, with a scale for each row of either, summed as `fp8` has it: by tensor cores alone.
    With sums that are promoted on the way they took an eighth longer by themselves than in an H100's step.
    """
    import torch

    eighth = torch.float8_e4m3fn
    first, second = left[0].to(eighth), right[0].to(eighth)  # the second keeps its columns together, as it must
    rows = torch.ones((first.shape[0], 1), device=first.device)
    columns = torch.ones((1, second.shape[1]), device=first.device)
    how: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return lambda: torch._scaled_mm(first, second, scale_a=rows, scale_b=columns, **how)


def _driver() -> str:
    """The version of NVIDIA's driver, as its own tool tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        if said:
            return said[0]
    return "unknown"
