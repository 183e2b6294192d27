"""Memory strategies: what a run keeps, where and for how long, `[[memory.strategy]] use = "NAME"`.

The files that are not listed below are what the strategies are made of: a kernel each, or what two of them share.
"""

PLUGINS: tuple[str, ...] = (
    "fitune_plugins.memory.gradient_checkpointing",  # layers are computed again in the backward pass
    "fitune_plugins.memory.offload_checkpoints",  # inputs of checkpointed layers wait in host memory
    "fitune_plugins.memory.tiled_mlp",  # MLPs and norms a tile of tokens at a time
    "fitune_plugins.memory.host_embeddings",  # frozen input embeddings stand in host memory
    "fitune_plugins.memory.recompute_pointwise",  # norms and gated activations are computed again
    "fitune_plugins.memory.accumulation",  # several micro-batches to a step
    "fitune_plugins.memory.pinned_memory",  # batches staged in page-locked memory, or not
    "fitune_plugins.memory.chunked_loss",  # no full logits tensor
    "fitune_plugins.memory.expandable_segments",  # the allocator grows its segments
    "fitune_plugins.memory.fused_rms_norm",  # norms as one kernel
    "fitune_plugins.memory.fused_lora",  # a linear layer and its LoRA as one operation
    "fitune_plugins.memory.nf4",  # the base in 4-bit NormalFloat
    "fitune_plugins.memory.fsdp",  # each of several processes holds a part of the weights
    "fitune_plugins.memory.context_parallel",  # each of several processes holds a part of each row
    "fitune_plugins.memory.adamw_8bit",  # AdamW with 8-bit state
    "fitune_plugins.memory.adafactor",  # squared gradients by row and column
    "fitune_plugins.memory.lion",  # updates by sign, with one moment
    "fitune_plugins.memory.muon",  # orthogonal updates of matrices
    "fitune_plugins.memory.step_in_backward",  # AdamW's step of each parameter as its gradient comes
    "fitune_plugins.memory.schedule_free",  # averaged weights in place of a schedule
)
"""Dotted names of the modules, in the order in which they are loaded."""
