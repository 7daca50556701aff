#!/usr/bin/env python3
"""Golden evictions: which keys kvpress keeps, for tests/saliency/kvpress.cpp.

    python3 -m pip install torch kvpress==0.5.5 'transformers<5.3' 'huggingface_hub<2' 'tokenizers<=0.23.0'
    python3 make_kvpress.py            # writes kvpress.txt beside this script

The presses run as they are, on a Llama attention whose query projection is the identity, so that the hidden states are
the queries, and without rotary positions except in ExpectedAttention's own averaging. CAKE, which kvpress does not have,
is what the authors' code (antgroup/cakekv, cake/model/modify_llama.py) does, written down again. Numbers have two
decimals, so that float holds the same ones here and there; a case whose last kept and first dropped score are close
enough for rounding to decide is refused.

A line is `tensor name sizes... : numbers`, or `kept press ratio row : indices`, row a KV head.
"""

import pathlib

import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

import kvpress

HQ, HKV, N, D, WINDOW, SINKS, FUTURE, LAYERS = 4, 2, 96, 8, 8, 4, 32, 4
E = HQ * D

torch.manual_seed(2404)


def rounded(*sizes, scale=1.0):
    return (torch.randn(*sizes) * scale * 100).round() / 100


q = rounded(HQ, N, D, scale=1.5)
k = rounded(HKV, N, D, scale=1.2)
k[:, :2] *= 2  # sinks
k = (k * 100).round() / 100
v = rounded(HKV, N, D)
wo = rounded(E, E, scale=0.5)

config = LlamaConfig(hidden_size=E, num_attention_heads=HQ, num_key_value_heads=HKV, head_dim=D, num_hidden_layers=LAYERS,
                     attn_implementation="sdpa", max_position_embeddings=4096, rope_theta=10000.0)
attention = LlamaAttention(config, layer_idx=0)
attention.q_proj.weight.data = torch.eye(E)
attention.o_proj.weight.data = wo.clone()
attention.rotary_emb = LlamaRotaryEmbedding(config)
if not hasattr(attention, "num_key_value_groups"):
    attention.num_key_value_groups = HQ // HKV

hidden = q.transpose(0, 1).reshape(1, N, E)
keys, values = k[None], v[None]
no_rotation = (torch.ones(1, N, D), torch.zeros(1, N, D))
logits = q @ k.repeat_interleave(HQ // HKV, 0).transpose(1, 2) / D**0.5
causal = torch.full((N, N), float("-inf")).triu(1)
weights = (logits + causal).softmax(-1)[None]  # [1, HQ, N, N]

lines = [f"# made by make_kvpress.py: kvpress {kvpress.__version__ if hasattr(kvpress, '__version__') else '0.5.5'}"]


def tensor(name, x):
    lines.append(f"tensor {name} {' '.join(map(str, x.shape))} : " + " ".join(f"{e:.2f}" for e in x.flatten().tolist()))


tensor("q", q)
tensor("k", k)
tensor("v", v)
tensor("wo", wo)


def clear(scores, kept, name):
    """The last kept and the first dropped differ by more than rounding."""
    for row in scores.reshape(-1, scores.shape[-1]):
        s = row.sort(descending=True).values
        if kept < len(s):
            gap = (s[kept - 1] - s[kept]) / s[kept - 1].abs()
            assert gap > 2e-5, f"{name}: a gap of {gap:.1e}, choose another seed"


def record(name, ratio, row, indices):
    lines.append(f"kept {name} {ratio} {row} : " + " ".join(map(str, sorted(indices))))


def rows_of(kept_keys):
    """Which rows of k the compressed keys are."""
    found = []
    for h in range(HKV):
        same = (kept_keys[0, h][:, None] == k[h][None]).all(-1)
        assert (same.sum(-1) == 1).all()
        found.append(same.float().argmax(-1).tolist())
    return found


def run(name, press, ratio, attentions=None, scored=True):
    press.compression_ratio = ratio
    args = (attention, hidden, keys, values, attentions, {"position_embeddings": no_rotation})
    with torch.no_grad():
        if scored:
            clear(press.score(*args), max(1, int(N * (1 - ratio))), name)
        kept, _ = press.compress(*args)
    for h, indices in enumerate(rows_of(kept)):
        record(name, ratio, h, indices)


for ratio in (0.5, 0.75):
    run("snapkv", kvpress.SnapKVPress(window_size=WINDOW), ratio)
    run("tova", kvpress.TOVAPress(), ratio)
    run("knorm", kvpress.KnormPress(), ratio)
    run("keydiff", kvpress.KeyDiffPress(), ratio)
    run("observed", kvpress.ObservedAttentionPress(), ratio, weights)
    run("streaming_llm", kvpress.StreamingLLMPress(n_sink=SINKS), ratio, scored=False)
    run("expected_attention", kvpress.ExpectedAttentionPress(n_future_positions=FUTURE, n_sink=SINKS), ratio)
    run("criticalkv", kvpress.CriticalKVPress(kvpress.SnapKVPress(window_size=WINDOW)), ratio)

    ada = kvpress.AdaKVPress(kvpress.SnapKVPress(window_size=WINDOW))
    ada.compression_ratio = ratio
    with torch.no_grad():
        ada.compress(attention, hidden, keys, values, None, {"position_embeddings": no_rotation})
        scores = ada.press.score(attention, hidden, keys, values, None, {"position_embeddings": no_rotation})
    clear(scores.reshape(1, -1), HKV * int(N * (1 - ratio)), "adakv")
    _, heads, positions = attention.masked_key_indices
    for h in range(HKV):
        dropped = set(positions[heads == h].tolist())
        record("adakv", ratio, h, [j for j in range(N) if j not in dropped])

    # The rows are layers here, all with the scores of the same layer: only the budgets differ. One KV head is enough.
    for layer in range(LAYERS):
        attention.layer_idx = layer
        press = kvpress.PyramidKVPress(window_size=WINDOW)
        press.compression_ratio = ratio
        with torch.no_grad():
            kept, _ = press.compress(attention, hidden, keys, values, None, {"position_embeddings": no_rotation})
        record("pyramidkv", ratio, layer, rows_of(kept)[0])
    attention.layer_idx = 0

    # CAKE, gamma = 200 as the authors set it.
    window = weights[0, :, -WINDOW:, :-WINDOW]
    score = window.mean(-2) + 200 * window.var(-2)
    score = F.avg_pool1d(score[None], 5, padding=2, stride=1)[0].view(HKV, HQ // HKV, -1).mean(1)
    kept = int(N * (1 - ratio)) - WINDOW
    clear(score, kept, "cake")
    for h in range(HKV):
        record("cake", ratio, h, score[h].topk(kept).indices.tolist() + list(range(N - WINDOW, N)))

(pathlib.Path(__file__).parent / "kvpress.txt").write_text("\n".join(lines) + "\n")
