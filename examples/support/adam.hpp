#pragma once
// Adam with decoupled weight decay (Kingma and Ba 2014, 1412.6980; Loshchilov and Hutter 2017, 1711.05101).

#include <cstdint>
#include <vector>

#include "layers.hpp"

namespace example {

struct AdamOptions {
  double rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double decay = 0;  // of weights, per step, times the rate
  double clip = 1;   // the gradient of all parameters together is scaled down to this norm; 0 does not clip
};

template <class T>
class Adam {
 public:
  /// The parameters must outlive it.
  Adam(std::vector<Parameter<T>*> parameters, AdamOptions options);

  /// One step with the gradients that the parameters have gathered, at `schedule` times the rate; then sets them to
  /// zero. Throws TrainingError if the gradient is not finite: the parameters are then as they were.
  void step(double schedule = 1);

  const std::vector<Parameter<T>*>& parameters() const noexcept { return parameters_; }
  std::vector<Rows<T>>& means() noexcept { return means_; }      // of the gradients, one matrix per parameter
  std::vector<Rows<T>>& squares() noexcept { return squares_; }  // of their squares
  std::int64_t steps = 0;                                        // taken so far

 private:
  std::vector<Parameter<T>*> parameters_;
  AdamOptions options_;
  std::vector<Rows<T>> means_, squares_;
};

}  // namespace example
