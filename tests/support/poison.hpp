#pragma once
// Not a number in keys, values and queries: who must be touched by it, and who must not notice, bit by bit.

#include "support/policy_table.hpp"

namespace support {

template <class T>
struct Observed {
  Tensor<T> plain, out;  // not observed, observed
  ab::Evidence<T> evidence, alone;

  Observed(const PolicySet<T>& set, const Inputs<T>& in, const ab::QueryWeights& weights)
      : plain(Layout::bhsd, set.shape().batch, set.shape().heads, set.shape().queries, set.shape().value_dim),
        out(Layout::bhsd, set.shape().batch, set.shape().heads, set.shape().queries, set.shape().value_dim) {
    set.apply([&](auto&&... policies) {
      ab::attention(in.q.input(), in.k.input(), in.v.input(), plain.view(), policies...);
      ab::attention(in.q.input(), in.k.input(), in.v.input(), out.view(), policies..., ab::observe(evidence, weights));
      ab::attention_evidence(in.q.input(), in.k.input(), policies..., ab::observe(alone, weights));
    });
  }
};

/// [B, Hq, Nq, Nk] the probabilities, from the reference: row by row, by values that are unit vectors.
template <class T>
Tensor<double> probabilities(const PolicySet<T>& set, const Inputs<T>& in) {
  const Shape& s = set.shape();
  Tensor<double> unit(Layout::shared_heads, s.batch, s.kv_heads, s.keys, s.keys);
  unit.fill([](Index, Index, Index j, Index c) { return j == c ? 1 : 0; });
  Tensor<double> p(Layout::bhsd, s.batch, s.heads, s.queries, s.keys);
  set.apply([&](auto&&... policies) {
    ab::reference::attention(in.q.input(), in.k.input(), unit.input(), p.view(), policies...);
  });
  return p;
}

enum class Poison { keys, values, both, queries };

inline const char* name_of(Poison poison) {
  static constexpr const char* names[] = {"keys", "values", "keys and values", "queries"};
  return names[static_cast<int>(poison)];
}

/// Poisons some keys (or queries) of a case and compares with the clean run of the same kernel.
template <class T>
void check_poison(Table& table, const PolicySet<T>& set, std::uint64_t seed, Poison poison, double what,
                  const ab::QueryWeights& weights) {
  const Shape& s = set.shape();
  table.begin(std::string(name_of(poison)) + " are " + std::to_string(what) + ", " + set.name + ", " + s.text());
  Random random(seed);
  const Inputs<T> in(s, random);
  const Tensor<double> p = probabilities(set, in);
  const Observed<T> clean(set, in, weights);

  // [B, Hkv, Nk, 1] and [B, Hq, Nq, 1]
  Tensor<double> bad_key(Layout::bhsd, s.batch, s.kv_heads, s.keys, 1),
      bad_query(Layout::bhsd, s.batch, s.heads, s.queries, 1);
  bad_key.fill([&](auto...) { return poison != Poison::queries && random.chance(0.15) ? 1 : 0; });
  bad_query.fill([&](auto...) { return poison == Poison::queries && random.chance(0.15) ? 1 : 0; });
  const T bad = static_cast<T>(what);
  for (Index b = 0; b < s.batch; ++b) {
    for (Index h = 0; h < s.kv_heads; ++h)
      for (Index j = 0; j < s.keys; ++j)
        if (bad_key(b, h, j, 0) > 0) {
          if (poison != Poison::values) in.k(b, h, j, random.below(s.dim)) = bad;
          if (poison != Poison::keys)
            for (Index c = 0; c < s.value_dim; ++c) in.v(b, h, j, c) = bad;
        }
    for (Index h = 0; h < s.heads; ++h)
      for (Index i = 0; i < s.queries; ++i)
        if (bad_query(b, h, i, 0) > 0) in.q(b, h, i, random.below(s.dim)) = bad;
  }
  const Observed<T> got(set, in, weights);
  const bool scores_meet_it = poison != Poison::values;
  const bool not_a_number = std::isnan(what);

  auto out_touched = table.column("output of touched rows"), out_clean = table.column("output of clean rows"),
       lse_touched = table.column("lse of touched rows"), lse_clean = table.column("lse of clean rows"),
       entropy_touched = table.column("entropy of touched rows"), entropy_clean = table.column("entropy of clean rows"),
       mass_touched = table.column("touched mass"), mass_clean = table.column("clean mass"),
       sink = table.column("sink mass"), exposure = table.column("exposure"), empty = table.column("empty rows");
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) {
      const Index kv = h / (s.heads / s.kv_heads);
      std::vector<char> mass_is_touched(static_cast<std::size_t>(s.keys), 0);
      bool sink_is_touched = false;
      for (Index i = 0; i < s.queries; ++i) {
        bool touched = false;
        for (Index j = 0; j < s.keys; ++j)
          if (p(b, h, i, j) > 0 && (bad_key(b, kv, j, 0) > 0 || bad_query(b, h, i, 0) > 0)) touched = true;
        const auto at = static_cast<std::size_t>(i);
        const Index place = (b * s.heads + h) * s.queries + i;
        for (Index c = 0; c < s.value_dim; ++c)
          for (const auto pair : {&Observed<T>::plain, &Observed<T>::out}) {
            const T now = (got.*pair)(b, h, i, c), before = (clean.*pair)(b, h, i, c);
            if (!touched)
              out_clean.equal(now, before, place);
            else if (not_a_number)
              out_touched.equal(now, std::nan(""), place);
            else if (poison == Poison::values)
              out_touched.equal(std::isfinite(now), 0, place);
          }
        for (const auto e : {&Observed<T>::evidence, &Observed<T>::alone}) {
          const bool row_touched = touched && scores_meet_it;
          const T lse = (got.*e).lse(b, h)[at], entropy = (got.*e).entropy(b, h)[at];
          if (!row_touched) {
            lse_clean.equal(lse, (clean.*e).lse(b, h)[at], place);
            entropy_clean.equal(entropy, (clean.*e).entropy(b, h)[at], place);
          } else if (not_a_number) {
            lse_touched.equal(lse, std::nan(""), place);
            entropy_touched.equal(entropy, std::nan(""), place);
          }
        }
        if (touched && scores_meet_it && weights.template weight<double>(i, s.queries) != 0) {
          sink_is_touched = true;
          for (Index j = 0; j < s.keys; ++j)
            if (p(b, h, i, j) > 0) mass_is_touched[static_cast<std::size_t>(j)] = 1;
        }
      }
      const auto& before = clean.evidence;
      for (const auto* e : {&got.evidence, &got.alone}) {
        for (std::size_t j = 0; j < before.mass(b, h).size(); ++j) {
          if (!mass_is_touched[j])
            mass_clean.equal(e->mass(b, h)[j], before.mass(b, h)[j], static_cast<Index>(j));
          else if (not_a_number)
            mass_touched.equal(e->mass(b, h)[j], std::nan(""), static_cast<Index>(j));
          exposure.equal(e->exposure(b, h)[j], before.exposure(b, h)[j], static_cast<Index>(j));
        }
        if (!sink_is_touched) sink.equal(e->sink_mass(b, h), before.sink_mass(b, h), h);
        // An infinite key makes scores of -inf, which count as masked.
        if (not_a_number || !scores_meet_it)
          empty.equal(static_cast<double>(e->empty_rows(b, h)), static_cast<double>(before.empty_rows(b, h)),
                      h);
      }
    }
}

