// What attention is told beside the tensors, and in what number.
// case 1: attention_balancer: an argument after the tensors is no policy
// case 2: attention_balancer: a call takes one observation, not two
// case 3: attention_balancer: pass the Workspace as an lvalue
// case 4: attention_balancer: a call takes one executor, not two
// case 5: attention_balancer: a call takes one normalize::Sink, not two
// case 6: attention_balancer: the Evidence must have the scalar type of the tensors
// case 7: attention_balancer: attention_evidence needs observe
// case 8: attention_balancer: a call takes one Workspace, not two
// case 9: attention_balancer: packed sequences are observed with one Evidence each
// case 10: attention_balancer: packed sequences are observed with one Evidence each
// case 11: attention_balancer: a call takes one PackedSequences, not two
// case 12: attention_balancer: PackedQueries needs a cache
// case 13: attention_balancer: a cache has lengths of its own and takes PackedQueries
// case 14: attention_balancer: a call takes one PackedQueries, not two
// case 15: attention_balancer: packed sequences are observed with one Evidence each
#include <vector>

#include "attention_balancer/attention.hpp"

namespace ab = attention_balancer;

struct NoPolicy {};

void f(ab::TensorView<const float> q, ab::TensorView<float> out, ab::Evidence<float>& e, ab::Evidence<double>& d,
       ab::Workspace& workspace, ab::Workspace& another, const std::vector<float>& logits,
       std::vector<ab::Evidence<float>>& each, const std::vector<ab::Index>& offsets,
       const ab::KvCache<float>& cache) {
#if CASE == 0
  ab::attention(q, q, q, out);
  ab::attention(q, q, q, out, ab::observe(e), ab::score::Softcap{50.f}, ab::mask::Causal{}, ab::score::Scale{1},
                workspace, ab::normalize::Sink(logits), ab::executor::Sequential{});
  ab::attention_evidence(q, q, ab::observe(e), ab::mask::Window{4, 0});
  ab::attention(q, q, q, out, ab::PackedSequences(offsets, offsets), ab::observe(each));
  ab::attention(q, cache, out, ab::PackedQueries(offsets), ab::observe(each));
  ab::attention_evidence(q, cache, ab::PackedQueries(offsets), ab::observe(each));
#elif CASE == 1
  ab::attention(q, q, q, out, NoPolicy{});
#elif CASE == 2
  ab::attention(q, q, q, out, ab::observe(e), ab::observe(e));
#elif CASE == 3
  ab::attention(q, q, q, out, ab::Workspace{});
#elif CASE == 4
  ab::attention(q, q, q, out, ab::executor::Sequential{}, ab::executor::Sequential{});
#elif CASE == 5
  ab::attention(q, q, q, out, ab::normalize::Sink(logits), ab::normalize::Sink(logits));
#elif CASE == 6
  ab::attention(q, q, q, out, ab::observe(d));
#elif CASE == 7
  ab::attention_evidence(q, q, ab::mask::Causal{});
#elif CASE == 8
  ab::attention(q, q, q, out, workspace, another);
#elif CASE == 9
  ab::attention(q, q, q, out, ab::PackedSequences(offsets, offsets), ab::observe(e));
#elif CASE == 10
  ab::attention(q, q, q, out, ab::observe(each));
#elif CASE == 11
  ab::attention(q, q, q, out, ab::PackedSequences(offsets, offsets), ab::PackedSequences(offsets, offsets));
#elif CASE == 12
  ab::attention(q, q, q, out, ab::PackedQueries(offsets));
#elif CASE == 13
  ab::attention(q, cache, out, ab::PackedSequences(offsets, offsets));
#elif CASE == 14
  ab::attention(q, cache, out, ab::PackedQueries(offsets), ab::PackedQueries(offsets));
#elif CASE == 15
  ab::attention(q, cache, out, ab::PackedQueries(offsets), ab::observe(e));
#endif
  (void)each, (void)offsets, (void)cache;
  (void)q, (void)out, (void)e, (void)d, (void)workspace, (void)another, (void)logits;
}
