// What attention_backward is told, and which normalisers go together.
// case 1: attention_balancer: attention_backward needs the derivative of each score modifier
// case 2: attention_balancer: gradient.. of a score modifier needs
// case 3: attention_balancer: attention_backward observes nothing
// case 4: attention_balancer: gradients of the evidence belong to attention_backward
// case 5: attention_balancer: gradients must have the scalar type of the tensors
// case 6: attention_balancer: attention_backward takes the Evidence of the forward call
// case 7: attention_balancer: the tensors and their gradients must all be float or all be double
// case 8: attention_balancer: dq, dk and dv must be views of mutable elements
// case 9: attention_balancer: a call takes one gradient of the lse
// case 10: attention_balancer: normalize::Sparsemax and Entmax15 have no denominator
// case 11: attention_balancer: a call takes one normaliser, not two
// case 12: attention_balancer: normalize::Sparsemax, Entmax15 and TopK need keys and values in tensors
// case 13: attention_balancer: attention_backward takes one Evidence, or with PackedSequences
// case 14: attention_balancer: attention_backward takes one Evidence, or with PackedSequences
// case 15: attention_balancer: attention_backward observes nothing
// case 16: attention_balancer: a call takes one PackedSequences, not two
// case 17: attention_balancer: Bf16Products needs a cache of bf16
// case 18: attention_balancer: Bf16Products needs a cache of bf16
// case 19: attention_balancer: IntegerProducts needs a cache of int8
// case 20: attention_balancer: IntegerProducts needs a cache of int8
#include <vector>

#include "attention_balancer/attention.hpp"

namespace ab = attention_balancer;

struct Twice {
  template <class S>
  S operator()(const S& score, const ab::Site<S>&) const {
    return score + score;
  }
};
struct TwiceBack : Twice {
  template <class S>
  S pullback(const S&, const S& gradient, const ab::Site<S>&) const {
    return gradient + gradient;
  }
};

void f(ab::TensorView<const float> q, ab::TensorView<float> x, ab::TensorView<double> wide, ab::Evidence<float>& e,
       ab::Evidence<double>& d, const std::vector<float>& logits, std::vector<float>& target, double& number,
       const ab::KvView<float>& cache, const ab::PackedSequences& packed, std::vector<ab::Evidence<float>>& each) {
#if CASE == 0
  ab::attention_backward(q, q, q, q, e, q, x, x, x);
  ab::attention_backward(q, q, q, q, x, q, x, x, x, TwiceBack{}, ab::evidence::LseGradient(logits),
                         ab::gradient(ab::normalize::Sink(logits), target), ab::normalize::TopK{3});
  ab::attention_backward(q, q, q, q, each, q, x, x, x, packed, ab::evidence::EntropyGradient(logits));
  ab::attention_backward(q, q, q, q, q, q, x, x, x, packed, ab::normalize::Entmax15{});
  ab::attention(q, q, q, x, Twice{}, ab::gradient(ab::score::Alibi(logits), target), ab::normalize::Sparsemax{});
#elif CASE == 1
  ab::attention_backward(q, q, q, q, e, q, x, x, x, Twice{});
#elif CASE == 2
  ab::attention_backward(q, q, q, q, e, q, x, x, x, ab::gradient(TwiceBack{}, x));
#elif CASE == 3
  ab::attention_backward(q, q, q, q, e, q, x, x, x, ab::observe(e));
#elif CASE == 4
  ab::attention(q, q, q, x, ab::evidence::LseGradient(logits));
#elif CASE == 5
  ab::attention_backward(q, q, q, q, e, q, x, x, x, ab::gradient(ab::score::Softcap{3}, number));
#elif CASE == 6
  ab::attention_backward(q, q, q, q, d, q, x, x, x);
#elif CASE == 7
  ab::attention_backward(q, q, q, q, e, wide, x, x, x);
#elif CASE == 8
  ab::attention_backward(q, q, q, q, e, q, q, x, x);
#elif CASE == 9
  ab::attention_backward(q, q, q, q, e, q, x, x, x, ab::evidence::LseGradient(logits),
                         ab::evidence::LseGradient(logits));
#elif CASE == 10
  ab::attention(q, q, q, x, ab::normalize::Entmax15{}, ab::normalize::Sink(logits));
#elif CASE == 11
  ab::attention(q, q, q, x, ab::normalize::Softmax{}, ab::normalize::TopK{3});
#elif CASE == 12
  ab::attention(q, cache, x, ab::normalize::TopK{3});
#elif CASE == 13
  ab::attention_backward(q, q, q, q, e, q, x, x, x, packed);
#elif CASE == 14
  ab::attention_backward(q, q, q, q, each, q, x, x, x);
#elif CASE == 15
  ab::attention_backward(q, q, q, q, each, q, x, x, x, packed, ab::observe(each));
#elif CASE == 16
  ab::attention_backward(q, q, q, q, each, q, x, x, x, packed, packed);
#elif CASE == 17
  ab::attention(q, cache, x, ab::Bf16Products{});
#elif CASE == 18
  ab::attention(q, q, q, x, ab::Bf16Products{});
#elif CASE == 19
  ab::attention(q, cache, x, ab::IntegerProducts{});
#elif CASE == 20
  ab::attention(q, q, q, x, ab::IntegerProducts{});
#endif
  (void)q, (void)x, (void)wide, (void)e, (void)d, (void)logits, (void)target, (void)number, (void)cache,
      (void)packed, (void)each;
}
