// This library behind C functions, so that it runs beside the others in one Python process. Built as a module; the
// scratch memory and the evidence live as long as the process, as they would in a program.
#include <cstdint>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "attention_balancer/attention.hpp"
#include "support/fma_peak.hpp"
#include "support/read_bandwidth.hpp"

namespace ab = attention_balancer;

namespace {

struct Shape {
  std::int64_t batch, heads, kv_heads, queries, keys, dim;
};

ab::Workspace workspace;
ab::Evidence<float> evidence, of_backward;
std::string error;

template <class... P>
void attend(const Shape& s, const float* q, const float* k, const float* v, float* out, int threads,
            P... policies) {
  const auto queries = ab::bhsd(q, s.batch, s.heads, s.queries, s.dim);
  const auto keys = ab::bhsd(k, s.batch, s.kv_heads, s.keys, s.dim),
             values = ab::bhsd(v, s.batch, s.kv_heads, s.keys, s.dim);
  const auto output = ab::bhsd(out, s.batch, s.heads, s.queries, s.dim);
  if (threads == 1)
    ab::attention(queries, keys, values, output, workspace, policies...);
  else
    ab::attention(queries, keys, values, output, workspace, ab::executor::OpenMp{threads}, policies...);
}

template <class Stored>
void attend_cached(const Shape& s, const float* q, const void* k, const void* v, const float* key_scales,
                   const float* value_scales, float* out, int threads) {
  auto rows = [&](auto* x, ab::Index dim) { return ab::bhsd(x, s.batch, s.kv_heads, s.keys, dim); };
  ab::KvView<Stored> cache{rows(static_cast<const Stored*>(k), s.dim), rows(static_cast<const Stored*>(v), s.dim)};
  if (key_scales) {
    cache.key_scales = rows(key_scales, 1);
    cache.value_scales = rows(value_scales, 1);
  }
  const auto queries = ab::bhsd(q, s.batch, s.heads, s.queries, s.dim);
  const auto output = ab::bhsd(out, s.batch, s.heads, s.queries, s.dim);
  if (threads == 1)
    ab::attention(queries, cache, output, workspace);
  else
    ab::attention(queries, cache, output, workspace, ab::executor::OpenMp{threads});
}

}  // namespace

extern "C" {

/// The instruction set of the kernels.
const char* peers_isa() { return ab::simd::isa; }

/// What the last failed call said.
const char* peers_error() { return error.c_str(); }

/// out = attention(q, k, v), all [batch, heads, length, dim] and contiguous; with the whole evidence if observed.
/// 0, or 1 with peers_error() set.
int peers_attention(const Shape* shape, const float* q, const float* k, const float* v, float* out, int causal,
                    int observed, int threads) {
  try {
    if (causal && observed)
      attend(*shape, q, k, v, out, threads, ab::mask::Causal{}, ab::observe(evidence));
    else if (causal)
      attend(*shape, q, k, v, out, threads, ab::mask::Causal{});
    else if (observed)
      attend(*shape, q, k, v, out, threads, ab::observe(evidence));
    else
      attend(*shape, q, k, v, out, threads);
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return 1;
  }
}

/// out = attention(q, k, v) of keys and values stored as int8 where scales [batch, kv_heads, keys] are given, otherwise
/// as bf16 or f16. 0, or 1 with peers_error() set.
int peers_cached_attention(const Shape* shape, const float* q, const void* k, const void* v,
                           const float* key_scales, const float* value_scales, float* out, int as_bf16, int threads) {
  try {
    if (key_scales)
      attend_cached<std::int8_t>(*shape, q, k, v, key_scales, value_scales, out, threads);
    else if (as_bf16)
      attend_cached<ab::bf16>(*shape, q, k, v, nullptr, nullptr, out, threads);
    else
      attend_cached<ab::f16>(*shape, q, k, v, nullptr, nullptr, out, threads);
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return 1;
  }
}

/// out = attention(q, k, v), and what peers_backward of the same arrays needs. The other arguments are not used.
int peers_prepare_backward(const Shape* s, const float* q, const float* k, const float* v, float* out, const float*,
                           float*, float*, float*) {
  try {
    ab::attention(
        ab::bhsd(q, s->batch, s->heads, s->queries, s->dim), ab::bhsd(k, s->batch, s->kv_heads, s->keys, s->dim),
        ab::bhsd(v, s->batch, s->kv_heads, s->keys, s->dim), ab::bhsd(out, s->batch, s->heads, s->queries, s->dim),
        workspace, ab::observe(of_backward, ab::QueryWeights::none()));
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return 1;
  }
}

/// dq, dk and dv from dout, after peers_prepare_backward of the same arrays.
int peers_backward(const Shape* s, const float* q, const float* k, const float* v, const float* out,
                   const float* dout, float* dq, float* dk, float* dv, int threads) {
  try {
    auto of_queries = [&](auto* x) { return ab::bhsd(x, s->batch, s->heads, s->queries, s->dim); };
    auto of_keys = [&](auto* x) { return ab::bhsd(x, s->batch, s->kv_heads, s->keys, s->dim); };
    ab::attention_backward(of_queries(q), of_keys(k), of_keys(v), of_queries(out), of_backward, of_queries(dout),
                           of_queries(dq), of_keys(dk), of_keys(dv), workspace, ab::executor::OpenMp{threads});
    return 0;
  } catch (const std::exception& e) {
    error = e.what();
    return 1;
  }
}

/// The mass of the last observed call: [batch, heads, keys].
void peers_mass(float* to) {
  for (ab::Index b = 0; b < evidence.batch(); ++b)
    for (ab::Index h = 0; h < evidence.heads(); ++h) {
      const auto mass = evidence.mass(b, h);
      to = std::copy(mass.begin(), mass.end(), to);
    }
}

/// Floating point operations per second of `threads` threads at once, in multiply-adds on registers alone.
double peers_fma_peak(int threads) {
  std::vector<double> peaks(static_cast<std::size_t>(threads));
  std::vector<std::thread> team;
  for (double& peak : peaks) team.emplace_back([&peak] { peak = bench::fma_peak<float>(); });
  double sum = 0;
  for (std::size_t t = 0; t < peaks.size(); ++t) {
    team[t].join();
    sum += peaks[t];
  }
  return sum;
}

/// Seconds to read `bytes` bytes of each of two arrays once with `threads` threads, in the way that is fastest by the
/// medians of `passes`, after one that warms up.
double peers_read_seconds(const void* keys, const void* values, std::int64_t bytes, int threads, int passes) {
  const auto size = static_cast<std::size_t>(bytes);
  return bench::read_seconds({{keys, size}, {values, size}}, threads, passes);
}
}
