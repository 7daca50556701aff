// Full tiles pay nothing for a mask and fully masked ones are skipped: seen in what a mask and a modifier are asked.

#include <atomic>

#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;

struct Asked {
  std::atomic<Index> blocks{0}, lanes{0};
};

/// A mask of the library that counts what it is asked. Only packs count: nothing asks for single scores.
template <class M>
struct Counting {
  M mask;
  Asked* asked;

  void validate(const ab::Problem& problem) const {
    if constexpr (requires { mask.validate(problem); }) mask.validate(problem);
  }
  ab::mask::Coverage classify(const ab::Rect& rect) const {
    ++asked->blocks;
    CHECK(rect.query_begin < rect.query_end);
    CHECK(rect.key_begin < rect.key_end);
    CHECK(rect.query_end <= rect.queries);
    CHECK(rect.key_end <= rect.keys);
    return mask.classify(rect);
  }
  Index query_grain() const {
    if constexpr (requires { mask.query_grain(); })
      return mask.query_grain();
    else
      return 0;
  }
  template <class S>
  auto visible(const ab::Site<S>& site) const {
    asked->lanes += site.lanes;
    return mask.visible(site);
  }
};

/// Counts the scores that are bent, with the lanes that pad the last block.
struct CountScores {
  std::atomic<Index>* scores;
  template <class S>
  S operator()(const S& score, const ab::Site<S>& site) const {
    *scores += site.lanes;
    return score;
  }
};

constexpr Index N = 1024;

template <class T, class M>
void count(Asked& asked, std::atomic<Index>& scores, const M& mask, bool observed) {
  support::Random random(71);
  const support::Shape s{1, 1, 1, N, N, 4, 4};
  const support::Inputs<T> in(s, random);
  support::Tensor<T> out(Layout::bhsd, 1, 1, N, 4);
  asked.blocks = asked.lanes = 0;
  scores = 0;
  ab::Evidence<T> evidence;
  if (observed)
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), Counting<M>{mask, &asked}, CountScores{&scores},
                  ab::observe(evidence));
  else
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), Counting<M>{mask, &asked}, CountScores{&scores});
}

}  // namespace

TEMPLATE_TEST_CASE("what is full is not tested and what is masked is not computed", "[attention][mask]", SCALARS) {
  using T = TestType;
  Asked asked;
  std::atomic<Index> scores{0};
  const Index width = 3 * ab::simd::lanes<T>;  // of a block of queries
  for (const bool observed : {false, true}) {
    INFO((observed ? "observed" : "plain"));

    count<T>(asked, scores, ab::mask::KeyLengths{N}, observed);
    CHECK(asked.lanes == 0);
    CHECK(scores >= N * N);
    CHECK(scores <= N * (N + width));

    count<T>(asked, scores, ab::mask::KeyLengths{0}, observed);
    CHECK(asked.lanes == 0);
    CHECK(scores == 0);

    count<T>(asked, scores, ab::mask::KeyLengths{256}, observed);
    CHECK(asked.lanes == 0);  // on a boundary of blocks
    CHECK(scores <= 256 * (N + width));

    // Half of the scores, and lanes only along the diagonal; observing asks those once more, for the exposure.
    count<T>(asked, scores, ab::mask::Causal{}, observed);
    CHECK(scores >= N * N / 2);
    CHECK(scores <= N * N / 2 + N * (128 + width));
    CHECK(asked.lanes > 0);
    CHECK(asked.lanes <= (observed ? 2 : 1) * N * (128 + 16 + width));
    CHECK(asked.blocks <= (N / width + 1) * 40);

    count<T>(asked, scores, ab::mask::Window{63, 64}, observed);
    CHECK(scores <= N * (128 + 2 * (16 + width)));
    CHECK(asked.blocks <= (N / width + 1) * 80);

    // Nothing of a block that is off.
    std::vector<unsigned char> blocks(static_cast<std::size_t>(N / 128 * N / 128), 0);
    blocks[0] = blocks[9] = 1;
    count<T>(asked, scores, ab::mask::Blocks(ab::bhsd(blocks.data(), 1, 1, N / 128, N / 128), 128, 128), observed);
    CHECK(scores == 2 * 128 * 128);  // blocks of queries end where those of the mask do
    CHECK(asked.lanes == 0);
  }
}
