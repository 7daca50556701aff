// From the second call of a shape on, a call with a Workspace allocates nothing, evidence included.

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

#include "attention_balancer/saliency/accumulated.hpp"
#include "support/check.hpp"
#include "support/executors.hpp"
#include "support/policies.hpp"

namespace {
std::atomic<long> allocations{0};
std::atomic<std::size_t> bytes_allocated{0};
std::atomic<long> allocations_until_failure{-1};  // all behind them fail; negative: none does
std::atomic<std::size_t> largest_allocation{std::numeric_limits<std::size_t>::max()};  // larger ones fail

void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  bytes_allocated += bytes;
  if (bytes > largest_allocation || allocations_until_failure == 0) throw std::bad_alloc();
  if (allocations_until_failure > 0) --allocations_until_failure;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) return p;
  throw std::bad_alloc();
}
}  // namespace

// Replaced for the whole test program; they count, and fail on demand.
void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

using support::Index;
using support::Layout;

namespace {

/// Has scratch memory made for `pieces` threads, and starts none.
struct InTurn {
  Index pieces;
  Index concurrency() const { return pieces; }
  template <class F>
  void for_each(Index n, F&& f) const {
    for (Index i = 0; i < n; ++i) f(i);
  }
};

/// Allocations of the second of two calls.
template <class F, class... Arguments>
long made_by_second(const F& call, const Arguments&... arguments) {
  call(arguments...);
  const long before = allocations;
  call(arguments...);
  return allocations - before;
}

}  // namespace

TEMPLATE_TEST_CASE("from the second call on nothing is allocated", "[attention][workspace]", SCALARS) {
  using T = TestType;
  support::Random random(41);
  for (const support::Shape& s :
       {support::Shape{1, 1, 1, 1, 1, 1, 1}, {2, 4, 2, 200, 300, 16, 8}, {1, 1, 1, 3, 1000, 4, 4}}) {
    const support::Inputs<T> in(s, random, support::Family::uniform, 1, Layout::columns, Layout::columns,
                                Layout::columns);
    support::Tensor<T> out(Layout::columns, s.batch, s.heads, s.queries, s.value_dim);
    const std::vector<T> bias(static_cast<std::size_t>(s.keys), T(0.5)),
        logits(static_cast<std::size_t>(s.heads), T(1));
    const std::vector<T> u(static_cast<std::size_t>(s.queries), T(0.25));
    const std::vector<Index> lengths(static_cast<std::size_t>(s.batch), s.keys);
    ab::Workspace workspace;
    ab::Evidence<T> evidence;
    auto call = [&](const auto&... executor) {
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::score::KeyBias(bias),
                    ab::normalize::Sink(logits), ab::mask::Causal{}, ab::mask::KeyLengths(lengths),
                    ab::observe(evidence, ab::QueryWeights::of(u)), workspace, executor...);
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), workspace, executor...);
      ab::attention_evidence(in.q.view(), in.k.view(), ab::observe(evidence), workspace, executor...);
    };
    INFO(s.text());
    CHECK(made_by_second(call) == 0);
    CHECK(made_by_second(call, ab::executor::Sequential{}) == 0);
#if defined(_OPENMP)
    for (const Index threads : {1, 2, 5}) CHECK(made_by_second(call, support::openmp(threads)) == 0);
#endif
#if defined(ATTENTION_BALANCER_HAS_TBB)
    for (const Index threads : {1, 2, 5}) CHECK(made_by_second(call, support::tbb(threads)) == 0);
#endif
  }
}

TEMPLATE_TEST_CASE("many queries to caches of different lengths allocate nothing from the second call on",
                   "[attention][workspace][cache]", SCALARS) {
  using T = TestType;
  support::Random random(45);
  const support::Shape s{3, 4, 2, 70, 300, 8, 5};
  const support::Inputs<T> in(s, random);
  support::Tensor<T> out(Layout::bhsd, 3, 4, 70, 5);
  ab::KvCache<T> cache(3, 2, 300, 8, 5);
  ab::PagedKvCache<T> paged(3, 2, 60, 16, 8, 5);
  for (Index b = 0; b < 3; ++b) {
    auto part = [b](auto x) {
      x.data += b * x.batch_stride;
      x.batch = 1, x.length = b == 1 ? 300 : 100 + b;
      return x;
    };
    cache.append(b, part(in.k.view()), part(in.v.view()));
    paged.append(b, part(in.k.view()), part(in.v.view()));
  }
  ab::Workspace workspace;
  ab::Evidence<T> evidence, of_paged;
  auto call = [&](const auto& executor) {
    ab::attention(in.q.view(), cache, out.view(), ab::mask::Causal{}, workspace, executor,
                  ab::observe(evidence, ab::QueryWeights::all(), ab::evidence::squares));
    ab::attention(in.q.view(), paged, out.view(), ab::mask::Causal{}, workspace, executor,
                  ab::observe(of_paged, ab::QueryWeights::all(), ab::evidence::squares));
  };
  for (const Index pieces : {1, 3, 40}) {
    CHECK(made_by_second(call, InTurn{pieces}) == 0);
    CHECK(support::same_bits(evidence, of_paged));
  }
}

