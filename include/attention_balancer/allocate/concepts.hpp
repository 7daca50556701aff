#pragma once
// What an allocation is, and what it may say about its bounds.
//
// In the balance half `template <class = void>` stands before functions that are no templates otherwise: they are
// compiled where they are called and not by everyone who includes balance.hpp. For the same reason they write
// `std::span<const T>(vector)` where a vector would convert: what is written out in a template is left until somebody
// calls it, and asking whether a vector is a contiguous range costs as much as instantiating six kinds of vector.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "attention_balancer/core/config.hpp"  // refuses -ffast-math: the checks for NaN would vanish
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

namespace allocate {

/// What one item may get: floor <= share <= cap, and nothing at all if it is not eligible.
template <Scalar T>
struct Limits {
  T floor = T(0);
  T cap = T(1);
  bool eligible = true;
};

/// An allocation: `policy(saliency, shares)` turns non-negative weights into shares that add up to 1, or throws and
/// leaves `shares` alone. The two spans have the same size and may be the same memory.
template <class Policy, class T>
concept Allocation = Scalar<T> && requires(const Policy& policy, std::span<const T> saliency, std::span<T> shares) {
  policy(saliency, shares);
};

/// An allocation that can tell the limits of an item: `policy.limits(i)`. Integers and explanations need it. If they
/// are borrowed, one per item, it has `policy.check_items(n)` too, which throws ShapeError unless there are n of them:
/// a balancer calls it before it asks for any.
template <class Policy, class T>
concept Limiting = requires(const Policy& policy, Index item) {
  { policy.limits(item) } -> std::convertible_to<Limits<T>>;
};

/// The limits of item i under any allocation; without limits of its own, [0, 1].
template <Scalar T, class Policy>
Limits<T> limits_of(const Policy& policy, Index item) {
  if constexpr (Limiting<Policy, T>)
    return policy.limits(item);
  else
    return {};
}

}  // namespace allocate

namespace detail {

/// What a policy may borrow numbers from: a view, or a container that is not a temporary.
template <class Range, class T>
concept Borrowable = std::convertible_to<Range, std::span<const T>> && !OwningTemporary<Range>;

/// The scalar that policy parameters deduce to: floating ones decide, integers accept any, integers alone are
/// double.
template <class N>
struct PolicyScalar {
  using type = void;
};
template <class N>
requires std::is_floating_point_v<N>
struct PolicyScalar<N> {
  using type = N;
};
template <std::ranges::range N>
struct PolicyScalar<N> {
  using type = std::remove_cv_t<std::ranges::range_value_t<N>>;
};

template <class... Ns>
struct CommonScalar {
  using type = double;
};
template <class N, class... Ns>
struct CommonScalar<N, Ns...> {
  using first = typename PolicyScalar<std::remove_cvref_t<N>>::type;
  using rest = typename CommonScalar<Ns...>::type;
  static constexpr bool rest_decides =
      !(std::is_void_v<typename PolicyScalar<std::remove_cvref_t<Ns>>::type> && ...);
  using type = typename std::conditional_t<
      std::is_void_v<first>, std::type_identity<rest>,
      std::conditional_t<rest_decides, std::common_type<first, rest>, std::type_identity<first>>>::type;
};
template <class... Ns>
using common_scalar = typename CommonScalar<Ns...>::type;

template <class = void>
std::string item_of(std::string_view what, std::size_t item) {
  return std::string(what) + " of item " + std::to_string(item);
}

/// The largest weight. Throws InputError naming the item if one is NaN, infinite or negative.
template <Scalar T>
double largest_weight(std::span<const T> weights) {
  T largest = T(0);
  bool good = true;  // looked at once in the end: that a compiler can do several at a time
  for (const T w : weights) {
    good &= (w >= T(0)) & (w <= std::numeric_limits<T>::max());
    largest = w > largest ? w : largest;
  }
  for (std::size_t i = 0; !good && i < weights.size(); ++i) {
    const T w = weights[i];
    if (!(w >= T(0)) || !std::isfinite(w))
      fail<InputError>(item_of("weight", i), number(w), "be finite and not negative");
  }
  return static_cast<double>(largest);
}

template <class Wanted, class Given>
void check_size(std::string_view what, Given given, std::string_view like, Wanted wanted) {
  if (static_cast<std::size_t>(given) != static_cast<std::size_t>(wanted))
    fail<ShapeError>(
        std::string(what) + " size", static_cast<std::size_t>(given),
        "equal the size of " + std::string(like) + ", " + std::to_string(static_cast<std::size_t>(wanted)));
}

}  // namespace detail

namespace allocate {

/// Which items take part: a borrowed mask, one entry per item, true (non-zero) = eligible. Default: every item.
/// Made implicitly from a vector, array or span of bool, char or unsigned char, or from a std::vector<bool>; a
/// temporary that owns its memory does not convert. Masked is not zero: an item of weight zero may get its floor, a
/// masked one never gets anything.
class Eligible {
 public:
  constexpr Eligible() noexcept = default;

  template <class Range>
  requires(detail::Borrowable<Range, bool> || detail::Borrowable<Range, char> ||
           detail::Borrowable<Range, unsigned char> || detail::Borrowable<Range, signed char>)
      Eligible(Range&& mask)
  noexcept
      : bytes_(reinterpret_cast<const unsigned char*>(std::data(mask))), size_(std::size(mask)), given_(true) {}

  Eligible(const std::vector<bool>& mask) noexcept : bits_(&mask), size_(mask.size()), given_(true) {}
  Eligible(std::vector<bool>&&) = delete;

  /// False if every item is eligible because no mask was given.
  constexpr bool given() const noexcept { return given_; }

  /// Number of entries; only meaningful if given().
  constexpr std::size_t size() const noexcept { return size_; }

  /// Whether item i takes part.
  bool operator[](std::size_t i) const {
    if (!given_) return true;
    return bits_ ? static_cast<bool>((*bits_)[i]) : bytes_[i] != 0;
  }

 private:
  const unsigned char* bytes_ = nullptr;
  const std::vector<bool>* bits_ = nullptr;
  std::size_t size_ = 0;
  bool given_ = false;
};

/// A floor or a cap: one number for every item, or borrowed numbers, one per item. Made implicitly from either.
template <Scalar T>
class Bound {
 public:
  template <class Number>
  requires std::is_arithmetic_v<Number>
  constexpr Bound(Number common) noexcept : common_(static_cast<T>(common)) {}

  template <class Range>
  requires(detail::Borrowable<Range, T>) constexpr Bound(Range&& per_item) noexcept
      : items_(per_item), per_item_(true) {}

  /// True if there is one number per item, then size() of them.
  constexpr bool per_item() const noexcept { return per_item_; }
  constexpr std::size_t size() const noexcept { return items_.size(); }

  /// The bound of item i.
  constexpr T operator[](std::size_t i) const noexcept { return per_item_ ? items_[i] : common_; }

 private:
  T common_ = T(0);
  std::span<const T> items_;
  bool per_item_ = false;
};

}  // namespace allocate
}  // namespace attention_balancer
