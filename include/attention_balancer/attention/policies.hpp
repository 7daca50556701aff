#pragma once
// The policies after the tensors: any number, any order, each recognised by what it can do.

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "attention_balancer/attention/bf16_products.hpp"
#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/integer_products.hpp"
#include "attention_balancer/attention/packed.hpp"
#include "attention_balancer/attention/gradients.hpp"
#include "attention_balancer/core/storage.hpp"
#include "attention_balancer/core/workspace.hpp"
#include "attention_balancer/executor/sequential.hpp"
#include "attention_balancer/mask/masks.hpp"
#include "attention_balancer/score/modifiers.hpp"
#include "attention_balancer/softmax/normalizers.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

enum class PolicyKind {
  unknown, scale, modifier, mask, normalizer, sink, executor, observation, workspace, lse_gradient, entropy_gradient,
  mass_gradient, sequences, packed_queries, packed_observation, products, integer_products
};

template <class>
inline constexpr bool is_scale = false;
template <class N>
inline constexpr bool is_scale<score::Scale<N>> = true;
template <class N, class T>
inline constexpr bool is_scale<Gradient<score::Scale<N>, T>> = true;
template <class>
inline constexpr bool is_sink = false;
template <class N>
inline constexpr bool is_sink<normalize::Sink<N>> = true;
template <class N, class T>
inline constexpr bool is_sink<Gradient<normalize::Sink<N>, T>> = true;
template <class, template <class> class>
inline constexpr bool is_of = false;
template <class T, template <class> class Template>
inline constexpr bool is_of<Template<T>, Template> = true;

/// What P (without reference) is to a call on tensors of T.
template <class T, class P>
consteval PolicyKind policy_kind() {
  using Policy = std::remove_cv_t<P>;
  if constexpr (is_scale<Policy>)
    return PolicyKind::scale;
  else if constexpr (is_sink<Policy>)
    return PolicyKind::sink;
  else if constexpr (is_observation<Policy>)
    return PolicyKind::observation;
  else if constexpr (is_of<Policy, evidence::LseGradient>)
    return PolicyKind::lse_gradient;
  else if constexpr (is_of<Policy, evidence::EntropyGradient>)
    return PolicyKind::entropy_gradient;
  else if constexpr (is_of<Policy, evidence::MassGradient>)
    return PolicyKind::mass_gradient;
  else if constexpr (is_packed_observation<Policy>)
    return PolicyKind::packed_observation;
  else if constexpr (std::is_same_v<Policy, PackedSequences>)
    return PolicyKind::sequences;
  else if constexpr (std::is_same_v<Policy, PackedQueries>)
    return PolicyKind::packed_queries;
  else if constexpr (std::is_same_v<Policy, Bf16Products>)
    return PolicyKind::products;
  else if constexpr (std::is_same_v<Policy, IntegerProducts>)
    return PolicyKind::integer_products;
  else if constexpr (std::is_same_v<Policy, Workspace>)
    return PolicyKind::workspace;
  else if constexpr (std::is_same_v<Policy, normalize::Softmax> || std::is_same_v<Policy, normalize::Sparsemax> ||
                     std::is_same_v<Policy, normalize::Entmax15> || std::is_same_v<Policy, normalize::TopK>)
    return PolicyKind::normalizer;
  else if constexpr (Mask<Policy, T>)
    return PolicyKind::mask;
  else if constexpr (Executor<Policy>)
    return PolicyKind::executor;
  else if constexpr (ScoreModifier<Policy, T>)
    return PolicyKind::modifier;
  else
    return PolicyKind::unknown;
}

template <class T, class P>
inline constexpr PolicyKind kind_of = policy_kind<T, std::remove_reference_t<P>>();

template <PolicyKind Kind, class T, class... P>
inline constexpr int count_of = (0 + ... + (kind_of<T, P> == Kind ? 1 : 0));

