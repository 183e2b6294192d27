"""bitsandbytes' paged AdamW in 8 bits, whose state is paged after it was loaded, too."""

from __future__ import annotations

from typing import Any, cast

import torch
from bitsandbytes.optim import adamw
from torch import Tensor

MOMENTS = ("state1", "state2")


class PagedAdamW8bit(adamw.PagedAdamW8bit):
    """As bitsandbytes', whose own `load_state_dict` would put all of the state on the card."""

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Load a state; moments that would be paged where they are made are paged here."""
        mine = {id(value) for state in self.state.values() for value in state.values()}
        cast(Any, super()).load_state_dict(state_dict, move_to_device=False)
        # bitsandbytes keeps every page that it made; those of the state that is replaced would never be used again.
        self.page_mng.paged_tensors = [page for page in self.page_mng.paged_tensors if id(page) not in mine]
        for parameter, state in self.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = self._placed(parameter, value, paged=key in MOMENTS and move_to_device)

    def _placed(self, parameter: Tensor, value: Tensor, *, paged: bool) -> Tensor:
        if not paged:
            return value.to(parameter.device)
        buffer: Tensor = cast(Any, self).get_state_buffer(parameter, dtype=value.dtype)
        if parameter.is_cuda:
            torch.cuda.synchronize(parameter.device)  # the buffer is zeroed there, and written to from here
        return buffer.copy_(value)
