#include "support/server.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "files.hpp"
#include "small_llama.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using Catch::Matchers::ContainsSubstring;
using Eigen::Index;
using example::Llama;
using example::Matrix;

namespace {

struct Answer {
  std::vector<int> ids;
  std::vector<Matrix> logits;
};

// Takes the likeliest token, and ends at 7.
example::Request request(std::vector<int> prompt, Index most, Answer& answer) {
  return {std::move(prompt), most, [&answer](const Matrix& logits, Index row) -> std::optional<int> {
            answer.logits.push_back(logits.row(row));
            const int next = example::likeliest(logits, row);
            if (next == 7) return {};
            answer.ids.push_back(next);
            return next;
          }};
}

std::vector<int> some_prompt(int seed, int length) {
  std::vector<int> ids;
  for (int i = 0; i < length; ++i) ids.push_back((seed * 7 + i * i + 3 * i) % static_cast<int>(small::words));
  return ids;
}

}  // namespace

TEST_CASE("server: every answer is the one that its prompt gets alone") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  const std::vector<int> lengths{1, 17, 5, 30, 9, 12, 2};
  example::ServerRoom room{3, 14, 4, 6};
  std::vector<Answer> together(lengths.size()), alone(lengths.size());
  example::Server server(model, room);
  for (std::size_t i = 0; i < lengths.size(); ++i)
    server.add(request(some_prompt(static_cast<int>(i), lengths[i]), 10, together[i]));
  while (server.step()) CHECK(server.decoder().caches().front().free_pages() >= 0);
  CHECK(server.counts().read == 76);
  CHECK(server.counts().most_sequences == 3);
  CHECK(server.counts().most_pages <= room.pages);
  CHECK(server.decoder().caches().front().free_pages() == room.pages);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    INFO("prompt " << i);
    example::Server one(model, room);
    one.add(request(some_prompt(static_cast<int>(i), lengths[i]), 10, alone[i]));
    while (one.step()) {
    }
    CHECK(one.counts().most_sequences == 1);
    CHECK(together[i].ids.size() <= 10);
    CHECK(together[i].ids == alone[i].ids);
    REQUIRE(together[i].logits.size() == alone[i].logits.size());
    for (std::size_t k = 0; k < alone[i].logits.size(); ++k) CHECK(together[i].logits[k] == alone[i].logits[k]);
  }
}

TEST_CASE("server: every rule keeps within the pages, and the first and the latest tokens") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  const example::ServerRoom room{3, 15, 4, 4};
  for (const auto rule : {example::PageRule::latest, example::PageRule::equal, example::PageRule::balanced}) {
    INFO(to_string(rule));
    std::vector<Answer> answers(5);
    example::Server server(model, room, {rule, 2, 0.5});
    for (std::size_t i = 0; i < answers.size(); ++i) {
      auto one = request(some_prompt(static_cast<int>(i), 40 - 8 * static_cast<int>(i)), 12, answers[i]);
      one.next = [next = one.next](const Matrix& logits, Index row) { return next(logits, row).value_or(7); };
      server.add(std::move(one));
    }
    Index most = 0;
    while (server.step()) {
      Index held = 0;
      for (Index s = 0; s < 3; ++s) {
        const auto& cache = server.decoder().caches().front();
        for (const auto& other : server.decoder().caches()) CHECK(other.length(s) == cache.length(s));
        held += static_cast<Index>(cache.block_table(s).size());
        if (cache.length(s) < 2) continue;
        for (const Index head : {0, 1}) {
          CHECK(cache.position(s, head, 1) == 1);
          CHECK(cache.position(s, head, cache.length(s) - 1) == cache.seen(s) - 1);
        }
      }
      most = std::max(most, held);
    }
    CHECK(most > 10);
    CHECK(most <= room.pages);
    CHECK(server.keeper().evicted() > 0);
    CHECK(server.keeper().shortages() > 1);
    for (const auto& answer : answers) CHECK(answer.logits.size() == 12);
  }
  CHECK_THROWS_WITH(example::Server(model, {3, 8, 4, 4}, {example::PageRule::equal, 2, 0.5}),
                    ContainsSubstring("at least 3 for each of 3 sequences"));
}

TEST_CASE("server: with room for all, no rule changes an answer") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  std::vector<Answer> answers(2);
  for (std::size_t i = 0; i < 2; ++i) {
    example::Server server(model, {2, 30, 4, 4},
                           {i == 0 ? example::PageRule::reserved : example::PageRule::balanced, 2, 0.5});
    server.add(request(some_prompt(3, 20), 12, answers[i]));
    while (server.step()) {
    }
    CHECK(server.keeper().evicted() == 0);
  }
  REQUIRE(answers[0].logits.size() == answers[1].logits.size());
  // Observing may change the output within the stated error.
  for (std::size_t k = 0; k < answers[0].logits.size(); ++k)
    CHECK((answers[0].logits[k] - answers[1].logits[k]).cwiseAbs().maxCoeff() < 1e-4f);
}

TEST_CASE("server: requests that cannot be served are refused") {
  files::Folder folder;
  const Llama model = small::load(folder, small::model());
  Answer answer;
  example::Server server(model, {2, 4, 4, 6});
  CHECK_FALSE(server.step());
  CHECK_THROWS_WITH(server.add(request({}, 3, answer)), ContainsSubstring("has 0 tokens"));
  CHECK_THROWS_WITH(server.add(request({1}, 0, answer)), ContainsSubstring("asks for 0"));
  CHECK_THROWS_AS(server.add(request({1, 2}, 16, answer)), ab::BudgetError);
  server.add(request({1, 2}, 15, answer));
  while (server.step()) {
  }
  CHECK(!answer.logits.empty());
}