/// Observations of one call, and of each of several sequences.
template <class T, class... P>
inline constexpr int observations_in =
    count_of<PolicyKind::observation, T, P...> + count_of<PolicyKind::packed_observation, T, P...>;

/// An Observation of tensors of T, or no observation at all.
template <class T, class P>
inline constexpr bool fits_scalar = true;
template <class T, class U, evidence::Kind Statistic>
inline constexpr bool fits_scalar<T, Observation<U, Statistic>> = std::is_same_v<T, U>;
template <class T, class U, evidence::Kind Statistic>
inline constexpr bool fits_scalar<T, PackedObservation<U, Statistic>> = std::is_same_v<T, U>;

/// Whether a policy is an observation that cannot be made without values.
template <class P>
inline constexpr bool needs_values = false;
template <class T>
inline constexpr bool needs_values<Observation<T, evidence::Kind::leave_one_out>> = true;
template <class T>
inline constexpr bool needs_values<PackedObservation<T, evidence::Kind::leave_one_out>> = true;

/// False for a normaliser that divides by no sum of exponentials.
template <class P>
inline constexpr bool has_denominator =
    !std::is_same_v<P, normalize::Sparsemax> && !std::is_same_v<P, normalize::Entmax15>;

/// Whether the policies can be used together, forward or backward; says why not.
template <class T, class... P>
consteval bool common_policies_fit() {
  constexpr bool known = count_of<PolicyKind::unknown, T, P...> == 0;
  static_assert(known,
                "attention_balancer: an argument after the tensors is no policy: it is no score modifier and no mask "
                "(callable with scalars and with packs), normaliser, sink, executor, observation or workspace");
  constexpr bool observations = observations_in<T, P...> <= 1;
  static_assert(observations, "attention_balancer: a call takes one observation, not two");
  constexpr bool scalars = (fits_scalar<T, std::remove_cvref_t<P>> && ...);
  static_assert(scalars, "attention_balancer: the Evidence must have the scalar type of the tensors");
  constexpr bool sinks = count_of<PolicyKind::sink, T, P...> <= 1;
  static_assert(sinks, "attention_balancer: a call takes one normalize::Sink, not two");
  constexpr bool normalizers = count_of<PolicyKind::normalizer, T, P...> <= 1;
  static_assert(normalizers, "attention_balancer: a call takes one normaliser, not two");
  constexpr bool denominators =
      count_of<PolicyKind::sink, T, P...> == 0 || (has_denominator<std::remove_cvref_t<P>> && ...);
  static_assert(
      denominators,
      "attention_balancer: normalize::Sparsemax and Entmax15 have no denominator that a normalize::Sink could "
      "take part in");
  constexpr bool executors = count_of<PolicyKind::executor, T, P...> <= 1;
  static_assert(executors, "attention_balancer: a call takes one executor, not two");
  constexpr bool workspaces = count_of<PolicyKind::workspace, T, P...> <= 1;
  static_assert(workspaces, "attention_balancer: a call takes one Workspace, not two");
  constexpr bool lvalue = ((kind_of<T, P> != PolicyKind::workspace || std::is_same_v<P, Workspace&>) && ...);
  static_assert(lvalue, "attention_balancer: pass the Workspace as an lvalue, so that the next call can use it again");
  constexpr int sequences = count_of<PolicyKind::sequences, T, P...>;
  static_assert(sequences <= 1, "attention_balancer: a call takes one PackedSequences, not two");
  constexpr int queries = count_of<PolicyKind::packed_queries, T, P...>;
  static_assert(queries <= 1, "attention_balancer: a call takes one PackedQueries, not two");
  constexpr bool per_sequence = sequences + queries > 0 ? count_of<PolicyKind::observation, T, P...> == 0
                                                        : count_of<PolicyKind::packed_observation, T, P...> == 0;
  static_assert(per_sequence,
                "attention_balancer: packed sequences are observed with one Evidence each, in a span or vector, and "
                "nothing else is");
  return known && sequences <= 1 && queries <= 1 && per_sequence && observations && scalars && sinks && normalizers &&
         denominators && executors && workspaces && lvalue;
}

