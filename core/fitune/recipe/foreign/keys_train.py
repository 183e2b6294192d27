"""Keys of other tools on training: rates, batches, schedules, the optimizer. Names by their documentation."""

from __future__ import annotations

from fitune.recipe.foreign.key import Known, copied, lacking, needless, read

RATE, ROWS = copied("train", "learning_rate", float), copied("train", "micro_batch", int)
ACCUMULATION, EPOCHS = copied("train", "accumulation", int), copied("train", "epochs", float)
STEPS = read("[train] steps")
CHECKPOINTING = read('[[memory.strategy]] use = "gradient-checkpointing"')
OPTIMIZER = read(
    "AdamW, with [train] learning_rate, weight_decay, beta1, beta2; others are strategies, e.g. "
    '[[memory.strategy]] use = "adamw-8bit", or docs/optimizers.md'
)
NO_SCHEDULE = lacking("[train] schedule has no such form")
OBJECTIVE = lacking("no objective has such a loss")
REFERENCE = lacking("the reference is the same weights without the adapter, or prepared once: [objective] reference")
EXACT = needless(
    "a step's loss is its sum over target tokens, over their number, on all cards", "it is so here, always"
)

TRAINER: dict[str, Known] = {
    "learning_rate": RATE,
    "weight_decay": copied("train", "weight_decay", float),
    "adam_beta1": copied("train", "beta1", float),
    "adam_beta2": copied("train", "beta2", float),
    "adam_epsilon": copied("train", "epsilon", float),
    "max_grad_norm": copied("train", "max_grad_norm", float),
    "lr_scheduler_type": read("[train] schedule"),
    "lr_scheduler_kwargs": NO_SCHEDULE,
    "warmup_steps": copied("train", "warmup_steps", int),
    "warmup_ratio": copied("train", "warmup_ratio", float),
    "optim": OPTIMIZER,
    "optim_args": lacking("AdamW's settings are keys of [train]"),
    "optim_target_modules": lacking(),
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": ACCUMULATION,
    "average_tokens_across_devices": EXACT,
    "auto_find_batch_size": read("[train] batch_tokens with [memory] fit"),
    "num_train_epochs": EPOCHS,
    "max_steps": STEPS,
    "gradient_checkpointing": CHECKPOINTING,
    "gradient_checkpointing_kwargs": read('[[memory.strategy]] use = "gradient-checkpointing": it is not reentrant'),
    "activation_checkpointing": CHECKPOINTING,
    "activation_checkpointing_kwargs": read('[[memory.strategy]] use = "gradient-checkpointing": it is not reentrant'),
    "activation_offloading": read('[[memory.strategy]] use = "offload-checkpoints"'),
    "label_smoothing_factor": OBJECTIVE,
    "neftune_noise_alpha": lacking("no noise is added to embeddings"),
    "torch_compile": needless("a GPU gets fast-layers unasked, and cuda-graphs by [memory] fit where they are faster"),
    "torch_compile_backend": needless("nothing is compiled as a whole"),
    "torch_compile_mode": needless("nothing is compiled as a whole"),
    "use_liger_kernel": read(
        '[[memory.strategy]] use = "chunked-loss"; fused-rms-norm and tiled-mlp are like its others'
    ),
    "liger_kernel_config": needless("each kernel is a memory strategy, or chosen by [memory] fit"),
    "torch_empty_cache_steps": needless("what is reserved is forecast"),
    "seed": copied("", "seed", int),
    "data_seed": read("seed, above the first table"),
    "full_determinism": copied("", "deterministic", bool),
    "use_cache": needless("no cache of keys and values is kept in training"),
    "auto_resume_from_checkpoints": needless("ft run RUN goes on with a run"),
}
"""Of transformers' TrainingArguments, which TRL and LLaMA-Factory have too, and axolotl in part."""

