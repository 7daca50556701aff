#pragma once
// Attention to keys and values in a cache: contiguous or paged, in any storage, each sequence with a length of its
// own.

#include "attention_balancer/attention/detail/cache_sequences.hpp"
#include "attention_balancer/attention/detail/prefill.hpp"
#include "attention_balancer/attention/forward.hpp"
#include "attention_balancer/cache/kv_cache.hpp"
#include "attention_balancer/cache/paged.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// Checks q and the view, and out unless it is null. `packed`: the queries of all sequences are one row of tokens.
/// Throws ShapeError.
template <class Stored>
Problem check_cached(const Layout& q, const KvView<Stored>& x, const Layout* out, bool packed) {
  check_kv_view(x);
  if (packed) require_equal("q.batch of packed queries", q.sizes[0], "one row of tokens", 1);
  Layout k = layout("cache.keys", x.keys), v = layout("cache.values", x.values);
  const Layout inputs[] = {k, v, layout("cache.key_scales", x.key_scales),
                           layout("cache.value_scales", x.value_scales)};
  Index longest = 0;
  for (Index b = 0; b < x.batch(); ++b) longest = std::max(longest, x.length(b));
  // As one tensor [B, Hkv, Nk, D]; where its rows lie has been checked.
  for (Layout* one : {&k, &v}) {
    one->sizes[0] = packed ? 1 : x.batch(), one->sizes[2] = longest;
    one->strides[0] = one->strides[2] = 0;
    if (longest > 0 && one->address == 0)
      fail<ShapeError>(std::string(one->name) + ".data", "null", "point to its elements");
  }
  Layout tensor = k;
  tensor.name = "cache";  // in messages: the view has other sizes, its pages
  Problem problem = check_queries_and_keys(q, tensor);
  if (out == nullptr) return problem;
  check_values_and_output(problem, q, k, v, *out);
  for (const Layout& input : inputs)
    if (may_overlap(*out, check_layout(*out), input, check_layout(input)))
      fail<ShapeError>("out", std::string("in the memory of ") + input.name, "not overlap an input");
  return problem;
}

/// Whether products of bf16 are asked for and will do: leave-one-out is a small difference of large numbers.
template <Scalar T, class... P>
bool multiplies_pairs(const Call<T>& call) noexcept {
  return count_of<PolicyKind::products, T, P...> > 0 && call.statistic != evidence::Kind::leave_one_out;
}

/// Whether products of integers are asked for and will do, in the same way.
template <Scalar T, class... P>
bool multiplies_integers(const Call<T>& call) noexcept {
  return simd::has_integer_products && count_of<PolicyKind::integer_products, T, P...> > 0 &&
         call.statistic != evidence::Kind::leave_one_out;
}

/// Runs a call on one cache, as run_call one on plain tensors. `pairs`: with products of bf16, if the machine has them.
template <Scalar T, class Stored, class Run>
void run_call_on_cache(const Call<T>& call, const KvView<Stored>& x, bool pairs, Evidence<T>* evidence,
                       Workspace& workspace, const Run& executor, Index concurrency) {
  if (call.problem.queries <= decode_queries)
    Decoder<T, Stored>(call, x, evidence, workspace, concurrency).run(executor);
  else
    run_prefill(call, x, pairs, evidence, workspace, executor, concurrency);
}

template <class T, class... P>
inline constexpr bool has_packed_queries = count_of<PolicyKind::packed_queries, T, P...> > 0;

template <Scalar T, class Stored, class... P>
void run_cached(Call<T>& call, const KvView<Stored>& x, P&... policies) {
  if constexpr (has_packed_queries<T, P...>) {
    const PackedQueries& offsets = find_policy<PolicyKind::packed_queries, T>(policies...);
    const Problem largest = packed_problem(call.problem, offsets, x.batch());
    run_packed(
        call, offsets, [&](Index s) { return x.length(s); }, largest,
        [&](Workspace& workspace, const auto& executor, Index concurrency, std::span<Evidence<T>> evidence) {
          check_kept_rows(largest);
          call.integer_products = multiplies_integers<T, P...>(call);
          const CacheSequences<T, Stored> sequences(call, offsets, x, multiplies_pairs<T, P...>(call));
          run_sequences(call, sequences, evidence, workspace, executor, concurrency);
        },
        policies...);
  } else {
    run_with_policies(
        call,
        [&](Workspace& workspace, const auto& executor, Index concurrency, Evidence<T>* evidence) {
          call.integer_products = multiplies_integers<T, P...>(call);
          run_call_on_cache(call, x, multiplies_pairs<T, P...>(call), evidence, workspace, executor, concurrency);
        },
        policies...);
  }
}

