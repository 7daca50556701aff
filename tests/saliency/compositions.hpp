#pragma once
// The published methods, each as one line over the library. The table of the documentation shows these lines; the tests
// run them against the formulas of the papers (compositions.cpp) and against kvpress (kvpress.cpp).
//
// In every line n is the number of keys, B how many are kept, Hkv the number of KV heads, `evidence` what the attention
// of the layer was observed to do, with the query weights that stand beside the line.

#include <cmath>
#include <vector>

#include "attention_balancer/balance.hpp"

namespace composition {

namespace ab = attention_balancer;
namespace saliency = ab::saliency;
namespace allocate = ab::allocate;
using ab::Evidence;
using ab::Index;
using ab::TensorView;
using allocate::Selection;
using allocate::sinks_and_recent;
using Selections = std::vector<Selection>;  // one per KV head

/// What the methods are given.
struct Setting {
  Index n, B, Hkv, W;  // W: the observation window, or the recent keys
};

// clang-format off: one line each

// H2O, state.add(evidence) at every step with all()
template <class T> Selections h2o(const saliency::Accumulated<T>& state, Setting s) {
  return allocate::top_k(state.sum(ab::KvHeads{s.Hkv, ab::Heads::sum}), s.B, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// H2O normalised by the lifetime
template <class T> Selections h2o_per_exposure(const saliency::Accumulated<T>& state, Setting s) {
  return allocate::top_k(state.per_exposure(ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// Scissorhands, Accumulated of Accumulate::persistence, state.add(evidence) at every step
template <class T> Selections scissorhands(const saliency::Accumulated<T>& state, Setting s) {
  return allocate::top_k(state.sum(ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// SnapKV, last(W)
template <class T> Selections snap_kv(const Evidence<T>& evidence, Setting s) {
  return allocate::top_k(saliency::observation_window(evidence, {.length = s.W}, ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// TOVA, last(1): one selection for all heads
template <class T> Selection tova(const Evidence<T>& evidence, Setting s) {
  return allocate::top_k(saliency::mass(evidence), s.B);
}
// VATP, all()
template <class T> Selections vatp(const Evidence<T>& evidence, TensorView<const T> v, Setting s) {
  return allocate::top_k(saliency::value_weighted(evidence, v, saliency::Norm::l1, ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 4, s.W)});
}
// CAKE within a layer, last(W), evidence::squares; gamma of the paper's code times W / (W - 1)
template <class T> Selections cake(const Evidence<T>& evidence, double gamma, Setting s) {
  return allocate::top_k(saliency::observation_window(evidence, {.length = s.W, .gamma = gamma}, ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// CAKE over the layers
inline std::vector<Index> cake_layers(const std::vector<double>& entropy, const std::vector<double>& variance, Index total, Setting s) {
  return allocate::cake(entropy, variance, total, 1.6, 0.4, s.W, s.n);
}
// PyramidKV, last(W): the layer's budget comes from pyramid_kv(layers, B - W, n - W), and the window on top
template <class T> Selections pyramid_kv(const Evidence<T>& evidence, Index layer, Index layers, Setting s) {
  return allocate::top_k(saliency::observation_window(evidence, {.length = s.W}, ab::KvHeads{s.Hkv}), s.W + allocate::pyramid_kv(layers, s.B - s.W, s.n - s.W)[static_cast<std::size_t>(layer)], {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// AdaKV, last(W)
template <class T> Selections ada_kv(const Evidence<T>& evidence, Setting s) {
  return allocate::ada_kv(saliency::observation_window(evidence, {.length = s.W}, ab::KvHeads{s.Hkv}), s.B, 0.2, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// CriticalKV on any scores; norms = saliency::projected_norms(v, wo)
template <class T> Selections critical_kv(const saliency::Rows<T>& scores, const saliency::Rows<T>& norms, Setting s) {
  return allocate::two_stage(scores, saliency::norm_weighted(scores, norms), s.B, s.B / 2, {.pins = sinks_and_recent(s.n, 0, s.W)});
}
// Leave-one-out (DropKV), last(W), evidence::leave_one_out
template <class T> Selections leave_one_out(const Evidence<T>& evidence, Setting s) {
  return allocate::top_k(saliency::leave_one_out(evidence, ab::KvHeads{s.Hkv, ab::Heads::sum}), s.B);
}
// ExpectedAttention: queries = QueryStatistics(q before rotation, 4), then rotate(average_rotation(D, n, 512))
template <class T> Selections expected_attention(const saliency::QueryStatistics& queries, TensorView<const T> k, TensorView<const T> v, Setting s) {
  return allocate::top_k(saliency::expected_attention(queries, k, v, ab::KvHeads{s.Hkv}), s.B, {.pins = sinks_and_recent(s.n, 4, 0)});
}
// Knorm
template <class T> Selections knorm(TensorView<const T> k, Setting s) {
  return allocate::top_k(saliency::key_norm(k, ab::EachHead{}), s.B);
}
// KeyDiff
template <class T> Selections key_diff(TensorView<const T> k, Setting s) {
  return allocate::top_k(saliency::key_difference(k, ab::EachHead{}), s.B);
}
// StreamingLLM
inline Selection streaming_llm(Setting s) {
  return allocate::top_k(std::vector<float>(static_cast<std::size_t>(s.n)), s.B, {.pins = sinks_and_recent(s.n, 4, s.B - 4)});
}
// Quest: B pages of `page` keys per query head, for the one query of q; nothing is evicted
template <class T> Selections quest(TensorView<const T> q, TensorView<const T> k, Index page, Setting s) {
  return allocate::top_k(saliency::page_bound(q, saliency::PageBounds<T>(k, page), 0, ab::EachHead{}), s.B);
}
// ATS, only(0): the CLS token is pinned, at most B tokens
template <class T> Selection ats(const Evidence<T>& evidence, TensorView<const T> v, Setting s) {
  return allocate::inverse_cdf(saliency::value_weighted(evidence, v, saliency::Norm::l2), s.B, {.pins = sinks_and_recent(s.n, 1, 0)});
}
// EViT, scores = saliency::mass(evidence), only(0): CLS and ceil(r (n - 1)) tokens stay, the rest becomes one
template <class T> ab::execute::MergePlan evit(const std::vector<T>& scores, double r, Setting s) {
  return ab::execute::fuse(ab::execute::token_budget(scores, 1 + std::lround(std::ceil(r * static_cast<double>(s.n - 1))), sinks_and_recent(s.n, 1, 0)), scores);
}
// ToMe: r tokens merged into others; score::KeyBias(plan.log_sizes<T>()) tells the next attention
template <class T> ab::execute::MergePlan tome(TensorView<const T> k, Index r, Setting s) {
  return ab::execute::merge(k, r, {.pins = sinks_and_recent(s.n, 1, 0)});
}
// FastV, last(1): of the image tokens keep round(N (1 - R)); the text is pinned
template <class T> Selection fast_v(const Evidence<T>& evidence, const std::vector<Index>& text, double R) {
  return allocate::top_k(saliency::mass(evidence), std::lround(static_cast<double>(evidence.keys() - std::ssize(text)) * (1 - R)) + std::ssize(text), {.pins = text});
}

// clang-format on

}  // namespace composition
