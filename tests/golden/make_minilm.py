#!/usr/bin/env python3
"""Golden data for the MiniLM encoder of the examples, from libraries that share no code with it.

Token ids and offsets come from `tokenizers`, the embeddings from the formula of BERT written with `torch`.

    python3 -m pip install torch safetensors tokenizers
    python3 make_minilm.py MODEL_DIR TEXT_FILE      # examples/data/default.txt

MODEL_DIR holds model.safetensors and tokenizer.json of all-MiniLM-L6-v2. Writes beside this script:

    minilm_tokens.json   texts with their ids and the bytes [begin, end) of each token in the text
    minilm_encoder.json  texts with their 384-vector; one text also with half of its tokens kept from layer 2 on:
                         the attention that [CLS] pays in layer 1 (largest over heads), the kept tokens, the vector
"""

import json
import math
import pathlib
import sys
import unicodedata

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

F = torch.nn.functional
HERE = pathlib.Path(__file__).resolve().parent
WIDTH, HEADS, LAYERS, EPS = 384, 12, 6, 1e-12

TOKEN_TEXTS = [
    "",
    " \t\r\n ",
    "The cat sat on the mat.",
    "HELLO, World!!! (it's 3.14 %, or $1,000.50?)",
    "unaffable embeddings pneumonoultramicroscopicsilicovolcanoconiosis",
    "Crème brûlée déjà vu, naïve façade; Ångström, Čapek, Łódź, Þórr, Œuvre, ŒUF",
    "cafe\u0301 e\u0301e\u0308\u0323 A\u030a\u0301x \u0301alone",
    "Straße, Größe, ÄÖÜ äöü ẞ; Türkçe: İstanbul, Iğdır, ISPARTA, ığüşöç",
    "Ελληνικά: Ὀδυσσεύς, ΣΊΣΥΦΟΣ; Русский: Ёлка, Йод, Україна, їжак; \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "中文和English混排，東京タワー、ﾊﾝｶｸ ひらがな。𠀀𪚥 한국어 텍스트 각",
    "हिन्दी में क्षत्रिय, ไทย ภาษา, Tiếng Việt Nguyễn, ქართული, አማርኛ",
    "emoji 😀👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ ✓ → ∑ ∞ ½ x² №5 ™ © ﬁne Ⅷ",
    "zero\u200bwidth, soft\u00adhyphen, nb\u00a0space, thin\u2009space, ideographic\u3000space, bom\ufeff!",
    "control\x01\x02chars\x7f \x85 next\x0bvertical\x0cform \ufffd replacement",
    "e-mail: first.last+tag@example.org, https://example.org/a_b?c=d&e=%20#f",
    "``quoted'' “smart” ‘quotes’ – en — em … ellipsis ¿qué? ¡hola! «guillemets» ‹›",
    "a" * 100 + " " + "a" * 101 + " " + "\u00e9" * 100 + " " + "각" * 34,
    "snake_case camelCase ~tilde^caret`tick|pipe\\back $dollar +plus <less=equal>",
    "0123456789 1e-5 0x1F 12:30 2024-02-29 ١٢٣ १२३",
    "don't can't won't I'm you're rock'n'roll O'Neill",
    "\U0001d573\U0001d58a\U0001d591\U0001d591\U0001d594 \uff28\uff45\uff4c\uff4c\uff4f ａｂｃ ① ㈱ \u2126 \u212b \u1e9b\u0323",
]


def byte_offsets(text, encoding):
    """[begin, end) in bytes; the end also covers combining marks that belong to the last character."""
    starts = [0]
    for c in text:
        starts.append(starts[-1] + len(c.encode()))
    begins, ends = [], []
    for begin, end in encoding.offsets:
        while end < len(text) and unicodedata.category(text[end]) == "Mn":
            end += 1
        begins.append(starts[begin])
        ends.append(starts[end])
    return begins, ends


class Encoder:
    def __init__(self, model):
        self.w = load_file(model)

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def norm(self, x, name):
        return F.layer_norm(x, (WIDTH,), self.w[name + ".weight"], self.w[name + ".bias"], EPS)

    def embed(self, ids):
        word, position, kind = (
            self.w[f"embeddings.{t}_embeddings.weight"] for t in ("word", "position", "token_type")
        )
        return self.norm(word[ids] + position[: len(ids)] + kind[0], "embeddings.LayerNorm")

    def layer(self, x, index):
        """Returns the states [N, 384] after the layer and its attention weights [heads, N, N]."""
        at = f"encoder.layer.{index}."
        q, k, v = (
            self.linear(x, at + "attention.self." + s).view(len(x), HEADS, -1).transpose(0, 1)
            for s in ("query", "key", "value")
        )
        p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(WIDTH / HEADS), dim=-1)
        context = (p @ v).transpose(0, 1).reshape(len(x), WIDTH)
        x = self.norm(x + self.linear(context, at + "attention.output.dense"), at + "attention.output.LayerNorm")
        h = F.gelu(self.linear(x, at + "intermediate.dense"))
        return self.norm(x + self.linear(h, at + "output.dense"), at + "output.LayerNorm"), p


def pooled(x):
    return F.normalize(x.mean(0), dim=0)


def rounded(values, digits=8):
    return [round(float(v), digits) for v in values]


def write(name, rows):
    """One row per line, so that a change of the data can be read in a diff."""
    lines = [json.dumps(row, ensure_ascii=True) for row in rows]
    (HERE / name).write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main():
    model, text_file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    rows = []
    for text in TOKEN_TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        begins, ends = byte_offsets(text, encoding)
        rows.append({"text": text, "ids": encoding.ids, "begin": begins, "end": ends})
    write("minilm_tokens.json", rows)

    encoder = Encoder(str(model / "model.safetensors"))
    default = text_file.read_text(encoding="utf-8")
    texts = {"sentence": "The cat sat on the mat.", "one word": "water", "accents": TOKEN_TEXTS[5], "default": default}
    rows = []
    for name, text in texts.items():
        ids = tokenizer.encode(text).ids
        assert len(ids) <= 512, f"{name}: {len(ids)} tokens"
        x = encoder.embed(torch.tensor(ids))
        for index in range(LAYERS):
            x, _ = encoder.layer(x, index)
        rows.append({"name": name, "text": text, "ids": ids, "embedding": rounded(pooled(x))})

    # Half of 256 tokens from layer 2 on: what [CLS] attends to most in layer 1, [CLS] and [SEP] always.
    ids = tokenizer.encode(default).ids
    ids = ids[:255] + ids[-1:]
    x = encoder.embed(torch.tensor(ids))
    x, _ = encoder.layer(x, 0)
    x, p = encoder.layer(x, 1)
    full = x
    for index in range(2, LAYERS):
        full, _ = encoder.layer(full, index)
    mass = p[:, 0, :].max(0).values
    order = sorted(range(1, len(ids) - 1), key=lambda i: (-float(mass[i]), i))
    kept = sorted([0, len(ids) - 1] + order[: len(ids) // 2 - 2])
    x = x[kept]
    for index in range(2, LAYERS):
        x, _ = encoder.layer(x, index)
    rows.append(
        {
            "name": "half",
            "ids": ids,
            "mass_of_all_queries": rounded(p.sum(1).mean(0)),
            "mass_of_cls": rounded(mass),
            "kept": kept,
            "embedding": rounded(pooled(full)),
            "budgeted": rounded(pooled(x)),
        }
    )
    write("minilm_encoder.json", rows)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
