#pragma once
// What a mask is: it classifies whole blocks first, so that only mixed blocks are tested lane by lane.

#include <concepts>

#include "attention_balancer/score/concepts.hpp"

namespace attention_balancer::mask {

/// What a mask leaves of a block: nothing, everything, or it depends on the place. `partial` is always allowed.
enum class Coverage { skip, full, partial };

}  // namespace attention_balancer::mask

namespace attention_balancer {
ATTENTION_BALANCER_BEGIN_ISA

/// A block of scores: queries [query_begin, query_end) by keys [key_begin, key_end) of one head, neither empty.
struct Rect {
  Index query_begin, query_end, key_begin, key_end;
  /// Batch item, query head, and the numbers of queries and keys of the call.
  Index batch, head, queries, keys;

  /// What a query's number is short of its position among the keys, see Site::query_position.
  Index query_offset() const noexcept { return keys - queries; }
};

/// A mask says what may be attended: pure, must not throw. `visible` is called with scalars and with packs; for packs
/// it returns a comparison of packs, or a bool that holds for all lanes.
/// It may have `validate`, `borrowed` and `prefers_key_lanes`, as a score modifier may, and `Index query_grain()
/// const`: how many queries, from each multiple of it on, see the same keys, so that no block of queries need be on
/// both sides.
template <class M, class T>
concept Mask = requires(const M& m, const Rect& rect, const Site<T>& site, const Site<simd::Pack<T>>& sites) {
  { m.classify(rect) } -> std::convertible_to<mask::Coverage>;
  { m.visible(site) } -> std::convertible_to<bool>;
  { simd::mask_of<simd::Pack<T>>(m.visible(sites)) };
};

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer
