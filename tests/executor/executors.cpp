// An executor calls every piece once, and never changes a result by one bit, whichever it is and however many
// threads it has.

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "support/check.hpp"
#include "support/executors.hpp"

namespace {

using support::AnyExecutor;
using support::executors_with;
using support::Index;

void check_every_piece(const AnyExecutor& executor) {
  INFO(executor.name << ", threads " << executor.threads);
  for (const Index n : {0, 1, 2, 7, 100}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(n));
    executor.for_each(n, [&](Index i) { ++calls[static_cast<std::size_t>(i)]; });
    Index once = 0;
    for (const auto& c : calls) once += c == 1 ? 1 : 0;
    CHECK(once == n);
  }
  CHECK(executor.concurrency() >= 1);
}

}  // namespace

TEST_CASE("every piece runs once", "[executor]") {
  check_every_piece({"Sequential", ab::executor::Sequential{}});
  CHECK(ab::executor::Sequential{}.concurrency() == 1);
  for (const Index threads : {1, 2, 3, 8})
    for (const AnyExecutor& executor : executors_with(threads)) {
      check_every_piece(executor);
      CHECK(executor.concurrency() == threads);
    }
#if defined(_OPENMP)
  check_every_piece({"OpenMp", ab::executor::OpenMp{}});
#endif
#if defined(ATTENTION_BALANCER_HAS_TBB)
  check_every_piece({"Tbb", ab::executor::Tbb{}});
#endif
}

TEST_CASE("no executor starts more threads than asked for", "[executor]") {
  for (const Index threads : {1, 2, 3})
    for (const AnyExecutor& executor : executors_with(threads)) {
      if (std::string_view(executor.name) == "threads") continue;
      std::mutex mutex;
      std::set<std::thread::id> seen;
      executor.for_each(200, [&](Index) {
        const std::lock_guard lock(mutex);
        seen.insert(std::this_thread::get_id());
      });
      INFO(executor.name << ", threads " << threads);
      CHECK(static_cast<Index>(seen.size()) <= threads);
    }
}

#if defined(_OPENMP)
TEST_CASE("OpenMP keeps its team, whatever the number of pieces, and takes no thread more", "[executor]") {
  // libgomp would end threads for a smaller team, and start them again for the next.
  const auto team_of = [](Index threads, Index pieces) {
    int team = 0;
    ab::executor::OpenMp{threads}.for_each(pieces, [&](Index i) {
      if (i == 0) team = omp_get_num_threads();
    });
    return team;
  };
  const int all = omp_get_max_threads();
  CHECK(team_of(0, 1) == 1);
  CHECK(team_of(0, 2) == all);
  CHECK(team_of(0, 50) == all);
  CHECK(team_of(all + 3, all + 1) == all + 1);
  CHECK(team_of(Index(1) << 40, 2) == std::max(2, all));
}
#endif

TEST_CASE("a call takes as many threads as it has grains of work", "[executor][attention]") {
  Index pieces = 0;  // at a time, in a call
  AnyExecutor executor("counting", ab::executor::Sequential{});
  executor.threads = 8;
  executor.run = [&](Index n, const std::function<void(Index)>& f) {
    pieces = std::max(pieces, n);
    ab::executor::Sequential{}.for_each(n, f);
  };
  support::Random random(52);
  const support::Shape s{1, 4, 2, 400, 150, 8, 24};  // a quarter of the queries is two blocks of any width
  const support::Inputs<float> in(s, random);
  support::Tensor<float> out(support::Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
  const auto pieces_of = [&](Index grain, const auto&... policies) {
    pieces = 0;
    executor.grain = grain;
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), executor, policies...);
    return pieces;
  };

  const Index work = 4 * 400 * 150 * (8 + 24);
  CHECK(pieces_of(0) == 8);
  CHECK(pieces_of(work / 9) == 8);
  CHECK(pieces_of(work / 3) == 3);
  CHECK(pieces_of(work / 2 + 1) == 1);
  CHECK(pieces_of(work + 1) == 1);

  const std::vector<Index> queries{0, 100, 200, 300, 400}, keys{0, 30, 60, 100, 150};
  const ab::PackedSequences packed(queries, keys);
  const Index packed_work = work / 4;
  CHECK(pieces_of(0, packed) == 8);
  CHECK(pieces_of(packed_work / 3, packed) == 3);
  CHECK(pieces_of(packed_work / 2 + 1, packed) == 1);

  // What few queries see counts as what four do, for each head of the keys.
  const ab::Problem decoding{1, 6, 6, 1, 100, 8, 8}, grouped{1, 6, 1, 1, 100, 8, 8};
  CHECK(ab::detail::work_of(decoding) == 6 * 4 * 100 * 16);
  CHECK(ab::detail::work_of(grouped) == 6 * 100 * 16);
}

