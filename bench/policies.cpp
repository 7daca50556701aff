// What do score modifiers and masks cost?
//
// `of_peak` is the share of the FMA peak measured in the same run, `limit` what the model allows: products,
// exponentials and the tanh of Softcap, or the reading of Bias's N^2 numbers, if that takes longer. `x_forward` is the
// time relative to plain forward of the same shape, run in turn with it. Operations are counted as 4 D for each visible
// pair of a query and a key. `per_pair` is the time for a visible pair relative to
// forward: 1 if time is proportional to the visible area; `per_tile` the same for pairs in tiles of a block of queries
// by 16 keys that see anything.
#include <benchmark/benchmark.h>

#include <functional>
#include <string>

#include "support/limit.hpp"
#include "support/paired.hpp"

namespace {

namespace ab = attention_balancer;
using ab::Index;

constexpr Index dim = 64;

template <class T>
struct Inputs {
  explicit Inputs(Index n)
      : length(n),
        numbers{bench::normal_numbers<T>(n * dim, 1), bench::normal_numbers<T>(n * dim, 2),
                bench::normal_numbers<T>(n * dim, 3), bench::normal_numbers<T>(n * dim, 4)},
        plane(bench::normal_numbers<T>(n * n, 5)),
        per_key(bench::normal_numbers<T>(n, 6)),
        slope{T(0.05)},
        booleans(static_cast<std::size_t>(n * n), 1),
        q(view(0)),
        k(view(1)),
        v(view(2)),
        out(view(3)) {
    for (std::size_t i = 0; i < booleans.size(); i += 7) booleans[i] = 0;
    // Two blocks of 128 in three, the last of each row among them.
    const Index blocks = n / 128;
    for (Index i = 0; i < blocks; ++i)
      for (Index j = 0; j < blocks; ++j) block_plane.push_back((i + j) % 3 != 0 || j == blocks - 1 ? 1 : 0);
  }
  ab::TensorView<T> view(int which) { return ab::bhsd(numbers[which].data(), 1, 1, length, dim); }
  ab::TensorView<T> bias() { return ab::bhsd(plane.data(), 1, 1, length, length); }
  ab::TensorView<unsigned char> boolean() { return ab::bhsd(booleans.data(), 1, 1, length, length); }
  ab::TensorView<unsigned char> blocks() { return ab::bhsd(block_plane.data(), 1, 1, length / 128, length / 128); }

