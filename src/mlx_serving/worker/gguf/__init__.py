"""GGUF files of llama-architecture models, made into model directories that mlx-lm loads.

    tensor_types   the kinds of tensor that GGUF knows, and which of them are read
    reader         the header: metadata, and where each tensor lies
    metadata       typed access to the metadata
    blocks         packed weights, unpacked
    architecture   shape of the model, its config.json, and which tensors it must have
    weights        tensors under mlx-lm's names
    pretokenizers  how text is cut before byte pairs are merged
    tokenizer      tokenizer.json and its companions
    shards         safetensors files of a bounded size
    convert        all of it

Files are read through a read-only memory map and not with `mx.load`. That opens a GGUF file for writing, so it fails on
a file of somebody else; of the packed kinds of tensor it does not read Q5_0, Q5_1, Q3_K and Q5_K, rounds Q2_K and Q6_K
to float16, and decodes Q4_K wrongly (MLX 0.32.4).

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
