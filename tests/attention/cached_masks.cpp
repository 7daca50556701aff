// What a mask hides in a cache reaches no result, in every storage, however hostile it is: the same bits as if it were 0.

#include <limits>

#include "support/check.hpp"

namespace {

using support::Index;
using support::Layout;
using support::Tensor;

/// Keys and values of which those that `hidden` names are not numbers, or 0.
template <class T>
void fill_hidden(support::Inputs<T>& in, bool hostile, Index batch, const std::vector<bool>& hidden) {
  const T bad[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                   -std::numeric_limits<T>::infinity()};
  for (Index h = 0; h < in.k.view().heads; ++h)
    for (Index j = 0; j < in.k.view().length; ++j) {
      if (!hidden[static_cast<std::size_t>(j)]) continue;
      for (Index c = 0; c < in.k.view().dim; ++c) in.k(batch, h, j, c) = hostile ? bad[(j + c) % 3] : T(0);
      for (Index c = 0; c < in.v.view().dim; ++c) in.v(batch, h, j, c) = hostile ? bad[(j + c + 1) % 3] : T(0);
    }
}

}  // namespace

TEMPLATE_TEST_CASE("what is masked in a cache reaches no result", "[attention][cache][mask]", float, double, ab::bf16,
                   ab::f16, std::int8_t) {
  using Stored = TestType;
  using T = typename ab::KvCache<Stored>::scalar;
  support::Table table;
  for (const Index queries : {1, 5, 30}) {
    const support::Shape s{2, 4, 2, queries, 150, 16, 12};
    support::Random random(320);
    support::Inputs<T> in(s, random);
    std::vector<bool> hidden(150);
    for (std::size_t j = 0; j < 150; ++j) hidden[j] = j % 7 == 3 || (j >= 60 && j < 100) || j >= 140;
    std::vector<unsigned char> sees(150);
    for (std::size_t j = 0; j < 150; ++j) sees[j] = hidden[j] ? 0 : 1;
    const auto boolean = ab::mask::Boolean(ab::TensorView<const unsigned char>{sees.data(), 1, 1, 1, 150, 0, 0, 0, 1});

    Tensor<T> out(Layout::bhsd, 2, 4, queries, 12), clean(Layout::bhsd, 2, 4, queries, 12);
    ab::Evidence<T> evidence, of_clean;
    auto attend = [&](bool hostile, bool pages, Tensor<T>& to, ab::Evidence<T>& observed) {
      for (Index b = 0; b < 2; ++b) fill_hidden(in, hostile, b, hidden);
      auto run = [&](auto cache) {
        cache.append(in.k.view(), in.v.view());
        ab::attention(in.q.view(), cache, to.view(), boolean, ab::observe(observed));
      };
      if (pages)
        run(ab::PagedKvCache<Stored>(2, 2, 40, 8, 16, 12));
      else
        run(ab::KvCache<Stored>(2, 2, 150, 16, 12));
    };
    for (const bool pages : {false, true}) {
      table.begin(std::string(pages ? "paged" : "whole") + ", Nq " + std::to_string(queries));
      attend(false, pages, clean, of_clean);
      attend(true, pages, out, evidence);
      table.expect(support::same_bits(out.view(), clean.view()), "output");
      table.expect(support::same_bits(evidence, of_clean), "evidence");
      Index finite = 0;
      for (Index b = 0; b < 2; ++b)
        for (Index h = 0; h < 4; ++h)
          for (Index i = 0; i < queries; ++i)
            for (Index c = 0; c < 12; ++c) finite += std::isfinite(out(b, h, i, c));
      table.expect(finite == 2 * 4 * queries * 12, "finite");
    }
  }
  table.report();
}
