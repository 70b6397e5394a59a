"""Writes a golden: inputs and outputs in f32, how they were made in the safetensors header."""

import json
import logging
import os
import sys

import torch
from safetensors import safe_open

LIMIT = 200_000

# diffusers warns about .to(f64), which is what these scripts are for.
logging.disable(logging.WARNING)


def versions(*more):
    import importlib.metadata as m

    return json.dumps({p: m.version(p) for p in ["torch", "diffusers", "transformers", "peft", "safetensors", "numpy", *more]})


def script():
    path = os.path.abspath(sys.argv[0])
    return path[path.index("crates/") :]


def folder():
    return os.path.dirname(os.path.abspath(sys.argv[0]))


def config_of(model):
    """The config.json that diffusers or transformers would save beside the model's weights."""
    name = type(model).__name__
    if hasattr(model.config, "to_dict"):
        return model.config.to_dict() | {"architectures": [name]}
    return {"_class_name": name} | {k: v for k, v in model.config.items() if not k.startswith("_")}


def save(name, tensors, config=None, note="", **more):
    """Saves `<name>.safetensors` beside the script; floats become f32, whatever they were computed in."""
    torch_tensors = {}
    for key, t in tensors.items():
        t = t.detach()
        if t.dtype == torch.float64 and not key.startswith("f64."):
            t = t.float()
        assert not t.is_floating_point() or t.isfinite().all(), key
        torch_tensors[key] = t.contiguous().clone()
    metadata = {"script": script(), "versions": versions(), "seed": "none: integer formula, see formula.py"}
    if config is not None:
        metadata["config"] = json.dumps(config)
    if note:
        metadata["note"] = " ".join(note.split())
    metadata |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in more.items()}
    path = os.path.join(folder(), name + ".safetensors")
    write(path, torch_tensors, metadata)
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(k).equal(t) for k, t in torch_tensors.items())
    size = os.path.getsize(path)
    assert size <= LIMIT, f"{path}: {size} bytes"
    print(f"{name}: {size} bytes, {len(tensors)} tensors")


def write(path, tensors, metadata):
    """The safetensors format with sorted keys: safetensors' own writer shuffles the metadata, so no two runs are equal."""
    dtypes = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
    header, chunks, at = {"__metadata__": metadata}, [], 0
    # Wide types first, so that every tensor is aligned.
    for key, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        chunk = t.numpy().tobytes()
        header[key] = {"dtype": dtypes[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + len(chunk)]}
        chunks.append(chunk)
        at += len(chunk)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def trace(model, wanted, run):
    """Runs `run()` and returns the output of every submodule for which `wanted(path, module)`, by path."""
    out, handles = {}, []

    def hook(path):
        def keep(_module, _args, output):
            # Blocks of the U-Net return (sample, skips), Transformer2DModel (sample,).
            value = output[0] if isinstance(output, tuple) else output
            value = getattr(value, "sample", value)
            assert path not in out, path
            out[path] = value.detach().clone()

        return keep

    for path, module in model.named_modules():
        if wanted(path, module):
            handles.append(module.register_forward_hook(hook(path)))
    with torch.no_grad():
        result = run()
    for handle in handles:
        handle.remove()
    return out, result


def worst(a, b):
    """The largest difference between two dicts of tensors: what f32 costs against f64."""
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)
