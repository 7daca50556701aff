#pragma once
// How calls write an Evidence: its memory for a shape, and where the numbers of a head lie.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/core/growth.hpp"

namespace attention_balancer::detail {

/// What a call leaves in an Evidence.
struct EvidenceShape {
  Index batch, heads, queries, keys;
  bool with_mass;
  evidence::Kind statistic;
  bool same_exposure = false;  // all heads have the same one
  bool overwritten = false;    // the mass, so that it need not be 0 before: decoding can least afford whole passes
  bool with_support = false;
};

/// Write access for the kernels and the reference.
struct EvidenceAccess {
  /// Makes room for the shape, and changes nothing else: reshape then does not throw. Half as much again as before
  /// where a key comes with each token, so that few of the calls allocate.
  template <class T>
  static void reserve(Evidence<T>& e, const EvidenceShape& shape) {
    const Sizes n(shape);
    reserve_growing(e.mass_, n.per_key);
    reserve_growing(e.exposure_, n.of_exposure);
    reserve_growing(e.statistic_, n.of_statistic);
    for (auto* x : {&e.lse_, &e.entropy_}) reserve_growing(*x, n.per_query);
    reserve_growing(e.sink_mass_, n.rows);
    reserve_growing(e.empty_rows_, n.rows);
    reserve_growing(e.support_, n.of_support);
  }

  /// Sizes the storage; allocates only when it grows. What throws leaves the evidence as it was. Everything is 0
  /// then, but the mass if it will be overwritten.
  template <class T>
  static void reshape(Evidence<T>& e, const EvidenceShape& shape) {
    reserve(e, shape);
    const Sizes n(shape);
    if (!shape.overwritten) e.mass_.assign(n.per_key, T(0));
    e.mass_.resize(n.per_key);
    e.exposure_.assign(n.of_exposure, T(0));
    e.same_exposure_ = shape.same_exposure;
    e.statistic_.assign(n.of_statistic, T(0));
    e.lse_.assign(n.per_query, T(0));
    e.entropy_.assign(n.per_query, T(0));
    e.sink_mass_.assign(n.rows, T(0));
    e.empty_rows_.assign(n.rows, 0);
    e.support_.assign(n.of_support, 0);
    e.batch_ = shape.batch, e.heads_ = shape.heads, e.queries_ = shape.queries, e.keys_ = shape.keys;
    e.has_mass_ = shape.with_mass, e.kind_ = shape.statistic;
  }

  /// Entry k of what item `batch` has per key becomes what entry kept[k] was. The number of keys shrinks if it is the
  /// only item; otherwise what is behind becomes 0. With several `lists`, kept [lists, n], each is for as many heads,
  /// whose number it divides.
  template <class T>
  static void keep(Evidence<T>& e, Index batch, std::span<const Index> kept, Index lists = 1) {
    const Index keys = e.keys_, size = static_cast<Index>(kept.size()) / lists, shrunk = e.batch_ == 1 ? size : keys;
    auto compact = [&](std::vector<T>& values, Index rows) {
      if (values.empty()) return;
      for (Index r = 0; r < rows; ++r) {
        const T* from = values.data() + (batch * rows + r) * keys;
        T* to = values.data() + batch * rows * keys + r * shrunk;  // never past `from`
        // An exposure that all heads share is that of a call without masks, the same for every key.
        const Index* list = kept.data() + r * lists / rows * size;
        for (Index k = 0; k < size; ++k) to[k] = from[list[k]];
        std::fill(to + size, to + shrunk, T(0));
      }
      if (shrunk != keys) values.resize(static_cast<std::size_t>(rows * shrunk));
    };
    compact(e.mass_, e.heads_);
    compact(e.statistic_, e.heads_);
    compact(e.exposure_, e.same_exposure_ ? Index(1) : e.heads_);
    e.keys_ = shrunk;
  }

  /// Whether `bytes` bytes from `address` on share memory with what reshape overwrites.
  template <class T>
  static bool holds(const Evidence<T>& e, const void* address, std::size_t bytes) noexcept {
    const auto first = reinterpret_cast<std::uintptr_t>(address);
    auto meets = [&](const auto& values) {
      const auto begin = reinterpret_cast<std::uintptr_t>(values.data());
      return first < begin + values.capacity() * sizeof(values[0]) && begin < first + bytes;
    };
    return meets(e.mass_) || meets(e.exposure_) || meets(e.statistic_) || meets(e.lse_) || meets(e.entropy_) ||
           meets(e.sink_mass_);
  }

  /// Start of row (b, h) of each array, for row = b * heads + h.
  template <class T>
  static T* mass(Evidence<T>& e, Index row) { return e.mass_.data() + row * (e.has_mass_ ? e.keys_ : 0); }
  template <class T>
  static T* exposure(Evidence<T>& e, Index row) {
    return e.exposure_.data() + (e.same_exposure_ ? row / e.heads_ : row) * (e.has_mass_ ? e.keys_ : 0);
  }
  template <class T>
  static T* statistic(Evidence<T>& e, Index row) { return e.statistic_.data() + row * (e.has_mass_ ? e.keys_ : 0); }
  template <class T>
  static T* lse(Evidence<T>& e, Index row) { return e.lse_.data() + row * e.queries_; }
  template <class T>
  static T* entropy(Evidence<T>& e, Index row) { return e.entropy_.data() + row * e.queries_; }
  template <class T>
  static T* sink_mass(Evidence<T>& e, Index row) { return e.sink_mass_.data() + row; }
  template <class T>
  static Index* support(Evidence<T>& e, Index row) { return e.support_.data() + row * e.queries_; }
  template <class T>
  static Index* empty_rows(Evidence<T>& e, Index row) { return e.empty_rows_.data() + row; }

 private:
  /// Numbers of elements.
  struct Sizes {
    explicit Sizes(const EvidenceShape& shape)
        : rows(static_cast<std::size_t>(shape.batch * shape.heads)),
          per_key(shape.with_mass ? rows * static_cast<std::size_t>(shape.keys) : 0),
          of_exposure(shape.same_exposure ? per_key / static_cast<std::size_t>(shape.heads) : per_key),
          of_statistic(shape.statistic == evidence::Kind::mass ? 0 : per_key),
          per_query(rows * static_cast<std::size_t>(shape.queries)),
          of_support(shape.with_support ? per_query : 0) {}

    std::size_t rows, per_key, of_exposure, of_statistic, per_query, of_support;
  };
};

}  // namespace attention_balancer::detail
