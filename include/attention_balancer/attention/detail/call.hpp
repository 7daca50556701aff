#pragma once
// A call as the kernels see it, the memory of a worker, and which keys a block of queries may see.

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "attention_balancer/attention/detail/coming.hpp"
#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/attention/detail/stage.hpp"
#include "attention_balancer/attention/detail/tile.hpp"
#include "attention_balancer/softmax/normalizers.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Keys per step: the strip [block_keys, W] and a block of K or V stay in the first caches.
inline constexpr Index block_keys = 128;

/// The last step may be longer, rather than leave a few keys to a step of their own.
inline constexpr Index longest_step = block_keys + 32;

/// Blocks of queries that may walk the keys side by side: the narrower they are, the more of them.
inline constexpr int most_together = std::clamp(256 / static_cast<int>(sizeof(simd::Pack<float>)), 4, 8);

/// Queries in a full block.
template <Scalar T>
inline constexpr Index block_width = Index(block_packs) * simd::lanes<T>;

/// The policies of a call behind plain functions: one pointer call per block of keys.
template <Scalar T>
struct PolicyCalls {
  const void* policies = nullptr;
  bool has_modifiers = false, has_masks = false;
  Index query_grain = 0;  // queries that a mask treats alike, if it says so: blocks end where these do
  mask::Coverage (*classify)(const void*, const Rect&) = nullptr;
  // By number of packs less one.
  void (*bend[block_packs])(const void*, T* scores, const Place&, bool partial, T* top) = {};
  void (*expose[block_packs])(const void*, const Place&, const T* u, T* exposure) = {};
  // For scores of one query, keys side by side.
  void (*bend_keys)(const void*, T* scores, const Place&, bool partial) = nullptr;
  void (*expose_keys)(const void*, const Place&, T u, T* exposure) = nullptr;
};

/// Rows of K or V with unit feature stride.
template <Scalar T>
struct Rows {
  const T* data;
  Index stride;
};

/// Where pairs of bf16 lie, each in the place of a float: in a row of keys two features of it, and of the values the
/// same feature of two tokens, one group of tokens after the other, in each a row of its pairs for every feature.
/// Padded to multiples of so many features of keys, tokens and features of values.
struct PairLayout {
  Index features = 2, tokens = 2, value_features = 1;

  static constexpr Index up(Index x, Index multiple) noexcept { return (x + multiple - 1) / multiple * multiple; }

  constexpr Index key_stride(Index dim) const noexcept { return up(dim, features) / 2; }
  constexpr Index value_rows(Index value_dim) const noexcept { return up(value_dim, value_features); }

  /// Rows for queries [D, W] that become pairs where they lie.
  constexpr Index query_rows(Index dim) const noexcept { return std::max(dim, key_stride(dim)); }
  /// Rows for keys: a product may read beyond the last, less than a group of pairs.
  constexpr Index key_rows(Index keys) const noexcept { return keys + tokens / 2 - 1; }
  constexpr Index values_size(Index keys, Index value_dim) const noexcept {
    return up(keys, tokens) / 2 * value_rows(value_dim);
  }
  /// Rows of pairs of weights of a group before those of `token`.
  constexpr Index pairs_before(Index token) const noexcept { return token % tokens / 2; }
  constexpr Index place_of_value(Index token, Index feature, Index value_dim) const noexcept {
    return (token / tokens * value_rows(value_dim) + feature) * (tokens / 2) + token % tokens / 2;
  }
};

/// Both matrix products on pairs of bf16, by number of packs less one; see pairs.hpp and amx.hpp.
template <Scalar T>
struct PairProducts {
  PairLayout layout;
  /// queries [D, W] become pairs of features in place.
  void (*load)(T* queries, Index dim);
  void (*score)(const T* queries, const Rows<T>& keys, Index count, Index dim, T* scores, T* top, const Far& far);
  /// scores [count, W] become weights as pairs of tokens [(count + 1) / 2, W], and are added to the state.
  void (*weigh)(const T* scores, Index count, OnlineState<T>& state, bool entropy, T* pairs);
  /// The same of weights.
  void (*pair)(const T* weights, Index count, T* pairs);
  /// As add_values, of weights as pairs and of the tokens from `first` on of all `values`, an even one. Rows of pairs
  /// before and behind, of the same groups of tokens, are overwritten.
  void (*add)(T* pairs, const T* values, Index first, Index count, Index dim, T* output, Onto onto, const T* shrink,
              const Far& far);
  /// What a thread does before its products, again after each call of something that may have products of its own, and
  /// when it is done; null: nothing.
  void (*enter)() = nullptr;
  void (*leave)() = nullptr;
  /// Keys, or features of the values, for which Far is asked at a time.
  Index tile = tile_rows<block_packs>;
};

