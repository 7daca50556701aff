#include "attention_balancer/balancer/snapshot.hpp"

#include <limits>
#include <string>
#include <vector>

#include "attention_balancer/balancer/resource_balancer.hpp"
#include "support/catch.hpp"

namespace ab = attention_balancer;
using ab::Index;
using ab::Snapshot;
using Catch::Matchers::ContainsSubstring;

TEMPLATE_TEST_CASE("a snapshot reads as what it is, and back", "", SCALARS) {
  using T = TestType;
  const Snapshot<T> saved{7, {T(-0.5), -std::numeric_limits<T>::infinity(), T(0.1), T(-0.0)}, 10, {1, 2, 3, 4}};
  const std::string scalar = sizeof(T) == 4 ? "float" : "double";
  CHECK(saved.to_text() == "attention_balancer snapshot 1\nscalar " + scalar +
                               "\ncycle 7\nitems 4\nstate -0.5 -inf 0.1 -0\ntotal 10\nplan 4 1 2 3 4\n");
  const auto text = Snapshot<T>::from_text(saved.to_text());
  CHECK(text == saved);
  CHECK(std::signbit(text.state[3]));
  const auto bytes = Snapshot<T>::from_bytes(saved.to_bytes());
  CHECK(bytes == saved);
  CHECK(std::signbit(bytes.state[3]));
  CHECK(saved.to_bytes().size() == 56 + 4 * sizeof(T) + 4 * 8);
  const Snapshot<T> none;
  CHECK(Snapshot<T>::from_text(none.to_text()) == none);
  CHECK(Snapshot<T>::from_bytes(none.to_bytes()) == none);
}

TEST_CASE("the bytes are the same on every machine") {
  const auto bytes = Snapshot<float>{1, {1.f}, 0, {}}.to_bytes();
  CHECK(static_cast<char>(bytes[0]) == 'a');
  CHECK(bytes[8] == std::byte{4});
  CHECK(bytes[16] == std::byte{1});
  CHECK(bytes[24] == std::byte{1});
  CHECK(bytes[32] == std::byte{0});
  CHECK(bytes[35] == std::byte{0x3f});  // 1.f is 0x3f800000
  CHECK(bytes[34] == std::byte{0x80});
}

TEST_CASE("what is no snapshot is refused, with its place") {
  const Snapshot<double> saved{3, {-1, -2}, 5, {2, 3}};
  const std::string text = saved.to_text();
  const auto with = [&](const std::string& from, const std::string& to) {
    auto changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return changed;
  };
  const auto check = [](const std::string& wrong, const std::string& message) {
    CHECK_THROWS_AS(Snapshot<double>::from_text(wrong), ab::InputError);
    CHECK_THROWS_WITH(Snapshot<double>::from_text(wrong), ContainsSubstring(message));
  };
  check("", "word 1 of the snapshot is missing, but must be \"attention_balancer\"");
  check(with("snapshot 1", "snapshot 2"), "word 3 of the snapshot is \"2\"");
  check(with("double", "float"), "is \"float\", but must be \"double\"");
  check(with("cycle 3", "cycle -3"), "is \"-3\", but must be a whole number of cycles");
  check(with("cycle 3", "cycle 3.5"), "\"3.5\"");
  check(with("items 2", "items 3"), "is \"total\", but must be a logarithm or -inf");
  check(with("items 2", "items 99999999999999"), "is \"total\"");
  check(with("items 2", "items 99999999999999999999"), "number of items");
  check(with("-1", "nan"), "\"nan\"");
  check(with("-1", "-1x"), "\"-1x\"");
  check(with("plan 2", "plan 3"), "is missing, but must be a whole number of units");
  check(with("plan 2", "plan 1"), "is \"3\", but must not be there");
  for (std::size_t size = 0; size + 2 < text.size(); ++size)
    CHECK_THROWS_AS(Snapshot<double>::from_text(text.substr(0, size)), ab::InputError);

  const auto bytes = saved.to_bytes();
  for (std::size_t size = 0; size < bytes.size(); ++size)
    CHECK_THROWS_AS(Snapshot<double>::from_bytes(std::span(bytes).first(size)), ab::InputError);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto changed = bytes;
    changed[i] ^= std::byte{1};
    CHECK_THROWS_AS(Snapshot<double>::from_bytes(changed), ab::InputError);
  }
  CHECK_THROWS_WITH(Snapshot<float>::from_bytes(bytes), "snapshot scalar size is 8, but must be 4");
}

TEST_CASE("a count that lies asks for no memory") {
  auto bytes = Snapshot<float>{1, {1.f}, 0, {}}.to_bytes();
  bytes.resize(bytes.size() - 8);
  bytes[30] = std::byte{0x7f};  // the number of items
  ab::detail::put(bytes, ab::detail::checksum(bytes));
  CHECK_THROWS_WITH(Snapshot<float>::from_bytes(bytes), ContainsSubstring("number of items is "));
}

TEST_CASE("a balancer takes only a snapshot that fits") {
  ab::ResourceBalancer<double> balancer(2);
  balancer.update(std::vector<double>{1, 3});
  balancer.units(10);
  const auto before = balancer.save();
  using S = Snapshot<double>;
  CHECK_THROWS_AS(balancer.restore(S{0, {1, 2, 3}, 0, {}}), ab::ShapeError);
  CHECK_THROWS_AS(balancer.restore(S{0, {1, 2}, 3, {1, 1, 1}}), ab::ShapeError);
  CHECK_THROWS_WITH(balancer.restore(S{0, {1, 2}, 3, {1, 1}}),
                    ContainsSubstring("sum of the plan is 2, but must be the total 3"));
  CHECK_THROWS_WITH(balancer.restore(S{0, {1, 2}, 3, {1, 4}}), ContainsSubstring("up to item 1 is 5"));
  CHECK_THROWS_WITH(balancer.restore(S{0, {1, 2}, 3, {-1, 4}}), ContainsSubstring("plan of item 0 is -1"));
  CHECK_THROWS_AS(balancer.restore(S{-1, {1, 2}, 0, {}}), ab::InputError);
  CHECK(balancer.save() == before);
  ab::ResourceBalancer<double> other(2);
  other.restore(before);
  CHECK(other.save() == before);
  other.update(std::vector<double>{1, 3.1});
  CHECK(other.units(10, {.hysteresis = 0.2}) == before.plan);
}
