"""What a person sees while data are prepared, which can take minutes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Progress:
    """A `fitune.data.prepare.Watch`: a line that counts on a terminal, or one line where there is none."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def __call__(self, what: str, flow: Mapping[str, int]) -> Iterator[None]:
        """Show how much each stage has given, while the block runs."""
        if not self.console.is_terminal:
            self.console.print(f"preparing the {what}", highlight=False, soft_wrap=True)
            yield
            return
        start = time.perf_counter()

        def line() -> Text:
            counts = ", ".join(f"{name} {number:,}" for name, number in list(flow.items()))
            return Text(f"preparing the {what}: {counts}  [{time.perf_counter() - start:.0f} s]", overflow="ellipsis")

        with Live(get_renderable=line, console=self.console, refresh_per_second=4, transient=True):
            yield

    def tell(self, notice: str) -> None:
        """Print it."""
        self.console.print(Text(f"note: {notice}", style="yellow"), soft_wrap=True)
