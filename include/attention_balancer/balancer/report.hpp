#pragma once
// Why an item got what it got.

#include <iosfwd>
#include <optional>
#include <string>

#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/core/types.hpp"

namespace attention_balancer {

/// Which bound held a share.
enum class Held {
  none,    ///< no bound: the share is in proportion to the state
  floor,   ///< the share was raised to, or kept at, its floor
  cap,     ///< the share was cut to its cap
  masked,  ///< the item is not eligible and gets nothing
};

/// The name of the bound.
inline const char* to_string(Held held) noexcept {
  switch (held) {
    case Held::none: return "none";
    case Held::floor: return "floor";
    case Held::cap: return "cap";
    case Held::masked: return "masked";
  }
  return "?";
}

/// How a share became whole units.
struct Rounding {
  Index total = 0;   ///< the total that was divided
  Index units = 0;   ///< what the item got
  double quota = 0;  ///< share * total: what it would have got, could units be split
  Index lower = 0;   ///< its floor in whole units
  Index upper = 0;   ///< its cap in whole units

  /// +1 if it was rounded up, -1 if down, 0 if the quota is whole.
  int direction() const noexcept {
    const double given = static_cast<double>(units);
    return given > quota ? 1 : given < quota ? -1 : 0;
  }
};

/// What ResourceBalancer::explain returns about one item.
template <Scalar T>
struct Report {
  Index item = 0;
  Index cycle = 0;                   ///< updates so far
  std::optional<T> signal;           ///< the raw weight that the last update brought; empty before the first
  T state = T(0);                    ///< logarithm of the unbounded share
  T share = T(0);                    ///< the share, within its limits
  T log_share = T(0);                ///< its logarithm, -inf for 0
  allocate::Limits<T> limits;        ///< what it may get
  Held held = Held::none;            ///< which of these held it
  std::optional<Rounding> rounding;  ///< if units were asked since the last update
};

/// One sentence: "item 3, cycle 7: weight 0.25, share 0.2 held by its cap 0.2, 200 of 1000 units (quota 200)".
template <Scalar T>
std::string to_string(const Report<T>& report) {
  using detail::number;
  std::string text = "item " + std::to_string(report.item) + ", cycle " + std::to_string(report.cycle) + ": ";
  text += report.signal ? "weight " + number(*report.signal) : std::string("no signal yet");
  text += ", share " + number(report.share);
  switch (report.held) {
    case Held::none: text += " in proportion (log state " + number(report.state) + ")"; break;
    case Held::floor: text += " held by its floor " + number(report.limits.floor); break;
    case Held::cap: text += " held by its cap " + number(report.limits.cap); break;
    case Held::masked: text += " because it is masked"; break;
  }
  if (report.rounding) {
    const Rounding& r = *report.rounding;
    text += ", " + std::to_string(r.units) + " of " + std::to_string(r.total) + " units (quota " + number(r.quota);
    text += r.direction() > 0 ? ", rounded up)" : r.direction() < 0 ? ", rounded down)" : ")";
  }
  return text;
}

/// Writes to_string(report). Needs <ostream> where it is used.
template <Scalar T>
std::ostream& operator<<(std::ostream& out, const Report<T>& report) {
  return out << to_string(report);
}

}  // namespace attention_balancer