template <class T>
void check_poison_table() {
  Table table;
  const double inf = HUGE_VAL;
  std::uint64_t seed = 0;
  const auto factors = policy_choices();
  auto run = [&](const std::vector<Index>& row) {
    ++seed;
    Random random(seed);
    const Shape shape = policy_shape(row[11]);
    PolicySet<T> set(shape);
    choose(set, random, row);
    for (const double what : {std::nan(""), inf, -inf})
      for (const Poison poison : {Poison::keys, Poison::values, Poison::both, Poison::queries}) {
        if (std::isinf(what) && (seed + static_cast<std::uint64_t>(poison)) % 2 == (what > 0 ? 0 : 1)) continue;
        if ((seed + static_cast<std::uint64_t>(poison)) % static_cast<std::uint64_t>(every(4)) != 0) continue;
        check_poison(table, set, seed, poison, what,
                     seed % 2 == 0 ? ab::QueryWeights::all() : ab::QueryWeights::last(20));
      }
  };
  // Each policy alone, on two shapes, ...
  for (std::size_t factor = 0; factor < 11; ++factor)
    for (Index choice = factor == 0 ? 0 : 1; choice < factors[factor]; ++choice)
      for (Index s : {2, 5}) {
        std::vector<Index> row(factors.size(), 0);
        row[factor] = choice;
        row[11] = s;
        run(row);
      }
  // ... and with others: every eighth row of the table of pairs.
  const auto rows = pairwise(factors);
  for (std::size_t r = 0; r < rows.size(); r += 8) {
    auto row = rows[r];
    row[11] %= 6;
    run(row);
  }
  table.report();
}

}  // namespace support
