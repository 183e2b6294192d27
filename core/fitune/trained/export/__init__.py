"""What was trained, written for other programs: as a GGUF file, for Ollama, or for the hub.

`gguf.py` is the form that `fitune.trained.merge.merge` writes and proves; `gguf_family.py` has the names and keys of
the families of models, `gguf_tokenizer.py` the vocabulary, `gguf_splits.py` what llama.cpp cuts texts by, and
`gguf_read.py` reads a file again. `ollama.py` writes a Modelfile beside it, and `hub.py` uploads a directory.
"""
