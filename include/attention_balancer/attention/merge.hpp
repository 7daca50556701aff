#pragma once
// Merging what attention found in two parts of the keys into what it would have found in both together.

#include <cmath>
#include <limits>
#include <span>
#include <string>

#include "attention_balancer/attention/detail/evidence_access.hpp"
#include "attention_balancer/tensor/shape.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer {
namespace detail {
ATTENTION_BALANCER_BEGIN_ISA

/// What each part of a row counts: exp(lse of the part - lse of both); 0 for a part that is empty.
template <Scalar T>
struct MergedRow {
  T lse, first, second;

  MergedRow(T lse1, T lse2) noexcept {
    constexpr T none = -std::numeric_limits<T>::infinity();
    const T top = lse1 > lse2 || lse2 != lse2 ? lse1 : lse2;
    if (top == none && lse1 == lse1 && lse2 == lse2) {
      lse = none, first = second = T(0);
      return;
    }
    const T w1 = lse1 == none ? T(0) : std::exp(lse1 - top), w2 = lse2 == none ? T(0) : std::exp(lse2 - top);
    lse = top + std::log(w1 + w2);
    first = w1 / (w1 + w2), second = w2 / (w1 + w2);
  }
};

template <Scalar T>
void check_merge(const TensorView<const T>& o1, const TensorView<const T>& o2, const TensorView<T>& out) {
  const Layout first = layout("first output", o1), second = layout("second output", o2),
               merged = layout("out", out);
  for (int a = 0; a < 4; ++a) {
    require_equal((std::string(second.name) + axes[a]).c_str(), second.sizes[a], "the first output's",
                  first.sizes[a]);
    require_equal((std::string(merged.name) + axes[a]).c_str(), merged.sizes[a], "the first output's",
                  first.sizes[a]);
  }
  check_no_self_overlap(merged);
  for (const Layout* part : {&first, &second}) {
    bool same = part->address == merged.address;
    for (int a = 0; a < 4; ++a) same = same && part->strides[a] == merged.strides[a];
    if (!same && may_overlap(merged, check_layout(merged), *part, check_layout(*part)))
      fail<ShapeError>("out", std::string("in the memory of the ") + part->name,
                       "be the same view or not overlap it");
  }
}

template <Scalar T>
void merge_row(const TensorView<const T>& o1, const TensorView<const T>& o2, const TensorView<T>& out, Index b,
               Index h, Index i, const MergedRow<T>& row) noexcept {
  for (Index c = 0; c < out.dim; ++c) {
    T sum(0);
    if (row.first != T(0)) sum = row.first * o1(b, h, i, c);
    if (row.second != T(0)) sum += row.second * o2(b, h, i, c);
    out(b, h, i, c) = sum;
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace detail

ATTENTION_BALANCER_BEGIN_ISA

/// (o1, lse1) of some keys and (o2, lse2) of others become (out, lse) of all of them: outputs [B, H, Nq, Dv], lse
/// [B * H * Nq] contiguous, natural logarithms, as `Evidence::lse()` shows them. `out` may be the view o1 or o2, and
/// `lse` the span lse1 or lse2. A part that saw nothing (lse -inf) does not count. A sink belongs to one part only.
/// Throws ShapeError before anything is written. Source: Dao et al., FlashAttention, arXiv 2205.14135; FlashInfer's
/// state merge, arXiv 2501.01005.
template <Scalar T>
void merge(const TensorView<const T>& o1, std::type_identity_t<std::span<const T>> lse1,
           const std::type_identity_t<TensorView<const T>>& o2, std::type_identity_t<std::span<const T>> lse2,
           const std::type_identity_t<TensorView<T>>& out, std::type_identity_t<std::span<T>> lse) {
  detail::check_merge(o1, o2, out);
  const Index rows = out.batch * out.heads * out.length;
  detail::require_equal("first lse size", static_cast<Index>(lse1.size()), "batch * heads * queries", rows);
  detail::require_equal("second lse size", static_cast<Index>(lse2.size()), "batch * heads * queries", rows);
  detail::require_equal("lse size", static_cast<Index>(lse.size()), "batch * heads * queries", rows);
  std::size_t r = 0;
  for (Index b = 0; b < out.batch; ++b)
    for (Index h = 0; h < out.heads; ++h)
      for (Index i = 0; i < out.length; ++i, ++r) {
        const detail::MergedRow<T> row(lse1[r], lse2[r]);
        detail::merge_row(o1, o2, out, b, h, i, row);
        lse[r] = row.lse;
      }
}
template <Scalar T>
void merge(const TensorView<T>& o1, std::type_identity_t<std::span<const T>> lse1,
           const std::type_identity_t<TensorView<const T>>& o2, std::type_identity_t<std::span<const T>> lse2,
           const std::type_identity_t<TensorView<T>>& out, std::type_identity_t<std::span<T>> lse) {
  merge(TensorView<const T>(o1), lse1, o2, lse2, out, lse);
}

/// The same with all evidence, of calls with the same queries and weights: `merged` (neither part) has the keys of
/// the first part, then those of the second. lse, entropy, empty rows and sink mass merge for any number of
/// queries. A mass that has been summed over queries cannot be merged: each of them has a factor of its own,
/// exp(lse of the part - lse). So for calls with mass there must be one query, or QueryWeights that count one:
/// `only` or `last(1)`, given here as `query`; observe the queries that count one at a time, or merge outputs and
/// Evidence::lse() alone. Squares and maxima merge likewise, other statistics do not. Throws ShapeError or InputError
/// before anything is written.
template <Scalar T>
void merge(const std::type_identity_t<TensorView<const T>>& o1, const Evidence<T>& e1,
           const std::type_identity_t<TensorView<const T>>& o2, const Evidence<T>& e2,
           const std::type_identity_t<TensorView<T>>& out, Evidence<T>& merged, Index query = -1) {
  using detail::EvidenceAccess;
  using detail::fail;
  detail::check_merge<T>(o1, o2, out);
  detail::require_observed(e1, "first evidence");
  detail::require_observed(e2, "second evidence");
  for (const Evidence<T>* e : {&e1, &e2}) {
    if (e == &merged) fail<InputError>("merged evidence", "one of the parts", "be an object of its own");
    detail::require_equal("evidence batch", e->batch(), "out.batch", out.batch);
    detail::require_equal("evidence heads", e->heads(), "out.heads", out.heads);
    detail::require_equal("evidence queries", e->queries(), "out.length", out.length);
  }
  if (e1.has_mass() != e2.has_mass() || e1.statistic_kind() != e2.statistic_kind())
    fail<InputError>("second evidence", "of another kind", "be observed as the first");
  const bool mass = e1.has_mass();
  const auto kind = e1.statistic_kind();
  if (mass && query < 0 && out.length > 1)
    fail<InputError>("queries of evidence with mass", out.length,
                     "be 1, or the query that counts be named; merge(o1, e1.lse(), o2, e2.lse(), out, lse) takes any");
  if (query >= out.length) fail<ShapeError>("query", query, "be below the queries = " + std::to_string(out.length));
  if (mass && kind != evidence::Kind::mass && kind != evidence::Kind::squares && kind != evidence::Kind::maximum)
    fail<InputError>("statistic of the evidence", "one of odds",
                     "be the mass, squares or maximum: odds do not merge");
  const Index counted = query < 0 ? 0 : query, keys1 = e1.keys(), keys2 = e2.keys();
  EvidenceAccess::reshape(merged, {out.batch, out.heads, out.length, keys1 + keys2, mass, kind});
  for (Index b = 0; b < out.batch; ++b)
    for (Index h = 0; h < out.heads; ++h) {
      const Index at = b * out.heads + h;
      Index empty = 0;
      T first(0), second(0);  // the factors of the query that counts
      for (Index i = 0; i < out.length; ++i) {
        const auto k = static_cast<std::size_t>(i);
        const detail::MergedRow<T> row(e1.lse(b, h)[k], e2.lse(b, h)[k]);
        detail::merge_row<T>(o1, o2, out, b, h, i, row);
        EvidenceAccess::lse(merged, at)[i] = row.lse;
        // H = - sum of f p log(f p) over both parts
        auto part = [](T f, T entropy) { return f == T(0) ? T(0) : f * (entropy - std::log(f)); };
        EvidenceAccess::entropy(merged, at)[i] =
            part(row.first, e1.entropy(b, h)[k]) + part(row.second, e2.entropy(b, h)[k]);
        if (row.lse == -std::numeric_limits<T>::infinity()) ++empty;
        if (i == counted) first = row.first, second = row.second;
      }
      // With a sink an empty row has a finite lse: then what both parts count is the most that there can be.
      *EvidenceAccess::empty_rows(merged, at) = std::max(empty, std::min(e1.empty_rows(b, h), e2.empty_rows(b, h)));
      if (!mass) continue;
      auto join = [&](auto of, T* to, T f1, T f2) {
        const auto x = of(e1), y = of(e2);
        for (Index j = 0; j < keys1; ++j) to[j] = f1 * x[static_cast<std::size_t>(j)];
        for (Index j = 0; j < keys2; ++j) to[keys1 + j] = f2 * y[static_cast<std::size_t>(j)];
      };
      join([&](const Evidence<T>& e) { return e.mass(b, h); }, EvidenceAccess::mass(merged, at), first, second);
      join([&](const Evidence<T>& e) { return e.exposure(b, h); }, EvidenceAccess::exposure(merged, at), T(1),
           T(1));
      if (kind == evidence::Kind::squares)
        join([&](const Evidence<T>& e) { return e.statistic(b, h); }, EvidenceAccess::statistic(merged, at),
             first * first, second * second);
      if (kind == evidence::Kind::maximum)
        join([&](const Evidence<T>& e) { return e.statistic(b, h); }, EvidenceAccess::statistic(merged, at), first,
             second);
      *EvidenceAccess::sink_mass(merged, at) = first * e1.sink_mass(b, h) + second * e2.sink_mass(b, h);
    }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