/// The same for a call on tensors.
template <class T, class... P>
consteval bool any_policies_fit() {
  constexpr bool floats = count_of<PolicyKind::products, T, P...> == 0;
  static_assert(floats, "attention_balancer: Bf16Products needs a cache of bf16");
  constexpr bool no_integers = count_of<PolicyKind::integer_products, T, P...> == 0;
  static_assert(no_integers, "attention_balancer: IntegerProducts needs a cache of int8");
  constexpr bool keys = count_of<PolicyKind::packed_queries, T, P...> == 0;
  static_assert(keys,
                "attention_balancer: PackedQueries needs a cache, whose sequences have keys of their own (tensors take "
                "PackedSequences)");
  return common_policies_fit<T, P...>() && floats && no_integers && keys;
}

template <class T, class... P>
inline constexpr int count_of_gradients = count_of<PolicyKind::lse_gradient, T, P...> +
                                          count_of<PolicyKind::entropy_gradient, T, P...> +
                                          count_of<PolicyKind::mass_gradient, T, P...>;

/// Whether no policy belongs to the backward call; says so.
template <class T, class... P>
consteval bool policies_are_forward() {
  constexpr bool forward = count_of_gradients<T, P...> == 0;
  static_assert(forward, "attention_balancer: gradients of the evidence belong to attention_backward");
  return forward;
}

/// The same for a forward call on tensors.
template <class T, class... P>
consteval bool policies_fit() {
  return any_policies_fit<T, P...>() && policies_are_forward<T, P...>();
}

/// Whether a normaliser looks at all scores of a row: only then are these bent by themselves.
template <class... P>
inline constexpr bool has_sparse = ((std::is_same_v<P, normalize::Sparsemax> ||
                                     std::is_same_v<P, normalize::Entmax15> ||
                                     std::is_same_v<P, normalize::TopK>) ||
                                    ...);

/// The same for a call on a cache of Stored.
template <class T, class Stored, class... P>
consteval bool cached_policies_fit() {
  constexpr bool products = count_of<PolicyKind::products, T, P...> == 0 || std::is_same_v<Stored, bf16>;
  static_assert(products, "attention_balancer: Bf16Products needs a cache of bf16");
  constexpr bool integers =
      count_of<PolicyKind::integer_products, T, P...> == 0 || std::is_same_v<Stored, std::int8_t>;
  static_assert(integers, "attention_balancer: IntegerProducts needs a cache of int8");
  constexpr bool softmax = !has_sparse<std::remove_cvref_t<P>...>;
  static_assert(softmax,
                "attention_balancer: normalize::Sparsemax, Entmax15 and TopK need keys and values in tensors, not in a "
                "cache");
  constexpr bool lengths = count_of<PolicyKind::sequences, T, P...> == 0;
  static_assert(lengths,
                "attention_balancer: a cache has lengths of its own and takes PackedQueries, not PackedSequences");
  return common_policies_fit<T, P...>() && policies_are_forward<T, P...>() && softmax && products && integers &&
         lengths;
}

/// The first policy of a kind; there must be one.
template <PolicyKind Kind, class T, class First, class... Rest>
auto& find_policy(First& first, Rest&... rest) noexcept {
  if constexpr (kind_of<T, First> == Kind)
    return first;
  else
    return find_policy<Kind, T>(rest...);
}

template <PolicyKind Kind, class T, class P>
auto policy_if(const P& policy) noexcept {
  if constexpr (kind_of<T, P> == Kind)
    return std::tuple<const P&>(policy);
  else
    return std::tuple<>();
}

