#pragma once
// The state of a balancer outside of it: as text for people and version control, as bytes for the rest.

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// Everything that the next cycles of a ResourceBalancer depend on beside its policies: what save() gives and
/// restore() takes. Both forms give it back bit for bit, on a machine of any byte order.
template <Scalar T>
struct Snapshot {
  Index cycle = 0;          ///< updates so far
  std::vector<T> state;     ///< [n] state()
  Index total = 0;          ///< the total of the plan in force, 0 if there is none
  std::vector<Index> plan;  ///< [n] the units asked last, or empty

  bool operator==(const Snapshot&) const = default;

  /// A few lines of words and numbers, each number in the shortest form that reads back as the same.
  std::string to_text() const;

  /// Reads to_text(). Throws InputError, naming the place, for anything else: another version or scalar, a number
  /// that cannot be, too many or too few of them.
  static Snapshot from_text(std::string_view text);

  /// The same as bytes: little-endian, with a checksum.
  std::vector<std::byte> to_bytes() const;

  /// Reads to_bytes(). Throws InputError if these are not whole, unchanged bytes of a Snapshot of this scalar.
  static Snapshot from_bytes(std::span<const std::byte> bytes);
};

namespace detail {

inline constexpr std::string_view snapshot_title = "attention_balancer snapshot 1";
inline constexpr std::string_view snapshot_magic = "ab-snap1";

template <Scalar T>
constexpr std::string_view scalar_name = std::is_same_v<T, float> ? "float" : "double";

/// The words of a text, one by one.
class Words {
 public:
  explicit Words(std::string_view text) noexcept : text_(text) {}

  template <class = void>
  std::string_view next() {
    skip();
    const std::size_t begin = at_;
    while (at_ < text_.size() && !is_space(text_[at_])) ++at_;
    ++word_;
    return text_.substr(begin, at_ - begin);
  }
  template <class = void>
  void expect(std::string_view word) {
    if (const auto found = next(); found != word) wrong(found, "be \"" + std::string(word) + "\"");
  }
  template <class Number>
  Number number(const char* what, Number least) {
    const auto word = next();
    Number value{};
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != decltype(error)() || end != word.data() + word.size() || !(value >= least)) wrong(word, what);
    return value;
  }
  template <class = void>
  void end() {
    skip();
    if (at_ < text_.size()) wrong(next(), "not be there: the snapshot is complete");
  }
  std::size_t left() const noexcept { return text_.size() - at_; }

 private:
  static bool is_space(char c) noexcept { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
  void skip() noexcept {
    while (at_ < text_.size() && is_space(text_[at_])) ++at_;
  }
  template <class = void>
  [[noreturn]] void wrong(std::string_view word, std::string_view must) const {
    fail<InputError>("word " + std::to_string(word_) + " of the snapshot",
                     word.empty() ? std::string("missing") : '"' + std::string(word.substr(0, 40)) + '"', must);
  }

  std::string_view text_;
  std::size_t at_ = 0, word_ = 0;
};

/// FNV-1a: finds what was cut off or changed by accident.
template <class = void>
std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 0x100000001b3u;
  return hash;
}

template <class Unsigned>
void put(std::vector<std::byte>& bytes, Unsigned value) {
  for (std::size_t i = 0; i < sizeof value; ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
}

template <class Unsigned>
Unsigned take(std::span<const std::byte>& bytes) {
  if (bytes.size() < sizeof(Unsigned)) fail<InputError>("snapshot", "cut off", "be whole");
  Unsigned value = 0;
  for (std::size_t i = 0; i < sizeof value; ++i)
    value = static_cast<Unsigned>(value | static_cast<Unsigned>(static_cast<Unsigned>(bytes[i]) << (8 * i)));
  bytes = bytes.subspan(sizeof value);
  return value;
}

template <class = void>
Index take_index(std::span<const std::byte>& bytes, const char* what, std::uint64_t most) {
  const auto value = take<std::uint64_t>(bytes);
  if (value > most)
    fail<InputError>("snapshot " + std::string(what), number(value), "be in [0, " + number(most) + "]");
  return static_cast<Index>(value);
}

}  // namespace detail