TEMPLATE_TEST_CASE("a cache that grows by a token a step allocates a logarithmic number of times",
                   "[attention][workspace][cache]", float, ab::bf16, ab::f16, std::int8_t) {
  const Index heads = 4, dim = 8, first = 64, steps = 400;
  support::Random random(46);
  const support::Inputs<float> in(support::Shape{1, heads, 2, 1, first + steps, dim, dim}, random);
  support::Tensor<float> out(Layout::bhsd, 1, heads, 1, dim);
  auto tokens = [](auto x, Index begin, Index length) {
    x.data += begin * x.length_stride;
    x.length = length;
    return x;
  };
  ab::KvCache<TestType> cache(1, 2, first + steps, dim);
  ab::PagedKvCache<TestType> paged(1, 2, (first + steps) / 16, 16, dim);
  ab::Workspace workspace;
  ab::Evidence<float> evidence;
  ab::saliency::Accumulated<float> accumulated(heads);
  auto step = [&](Index begin, Index length) {
    cache.append(tokens(in.k.view(), begin, length), tokens(in.v.view(), begin, length));
    paged.append(tokens(in.k.view(), begin, length), tokens(in.v.view(), begin, length));
    ab::attention(in.q.view(), paged, out.view(), workspace, ab::mask::Causal{});
    ab::attention(in.q.view(), cache, out.view(), workspace, ab::observe(evidence));
    accumulated.add(evidence);
  };
  step(0, first);
  const long before = allocations;
  for (Index i = 0; i < steps; ++i) step(first + i, 1);
  // Room grows by halves: 64 tokens are 464 after five times, for each of some ten arrays.
  CHECK(allocations - before <= 100);
  CHECK(accumulated.slots() == first + steps);
}

TEST_CASE("backward and packed calls allocate nothing from the second call on", "[attention][workspace]") {
  support::Random random(47);
  const support::Inputs<float> in(support::Shape{1, 4, 2, 90, 90, 8, 5}, random);
  support::Tensor<float> out(Layout::bhsd, 1, 4, 90, 5), dout(Layout::bhsd, 1, 4, 90, 5),
      dq(Layout::bhsd, 1, 4, 90, 8), dk(Layout::bhsd, 1, 2, 90, 8), dv(Layout::bhsd, 1, 2, 90, 5);
  dout.fill([&](auto...) { return static_cast<float>(random.uniform(-1, 1)); });
  const std::vector<Index> starts{0, 3, 40, 90};
  const ab::PackedSequences sequences(starts, starts);
  const ab::PackedQueries queries(starts);
  ab::KvCache<ab::f16> cache(3, 2, 90, 8, 5);
  ab::PagedKvCache<float> paged(3, 2, 40, 16, 8, 5);
  for (Index s = 0; s < 3; ++s) {
    auto part = [s](auto x) {
      x.length = 90 - 40 * s;
      return x;
    };
    cache.append(s, part(in.k.view()), part(in.v.view()));
    paged.append(s, part(in.k.view()), part(in.v.view()));
  }
  ab::Workspace workspace;
  ab::Evidence<float> evidence;
  std::vector<ab::Evidence<float>> of_each(3);
  auto call = [&](const auto& executor) {
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::observe(evidence), workspace, executor);
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, dout.view(), dq.view(),
                           dk.view(), dv.view(), workspace, executor);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), sequences, ab::observe(of_each), workspace,
                  executor);
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), of_each, dout.view(), dq.view(),
                           dk.view(), dv.view(), sequences, workspace, executor);
    ab::attention(in.q.view(), cache, out.view(), queries, ab::observe(of_each), workspace, executor);
    ab::attention(in.q.view(), paged, out.view(), queries, ab::mask::Causal{}, ab::observe(of_each), workspace,
                  executor);
  };
  for (const Index pieces : {1, 3, 40}) CHECK(made_by_second(call, InTurn{pieces}) == 0);
}