/// Score modifiers and masks, each in the order given.
template <class T, class... P>
auto collect_policies(const P&... policies) noexcept {
  auto modifiers = std::tuple_cat(policy_if<PolicyKind::modifier, T>(policies)...);
  auto masks = std::tuple_cat(policy_if<PolicyKind::mask, T>(policies)...);
  return Policies<T, decltype(modifiers), decltype(masks)>{modifiers, masks};
}

template <class P>
void validate_policy(const P& policy, const Problem& problem) {
  if constexpr (requires { policy.validate(problem); }) policy.validate(problem);
}

/// What a policy borrows must be neither in the output nor in the evidence: both are overwritten. Throws ShapeError.
template <class T, class P>
void check_borrowed(const P& policy, const TensorView<T>& out, const Evidence<T>* evidence) {
  const Layout output = layout("out", out);
  auto check = [&](const Layout& x) {
    const Extent extent = check_layout(x);
    if (may_overlap(output, check_layout(output), x, extent))
      fail<ShapeError>("out", std::string("in the memory of ") + x.name, "not overlap an input");
    if (evidence != nullptr &&
        EvidenceAccess::holds(*evidence, reinterpret_cast<const std::byte*>(x.address) + extent.low,
                              static_cast<std::size_t>(extent.high - extent.low)))
      fail<ShapeError>(x.name, "in the memory of the evidence", "be copied first: the call overwrites the evidence");
  };
  if constexpr (requires { policy.borrowed(check); }) policy.borrowed(check);
}

/// The normaliser of a call.
template <class T, class... P>
Normalization normalization_of(const P&... policies) noexcept {
  if constexpr (count_of<PolicyKind::normalizer, T, const P...> > 0)
    return find_policy<PolicyKind::normalizer, T>(policies...).normalization();
  else
    return {};
}

/// The factor of the dot products.
template <class T, class... P>
T scale_of(const Problem& problem, const P&... policies) noexcept {
  if constexpr (count_of<PolicyKind::scale, T, P...> == 0) {
    return static_cast<T>(1 / std::sqrt(static_cast<double>(problem.dim)));
  } else {
    double product = 1;
    auto take = [&](const auto& policy) {
      if constexpr (kind_of<T, decltype(policy)> == PolicyKind::scale) product *= static_cast<double>(policy.factor);
    };
    (take(policies), ...);
    return static_cast<T>(product);
  }
}

/// The set behind plain function pointers.
template <class T, class Set>
PolicyCalls<T> policy_calls(const Set& set) noexcept {
  PolicyCalls<T> calls;
  calls.policies = &set;
  calls.has_modifiers = Set::has_modifiers;
  calls.has_masks = Set::has_masks;
  if constexpr (Set::has_masks) calls.query_grain = set.query_grain();
  if constexpr (Set::has_masks)
    calls.classify = [](const void* s, const Rect& rect) { return static_cast<const Set*>(s)->classify(rect); };
  auto fill = [&]<int V>(std::integral_constant<int, V>) {
    calls.bend[V - 1] = [](const void* s, T* scores, const Place& at, bool partial, T* top) {
      static_cast<const Set*>(s)->template bend<V>(scores, at, partial, top);
    };
    calls.expose[V - 1] = [](const void* s, const Place& at, const T* u, T* exposure) {
      static_cast<const Set*>(s)->template expose<V>(at, u, exposure);
    };
  };
  if constexpr (Set::has_modifiers || Set::has_masks) {
    fill(std::integral_constant<int, 1>{});
    fill(std::integral_constant<int, 2>{});
    fill(std::integral_constant<int, 3>{});
    calls.bend_keys = [](const void* s, T* scores, const Place& at, bool partial) {
      static_cast<const Set*>(s)->bend_keys(scores, at, partial);
    };
    calls.expose_keys = [](const void* s, const Place& at, T u, T* exposure) {
      static_cast<const Set*>(s)->expose_keys(at, u, exposure);
    };
  }
  return calls;
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