template <Scalar T>
std::string Snapshot<T>::to_text() const {
  std::string text(detail::snapshot_title);
  text += "\nscalar ";
  text += detail::scalar_name<T>;
  text += "\ncycle " + detail::number(cycle) + "\nitems " + detail::number(state.size()) + "\nstate";
  for (const T x : state) text += ' ' + detail::number(x);
  text += "\ntotal " + detail::number(total) + "\nplan " + detail::number(plan.size());
  for (const Index units : plan) text += ' ' + detail::number(units);
  return text + '\n';
}

template <Scalar T>
Snapshot<T> Snapshot<T>::from_text(std::string_view text) {
  detail::Words words(text);
  words.expect("attention_balancer");
  words.expect("snapshot");
  words.expect("1");
  words.expect("scalar");
  words.expect(detail::scalar_name<T>);
  Snapshot result;
  words.expect("cycle");
  result.cycle = words.number("be a whole number of cycles", Index(0));
  words.expect("items");
  const Index items = words.number("be the number of items", Index(0));
  words.expect("state");
  // Two characters a number at least: what a wrong count asks for is never more than the text is long.
  result.state.reserve(std::min(static_cast<std::size_t>(items), words.left() / 2));
  for (Index i = 0; i < items; ++i)
    result.state.push_back(words.number("be a logarithm or -inf", -std::numeric_limits<T>::infinity()));
  words.expect("total");
  result.total = words.number("be the total of the plan", Index(0));
  words.expect("plan");
  const Index plan = words.number("be the number of items in the plan", Index(0));
  result.plan.reserve(std::min(static_cast<std::size_t>(plan), words.left() / 2));
  for (Index i = 0; i < plan; ++i) result.plan.push_back(words.number("be a whole number of units", Index(0)));
  words.end();
  return result;
}

template <Scalar T>
std::vector<std::byte> Snapshot<T>::to_bytes() const {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  std::vector<std::byte> bytes;
  bytes.reserve(56 + state.size() * sizeof(T) + plan.size() * 8);
  for (const char c : detail::snapshot_magic) bytes.push_back(static_cast<std::byte>(c));
  detail::put(bytes, std::uint64_t{sizeof(T)});
  detail::put(bytes, static_cast<std::uint64_t>(cycle));
  detail::put(bytes, static_cast<std::uint64_t>(state.size()));
  for (const T x : state) detail::put(bytes, std::bit_cast<Bits>(x));
  detail::put(bytes, static_cast<std::uint64_t>(total));
  detail::put(bytes, static_cast<std::uint64_t>(plan.size()));
  for (const Index units : plan) detail::put(bytes, static_cast<std::uint64_t>(units));
  detail::put(bytes, detail::checksum(std::span<const std::byte>(bytes)));
  return bytes;
}

template <Scalar T>
Snapshot<T> Snapshot<T>::from_bytes(std::span<const std::byte> bytes) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  constexpr std::uint64_t most = std::numeric_limits<Index>::max();
  constexpr auto title = detail::snapshot_magic;
  if (bytes.size() < title.size() + 8 || std::memcmp(bytes.data(), title.data(), title.size()) != 0)
    detail::fail<InputError>("snapshot", "something else", "begin with \"" + std::string(title) + '"');
  auto hash = bytes.last(8);
  bytes = bytes.first(bytes.size() - 8);
  if (detail::take<std::uint64_t>(hash) != detail::checksum(bytes))
    detail::fail<InputError>("snapshot", "cut off or changed", "agree with its checksum");
  bytes = bytes.subspan(title.size());
  if (const auto size = detail::take<std::uint64_t>(bytes); size != sizeof(T))
    detail::fail<InputError>("snapshot scalar size", detail::number(size), "be " + std::to_string(sizeof(T)));
  Snapshot result;
  result.cycle = detail::take_index(bytes, "cycle", most);
  const Index items = detail::take_index(bytes, "number of items", bytes.size() / sizeof(T));
  for (Index i = 0; i < items; ++i) result.state.push_back(std::bit_cast<T>(detail::take<Bits>(bytes)));
  result.total = detail::take_index(bytes, "total", most);
  const Index plan = detail::take_index(bytes, "number of items in the plan", bytes.size() / 8);
  for (Index i = 0; i < plan; ++i) result.plan.push_back(detail::take_index(bytes, "units", most));
  if (!bytes.empty()) detail::fail<InputError>("snapshot", "followed by other bytes", "end with its plan");
  return result;
}

}  // namespace attention_balancer
