"""What a composition takes in full depth, from traces of models of a few layers.

Of a decoder's layers all are alike, so that memory and time are affine in their number: two short models tell the line.
Layers that are worked on (by gradient checkpointing, say) and others have lines of their own; with both in one model,
the most is taken either at the end of the forward pass, where all stand that keep something, or in the last of those
that are worked on, when the others have been given back.
"""

from __future__ import annotations

from dataclasses import dataclass

SHORT = (2, 4)
"""Layers of the models that are traced; some models' layers come in pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one trace says. Sizes are bytes, times seconds of an optimizer step."""

    allocated: float
    reserved: float
    standing: float
    """What is there before the first step: weights, mostly."""
    card: float
    host: float
    link: float
    peers: float = 0.0

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(self.card + self.peers, self.host, self.link)

    def plus(self, other: Seen, times: float = 1.0) -> Seen:
        """The sum with a multiple of another."""
        return Seen(**{name: getattr(self, name) + times * getattr(other, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """A value for each number of layers."""

    start: Seen
    """With no layer."""
    layer: Seen
    """Of each layer."""

    @classmethod
    def flat(cls, seen: Seen) -> Affine:
        """The same with any number of layers: of a model that is traced as it is."""
        return cls(start=seen, layer=seen.plus(seen, -1.0))

    @classmethod
    def through(cls, few: Seen, more: Seen, depths: tuple[int, int] = SHORT) -> Affine:
        """From two traces."""
        step = more.plus(few, -1.0)
        layer = step.plus(step, 1 / (depths[1] - depths[0]) - 1.0)
        return cls(start=few.plus(layer, -float(depths[0])), layer=layer)

    def at(self, layers: float) -> Seen:
        """With so many layers."""
        return self.start.plus(self.layer, layers)

    def plus(self, other: Affine, times: float = 1.0) -> Affine:
        """The sum with a multiple of another."""
        return Affine(start=self.start.plus(other.start, times), layer=self.layer.plus(other.layer, times))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one composition in full depth, whatever the number of layers that are worked on."""

    layers: int
    plain: Affine
    """Where no layer is worked on."""
    worked: Affine | None = None
    """Where all are; None where the composition has no choice that counts layers."""

    def at(self, count: int) -> Seen:
        """Where the first `count` layers are worked on."""
        if self.worked is None or count == 0:
            return self.plain.at(self.layers)
        if count == self.layers:
            return self.worked.at(self.layers)
        both = self.plain.at(self.layers - count).plus(self.worked.layer, count)
        last = self.worked.at(count).plus(self.plain.layer, 0.0)
        values = {name: getattr(both, name) for name in both.__slots__}
        for name in ("allocated", "reserved"):
            weights = self.plain.layer.standing * (self.layers - count)
            values[name] = max(values[name], getattr(last, name) + weights)
        return Seen(**values)

    def plus(self, other: Estimate, times: float = 1.0) -> Estimate:
        """The sum with a multiple of another; both have layers that are worked on, or neither has."""
        worked = None
        if self.worked is not None and other.worked is not None:
            worked = self.worked.plus(other.worked, times)
        return Estimate(layers=self.layers, plain=self.plain.plus(other.plain, times), worked=worked)

    def smallest(self, limit: float, correction: float = 0.0) -> int | None:
        """The smallest number of layers with which no more than `limit` bytes are reserved; None if there is none."""
        counts = (0,) if self.worked is None else range(1, self.layers + 1)
        return next((n for n in counts if self.at(n).reserved + correction <= limit), None)

    def scaled(self, rows: int) -> Estimate:
        """With so many times the rows to a micro-batch, and as many fewer micro-batches: roughly."""
        return Estimate(
            layers=self.layers,
            plain=_scaled(self.plain, rows),
            worked=None if self.worked is None else _scaled(self.worked, rows),
        )


def _scaled(line: Affine, rows: int) -> Affine:
    def more(seen: Seen) -> Seen:
        sizes = {
            name: seen.standing + rows * (getattr(seen, name) - seen.standing) for name in ("allocated", "reserved")
        }
        times = {"card": seen.card, "host": seen.host / rows, "link": seen.link, "peers": seen.peers / rows}
        return Seen(**sizes, standing=seen.standing, **times)

    return Affine(start=more(line.start), layer=more(line.layer))