/// Where rows of keys and values come from that do not lie there as rows of T: a cache in pages or in another
/// storage. With `pairs` they lie in their layout.
template <Scalar T>
struct RowSource {
  const void* cache = nullptr;  // null: the tensors of the call
  /// to = the tokens [begin, end), `begin` a multiple of block_keys, one row after the other or in the layout of pairs.
  void (*load)(const void* cache, bool values, Index batch, Index kv_head, Index begin, Index end, T* to) = nullptr;
  /// Asks for the tokens [begin, end), which will be loaded soon.
  void (*ask)(const void* cache, bool values, Index batch, Index kv_head, Index begin, Index end) = nullptr;
  const PairProducts<T>* pairs = nullptr;  // [block_packs]; null: rows of T
};

/// What a product asks for meanwhile: where rows come from a source, those that follow are not where the others are.
template <Scalar T>
struct Ahead {
  const RowSource<T>& source;
  bool values;
  Index batch, kv_head, begin, keys;  // the first token of the product, and the number of all
  Index tokens;                       // in a row of the product: of values in pairs 2

  Far of(Far far) const noexcept {
    far.asker = this;
    far.ask = [](const void* asker, Index first, Index count) {
      const Ahead& a = *static_cast<const Ahead*>(asker);
      const Index from = a.begin + first * a.tokens, to = std::min(from + count * a.tokens, a.keys);
      if (from < to) a.source.ask(a.source.cache, a.values, a.batch, a.kv_head, from, to);
    };
    return far;
  }
};

/// A call as the kernels see it: plain pointers and numbers.
template <Scalar T>
struct Call {
  Problem problem;
  TensorView<const T> q, k, v;
  TensorView<T> out;
  T scale = T(1);
  const void* sinks = nullptr;  // null: none
  T (*sink_logit)(const void* sinks, Index head) = nullptr;
  PolicyCalls<T> policies = {};
  QueryWeights weights = QueryWeights::none();
  evidence::Kind statistic = evidence::Kind::mass;
  Normalization normalization = {};
  RowSource<T> source = {};
  bool integer_products = false;  // decoding multiplies in integers; only where simd has them, over int8
  Index first_batch = 0;  // what policies are told batch item 0 is: the number of a packed sequence
};

/// What an Evidence of the call holds.
template <Scalar T>
EvidenceShape evidence_shape_of(const Call<T>& call) noexcept {
  const Problem& p = call.problem;
  return {.batch = p.batch, .heads = p.heads, .queries = p.queries, .keys = p.keys,
          .with_mass = call.weights.kind() != QueryWeights::Kind::none, .statistic = call.statistic,
          .with_support = is_sparse(call.normalization)};
}

/// Up to so many queries a head decodes; more fill the lanes of the other kernel well enough.
inline constexpr Index decode_queries = 8;

/// Whether a call has so few queries that it decodes; sparse normalisers do not.
template <Scalar T>
bool decodes(const Call<T>& call) noexcept {
  return call.problem.queries <= decode_queries && !is_sparse(call.normalization);
}

/// Whether the rows of a decoding group, the queries of the heads that share a key head, are lanes: where there are
/// eight or more, in packs of which at most an eighth is empty; lanes without a row are work for nothing. With 16
/// registers in two packs or more: one loads as often as it multiplies, which pays only where packs are as wide as
/// those of 32. By this shape only: it decides the order of sums.
template <Scalar T>
constexpr bool rows_are_lanes(const Problem& p) noexcept {
  constexpr Index n = simd::lanes<T>;
  const Index rows = p.heads / p.kv_heads * p.queries, packs = (rows + n - 1) / n;
  return n > 1 && (packs > 1 || simd::has_32_registers) && rows >= 8 && 8 * rows >= 7 * packs * n;
}