  Index length;
  std::vector<T> numbers[4], plane, per_key, slope;
  std::vector<unsigned char> booleans, block_plane;
  ab::TensorView<T> q, k, v, out;
  ab::Workspace workspace;
};

/// Pairs in the tiles of a block of queries by 16 keys that have a visible pair.
template <class T, class Mask>
double visible_in_tiles(const Mask& mask, Index n) {
  if constexpr (requires { mask.classify(ab::Rect{}); }) {
    constexpr Index width = ab::detail::block_width<T>, keys = 16;
    double pairs = 0;
    for (Index i = 0; i < n; i += width)
      for (Index j = 0; j < n; j += keys) {
        const Index end = std::min(i + width, n);
        if (mask.classify({i, end, j, std::min(j + keys, n), 0, 0, n, n}) != ab::mask::Coverage::skip)
          pairs += static_cast<double>((end - i) * keys);
      }
    return pairs;
  } else {
    return 0;
  }
}

/// What a policy adds to the limit.
template <class T>
using Added = std::function<bench::Limit(const Inputs<T>&)>;

/// `policy(x)` for all queries, `last(x, count)` the same for the last ones.
template <class T, class Policy, class Last>
void add(const char* name, Policy policy, Last last, std::function<double(const Inputs<T>&)> visible_pairs = {},
         Added<T> added = {}) {
  auto run = [policy, last, visible_pairs, added](benchmark::State& state) {
    Inputs<T> x(state.range(0));
    auto work = [&] { ab::attention(x.q, x.k, x.v, x.out, x.workspace, policy(x)); };
    try {
      work();
      bench::check_last_rows(x.q, x.k, x.v, x.out, last(x, std::min(Index(4), x.length)));
    } catch (const std::exception& error) {
      return state.SkipWithError(error.what());
    }
    const auto time = bench::run_paired<T>(state, work, [&] { ab::attention(x.q, x.k, x.v, x.out, x.workspace); });
    const double all = static_cast<double>(x.length) * static_cast<double>(x.length);
    const double pairs = visible_pairs ? visible_pairs(x) : all;
    bench::report_attention<T>(state, 4 * pairs * static_cast<double>(dim), pairs, time,
                               added ? added(x) : bench::Limit());
    state.counters["x_forward"] = time.work / time.other;
    if (visible_pairs) {
      state.counters["per_pair"] = (time.work / pairs) / (time.other / all);
      state.counters["per_tile"] = (time.work / visible_in_tiles<T>(policy(x), x.length)) / (time.other / all);
    }
  };
  benchmark::RegisterBenchmark((std::string(name) + (sizeof(T) == 4 ? "<float>" : "<double>")).c_str(), run)
      ->ArgName("N")
      ->Arg(256)
      ->Arg(2048)
      ->Arg(4096)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

/// A policy that is the same for the last queries.
template <class T, class Policy>
void add_same(const char* name, Policy policy, std::function<double(const Inputs<T>&)> visible_pairs = {},
              Added<T> added = {}) {
  add<T>(
      name, policy, [policy](Inputs<T>& x, Index) { return policy(x); }, visible_pairs, added);
}

template <class T>
void add_modifiers() {
  add_same<T>("KeyBias", [](Inputs<T>& x) { return ab::score::KeyBias<T>(x.per_key); });
  add_same<T>("Alibi", [](Inputs<T>& x) { return ab::score::Alibi<T>(x.slope); });
  add_same<T>(
      "Softcap", [](Inputs<T>&) { return ab::score::Softcap<T>(T(3)); }, {},
      [](const Inputs<T>& x) {
        bench::Limit limit;
        limit.tanh = static_cast<double>(x.length * x.length) * bench::tanh_seconds<T>();
        return limit;
      });
  add<T>(
      "Bias", [](Inputs<T>& x) { return ab::score::Bias<T>(x.bias()); },
      [](Inputs<T>& x, Index count) { return ab::score::Bias<T>(bench::rows(x.bias(), x.length - count, count)); },
      {},
      [](const Inputs<T>& x) {
        bench::Limit limit;
        limit.memory = bench::read_seconds({{x.plane.data(), x.plane.size() * sizeof(T)}}, 1, 9);
        return limit;
      });
}

}  // namespace

int main(int argc, char** argv) {
  using X = Inputs<float>;
  add_modifiers<float>();
  add_modifiers<double>();
  add<float>(
      "Boolean", [](X& x) { return ab::mask::Boolean(x.boolean()); },
      [](X& x, Index count) { return ab::mask::Boolean(bench::rows(x.boolean(), x.length - count, count)); });
  const auto causal_pairs = [](const X& x) {
    const auto n = static_cast<double>(x.length);
    return n * (n + 1) / 2;
  };
  add_same<float>(
      "Causal", [](X&) { return ab::mask::Causal{}; }, causal_pairs);
  add_same<float>(
      "Window of 512",
      [](X&) {
        return ab::mask::Window{511, 0};
      },
      [](const X& x) {
        double pairs = 0;
        for (Index i = 0; i < x.length; ++i) pairs += static_cast<double>(std::min(i + 1, Index(512)));
        return pairs;
      });
  add<float>(
      "Blocks of 128", [](X& x) { return ab::mask::Blocks(x.blocks(), 128, 128); },
      [](X& x, Index) {
        const Index rows = x.length / 128;
        return ab::mask::Blocks(bench::rows(x.blocks(), rows - 1, 1), 128, 128);
      },
      [](const X& x) {
        double pairs = 0;
        for (const unsigned char block : x.block_plane) pairs += block != 0 ? 128 * 128 : 0;
        return pairs;
      });
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
