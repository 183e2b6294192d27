"""Keys of other tools on rows: where they come from, how they are written, cut, packed."""

from __future__ import annotations

from fitune.recipe.foreign.key import Known, lacking, needless, read

LENGTH, PACK = read("[train] length"), read('[[data.stage]] use = "pack"')
SOURCE = read("[[data.source]]")
HUB = read('[[data.source]] use = "hf-dataset", id = "..."')
TEMPLATE = read('[[data.stage]] use = "chat", template = "..."')
ALL = read('[[data.stage]] use = "chat", loss = "all"')
SYSTEM = read('[[data.stage]] use = "chat", system = "..."')
SHARE = read("[eval] fraction")
PREPARED = needless("rows are prepared once, and kept: [data] cache")
PADDED = needless('rows are padded to the longest of their batch; [[data.stage]] use = "pad" says more')
PACKED = needless("documents that are packed never see each other, and rows are filled best-fit")
ORDER = needless("each epoch has an order of its own, by seed", "each epoch has an order of its own, by seed")
MIX = read("[[data.source]] weight: how often each row of a source occurs")

TRAINER: dict[str, Known] = {
    "dataloader_num_workers": PREPARED,
    "dataloader_pin_memory": read('[[memory.strategy]] use = "pinned-memory"'),
    "dataloader_prefetch_factor": PREPARED,
    "dataloader_persistent_workers": PREPARED,
    "dataloader_multiprocessing_context": PREPARED,
    "dataloader_in_order": PREPARED,
    "dataloader_drop_last": needless("a step has the rows that are left over, and counts their tokens"),
    "remove_unused_columns": needless("a format reads the columns that it is of"),
    "label_names": needless("a format reads the columns that it is of"),
    "group_by_length": needless(
        'rows are padded to the longest of their micro-batch; [[data.stage]] use = "pack" pads none'
    ),
    "length_column_name": needless("lengths are known from the prepared rows"),
    "train_sampling_strategy": ORDER,
    "ignore_data_skip": needless("a run goes on at its place in the data"),
    "accelerator_config": ORDER,
}

TRL: dict[str, Known] = {
    "dataset_name": HUB,
    "dataset_config": read('[[data.source]] use = "hf-dataset", config = "..."'),
    "dataset_train_split": read('[[data.source]] use = "hf-dataset", split = "..."'),
    "dataset_test_split": read('[[eval.source]] use = "hf-dataset", split = "..."'),
    "dataset_streaming": read('[[data.source]] use = "hf-dataset", streaming = true'),
    "datasets": SOURCE,
    "dataset_mixture": SOURCE,
    "dataset_mixer": SOURCE,
    "dataset_splits": read('[[data.source]] use = "hf-dataset", split = "..."'),
    "test_split_size": SHARE,
    "dataset_text_field": read('[[data.stage]] use = "plain-text", text = "..."'),
    "dataset_kwargs": lacking("rows are always prepared, with the special tokens of the template"),
    "dataset_num_proc": PREPARED,
    "chat_template": TEMPLATE,
    "chat_template_path": read('[[data.stage]] use = "chat", template_file = "..."'),
    "max_length": LENGTH,
    "max_seq_length": LENGTH,
    "max_prompt_length": lacking("both answers are cut alike, by [train] length"),
    "max_completion_length": lacking("both answers are cut alike, by [train] length"),
    "truncation_mode": read('[[data.stage]] use = "truncate", policy = "right" or "left"'),
    "shuffle_dataset": ORDER,
    "packing": PACK,
    "packing_strategy": PACKED,
    "eval_packing": needless("held-out rows go through the stages of [data]"),
    "padding_free": PADDED,
    "pad_to_multiple_of": PADDED,
    "completion_only_loss": read("nothing: only answers are trained on"),
    "assistant_only_loss": read('[[data.stage]] use = "chat", loss = "assistant", as is the default'),
}

AXOLOTL: dict[str, Known] = {
    "datasets": SOURCE,
    "test_datasets": read("[[eval.source]]"),
    "pretraining_dataset": read('[[data.source]], with [[data.stage]] use = "plain-text"'),
    "val_set_size": SHARE,
    "sequence_len": LENGTH,
    "eval_sequence_len": LENGTH,
    "max_packed_sequence_len": PACK,
    "excess_length_strategy": read('[[data.stage]] use = "truncate", policy = "drop" or "right"'),
    "min_sample_len": lacking("rows without a token to train on are left out"),
    "sample_packing": PACK,
    "eval_sample_packing": needless("held-out rows go through the stages of [data]"),
    "sample_packing_sequentially": PACKED,
    "sample_packing_group_size": PACKED,
    "sample_packing_bin_size": PACKED,
    "sample_packing_eff_est": PACKED,
    "sample_packing_seq_len_multiplier": PACKED,
    "multipack_real_batches": PACKED,
    "pretrain_multipack_attn": PACKED,
    "total_num_tokens": PACKED,
    "batch_flattening": PADDED,
    "pad_to_sequence_len": PADDED,
    "curriculum_sampling": lacking("each epoch has an order of its own, by seed"),
    "shuffle_merged_datasets": ORDER,
    "shuffle_before_merging_datasets": ORDER,
    "chat_template": TEMPLATE,
    "chat_template_jinja": read('[[data.stage]] use = "chat", template_file = "..."'),
    "chat_template_kwargs": read('[[data.stage]] use = "chat", variables = {...}'),
    "default_system_message": SYSTEM,
    "train_on_inputs": ALL,
    "dataset_prepared_path": PREPARED,
    "dataset_processes": PREPARED,
    "dataset_num_proc": PREPARED,
    "dataset_keep_in_memory": PREPARED,
    "dataset_exact_deduplication": lacking("rows are trained on as they are"),
    "push_dataset_to_hub": lacking("prepared rows stay on this machine"),
    "streaming": read('[[data.source]] use = "hf-dataset", streaming = true'),
    "streaming_multipack_buffer_size": PACKED,
}