/// Whether scores are in bits, logits times log2(e), which spares the softmax a multiplication. They are logits for
/// policies, for sparse normalisers, where bf16 represents the queries as they are, in the kernel that decodes, and
/// where the scale would leave the range of T.
template <Scalar T>
bool scores_in_bits(const Call<T>& call) noexcept {
  return !call.policies.has_modifiers && !is_sparse(call.normalization) && call.source.pairs == nullptr &&
         !decodes(call) && std::isfinite(call.scale * T(simd::log2_e));
}

/// What queries are multiplied with before their products with keys are scores.
template <Scalar T>
T query_factor(const Call<T>& call) noexcept {
  return scores_in_bits(call) ? call.scale * T(simd::log2_e) : call.scale;
}

/// Where the evidence of one head, or of one chunk of its queries, goes. Null pointers: not observed.
template <Scalar T>
struct EvidenceRows {
  T* lse = nullptr;          // [Nq] of the head
  T* entropy = nullptr;      // [Nq] of the head
  Index* support = nullptr;  // [Nq] of the head; null with softmax
  T* mass = nullptr;         // [Nk]; null for QueryWeights::none()
  T* exposure = nullptr;     // [Nk]
  T* statistic = nullptr;    // [Nk]; null if the mass is all that is asked for
  T* totals = nullptr;       // sink mass, empty rows
};

/// A run of visible keys; `partial`: the masks must be tested lane by lane, if only for keys in [mixed_begin,
/// mixed_end).
struct KeyRange {
  Index begin, end;
  bool partial;
  Index mixed_begin = 0, mixed_end = 0;
};

/// Whether rows can be read where they lie.
template <Scalar T>
bool has_unit_stride(const TensorView<const T>& x) noexcept {
  return x.dim_stride == 1 || x.dim <= 1;
}

/// Whether K and V of a head are too large to stay in the second cache, taken for half a megabyte, from one block
/// of queries to the next.
template <Scalar T>
bool is_far(const Problem& p) noexcept {
  return p.keys * (p.dim + p.value_dim) > (Index(1) << 19) / static_cast<Index>(sizeof(T));
}

/// Whether so is a strip of all scores of a block of queries.
template <Scalar T>
bool is_far_strip(const Problem& p) noexcept {
  return p.keys * block_width<T> > (Index(1) << 19) / static_cast<Index>(sizeof(T));
}

/// Whether a strip of all scores, K and V of a head stay in the second cache together. Golden Cove has 2 MB of it, where
/// the strip of one more block would take their place.
template <Scalar T>
bool is_near_with_strip([[maybe_unused]] const Problem& p) noexcept {
#if defined(ATTENTION_BALANCER_GOLDEN_COVE)
  return p.keys * (block_width<T> + p.dim + p.value_dim) <= 3 * (Index(1) << 19) / static_cast<Index>(sizeof(T));
#else
  return false;
#endif
}

/// How many blocks of queries walk the keys side by side, so that what comes from afar comes once for all of them.
/// Whole strips are large.
template <Scalar T>
Index blocks_together(const Call<T>& call, bool whole_strip) noexcept {
  if (!is_far<T>(call.problem) || (whole_strip && is_near_with_strip<T>(call.problem))) return 1;
  return whole_strip ? 2 : most_together;
}

/// Memory of one worker, carved out of the workspace.
template <Scalar T>
struct Scratch {
  T *queries, *output, *strip;     // [together, D, W], [together, Dv, W], [together, longest_step or Nk, W]
  Index query_rows, output_rows;   // D and Dv there, or with pairs what their layout asks for
  T *packed_keys, *packed_values;  // [Nk, D], [Nk, Dv] of packed_head, or pairs; null if they are read where they lie
  unsigned char* packed;           // [2, Nk / block_keys + 1]: which blocks of them are there
  Index* packed_head;              // the batch item and head of keys, as one number; -1 for none
  T* guarded_values;               // [longest_step, Dv]
  T* spare;          // [longest_step, W]: scores kept while their block is weighed; products of leave-one-out
  KeyRange* ranges;  // [together, Nk / block_keys + 2]
  Index together;    // blocks of queries that walk the keys side by side
  Index strip_size, most_ranges;  // of one of them
  T* partial;                     // a chunk's evidence: mass, exposure, statistic [Nk] each, sink mass, empty rows
  Coming* coming = nullptr;       // of the next chunk, if that lies far away

  static Index padded(Index elements) noexcept { return (elements + 15) / 16 * 16; }

