"""Goldens of what SDXL's and SD3's pipelines make of a prompt (`encode_prompt`), with tiny encoders and tokenizers."""

import json
import os

import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

import clip
import t5
from formula import fill
from golden import config_of, folder, save

torch.set_num_threads(1)

LENGTH = 12
CLIP = clip.COMMON | dict(vocab_size=578, max_position_embeddings=LENGTH)
# The shipped files say eos 2, which means the largest id.
L = CLIP | dict(hidden_size=16, intermediate_size=32, hidden_act="quick_gelu", eos_token_id=2, projection_dim=16)
G = CLIP | dict(hidden_size=24, intermediate_size=32, hidden_act="gelu", eos_token_id=2, projection_dim=20)
T5 = t5.CONFIG | dict(d_model=44, num_layers=1)
JOINT = T5["d_model"]
PROMPT, NEGATIVE = "a photo of a cat", "low quality, noisy"


def tokenizers():
    place = os.path.join(folder(), "tokenizer_tiny")
    end = CLIPTokenizer.from_pretrained(place, model_max_length=LENGTH)
    zero = CLIPTokenizer.from_pretrained(place, model_max_length=LENGTH, pad_token="!")
    return dict(tokenizer=end, tokenizer_2=zero)


def sdxl(force_zeros):
    return StableDiffusionXLPipeline(
        vae=None,
        unet=None,
        scheduler=None,
        text_encoder=fill(CLIPTextModel(CLIPTextConfig(**L)), "text_model."),
        text_encoder_2=fill(CLIPTextModelWithProjection(CLIPTextConfig(**G))),
        force_zeros_for_empty_prompt=force_zeros,
        add_watermarker=False,
        **tokenizers(),
    )


class Transformer(torch.nn.Module):
    """What `encode_prompt` reads of the transformer: the width of a missing T5's zeros."""

    class config:
        joint_attention_dim = JOINT
        sample_size = 16
        patch_size = 2


def sd3(long):
    return StableDiffusion3Pipeline(
        vae=None,
        transformer=Transformer(),
        scheduler=None,
        text_encoder=fill(CLIPTextModelWithProjection(CLIPTextConfig(**L))),
        text_encoder_2=fill(CLIPTextModelWithProjection(CLIPTextConfig(**G))),
        text_encoder_3=fill(T5EncoderModel(T5Config(**T5))) if long else None,
        tokenizer_3=t5.tiny_tokenizer() if long else None,
        **tokenizers(),
    )


def encoded(run, text, pooled):
    return {f"{run}.text": text, f"{run}.pooled": pooled}


def configs(pipe):
    return {k: config_of(m) for k in ["text_encoder", "text_encoder_2", "text_encoder_3"] if (m := getattr(pipe, k, None)) is not None}


def main():
    with torch.no_grad():
        pipe = sdxl(True)
        text, null, pooled, null_pooled = pipe.encode_prompt(PROMPT, device="cpu")
        out = encoded("prompt", text, pooled) | encoded("null", null, null_pooled)
        _, negative, _, negative_pooled = pipe.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE)
        out |= encoded("negative", negative, negative_pooled)
        _, empty, _, empty_pooled = sdxl(False).encode_prompt(PROMPT, device="cpu")
        out |= encoded("empty", empty, empty_pooled)
    assert not out["null.text"].any() and out["empty.text"].any()
    note = f"""prompt: {PROMPT!r}; null: no negative prompt with force_zeros_for_empty_prompt; negative: {NEGATIVE!r}; empty: no negative
    prompt without force_zeros_for_empty_prompt. Encoders by the formula. Computed in f64."""
    save("text_sdxl_tiny", out, configs(pipe), note)

    with torch.no_grad():
        pipe = sd3(True)
        three = dict(prompt_2=None, prompt_3=None, device="cpu")
        text, null, pooled, null_pooled = pipe.encode_prompt(PROMPT, **three)
        out = encoded("prompt", text, pooled) | encoded("null", null, null_pooled)
        short, _, _, _ = sd3(False).encode_prompt(PROMPT, **three)
    assert short.shape == text.shape and short[:, :LENGTH].equal(text[:, :LENGTH]) and not short[:, LENGTH:].any()
    note = f"""prompt: {PROMPT!r}; null: the empty string. Without T5 the tokens after the first {LENGTH} are zero and the rest is the same
    (asserted by the script). Encoders by the formula. Computed in f64."""
    save("text_sd3_tiny", out, configs(pipe), note)


if __name__ == "__main__":
    main()