TEST_CASE("1 to 16 threads of any executor give the same bits", "[executor][attention]") {
  support::Random random(51);
  support::Table table;
  const ab::mask::Causal causal{ab::mask::Align::top_left};  // every query sees something
  // One query; few heads of many chunks, whose masses are added up in order; many heads; a ragged last chunk.
  for (const support::Shape& s :
       {support::Shape{1, 6, 2, 1, 300, 16, 16}, {1, 1, 1, 900, 70, 8, 8}, {2, 9, 3, 60, 33, 8, 5}}) {
    const support::Inputs<float> in(s, random);
    const auto tensor = [&] {
      return support::Tensor<float>(support::Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim);
    };
    auto plain = tensor(), observed = tensor(), out = tensor();
    ab::Evidence<float> expected, evidence;
    const AnyExecutor sequential("Sequential", ab::executor::Sequential{});
    ab::attention(in.q.view(), in.k.view(), in.v.view(), plain.view(), sequential);
    ab::attention(in.q.view(), in.k.view(), in.v.view(), observed.view(), sequential, causal,
                  ab::observe(expected));
    for (Index threads = 1; threads <= 16; ++threads)
      for (const AnyExecutor& executor : executors_with(threads)) {
        table.begin(s.text() + ", " + executor.name + ", threads " + std::to_string(threads));
        ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), executor);
        table.expect(support::same_bits(out.view(), plain.view()), "output");
        ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), executor, causal, ab::observe(evidence));
        table.expect(support::same_bits(out.view(), observed.view()), "observed output");
        table.expect(support::same_bits(evidence, expected), "evidence");
      }
  }
  table.report();
}

TEST_CASE("1 to 16 threads of any executor give the same gradients", "[executor][backward]") {
  support::Random random(53);
  support::Table table;
  const ab::mask::Causal causal{ab::mask::Align::top_left};
  // Few heads of many chunks, whose gradients of keys are added up in order; many heads.
  for (const support::Shape& s : {support::Shape{1, 2, 1, 400, 70, 8, 8}, {2, 9, 3, 130, 33, 8, 5}}) {
    const support::Inputs<float> in(s, random);
    const auto tensor = [](const support::Tensor<float>& like) {
      const auto x = like.view();
      return support::Tensor<float>(support::Layout::bhsd, x.batch, x.heads, x.length, x.dim);
    };
    support::Tensor<float> out(support::Layout::bhsd, s.batch, s.heads, s.queries, s.value_dim), dout = tensor(out);
    dout.fill(random, support::Family::uniform);
    ab::Evidence<float> evidence;
    ab::attention(in.q.view(), in.k.view(), in.v.view(), out.view(), causal, ab::observe(evidence));
    support::Tensor<float> dq = tensor(in.q), dk = tensor(in.k), dv = tensor(in.v), other_dq = tensor(in.q),
                           other_dk = tensor(in.k), other_dv = tensor(in.v);
    ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, dout.view(), dq.view(),
                           dk.view(), dv.view(), causal, AnyExecutor("Sequential", ab::executor::Sequential{}));
    for (Index threads = 1; threads <= 16; ++threads)
      for (const AnyExecutor& executor : executors_with(threads)) {
        table.begin(s.text() + ", " + executor.name + ", threads " + std::to_string(threads));
        ab::attention_backward(in.q.view(), in.k.view(), in.v.view(), out.view(), evidence, dout.view(),
                               other_dq.view(), other_dk.view(), other_dv.view(), causal, executor);
        table.expect(support::same_bits(other_dq.view(), dq.view()), "dq");
        table.expect(support::same_bits(other_dk.view(), dk.view()), "dk");
        table.expect(support::same_bits(other_dv.view(), dv.view()), "dv");
      }
  }
  table.report();
}

#if defined(ATTENTION_BALANCER_HAS_TBB)
TEST_CASE("a thread that waits for its pieces takes none of the work around them", "[executor]") {
  std::atomic<bool> nested{false};
  oneapi::tbb::parallel_for(Index(0), Index(64), [&](Index) {
    thread_local bool inside = false;
    if (inside) nested = true;
    inside = true;
    ab::executor::Tbb{}.for_each(8, [](Index) { std::this_thread::sleep_for(std::chrono::microseconds(50)); });
    inside = false;
  });
  CHECK_FALSE(nested);
}
#endif