TRL: dict[str, Known] = {
    "router_aux_loss_coef": lacking("experts' balance has no part in the loss"),
    "loss_type": read("[objective] use: dpo, ipo, kto, simpo, orpo, cpo, sft"),
    "loss_weights": OBJECTIVE,
    "beta": read("[objective] beta"),
    "label_smoothing": read("[objective] label_smoothing"),
    "rpo_alpha": read("[objective] rpo_alpha"),
    "simpo_gamma": read("[objective] gamma"),
    "cpo_alpha": read("[objective] alpha"),
    "ld_alpha": OBJECTIVE,
    "f_divergence_type": OBJECTIVE,
    "f_alpha_divergence_coef": OBJECTIVE,
    "use_weighting": OBJECTIVE,
    "discopop_tau": OBJECTIVE,
    "desirable_weight": read("[objective] desirable"),
    "undesirable_weight": read("[objective] undesirable"),
    "center_rewards_coefficient": read("[objective] center"),
    "precompute_ref_log_probs": read('[objective] reference = "prepared"'),
    "precompute_ref_batch_size": needless("the reference is prepared in micro-batches"),
    "sync_ref_model": REFERENCE,
    "ref_model_mixup_alpha": REFERENCE,
    "ref_model_sync_steps": REFERENCE,
    "disable_dropout": needless("dropout of base models is off, but for the adapter's own"),
}
"""Of TRL's SFTConfig, DPOConfig, KTOConfig and RewardConfig."""

AXOLOTL: dict[str, Known] = {
    "micro_batch_size": ROWS,
    "batch_size": read("[train] micro_batch; rows of a step are that times accumulation"),
    "num_epochs": EPOCHS,
    "optimizer": OPTIMIZER,
    "lr_scheduler": read("[train] schedule"),
    "lr_quadratic_warmup": NO_SCHEDULE,
    "cosine_min_lr_ratio": NO_SCHEDULE,
    "cosine_constant_lr_ratio": NO_SCHEDULE,
    "lr_div_factor": NO_SCHEDULE,
    "lr_groups": lacking("all parameters have one learning rate"),
    "embedding_lr": lacking("all parameters have one learning rate"),
    "embedding_lr_scale": lacking("all parameters have one learning rate"),
    "adam_eps": lacking("axolotl's own key is adam_epsilon: [train] epsilon"),
    "adam_epsilon2": lacking(),
    "adam_beta3": lacking(),
    "rl": read("[objective] use: dpo, ipo, kto, simpo, orpo, or sft"),
    "rl_beta": read("[objective] beta"),
    "dpo_beta": read("[objective] beta"),
    "orpo_alpha": read("[objective] beta of orpo"),
    "kto_desirable_weight": read("[objective] desirable"),
    "kto_undesirable_weight": read("[objective] undesirable"),
    "dpo_label_smoothing": read("[objective] label_smoothing"),
    "dpo_loss_type": read("[objective] use: dpo or ipo"),
    "dpo_loss_weights": OBJECTIVE,
    "dpo_use_weighting": OBJECTIVE,
    "dpo_use_liger_kernel": needless("log-probabilities come from a chunked head"),
    "dpo_padding_free": needless("rows are padded to the longest of their micro-batch alone"),
    "reward_model": read('[objective] use = "reward"'),
    "process_reward_model": lacking("no objective rewards steps"),
    "num_labels": needless("a reward model has one score"),
    "trl": lacking("there is no reinforcement learning here"),
    "ebft": lacking("there is no reinforcement learning here"),
    "vllm": lacking("there is no reinforcement learning here"),
    "layer_offloading": lacking("[memory] fit finds what fits: strategies fsdp and host-embeddings move weights"),
    "selective_checkpointing": read('[[memory.strategy]] use = "gradient-checkpointing", keep = "attention"'),
    "chunked_cross_entropy": read('[[memory.strategy]] use = "chunked-loss"'),
    "cut_cross_entropy": read('[[memory.strategy]] use = "chunked-loss"'),
    "liger_fused_linear_cross_entropy": read('[[memory.strategy]] use = "chunked-loss"'),
    "chunked_cross_entropy_num_chunks": needless("chunked-loss has chunks of tokens, not a number of chunks"),
    "liger_rms_norm": read('[[memory.strategy]] use = "fused-rms-norm"'),
    "liger_glu_activation": needless("a GPU gets fast-layers unasked where they suit the model"),
    "liger_layer_norm": needless("a GPU gets fast-layers unasked where they suit the model"),
    "liger_rope": needless("a GPU gets fast-layers unasked where they suit the model"),
    "liger_rms_norm_gated": needless("a GPU gets fast-layers unasked where they suit the model"),
    "liger_cross_entropy": read('[[memory.strategy]] use = "chunked-loss"'),
    "tiled_mlp": read('[[memory.strategy]] use = "tiled-mlp"'),
    "tiled_mlp_num_shards": needless("tiled-mlp has tiles of tokens"),
    "lora_mlp_kernel": read('[[memory.strategy]] use = "fused-lora"'),
    "lora_qkv_kernel": read('[[memory.strategy]] use = "fused-lora"'),
    "lora_o_kernel": read('[[memory.strategy]] use = "fused-lora"'),
    "lora_embedding_kernel": needless("[memory] fit takes fast kernels where they are there"),
    "torch_compile_options": needless("nothing is compiled as a whole"),
    "loss_watchdog_threshold": needless("spikes of the loss are told, and a loss that is no number stops the run"),
    "loss_watchdog_patience": needless("spikes of the loss are told, and a loss that is no number stops the run"),
    "gc_steps": needless("what is reserved is forecast"),
    "gc_collect_steps": needless("what is reserved is forecast"),
    "use_eaft": OBJECTIVE,
    "relora": lacking("adapters never begin anew within a run"),
    "trainer_cls": lacking("a training loop of one's own is a plugin here: docs/plugins.md"),
    "strict": needless("a recipe's keys are all checked"),
}
"""Of axolotl's configuration."""

LLAMA_FACTORY: dict[str, Known] = {
    "stage": read("[objective] use: sft, dpo, kto, reward; plain-text for pretraining"),
    "pref_beta": read("[objective] beta"),
    "pref_ftx": read("[objective] rpo_alpha of dpo"),
    "pref_loss": read("[objective] use: dpo, ipo, orpo, simpo"),
    "pref_bco_weight": OBJECTIVE,
    "dpo_label_smoothing": read("[objective] label_smoothing"),
    "kto_chosen_weight": read("[objective] desirable"),
    "kto_rejected_weight": read("[objective] undesirable"),
    "simpo_gamma": read("[objective] gamma"),
    "ref_model": REFERENCE,
    "ref_model_adapters": REFERENCE,
    "ref_model_quantization_bit": REFERENCE,
    "reward_model": lacking("there is no reinforcement learning here"),
    "disable_gradient_checkpointing": read('[[memory.strategy]] use = "gradient-checkpointing"'),
    "use_reentrant_gc": needless("checkpointing is not reentrant here"),
    "enable_liger_kernel": read('[[memory.strategy]] use = "chunked-loss"; fused-rms-norm is like its norms'),
    "use_unsloth": needless("a GPU gets fast-layers unasked, and cuda-graphs by [memory] fit where they are faster"),
    "use_unsloth_gc": read('[[memory.strategy]] use = "offload-checkpoints"'),
    "use_v1_kernels": needless("[memory] fit takes fast kernels where they are there"),
    "use_dft_loss": OBJECTIVE,
    "use_asft_loss": OBJECTIVE,
    "use_eaft_loss": OBJECTIVE,
    "use_galore": lacking("no optimizer projects gradients here"),
    "use_apollo": lacking("no optimizer projects gradients here"),
    "use_badam": lacking("no optimizer trains block by block here"),
    "use_adam_mini": lacking("nearest are adamw-8bit and adafactor"),
    "use_muon": OPTIMIZER,
    "use_llama_pro": lacking("no layers are added"),
    "mixture_of_depths": lacking("no layers are left out"),
    "loraplus_lr_ratio": lacking("all parameters have one learning rate"),
    "moe_aux_loss_coef": lacking("experts' balance has no part in the loss"),
    "early_stopping_steps": read("[eval] patience, with every"),
    "disable_shuffling": lacking("each epoch has an order of its own, by seed"),
    "compute_accuracy": read("[eval] exact_match, which counts whole answers"),
}
"""Of LLaMA-Factory's configuration."""

OTHERS: dict[str, Known] = {
    "lr": RATE,
    "base_lr": RATE,
    "warmup": read("[train] warmup_steps, or warmup_ratio"),
    "num_warmup_steps": read("[train] warmup_steps"),
    "wd": copied("train", "weight_decay", float),
    "gradient_clipping": copied("train", "max_grad_norm", float),
    "max_gradient_norm": copied("train", "max_grad_norm", float),
    "grad_clip": copied("train", "max_grad_norm", float),
    "train_batch_size": ROWS,
    "gradient_accumulation": ACCUMULATION,
    "accumulation_steps": ACCUMULATION,
    "num_steps": read("[train] steps"),
    "use_gradient_checkpointing": CHECKPOINTING,
    "paged_adamw": read('[[memory.strategy]] use = "adamw-8bit", paged = true'),
    "random_seed": copied("", "seed", int),
}
"""Of Unsloth, ms-swift and others, for errors alone."""
