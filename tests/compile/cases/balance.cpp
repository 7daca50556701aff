// The balance half: its policies and its scalars.
// case 1: attention_balancer: .*allocat
// case 2: attention_balancer: .*feedback
// case 3: deleted
// case 4: attention_balancer: expand takes two TensorViews
// case 5: attention_balancer: expand takes two TensorViews
#include <vector>

#include "attention_balancer/balance.hpp"

namespace ab = attention_balancer;

struct NoPolicy {};

template <class T>
concept Balanced = requires {
  typename ab::ResourceBalancer<T, ab::allocate::Proportional, ab::feedback::Leaky<float>>;
};
static_assert(Balanced<float> && !Balanced<int>);

void f(ab::Index n, const std::vector<bool>& eligible) {
#if CASE == 0
  ab::ResourceBalancer<float> floats(n);
  ab::ResourceBalancer<double> doubles(n);
  (void)ab::allocate::Bounded<float>{.floor = 0.01f, .cap = 0.5f, .eligible = eligible};
  std::vector<float> grid;
  ab::execute::TokenPlan(n, {}).expand(std::vector<float>(), grid);
#elif CASE == 1
  ab::ResourceBalancer<float, NoPolicy> balancer(n);
#elif CASE == 2
  ab::ResourceBalancer<float, ab::allocate::Proportional, NoPolicy> balancer(n);
#elif CASE == 3
  (void)ab::allocate::Bounded<float>{.eligible = std::vector<bool>(3, true)};
#elif CASE == 4
  ab::execute::TokenPlan(n, {}).expand(std::vector<int>(), std::vector<int>());
#elif CASE == 5
  std::vector<float> row;
  ab::execute::MergePlan(std::vector<ab::Index>{}).expand(ab::TensorView<const float>(), row);
#endif
  (void)n, (void)eligible;
}