  /// Sets the pointers from `memory` on, aligned to 64 bytes, if it is not null; returns the number of bytes used.
  /// `again`: what it holds of a head is from this call.
  Index carve(std::byte* memory, const Call<T>& call, bool whole_strip, Index partial_size,
              bool again = false) noexcept {
    const Problem& p = call.problem;
    Index used = 0;
    auto take = [&](auto*& pointer, Index elements) {
      if (memory != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used);
      used += (elements * static_cast<Index>(sizeof(*pointer)) + 63) / 64 * 64;
    };
    constexpr Index width = block_width<T>;
    together = blocks_together(call, whole_strip);
    const PairLayout* const pairs = call.source.pairs != nullptr ? &call.source.pairs->layout : nullptr;
    query_rows = pairs != nullptr ? pairs->query_rows(p.dim) : p.dim;
    output_rows = pairs != nullptr ? pairs->value_rows(p.value_dim) : p.value_dim;
    take(queries, together * query_rows * width);
    take(output, together * output_rows * width);
    strip_size = std::max(whole_strip ? p.keys : 0, longest_step) * width;
    take(strip, together * strip_size);
    packed_keys = packed_values = nullptr;
    if (call.source.cache != nullptr || !has_unit_stride(call.k))
      take(packed_keys, pairs != nullptr ? pairs->key_rows(p.keys) * pairs->key_stride(p.dim) : p.keys * p.dim);
    if (call.source.cache != nullptr || !has_unit_stride(call.v))
      take(packed_values, pairs != nullptr ? pairs->values_size(p.keys, p.value_dim) : p.keys * p.value_dim);
    take(packed_head, 1);
    if (memory != nullptr && !again) *packed_head = -1;
    take(packed, 2 * (p.keys / block_keys + 1));
    take(guarded_values, longest_step * p.value_dim);
    take(spare, longest_step * width);
    most_ranges = p.keys / block_keys + 2;
    take(ranges, together * most_ranges);
    take(partial, partial_size);
    return used;
  }
};

/// Lists the keys that a block of queries may see: halves what is mixed until it is uniform or one block long, and
/// trims mixed blocks at both ends. Returns the number of ranges.
template <Scalar T>
Index visible_ranges(const Call<T>& call, Rect rect, KeyRange* ranges) noexcept {
  Index count = 0;
  auto emit = [&](Index begin, Index end) {
    while (begin < end) {
      const Index step = end - begin <= longest_step ? end - begin : block_keys;
      ranges[count++] = {begin, begin + step, false};
      begin += step;
    }
  };
  if (!call.policies.has_masks) {
    emit(0, call.problem.keys);
    return count;
  }
  auto classify = [&](Index begin, Index end) {
    rect.key_begin = begin, rect.key_end = end;
    return call.policies.classify(call.policies.policies, rect);
  };
  constexpr Index grain = 16;
  auto visit = [&](auto& self, Index begin, Index end) -> void {
    const auto coverage = classify(begin, end);
    if (coverage == mask::Coverage::skip) return;
    if (coverage == mask::Coverage::full) return emit(begin, end);
    if (end - begin > block_keys) {
      const Index middle = begin + ((end - begin) / 2 + block_keys - 1) / block_keys * block_keys;
      self(self, begin, middle);
      return self(self, middle, end);
    }
    // Nothing to see at either end is left out, and what all see there is not tested.
    auto at = mask::Coverage::skip;
    while (begin + grain < end && (at = classify(begin, begin + grain)) == mask::Coverage::skip) begin += grain;
    Index mixed_begin = begin;
    while (mixed_begin + grain < end && at == mask::Coverage::full) {
      mixed_begin += grain;
      at = mixed_begin + grain < end ? classify(mixed_begin, mixed_begin + grain) : mask::Coverage::partial;
    }
    Index mixed_end = end;
    while (mixed_begin + grain < end && (at = classify(end - grain, end)) == mask::Coverage::skip)
      mixed_end = end -= grain;
    while (mixed_begin + grain < mixed_end && at == mask::Coverage::full) {
      mixed_end -= grain;
      at = mixed_begin + grain < mixed_end ? classify(mixed_end - grain, mixed_end) : mask::Coverage::partial;
    }
    ranges[count++] = {begin, end, true, mixed_begin, mixed_end};
  };
  if (call.problem.keys > 0) visit(visit, 0, call.problem.keys);
  return count;
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
