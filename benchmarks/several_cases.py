"""What `several.py` runs on several cards: memory strategies, rows and sizes of each composition, by name."""

from __future__ import annotations

from several_profile import Json

STEPS, LAYERS = 6, 8
"""Of a case that says nothing else: steps that are timed, and layers."""

CHECKPOINTED: Json = {"use": "gradient-checkpointing"}
CHUNKED: Json = {"use": "chunked-loss"}
GROWING: Json = {"use": "expandable-segments"}
FAST: list[Json] = [{"use": "fast-layers"}, {"use": "fused-rms-norm"}, {"use": "fused-lora"}]
FSDP: Json = {"use": "fsdp"}
PARTS: Json = {"use": "context-parallel"}

LORA, FULL = {"use": "lora", "r": 16, "alpha": 32, "targets": "all-linear"}, {"use": "none"}

MLPS: Json = {"use": "gradient-checkpointing", "part": "mlp"}
WHOLE: Json = {"layers": 32}

CASES: dict[str, Json] = {
    "8B, replicas": {"strategies": [*FAST, CHUNKED, GROWING], "length": 4096, **WHOLE},
    "8B, one card": {"strategies": [*FAST, CHUNKED, GROWING], "length": 4096, "cards": 1, **WHOLE},
    "replicas, fast layers": {"strategies": [*FAST, CHUNKED, GROWING], "length": 4096},
    "replicas, fast layers, one card": {"strategies": [*FAST, CHUNKED, GROWING], "length": 4096, "cards": 1},
    "shards": {"strategies": [CHUNKED, FSDP]},
    "shards, segments that grow": {"strategies": [CHUNKED, GROWING, FSDP]},
    "full, shards": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, FSDP], "adapter": FULL},
    "shards, checkpointed": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, FSDP], "length": 4096},
    "shards, fast layers": {"strategies": [*FAST, CHUNKED, GROWING, FSDP], "length": 4096},
    "replicas": {"strategies": []},
    "replicas, accumulated": {"strategies": [CHUNKED, GROWING], "accumulation": 3},
    "replicas, checkpointed": {"strategies": [CHECKPOINTED, CHUNKED, GROWING], "length": 4096},
    "shards, whole between passes": {"strategies": [CHUNKED, GROWING, {**FSDP, "reshard_after_forward": False}]},
    "shards, two layers ahead": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, {**FSDP, "prefetch": 2}]},
    "shards, accumulated": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, FSDP], "accumulation": 3},
    "full, shards, full logits": {"strategies": [CHECKPOINTED, FSDP], "adapter": FULL},
    "full, shards, whole between passes": {
        "strategies": [CHECKPOINTED, CHUNKED, GROWING, {**FSDP, "reshard_after_forward": False}],
        "adapter": FULL,
    },
    "rows in parts": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, PARTS], "length": 16384},
    "rows in parts, fast layers": {"strategies": [*FAST, CHUNKED, GROWING, PARTS], "length": 16384},
    "rows in parts, shards": {"strategies": [CHECKPOINTED, CHUNKED, GROWING, PARTS, FSDP], "length": 32768},
    "8B, full, shards": {
        "strategies": [CHUNKED, GROWING, FAST[1], MLPS, FSDP], "length": 8192, "adapter": FULL, "steps": 4, **WHOLE,
    },
    "8B, longest row": {
        "strategies": [{"use": "tiled-mlp"}, FAST[0], CHUNKED, GROWING, FAST[1], CHECKPOINTED, PARTS, FSDP],
        "length": 131072, "steps": 3, **WHOLE,
    },
    "8B, a row of 512k": {
        "strategies": [{"use": "tiled-mlp"}, FAST[0], CHUNKED, GROWING, FAST[1], CHECKPOINTED, PARTS, FSDP],
        "length": 524288, "steps": 1, **WHOLE,
    },
    "70B, shards": {
        "strategies": [*FAST, CHUNKED, GROWING, MLPS, FSDP], "length": 4096, "accumulation": 2, "steps": 4,
        "shape": "llama70b", "layers": 80, "weights": True,
    },
}  # fmt: skip
"""What matters most comes first; of the shape `llama8b` in few layers, where a case does not say otherwise."""
SHAPES: dict[str, Json] = {
    "llama70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
}
