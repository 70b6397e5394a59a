"""Goldens of CLIP text encoders: CLIP-L's kind (quick_gelu) and OpenCLIP bigG's (gelu, projection).

transformers 5 dropped `text_model.` from the parameter names of CLIPTextModel; files on disk, and
therefore the formula, keep it.
"""

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from formula import fill
from golden import config_of, save, trace, worst

torch.set_num_threads(1)

COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_hidden_layers=3,
    max_position_embeddings=12,
    attn_implementation="eager",
)
# SDXL's config.json files say bos 0, eos 2, pad 1: none of them real ids. Here ids 62 and 63 start and end a text.
QUICK = COMMON | dict(hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1, projection_dim=24)
# Here 60 ends a text and 61..63 are tokens added to the vocabulary later.
PROJECTION = COMMON | dict(hidden_act="gelu", bos_token_id=59, eos_token_id=60, pad_token_id=0, projection_dim=24)

QUICK_IDS = [
    [62, 5, 17, 9, 63, 63, 63, 63, 63, 63, 63, 63],
    [62, 1, 2, 3, 4, 61, 60, 30, 31, 32, 33, 63],
    [62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63],
]
PROJECTION_IDS = [
    [59, 5, 17, 9, 60, 0, 0, 0, 0, 0, 0, 0],
    [59, 1, 2, 3, 4, 62, 6, 60, 60, 60, 60, 60],
    [59, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
]

NOTE = """hidden_states.0 is the embedding, hidden_states.i the output of layer i-1, without the final norm; last_hidden_state has the final
norm. No attention mask besides the causal one: pads are attended to. pooled is last_hidden_state at the end of text by transformers' rule:
eos_token_id == 2 (the historic wrong value in the shipped configs) means the first position of the largest id, else the first position equal
to eos_token_id. pooled.position is that position. Parameters are named with `text_model.` as on disk. Computed in f64."""


def run(model, ids, dtype):
    model = model.to(dtype)
    text = getattr(model, "text_model", model)
    layers, result = trace(text, lambda path, m: path.count(".") == 2 and path.startswith("encoder.layers."), lambda: model(ids, output_hidden_states=True))
    out = {f"hidden_states.{i}": h for i, h in enumerate(result.hidden_states)}
    # The hooks see the same tensors as transformers' own collection.
    assert all(out[f"hidden_states.{i + 1}"].equal(layers[f"encoder.layers.{i}"]) for i in range(len(layers)))
    out["last_hidden_state"] = result.last_hidden_state
    eos = text.config.eos_token_id
    position = ids.argmax(-1) if eos == 2 else (ids == eos).int().argmax(-1)
    pooled = result.last_hidden_state[torch.arange(len(ids)), position]
    if "text_embeds" in result:
        out["text_embeds"] = result.text_embeds
        assert torch.allclose(result.text_embeds, pooled @ model.text_projection.weight.T, atol=1e-5)
    else:
        assert result.pooler_output.equal(pooled)
    return out | {"pooled": pooled}, position


def golden(name, kind, config, ids, prefix):
    model = fill(kind(CLIPTextConfig(**config)), prefix)
    ids = torch.tensor(ids)
    out, position = run(model, ids, torch.float64)
    error = worst(out, run(model, ids, torch.float32)[0])
    print(name, "f32 vs f64:", error)
    tensors = {"input.ids": ids, "pooled.position": position} | out
    save(name, tensors, config_of(model), NOTE, f32_worst_abs_error=f"{error:.2e}")


if __name__ == "__main__":
    golden("clip_tiny_quick", CLIPTextModel, QUICK, QUICK_IDS, "text_model.")
    golden("clip_tiny_projection", CLIPTextModelWithProjection, PROJECTION, PROJECTION_IDS, "")
