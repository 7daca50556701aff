// Each mask: what it says of a block agrees with what it says of every place in it, and both with the definition.

#include "support/check.hpp"
#include "support/policies.hpp"

namespace {

using ab::mask::Coverage;
using support::Index;

struct Place {
  Index b, h, i, j;
};

/// Classifies random blocks and tests every place against `seen(b, h, i, j)`, in float and double, scalar and packs.
template <class M, class F>
void check_mask(support::Table& table, const std::string& name, const ab::Problem& p, const M& mask, F seen) {
  table.begin(name + " Nq " + std::to_string(p.queries) + " Nk " + std::to_string(p.keys));
  if constexpr (requires { mask.validate(p); }) mask.validate(p);
  auto places = [&]<class S>(S, const char* kind) {
    auto column = table.column(kind);
    constexpr int lanes = ab::simd::lanes_of<S>;
    for (Index b = 0; b < p.batch; ++b)
      for (Index h = 0; h < p.heads; ++h)
        for (Index first = 0; first < p.queries; first += lanes) {
          auto site = ab::Site<S>::along_queries(b, h, p, first, 0);
          for (Index j = 0; j < p.keys; ++j) {
            site.move_to_key(j);
            using T = ab::simd::scalar_of<S>;
            alignas(64) T values[lanes];
            ab::simd::store_aligned(values,
                                    ab::simd::select(ab::simd::mask_of<S>(mask.visible(site)), S(T(1)), S(T(0))));
            for (int l = 0; l < lanes && first + l < p.queries; ++l)
              column.equal(static_cast<double>(values[l]), seen(Place{b, h, first + l, j}) ? 1 : 0,
                           (first + l) * p.keys + j);
          }
        }
  };
  places(0.0f, "float");
  places(0.0, "double");
  places(ab::simd::Pack<float>(0.0f), "pack of float");
  places(ab::simd::Pack<double>(0.0), "pack of double");

  support::Random random(91);
  for (int n = 0; n < 200; ++n) {
    ab::Rect r{};
    r.batch = random.below(p.batch), r.head = random.below(p.heads), r.queries = p.queries, r.keys = p.keys;
    r.query_begin = random.below(p.queries), r.key_begin = random.below(p.keys);
    r.query_end = r.query_begin + 1 + random.below(std::min(Index(20), p.queries - r.query_begin));
    r.key_end = r.key_begin + 1 + random.below(std::min(Index(40), p.keys - r.key_begin));
    Index visible = 0, total = 0;
    for (Index i = r.query_begin; i < r.query_end; ++i)
      for (Index j = r.key_begin; j < r.key_end; ++j) ++total, visible += seen(Place{r.batch, r.head, i, j}) ? 1 : 0;
    const Coverage expected = visible == 0 ? Coverage::skip : visible == total ? Coverage::full : Coverage::partial;
    // All masks of the library are exact about blocks.
    if (mask.classify(r) != expected)
      table.fail("block of queries " + std::to_string(r.query_begin) + ".." + std::to_string(r.query_end) + ", keys " +
                 std::to_string(r.key_begin) + ".." + std::to_string(r.key_end) + ": " +
                 std::to_string(static_cast<int>(mask.classify(r))) + ", expected " +
                 std::to_string(static_cast<int>(expected)));
  }
}

}  // namespace

TEST_CASE("masks say the same of blocks and of places", "[mask]") {
  support::Table table;
  support::Random random(92);
  for (const auto& [queries, keys] : {std::pair<Index, Index>{1, 1}, {1, 50}, {30, 1}, {40, 40}, {23, 60}, {60, 23}}) {
    const ab::Problem p{2, 2, 1, queries, keys, 1, 1};
    const Index shift = keys - queries;
    check_mask(table, "causal", p, ab::mask::Causal{}, [=](Place at) { return at.j <= at.i + shift; });
    check_mask(table, "causal top left", p, ab::mask::Causal{ab::mask::Align::top_left},
               [](Place at) { return at.j <= at.i; });
    const Index most = std::numeric_limits<Index>::max();
    for (const auto& [left, right] : {std::pair<Index, Index>{-1, -1}, {0, 0}, {3, 0}, {0, 5}, {7, 7}, {-1, 2}, {4, -1},
                                      {most, 0}, {0, most}, {most, most}, {100, 100}})
      check_mask(table, "window " + std::to_string(left) + ' ' + std::to_string(right), p,
                 ab::mask::Window{left, right}, [=, l = left, r = right](Place at) {
                   const Index distance = at.j - (at.i + shift);
                   return (l < 0 || -distance <= l) && (r < 0 || distance <= r);
                 });
    const std::vector<Index> lengths{random.below(keys + 1), keys};
    const std::vector<std::int32_t> narrow{static_cast<std::int32_t>(lengths[0]),
                                           static_cast<std::int32_t>(lengths[1])};
    auto before = [&](Place at) { return at.j < lengths[static_cast<std::size_t>(at.b)]; };
    check_mask(table, "lengths", p, ab::mask::KeyLengths(lengths), before);
    check_mask(table, "lengths int32", p, ab::mask::KeyLengths(narrow), before);
    check_mask(table, "lengths in a span", p, ab::mask::KeyLengths(std::span<const Index>(lengths)), before);
    check_mask(table, "lengths in a list", p, ab::mask::KeyLengths{lengths[0], lengths[1]}, before);
    for (int axes = 0; axes < 16; ++axes) {
      support::Tensor<unsigned char> x(support::Layout::unaligned, axes & 1 ? 2 : 1, axes & 2 ? 2 : 1,
                                       axes & 4 ? queries : 1, axes & 8 ? keys : 1);
      bool now = true;
      x.fill([&](auto...) { return (now = random.chance(0.1) ? !now : now) ? 255 : 0; });
      auto at_place = [&](Place at) {
        return x(axes & 1 ? at.b : 0, axes & 2 ? at.h : 0, axes & 4 ? at.i : 0, axes & 8 ? at.j : 0) != 0;
      };
      check_mask(table, "boolean " + std::to_string(axes), p, ab::mask::Boolean(x.view()), at_place);
    }
    bool flags[2] = {true, false};
    check_mask(table, "boolean of bool", p, ab::mask::Boolean(ab::bhsd(flags, 2, 1, 1, 1)),
               [](Place at) { return at.b == 0; });
    for (const auto& [query_block, key_block] : {std::pair<Index, Index>{1, 1}, {3, 5}, {16, 7}, {100, 100}}) {
      const Index rows = (queries + query_block - 1) / query_block, columns = (keys + key_block - 1) / key_block;
      support::Tensor<unsigned char> x(support::Layout::columns, 1, 2, rows, columns);
      x.fill([&](auto...) { return random.chance(0.5) ? 1 : 0; });
      check_mask(table, "blocks", p, ab::mask::Blocks(x.view(), query_block, key_block),
                 [&, qb = query_block, kb = key_block](Place at) { return x(0, at.h, at.i / qb, at.j / kb) != 0; });
    }
  }
  table.report();
}
