// ggml's attention behind C functions, so that it runs beside the others in one Python process. A graph is built once
// for each case, on memory of the caller, and computed as often as wanted.
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "ggml-cpu.h"
#include "ggml.h"

namespace {

struct Shape {
  std::int64_t batch, heads, kv_heads, queries, keys, dim;
};

struct Attention {
  std::unique_ptr<ggml_context, decltype(&ggml_free)> context{nullptr, ggml_free};
  std::unique_ptr<ggml_threadpool, decltype(&ggml_threadpool_free)> team{nullptr, ggml_threadpool_free};
  std::vector<std::uint8_t> scratch;
  ggml_cgraph* graph = nullptr;
  ggml_cplan plan{};

  ggml_tensor* tensor(ggml_type type, std::array<std::int64_t, 4> sizes, const void* data) {
    ggml_tensor* x = ggml_new_tensor(context.get(), type, 4, sizes.data());
    x->data = const_cast<void*>(data);
    return x;
  }
};

}  // namespace

extern "C" {

/// Rows of float as blocks of q8_0, which `to` has room for: 34 bytes for 32 numbers.
void ggml_peer_quantize(const float* from, void* to, std::int64_t rows, std::int64_t dim) {
  ggml_quantize_chunk(GGML_TYPE_Q8_0, from, to, 0, rows, dim, nullptr);
}

/// The graph of out = attention(q, k, v), which ggml_peer_run computes and ggml_peer_free frees; null without memory.
/// It borrows all arrays: q [batch, heads, queries, dim] of float, k [batch, kv_heads, keys, dim] of the ggml_type
/// `type`, and mask null or [queries, keys] of f16, which is added to the scores.
/// Fused, with scores null: v as k, and out [batch, queries, heads, dim].
/// Composed of two products and a softmax, with scores of room for [batch, heads, queries, keys]: v [batch, kv_heads,
/// dim, keys], as caches without the fused operator lay it out, and out [batch, heads, queries, dim].
void* ggml_peer_make(const Shape* s, int type, const float* q, const void* k, const void* v, const void* mask,
                     float* scores, float* out, int threads) {
  auto x = std::make_unique<Attention>();
  x->context.reset(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
  if (!x->context) return nullptr;
  ggml_context* context = x->context.get();
  const auto stored = static_cast<ggml_type>(type);
  ggml_tensor* queries = x->tensor(GGML_TYPE_F32, {s->dim, s->queries, s->heads, s->batch}, q);
  ggml_tensor* keys = x->tensor(stored, {s->dim, s->keys, s->kv_heads, s->batch}, k);
  ggml_tensor* visible = mask ? x->tensor(GGML_TYPE_F16, {s->keys, s->queries, 1, 1}, mask) : nullptr;
  const float scale = 1 / std::sqrt(static_cast<float>(s->dim));
  ggml_tensor* result;
  if (scores) {
    ggml_tensor* values = x->tensor(stored, {s->keys, s->dim, s->kv_heads, s->batch}, v);
    ggml_tensor* weights = ggml_mul_mat(context, keys, queries);
    weights->data = scores;
    weights = ggml_soft_max_ext_inplace(context, weights, visible, scale, 0);
    weights->data = scores;  // of a view, which is taken when it is made, before there is any
    result = ggml_mul_mat(context, values, weights);
  } else {
    ggml_tensor* values = x->tensor(stored, {s->dim, s->keys, s->kv_heads, s->batch}, v);
    result = ggml_flash_attn_ext(context, queries, keys, values, visible, scale, 0, 0);
  }
  result->data = out;
  x->graph = ggml_new_graph(context);
  ggml_build_forward_expand(x->graph, result);

  ggml_threadpool_params team = ggml_threadpool_params_default(threads);
  x->team.reset(ggml_threadpool_new(&team));
  x->plan = ggml_graph_plan(x->graph, threads, x->team.get());
  x->scratch.resize(x->plan.work_size);
  x->plan.work_data = x->scratch.data();
  return x.release();
}

/// 0, or what ggml_graph_compute failed with.
int ggml_peer_run(void* attention) {
  auto* x = static_cast<Attention*>(attention);
  return ggml_graph_compute(x->graph, &x->plan);
}

void ggml_peer_free(void* attention) { delete static_cast<Attention*>(attention); }
}
