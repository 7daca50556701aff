// The running softmax: block by block and all at once give the same distribution, with and without a sink.

#include "support/check.hpp"

#include "attention_balancer/softmax/online_state.hpp"

namespace {

using support::Index;
namespace detail = ab::detail;

/// Feeds columns of scores [keys, W] in steps of `step` keys and returns the normalised state.
template <class T>
struct Run {
  static constexpr int V = 1, width = V * ab::simd::lanes<T>;
  detail::OnlineState<T> state;
  detail::Normalized<T> result;
  std::vector<T> weights;  // [keys, W] as the last top leaves them, normalised

  Run(const std::vector<T>& scores, Index step, T sink) {
    const Index keys = static_cast<Index>(scores.size()) / width;
    state.clear();
    alignas(64) T top[width];
    std::fill_n(top, width, -std::numeric_limits<T>::infinity());
    ab::Workspace memory;
    for (Index begin = 0; begin < keys; begin += step) {
      const Index count = std::min(step, keys - begin);
      auto* block = reinterpret_cast<T*>(memory.reserve(static_cast<std::size_t>(count * width) * sizeof(T)));
      std::copy_n(scores.data() + begin * width, count * width, block);
      for (Index j = 0; j < count; ++j)
        for (int i = 0; i < width; ++i)
          if (block[j * width + i] > top[i]) top[i] = block[j * width + i];
      detail::raise_top<T, V>(state, top);
      for (std::size_t at = 0; at < weights.size(); ++at) weights[at] *= state.shrink[at % width];
      detail::weigh<T, V, true>(block, count, state);
      weights.insert(weights.end(), block, block + count * width);
    }
    detail::normalize_block<T, V>(state, sink, true, result);
    for (std::size_t at = 0; at < weights.size(); ++at) weights[at] *= result.factor[at % width];
  }
};

}  // namespace

TEMPLATE_TEST_CASE("the running softmax is the softmax", "[softmax]", float, double) {
  using T = TestType;
  constexpr int width = Run<T>::width;
  const double eps = std::numeric_limits<T>::epsilon(), inf = HUGE_VAL;
  const double tiny = 8 * std::ldexp(1.0, ab::simd::least_weight_exponent<T>);
  support::Table table;
  support::Random random(131);
  // Rising, falling and mixed scores; with masked ones; none visible in the first blocks; none at all.
  enum Kind { rising, falling, mixed, holes, late, none, kinds };
  for (int kind = 0; kind < kinds; ++kind)
    for (const double sink : {-inf, -3.0, 0.5, 200.0})
      for (const Index step : {1, 3, 16, 1000}) {
        const Index keys = 50;
        std::vector<T> scores;
        for (Index j = 0; j < keys; ++j)
          for (int i = 0; i < width; ++i) {
            double s = random.uniform(-5, 5) + i;
            if (kind == rising) s += 4 * static_cast<double>(j);
            if (kind == falling) s -= 4 * static_cast<double>(j);
            if (kind == holes && random.chance(0.5)) s = -inf;
            if ((kind == late && j < 20) || kind == none) s = -inf;
            scores.push_back(static_cast<T>(s));
          }
        const Run<T> run(scores, step, static_cast<T>(sink));
        table.begin("kind " + std::to_string(kind) + ", sink " + std::to_string(sink) + ", step " +
                    std::to_string(step));
        auto p_column = table.column("p"), lse_column = table.column("lse"), h_column = table.column("entropy"),
             sink_column = table.column("p of the sink");
        for (int i = 0; i < width; ++i) {
          auto score = [&](Index j) { return static_cast<double>(scores[static_cast<std::size_t>(j * width + i)]); };
          double top = sink;
          for (Index j = 0; j < keys; ++j) top = std::max(top, score(j));
          double total = std::exp(sink - top);
          for (Index j = 0; j < keys; ++j) total += std::exp(score(j) - top);
          if (top == -inf) {
            lse_column.equal(run.result.lse[i], -inf, i);
            h_column.equal(run.result.entropy[i], 0, i);
            sink_column.equal(run.result.sink[i], 0, i);
            p_column.equal(run.result.factor[i], 0, i);
            continue;
          }
          const double lse = top + std::log(total);
          double entropy = 0;
          auto add = [&](double p, double s) { entropy += p > 0 ? p * (lse - s) : 0; };
          for (Index j = 0; j < keys; ++j) {
            const double p = std::exp(score(j) - lse);
            add(p, score(j));
            if (p == 0) {
              p_column.compare(run.weights[static_cast<std::size_t>(j * width + i)], 0, tiny, j * width + i);
              continue;
            }
            p_column.compare(run.weights[static_cast<std::size_t>(j * width + i)], p,
                             (300 + 4 * (lse - score(j))) * eps * p + tiny, j * width + i);
          }
          add(std::exp(sink - lse), sink);
          lse_column.compare(run.result.lse[i], lse, eps * (4 + 2 * std::fabs(lse)), i);
          h_column.compare(run.result.entropy[i], entropy, 300 * eps, i);
          const double p_sink = std::exp(sink - lse);
          sink_column.compare(run.result.sink[i], p_sink,
                              p_sink > 0 ? (300 + 4 * (lse - sink)) * eps * p_sink + tiny : 0, i);
        }
      }
  table.report();
}
