#pragma once
// What a worker will read and write next, asked for while it computes.

#include <algorithm>

#include "attention_balancer/simd/pack.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The rows of the next piece of work, some of them with each register tile of this one. Asked for all at once they
/// would come no sooner than if nobody asked: a core has few lines on their way at a time, and waits for them. So many
/// with each tile, and not so many on average, because the core guesses the length of a loop that varies wrongly.
class Coming {
 public:
  void clear() noexcept { *this = {}; }

  /// The rows [begin, end) of a head, if their elements lie side by side; of `most` tensors.
  template <class X>
  void add(const TensorView<X>& x, Index batch, Index head, Index begin, Index end) noexcept {
    constexpr Index size = static_cast<Index>(sizeof(X));
    if (x.data == nullptr || begin == end || (x.dim_stride != 1 && x.dim > 1)) return;
    const Index step = end - begin > 1 ? x.length_stride * size : 0;  // that of a single row may be any number
    part_[parts_++] = {reinterpret_cast<const char*>(&x(batch, head, begin, 0)), step, end - begin, x.dim * size};
    rows_ += end - begin;
  }

  /// All of it is asked for within so many calls of ask, as many rows each time.
  void within(Index calls) noexcept { pace_ = rows_ / std::max(Index(1), calls) + 1; }

  /// As Far asks: of a Coming.
  static void ask(const void* coming, Index, Index) noexcept {
    const_cast<Coming*>(static_cast<const Coming*>(coming))->ask_for_some();
  }

 private:
  void ask_for_some() noexcept {
    if (parts_ == 0) return;
    for (Index i = pace_; i > 0; --i) {
      Part& part = part_[next_];
      for (Index c = 0; c < part.bytes; c += 64) simd::prefetch(part.at + c);
      part.at += part.stride;
      if (--part.count == 0) {
        part = part_[--parts_];
        if (parts_ == 0) return;
      }
      next_ = next_ + 1 < parts_ ? next_ + 1 : 0;
    }
  }

  struct Part {
    const char* at;
    Index stride, count, bytes;
  };
  static constexpr Index most = 8;
  Part part_[most] = {};
  Index parts_ = 0, next_ = 0, rows_ = 0, pace_ = 0;
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