TEST_CASE("sparse normalisers and leave-one-out allocate nothing from the second call on",
          "[attention][workspace]") {
  support::Random random(49);
  // Many queries and few.
  for (const Index queries : {90, 3}) {
    const support::Inputs<float> in(support::Shape{1, 4, 2, queries, 300, 8, 5}, random);
    support::Tensor<float> out(Layout::bhsd, 1, 4, queries, 5);
    for (const Index pieces : {1, 3, 40}) {
      ab::Workspace workspace;
      ab::Evidence<float> evidence;
      auto call = [&](const auto& policy, const auto& statistic) {
        const InTurn executor{pieces};
        ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policy, workspace, executor);
        ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), policy, workspace, executor,
                      ab::observe(evidence, ab::QueryWeights::all(), statistic));
      };
      INFO("queries " << queries << ", pieces " << pieces);
      CHECK(made_by_second(call, ab::normalize::Sparsemax{}, ab::evidence::mass) == 0);
      CHECK(made_by_second(call, ab::normalize::Entmax15{}, ab::evidence::mass) == 0);
      CHECK(made_by_second(call, ab::normalize::TopK{7}, ab::evidence::squares) == 0);
      CHECK(made_by_second(call, ab::mask::Causal{}, ab::evidence::leave_one_out) == 0);
    }
  }
}

TEST_CASE("products of bf16 and of integers allocate nothing from the second call on",
          "[attention][workspace][cache]") {
  support::Random random(50);
  const support::Inputs<float> in(support::Shape{1, 4, 2, 90, 600, 8, 5}, random);
  support::Tensor<float> out(Layout::bhsd, 1, 4, 90, 5);
  ab::KvCache<ab::bf16> pairs(1, 2, 600, 8, 5);
  ab::PagedKvCache<std::int8_t> bytes(1, 2, 38, 16, 8, 5);
  pairs.append(in.k.view(), in.v.view()), bytes.append(in.k.view(), in.v.view());
  auto first = [](auto x, Index queries) {
    x.length = queries;
    return x;
  };
  ab::Workspace workspace;
  ab::Evidence<float> evidence, of_few;
  auto call = [&](const InTurn& executor, auto... observed) {
    ab::attention(in.q.view(), pairs, out.view(), ab::Bf16Products{}, workspace, executor, observed...);
    for (const Index queries : {1, 8, 90})
      ab::attention(first(in.q.view(), queries), bytes, first(out.view(), queries), workspace, executor,
                    observed...);
    for (const Index queries : {1, 8})
      ab::attention(first(in.q.view(), queries), bytes, first(out.view(), queries), ab::IntegerProducts{},
                    workspace, executor, observed...);
  };
  for (const Index pieces : {1, 3, 40}) {
    INFO("pieces " << pieces);
    CHECK(made_by_second(call, InTurn{pieces}) == 0);
    CHECK(made_by_second(call, InTurn{pieces}, ab::observe(evidence)) == 0);
    CHECK(made_by_second(call, InTurn{pieces},
                         ab::observe(of_few, ab::QueryWeights::last(1), ab::evidence::maximum)) == 0);
  }
}

TEST_CASE("what is not a number does not allocate either", "[attention][workspace]") {
  support::Random random(42);
  const support::Shape s{1, 1, 1, 100, 100, 4, 4};
  const support::Inputs<float> in(s, random);
  support::Tensor<float> out(Layout::bhsd, 1, 1, 100, 4);
  in.v(0, 0, 70, 1) = std::nanf("");
  in.q(0, 0, 30, 1) = std::nanf("");
  ab::Workspace workspace;
  ab::Evidence<float> evidence;
  long before = 0;
  for (int i = 0; i < 2; ++i) {
    before = allocations;
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::mask::Causal{}, ab::observe(evidence),
                  workspace);
  }
  CHECK(allocations == before);
}

