"""A tiny CLIP byte-pair vocabulary and the ids transformers' CLIPTokenizer gives for twelve prompts.

Writes tokenizer_tiny/{vocab.json, merges.txt} in the layout of openai/clip-vit-large-patch14 and tokenizer_tiny.json.
"""

import json
import os
from collections import Counter

from transformers import CLIPTokenizer

from golden import folder, script, versions

SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
MERGES = 64
TEXT = """a photo of a cat, a photo of the dog, low quality, low resolution, compressed, blurry, noisy, photograph,
high quality photo, the quick photos of cats and dogs, a café in the city, it's the dog's resolution"""

PROMPTS = [
    "",
    "a photo of a cat",
    "A PHOTO of a Cat!",
    "  multiple   spaces\tand\n\nnewlines  ",
    "it's the dog's; we're, I'd, they'll",
    "1024x768, 50% -- f/2.8",
    "na\u00efve caf\u00e9 Z\u00fcrich \u00d8 \u0130stanbul \u1e9e \u03a9",
    "cafe\u0301 photo",
    "\u65e5\u672c\u8a9e \u5199\u771f",
    "emoji \U0001f600\u200d\U0001f525 ok\u00a0nbsp",
    "low quality, low resolution, compressed",
    "a <|endoftext|> inside, (cat:1.2) [dog] <cat>...",
]


def byte_symbols():
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order of ids (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def train(symbols):
    """Byte-pair merges by count, ties by alphabet."""
    words = Counter()
    for word in TEXT.replace(",", " ").replace("'", " ' ").split():
        pieces = [symbols[b] for b in word.encode()]
        pieces[-1] += "</w>"
        words[tuple(pieces)] += 1
    merges = []
    while len(merges) < MERGES:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({tuple(merge(word, best)): count for word, count in words.items()})
    return merges


def merge(word, pair):
    out = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def main():
    place = os.path.join(folder(), "tokenizer_tiny")
    os.makedirs(place, exist_ok=True)
    symbols = byte_symbols()
    merges = train(symbols)
    alphabet = list(symbols.values())
    tokens = alphabet + [s + "</w>" for s in alphabet] + ["".join(m) for m in merges] + SPECIAL
    assert len(tokens) == len(set(tokens)) < 600
    with open(os.path.join(place, "vocab.json"), "w") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=False)
    with open(os.path.join(place, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))

    end = CLIPTokenizer.from_pretrained(place, model_max_length=77)
    zero = CLIPTokenizer.from_pretrained(place, model_max_length=77, pad_token="!")
    assert end.bos_token_id == len(tokens) - 2 and end.eos_token_id == len(tokens) - 1 and zero.pad_token_id == 0

    def padded(tokenizer, prompt, length):
        return tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids

    cases = [
        {
            "prompt": prompt,
            "ids": end(prompt).input_ids,
            "tokens": end.convert_ids_to_tokens(end(prompt).input_ids),
            "padded_16": padded(end, prompt, 16),
            "padded_16_pad_0": padded(zero, prompt, 16),
        }
        for prompt in PROMPTS
    ]
    note = (
        "ids: start, text, end. padded_16: cut to 16 (the end is kept) and filled with the end token as CLIP-L does; "
        "padded_16_pad_0: filled with id 0 ('!') as SDXL's second encoder does. tokens are for reading."
    )
    with open(os.path.join(folder(), "tokenizer_tiny.json"), "w") as file:
        header = {"script": script(), "versions": json.loads(versions()), "also": ["tokenizer_tiny"], "vocab_size": len(tokens), "note": note}
        lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
        file.write(json.dumps(header, ensure_ascii=False)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
