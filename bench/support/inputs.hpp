#pragma once
// Seeded inputs and the check that every benchmark makes before it times: last queries against the reference.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "attention_balancer/reference.hpp"

namespace bench {

namespace ab = attention_balancer;
using ab::Index;

template <class T>
std::vector<T> normal_numbers(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<T> normal;
  std::vector<T> x(static_cast<std::size_t>(count));
  for (T& e : x) e = normal(random);
  return x;
}

/// The rows [first, first + count) of a view.
template <class T>
ab::TensorView<T> rows(ab::TensorView<T> x, Index first, Index count) {
  x.data += first * x.length_stride;
  x.length = count;
  return x;
}

/// Throws if out differs from the reference in the last queries. Only masks aligned to the bottom right are the same
/// for the last queries alone.
template <class T, class... P>
void check_last_rows(const ab::TensorView<T>& q, const ab::TensorView<T>& k, const ab::TensorView<T>& v,
                     const ab::TensorView<T>& out, P&&... policies) {
  const Index count = std::min(Index(4), q.length), first = q.length - count;
  std::vector<double> exact(static_cast<std::size_t>(q.batch * q.heads * count * v.dim));
  const auto expected = ab::bhsd(exact.data(), q.batch, q.heads, count, v.dim);
  ab::reference::attention(rows(q, first, count), k, v, expected, policies...);
  double worst = 0;
  for (Index b = 0; b < q.batch; ++b)
    for (Index h = 0; h < q.heads; ++h)
      for (Index i = 0; i < count; ++i)
        for (Index c = 0; c < v.dim; ++c)
          worst = std::max(worst, std::abs(static_cast<double>(out(b, h, first + i, c)) - expected(b, h, i, c)));
  if (!(worst < (sizeof(T) == 4 ? 1e-5 : 1e-13)))
    throw std::runtime_error("the result differs from the reference by " + std::to_string(worst));
}

inline double median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

}  // namespace bench