TEST_CASE("memory beyond the inputs is linear in the lengths", "[attention][workspace]") {
  const Index longest = 2048, dim = 2;
  support::Random random(44);
  const support::Inputs<float> in(support::Shape{1, 1, 1, longest, longest, dim, dim}, random);
  support::Tensor<float> out(Layout::bhsd, 1, 1, longest, dim);
  /// Bytes of a first call of this many queries and keys, evidence and scratch memory together.
  auto bytes_of = [&](Index length, bool observed, Index threads) {
    auto first = [&](auto x) {
      x.length = length;
      return x;
    };
    const auto q = first(in.q.view()), k = first(in.k.view()), v = first(in.v.view()), o = first(out.view());
    ab::Workspace workspace;
    ab::Evidence<float> evidence;
    const std::size_t before = bytes_allocated;
    const InTurn executor{threads};
    if (observed)
      ab::attention(q, k, v, o, workspace, ab::mask::Causal{}, ab::observe(evidence), executor);
    else
      ab::attention(q, k, v, o, workspace, executor);
    return static_cast<double>(bytes_allocated - before);
  };
  for (const bool observed : {false, true})
    for (const Index threads : {1, 4, 16}) {
      const double half = bytes_of(longest / 2, observed, threads), whole = bytes_of(longest, observed, threads);
      INFO("observed " << observed << ", threads " << threads << ": " << half << " and " << whole << " bytes");
      CHECK(whole <= 2 * half + 4096);
      // Per thread a strip of scores, 64 queries at most, and with evidence 16 partial masses per head: far from
      // N^2.
      CHECK(whole < static_cast<double>(longest) * (600.0 * static_cast<double>(threads) + 200));
    }
}

TEST_CASE("memory of decoding, of packed sequences and of gradients is linear in the lengths",
          "[attention][workspace]") {
  const Index longest = 2048, dim = 2;
  support::Random random(53);
  const support::Inputs<float> in(support::Shape{1, 1, 1, longest, longest, dim, dim}, random);
  auto tensor = [&] { return support::Tensor<float>(Layout::bhsd, 1, 1, longest, dim); };
  support::Tensor<float> out = tensor(), dq = tensor(), dk = tensor(), dv = tensor();
  out.fill([](auto...) { return 0; });
  auto first = [](auto x, Index length) {
    x.length = length;
    return x;
  };
  const auto all = [&](const auto& x, Index length) { return first(x.view(), length); };

  enum Kind { decode, prefill, packed, packed_cache, backward, packed_backward };
  constexpr const char* names[] = {"decode", "prefill", "packed", "packed cache", "backward", "packed backward"};
  /// Bytes of a first call of this many keys, evidence and scratch memory together, but not those of the cache.
  auto bytes_of = [&](Kind kind, Index length, Index threads) {
    const InTurn executor{threads};
    ab::Workspace workspace;
    ab::Evidence<float> evidence;
    std::vector<ab::Evidence<float>> of_each(3);
    // A long sequence, and a short one on either side.
    const std::vector<Index> offsets{0, length / 8, length - length / 8, length};
    const ab::PackedSequences sequences(offsets, offsets);
    ab::PagedKvCache<ab::f16> cache(kind == packed_cache ? 3 : 1, 1, 2 * (length / 16 + 3), 16, dim);
    const auto q = all(in.q, length), k = all(in.k, length), v = all(in.v, length), o = all(out, length);
    if (kind == packed_cache) cache.append(offsets, k, v);
    if (kind == decode || kind == prefill) cache.append(k, v);
    // The gradients are given what forward leaves.
    if (kind == backward) ab::attention(q, k, v, o, ab::observe(evidence));
    if (kind == packed_backward) ab::attention(q, k, v, o, sequences, ab::observe(of_each));
    const std::size_t before = bytes_allocated;
    switch (kind) {
      case decode:
      case prefill: {
        const Index queries = kind == decode ? 3 : 100;
        ab::attention(first(q, queries), cache, first(o, queries), workspace, ab::observe(evidence), executor);
        break;
      }
      case packed: ab::attention(q, k, v, o, sequences, workspace, ab::observe(of_each), executor); break;
      case packed_cache:
        ab::attention(q, cache, o, ab::PackedQueries(offsets), workspace, ab::observe(of_each), executor);
        break;
      case backward:
        ab::attention_backward(q, k, v, o, evidence, o, all(dq, length), all(dk, length), all(dv, length),
                               workspace, executor);
        break;
      case packed_backward:
        ab::attention_backward(q, k, v, o, of_each, o, all(dq, length), all(dk, length), all(dv, length), sequences,
                               workspace, executor);
        break;
    }
    return static_cast<double>(bytes_allocated - before);
  };
  for (const Kind kind : {decode, prefill, packed, packed_cache, backward, packed_backward})
    for (const Index threads : {1, 4, 16}) {
      const double half = bytes_of(kind, longest / 2, threads), whole = bytes_of(kind, longest, threads);
      INFO(names[kind] << ", threads " << threads << ": " << half << " and " << whole << " bytes");
      CHECK(whole <= 2 * half + 4096);
      CHECK(whole < static_cast<double>(longest) * (600.0 * static_cast<double>(threads) + 200));
    }
}