AXOLOTL_SET: dict[str, Known] = {
    "path": read('[[data.source]] use = "hf-dataset", id = "...", or a file'),
    "name": read('[[data.source]] use = "hf-dataset", config = "..."'),
    "split": read('[[data.source]] use = "hf-dataset", split = "..."'),
    "revision": read('[[data.source]] use = "hf-dataset", revision = "..."'),
    "data_files": read('[[data.source]] use = "jsonl", path = "..."'),
    "ds_type": read("[[data.source]] use"),
    "type": read("[[data.stage]] use, a format, and chat"),
    "field": read('[[data.stage]] use = "plain-text", text = "..."'),
    "text_column": read('[[data.stage]] use = "plain-text", text = "..."'),
    "field_messages": read('[[data.stage]] use = "messages", messages = "..."'),
    "field_tools": read('[[data.stage]] use = "messages", tools = "..."'),
    "field_chosen": read('[[data.stage]] use = "preferences", chosen = "..."'),
    "field_rejected": read('[[data.stage]] use = "preferences", rejected = "..."'),
    "message_property_mappings": read('[[data.stage]] use = "sharegpt", role = "...", value = "..."'),
    "message_field_role": read('[[data.stage]] use = "sharegpt", role = "..."'),
    "message_field_content": read('[[data.stage]] use = "sharegpt", value = "..."'),
    "message_field_training": needless("a message's own word is obeyed: docs/data.md"),
    "roles": needless("human, gpt and others are known by name"),
    "roles_to_train": read('[[data.stage]] use = "chat", loss = "assistant" or "all"'),
    "train_on_eos": needless("each answer is trained to its end, where it is trained on"),
    "train_on_eot": needless("each answer is trained to its end, where it is trained on"),
    "conversation": TEMPLATE,
    "chat_template": TEMPLATE,
    "trust_remote_code": needless("no code of a data set runs"),
    "shards": lacking('[[data.source]] use = "hf-dataset", split = "train[:10%]" takes a part'),
    "drop_system_message": lacking(),
    "skip": lacking('[[data.source]] use = "hf-dataset", split = "train[100:]" leaves rows out'),
}
"""Keys of one of axolotl's `datasets`."""

LLAMA_FACTORY: dict[str, Known] = {
    "dataset": SOURCE,
    "dataset_dir": needless("a [[data.source]] has its own path"),
    "eval_dataset": read("[[eval.source]]"),
    "val_size": SHARE,
    "max_samples": read("[[data.source]] limit"),
    "mix_strategy": MIX,
    "interleave_probs": MIX,
    "template": TEMPLATE,
    "default_system": SYSTEM,
    "enable_thinking": read('[[data.stage]] use = "chat", variables = { enable_thinking = false }'),
    "tool_format": needless("tools are written by the chat template"),
    "cutoff_len": LENGTH,
    "train_on_prompt": ALL,
    "mask_history": read('[[data.stage]] use = "chat", loss = "completion"'),
    "packing": PACK,
    "neat_packing": PACKED,
    "block_diag_attn": PACKED,
    "streaming": read('[[data.source]] use = "hf-dataset", streaming = true'),
    "buffer_size": PREPARED,
    "overwrite_cache": PREPARED,
    "preprocessing_batch_size": PREPARED,
    "preprocessing_num_workers": PREPARED,
    "tokenized_path": PREPARED,
    "data_shared_file_system": PREPARED,
    "ignore_pad_token_for_loss": needless("a padded token is never trained on nor seen"),
    "media_dir": lacking("there are no images, sounds or videos here"),
    "model_max_length": LENGTH,
}

OTHERS: dict[str, Known] = {
    "max_seq_len": LENGTH,
    "block_size": LENGTH,
    "train_file": read("[data] path"),
    "data_path": read("[data] path"),
    "dataset_path": read("[data] path"),
    "test_size": SHARE,
    "pin_memory": read('[[memory.strategy]] use = "pinned-memory"'),
    "shuffle": ORDER,
}