/// A cache that owns its memory and shows a view.
template <class C>
concept OwningCache = requires(const C& cache) {
  typename C::scalar;
  cache.view();
};

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// As attention(q, k, v, out, ...), to keys and values in a cache: q [B, Hq, Nq, D], out [B, Hq, Nq, Dv], of float,
/// or of double for a cache of doubles. Sequence b has cache.length(b) keys: masks and score modifiers are told
/// that number, and the evidence has as many keys as the longest sequence, 0 behind the end of the shorter ones.
/// Views that policies borrow, and KeyLengths, go by the longest too. The same bits for a sequence alone, beside
/// others, contiguous or paged. What the storage loses is said at CacheStorage. Bf16Products and
/// IntegerProducts are policies more, and so is PackedQueries: sequences with numbers of queries of their own, in one
/// row of tokens. Throws as attention does.
template <class Q, class Stored, class O, class... P>
void attention(const TensorView<Q>& q, const KvView<Stored>& cache, const TensorView<O>& out, P&&... policies) {
  using T = std::remove_const_t<O>;
  static_assert(CacheStorage<Stored>, "attention_balancer: a cache stores float, double, bf16, f16 or std::int8_t");
  constexpr bool scalars = std::is_same_v<std::remove_const_t<Q>, T> && !std::is_const_v<O> && CacheStorage<Stored>;
  static_assert(scalars, "attention_balancer: q and a mutable out must both be float or both be double");
  if constexpr (scalars) {
    constexpr bool fits = std::is_same_v<T, detail::arithmetic_of<Stored>>;
    static_assert(fits, "attention_balancer: a cache of doubles takes q and out of double, any other float");
    if constexpr (fits && detail::cached_policies_fit<T, Stored, P...>()) {
      const auto lq = detail::layout("q", q), lo = detail::layout("out", out);
      detail::Call<T> call{detail::check_cached(lq, cache, &lo, detail::has_packed_queries<T, P...>), q, {}, {}, out};
      detail::run_cached<T>(call, cache, policies...);
    }
  }
}
template <class Q, detail::OwningCache C, class O, class... P>
void attention(const TensorView<Q>& q, const C& cache, const TensorView<O>& out, P&&... policies) {
  attention(q, cache.view(), out, policies...);
}

/// As attention_evidence(q, k, ...), for the keys in a cache.
template <class Q, class Stored, class... P>
void attention_evidence(const TensorView<Q>& q, const KvView<Stored>& cache, P&&... policies) {
  using T = std::remove_const_t<Q>;
  constexpr bool fits = std::is_same_v<T, detail::arithmetic_of<Stored>>;
  static_assert(fits, "attention_balancer: a cache of doubles takes q of double, any other float");
  if constexpr (fits && detail::cached_policies_fit<T, Stored, P...>()) {
    constexpr bool observed = detail::observations_in<T, P...> == 1;
    static_assert(observed, "attention_balancer: attention_evidence needs observe(evidence)");
    constexpr bool values = (!detail::needs_values<std::remove_cvref_t<P>> && ...);
    static_assert(values,
                  "attention_balancer: evidence::leave_one_out needs the values: observe it with attention");
    if constexpr (observed && values) {
      const auto lq = detail::layout("q", q);
      detail::Call<T> call{
          detail::check_cached(lq, cache, nullptr, detail::has_packed_queries<T, P...>), q, {}, {}, {}};
      detail::run_cached<T>(call, cache, policies...);
    }
  }
}
template <class Q, detail::OwningCache C, class... P>
void attention_evidence(const TensorView<Q>& q, const C& cache, P&&... policies) {
  attention_evidence(q, cache.view(), policies...);
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
