"""Goldens of the T5 encoder of version 1.1: a text longer than the largest distance, and a tiny sentence-piece tokenizer.

The tokenizer has a vocabulary of its own and the real rules of T5's normaliser, nmt_nfkc, as sentencepiece compiles them (240 kB of the file's
320 kB in base64); its ids are those of sentencepiece and of transformers.
"""

import functools
import io
import json
import os

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from formula import fill
from golden import config_of, folder, save, script, versions, worst

torch.set_num_threads(1)

CONFIG = dict(
    vocab_size=64,
    d_model=12,
    d_kv=8,
    d_ff=20,
    num_layers=3,
    num_heads=2,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    feed_forward_proj="gated-gelu",
    dense_act_fn="gelu_new",
    attn_implementation="eager",
)

NOTE = """hidden_states.0 is the embedding, hidden_states.i the output of block i-1 without the final norm; last_hidden_state has the final norm.
No attention mask: pads are attended to, as SD3's pipeline calls it. Computed in f64."""


def run(model, ids, dtype):
    model = model.to(dtype)
    blocks, handles = [], []
    for block in model.encoder.block:
        handles.append(block.register_forward_hook(lambda _m, _a, out: blocks.append(out[0] if isinstance(out, tuple) else out)))
    with torch.no_grad():
        result = model(ids)
    for handle in handles:
        handle.remove()
    out = {f"hidden_states.{i + 1}": h for i, h in enumerate(blocks)}
    embedded = model.shared(ids).detach()
    return {"hidden_states.0": embedded} | out | {"last_hidden_state": result.last_hidden_state}


def encoder(name, config, ids):
    model = fill(T5EncoderModel(T5Config(**config)))
    out = run(model, ids, torch.float64)
    error = worst(out, run(model, ids, torch.float32))
    print(name, "f32 vs f64:", error, "largest:", max(v.abs().max().item() for v in out.values()))
    save(name, {"input.ids": ids} | out, config_of(model), NOTE, f32_worst_abs_error=f"{error:.2e}")


# Every byte-like character that occurs, and some words; ids 0, 1, 2 are <pad>, </s>, <unk>.
PIECES = ["\u2581", "a", "e", "i", "o", "t", "n", "s", "r", "h", "p", "c", "l", "f", ",", ".", "!"]
WORDS = ["\u2581a", "\u2581of", "\u2581photo", "\u2581cat", "\u2581the", "oto", "at", "\u2581quality"]
PROMPTS = [
    "",
    "a photo of a cat",
    "  A photo,\tof  the\n cats! ",
    "na\u00efve caf\u00e9 \ufb01ne",
    "quality </s> chips",
    "a a a a a a a a a a a a",
    # Full-width letters and spaces, ligatures, superscripts: NFKC.
    "\uff41\u3000\uff50\uff48\uff4f\uff54\uff4f\uff0c \ufb02at a\u0363 \u2075 caf e\u0301  cat\uff01",
    # What NFKC leaves: zero-width and line separators are spaces, control characters nothing, a tilde is another.
    "a\u200bphoto\u2028of\ufeffthe\u00a0cat\u00ad s\u0007of \uff5e a\u200fcat",
]
LENGTH = 12


@functools.cache
def sentencepiece_model():
    """A model that sentencepiece trained, with its rules of nmt_nfkc, and the vocabulary above in place of its own."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS[1:2] * 9), model_writer=trained, vocab_size=20, hard_vocab_limit=False, minloglevel=2,
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>",
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained.getvalue())
    del model.pieces[3:]
    for piece, score in vocabulary()[3:]:
        model.pieces.add(piece=piece, score=score)
    return model


def vocabulary():
    scores = [(p, -6.0 - 0.1 * i) for i, p in enumerate(PIECES)] + [(w, -3.0 - 0.1 * i) for i, w in enumerate(WORDS)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + scores


def tiny_tokenizer():
    rules = sentencepiece_model().normalizer_spec.precompiled_charsmap
    return T5TokenizerFast(vocab=vocabulary(), _spm_precompiled_charsmap=rules, extra_ids=0)


def tokenizer():
    made = tiny_tokenizer()
    judge = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model().SerializeToString())
    for prompt in PROMPTS:
        # To sentencepiece an end token in a text is letters.
        assert "</s>" in prompt or judge.encode(prompt) + [1] == made(prompt).input_ids, (prompt, judge.encode(prompt, out_type=str), made.tokenize(prompt))
    made._tokenizer.save(os.path.join(folder(), "t5_tokenizer_tiny.json"), pretty=False)
    padded = lambda prompt: made(prompt, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    cases = [{"prompt": p, "ids": made(p).input_ids, "padded": padded(p)} for p in PROMPTS]
    header = {"script": script(), "versions": json.loads(versions("sentencepiece", "tokenizers")), "also": ["t5_tokenizer_tiny.json"], "length": LENGTH, "note": "ids: text, end. padded: cut to length (the end is kept), filled with 0."}
    with open(os.path.join(folder(), "t5_tokenizer_cases.json"), "w") as file:
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
        file.write(json.dumps(header)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    encoder("t5_tiny", CONFIG, torch.tensor([[(7 * i * i + 3 * i) % 61 + 2 for i in range(150)] + [1, 0]]))
    tokenizer()
