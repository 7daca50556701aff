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

/// How much ResourceBalancer::explain finds out.
enum class Explain {
  full,   ///< all
  brief,  ///< what is, and not what would change it: that costs nothing
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
  std::optional<Index> before =
      {};  ///< what it had in the plan in force, if there was one: hysteresis and churn hold on to it

  /// +1 if it was rounded up, -1 if down, 0 if the quota is whole.
  int direction() const noexcept {
    const double given = static_cast<double>(units);
    return given > quota ? 1 : given < quota ? -1 : 0;
  }
};

/// What would have changed the outcome: the signal of this input in the last update, all others the same, nearest
/// to the one that came, within a millionth. Empty if no signal would have, or none that the feedback takes.
template <Scalar T>
struct Changes {
  std::optional<T> release;   ///< the bound that holds the share would have let go
  std::optional<T> one_more;  ///< at least one unit more
  std::optional<T> one_less;  ///< at least one unit less
};

/// What ResourceBalancer::explain returns about one item.
template <Scalar T>
struct Report {
  Index item = 0;
  Index cycle = 0;                    ///< updates so far
  std::optional<T> signal;            ///< the raw weight that the last update brought; empty before the first
  T state = T(0);                     ///< logarithm of the unbounded share
  T share = T(0);                     ///< the share, within its limits
  T log_share = T(0);                 ///< its logarithm, -inf for 0
  allocate::Limits<T> limits;         ///< what it may get
  Held held = Held::none;             ///< which of these held it
  std::optional<Rounding> rounding;   ///< if units were asked since the last update
  std::optional<Changes<T>> changes;  ///< unless there was no signal yet, or the explanation is brief
};

/// One sentence: "item 3, cycle 7: weight 0.25, share 0.2 held by its cap 0.2 (released at weight 0.18), 200 of
/// 1000 units (quota 200; one more at no weight, one less at weight 0.179)".
template <Scalar T>
std::string to_string(const Report<T>& report) {
  using detail::number;
  const auto at = [](const char* what, const std::optional<T>& weight) {
    return std::string(what) + (weight ? " at weight " + number(*weight) : " at no weight");
  };
  const std::string released = report.changes ? " (" + at("released", report.changes->release) + ")" : "";
  std::string text = "item " + std::to_string(report.item) + ", cycle " + std::to_string(report.cycle) + ": ";
  text += report.signal ? "weight " + number(*report.signal) : std::string("no signal yet");
  text += ", share " + number(report.share);
  switch (report.held) {
    case Held::none: text += " in proportion (log state " + number(report.state) + ")"; break;
    case Held::floor: text += " held by its floor " + number(report.limits.floor) + released; break;
    case Held::cap: text += " held by its cap " + number(report.limits.cap) + released; break;
    case Held::masked: text += " because it is masked"; break;
  }
  if (report.rounding) {
    const Rounding& r = *report.rounding;
    text += ", " + std::to_string(r.units) + " of " + std::to_string(r.total) + " units (quota " + number(r.quota);
    text += r.direction() > 0 ? ", rounded up" : r.direction() < 0 ? ", rounded down" : "";
    if (r.before) text += ", before " + std::to_string(*r.before);
    if (report.changes)
      text += "; " + at("one more", report.changes->one_more) + ", " + at("one less", report.changes->one_less);
    text += ")";
  }
  return text;
}

/// Writes to_string(report). Needs <ostream> where it is used.
template <Scalar T>
std::ostream& operator<<(std::ostream& out, const Report<T>& report) {
  return out << to_string(report);
}

}  // namespace attention_balancer
