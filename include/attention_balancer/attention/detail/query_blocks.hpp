#pragma once
// A range of queries of one head, as blocks.

#include <algorithm>

#include "attention_balancer/attention/detail/block.hpp"
#include "attention_balancer/attention/detail/evidence_block.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

/// The queries [first, end) of one head, in blocks of three packs; four packs are two blocks of two, because a
/// block of one pack makes poor use of what it loads. Where a mask treats queries alike no block is on both sides of
/// the border: it would visit what either side sees.
template <Scalar T>
ATTENTION_BALANCER_NOINLINE void attend_queries(const Call<T>& call, Index batch, Index head, Index first,
                                                Index end, const Scratch<T>& scratch,
                                                const EvidenceRows<T>& evidence) noexcept {
  constexpr Index n = simd::lanes<T>;
  const Index grain = call.policies.query_grain;
  while (first < end) {
    const Index stop = grain > 0 ? std::min(end, (first / grain + 1) * grain) : end;
    const Index packs = (stop - first + n - 1) / n;
    // The same blocks as one by one: none but the last is short, and no four packs are left on the way.
    Index together = scratch.together;
    while (together > 1 && packs < together * block_packs + 2) together /= 2;
    if (together > 1) {
      Block<T, block_packs>(call, batch, head, first, block_packs * n, scratch, evidence)
          .run_together(static_cast<int>(together));
      first += together * block_packs * n;
      continue;
    }
    const Index now = packs == 4 ? 2 : std::min(packs, Index(block_packs));
    const Index count = std::min(now * n, stop - first);
    if (now == 3)
      Block<T, 3>(call, batch, head, first, count, scratch, evidence).run();
    else if (now == 2)
      Block<T, 2>(call, batch, head, first, count, scratch, evidence).run();
    else
      Block<T, 1>(call, batch, head, first, count, scratch, evidence).run();
    first += count;
  }
}

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
