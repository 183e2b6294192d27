"""Mistakes in [memory]."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

from support.mistakes.cases import above, below, case

CASES = (
    case(
        "unknown key in [memory]",
        [above("[[memory.strategy]]", "[memory]\nstrategys = 1")],
        ['r.toml:11: [memory] strategys: unknown key "strategys". Did you mean "strategy"?'],
    ),
    case(
        "unknown key in an element of an array of tables",
        [
            below(
                "steps = 2\n",
                '[[memory.strategy]]\nuse = "chunked-loss"\n\n[[memory.strategy]]\nuse = "gradient-checkpointing"\nlayer = 3\n',
            )
        ],
        ['r.toml:19: [memory.strategy] layer: unknown key "layer". Did you mean "layers"?'],
    ),
    case(
        "misspelled strategy",
        [('"accumulation"', '"acumulation"')],
        ['r.toml:11: [memory.strategy] use: unknown memory strategy "acumulation". Did you mean "accumulation"?'],
    ),
    case(
        "adapter as a memory strategy",
        [('use = "accumulation"\nsteps = 2', 'use = "lora"')],
        [
            'r.toml:11: [memory.strategy] use: "lora" is an adapter, not a memory strategy. Name one of: accumulation, adafactor, adamw-8bit, chunked-loss, context-parallel, cuda-graphs, expandable-segments, fast-layers, flash-attention, fp8, fsdp, fused-lora, fused-rms-norm, gradient-checkpointing, host-embeddings, lion, muon, nf4, offload-checkpoints, pinned-memory, recompute-pointwise, schedule-free, step-in-backward, tiled-mlp'
        ],
    ),
    case(
        "[..] for an array of tables",
        [("[[memory.strategy]]", "[memory.strategy]")],
        [
            'r.toml:10: [memory.strategy]: "strategy" is not an array of tables. Write [[memory.strategy]], not [memory.strategy]'
        ],
    ),
    case(
        "names for an array of tables",
        [('[[memory.strategy]]\nuse = "accumulation"\nsteps = 2', '[memory]\nstrategy = ["accumulation"]')],
        [
            'r.toml:11: [memory] strategy: "strategy" is not a table. Write [[memory.strategy]], and its keys on the lines below'
        ],
    ),
    case(
        "name for an array of tables",
        [('[[memory.strategy]]\nuse = "accumulation"\nsteps = 2', '[memory]\nstrategy = "accumulation"')],
        [
            'r.toml:11: [memory] strategy: "strategy" is not an array of tables. Write [[memory.strategy]], and its keys below'
        ],
    ),
    case(
        "same strategy twice",
        [above("[[data.source]]", '[[memory.strategy]]\nuse = "accumulation"\nsteps = 4')],
        ['r.toml:14: [memory.strategy]: "accumulation" stands here a second time. Keep one of them'],
    ),
)