TEST_CASE("memory that runs out leaves output and evidence as they were", "[attention][workspace]") {
  support::Random random(43);
  const support::Shape small{1, 1, 1, 5, 6, 4, 4}, large{2, 2, 2, 100, 200, 4, 4};
  const support::Inputs<float> first(small, random), in(large, random);
  ab::Evidence<float> evidence, expected;
  ab::attention_evidence(first.q.view(), first.k.view(), ab::observe(expected));
  support::Tensor<float> out(Layout::bhsd, 2, 2, 100, 4);
  bool succeeded = false;
  for (long until = 0; !succeeded && until < 50; ++until) {
    ab::attention_evidence(first.q.view(), first.k.view(), ab::observe(evidence));
    out.fill([](auto...) { return 7; });
    allocations_until_failure = until;
    try {
      ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), ab::observe(evidence));
      succeeded = true;
    } catch (const std::bad_alloc&) {
    }
    allocations_until_failure = -1;
    if (succeeded) break;
    INFO("allocation " << until << " failed");
    const auto memory = out.memory();
    CHECK(std::all_of(memory.begin(), memory.end(), [](float x) { return x == 7; }));
    REQUIRE(evidence.batch() == expected.batch());
    CHECK(support::same_bits(evidence, expected));
  }
  CHECK(succeeded);
}

TEST_CASE("memory that runs out leaves the evidence of all packed sequences as it was", "[attention][workspace]") {
  support::Random random(48);
  const support::Inputs<float> in(support::Shape{1, 2, 2, 120, 120, 4, 4}, random);
  support::Tensor<float> out(Layout::bhsd, 1, 2, 120, 4);
  const std::vector<Index> small{0, 1, 3}, large{0, 40, 120};
  auto first = [](auto x, Index length) {
    x.length = length;
    return x;
  };
  ab::KvCache<ab::bf16> cache(2, 2, 120, 4);
  cache.append(0, in.k.view(), in.v.view());
  cache.append(1, first(in.k.view(), 70), first(in.v.view(), 70));
  const bool cached = GENERATE(false, true);
  std::vector<ab::Evidence<float>> expected(2);
  auto attend = [&](const std::vector<Index>& starts, std::vector<ab::Evidence<float>>& evidence) {
    const auto q = first(in.q.view(), starts.back()), o = first(out.view(), starts.back());
    if (cached) return ab::attention(q, cache, o, ab::PackedQueries(starts), ab::observe(evidence));
    ab::attention(q, first(in.k.view(), starts.back()), first(in.v.view(), starts.back()), o,
                  ab::PackedSequences(starts, starts), ab::observe(evidence));
  };
  attend(small, expected);
  bool succeeded = false;
  for (long until = 0; !succeeded && until < 60; ++until) {
    std::vector<ab::Evidence<float>> evidence(2);
    attend(small, evidence);
    out.fill([](auto...) { return 7; });
    allocations_until_failure = until;
    try {
      attend(large, evidence);
      succeeded = true;
    } catch (const std::bad_alloc&) {
    }
    allocations_until_failure = -1;
    if (succeeded) break;
    INFO("allocation " << until << " failed");
    for (std::size_t s = 0; s < 2; ++s) CHECK(support::same_bits(evidence[s], expected[s]));
    const auto memory = out.memory();
    CHECK(std::all_of(memory.begin(), memory.end(), [](float x) { return x == 7; }));
  }
  CHECK(succeeded);
}

TEST_CASE("what cannot grow by half grows to what is needed", "[attention][workspace]") {
  ab::Workspace workspace;
  std::vector<float> numbers;
  workspace.reserve(4000);
  ab::detail::reserve_growing(numbers, 1000);
  largest_allocation = 5000;
  bool refused = false;
  try {
    workspace.reserve(4400);
    ab::detail::reserve_growing(numbers, 1100);
    ab::detail::reserve_growing(numbers, 1300);
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  largest_allocation = std::numeric_limits<std::size_t>::max();
  CHECK(refused);  // what is needed does not fit
  CHECK(workspace.capacity() == 4400);
  CHECK(numbers.capacity() == 1100);
}
