#pragma once
// What tests of caches share.

#include "attention_balancer/cache/kv_view.hpp"
#include "support/tensor.hpp"

// The types of a TEMPLATE_TEST_CASE that is for each storage of a cache. ATTENTION_BALANCER_FLOAT_TESTS leaves what is
// read as it lies and what has scales.
#if !defined(STORAGES)
#define STORAGES float, double, ab::bf16, ab::f16, std::int8_t
#endif

namespace support {

/// What slot j of sequence b means: keys and values as numbers.
template <class Stored, class T>
void read_back(const ab::KvView<Stored>& x, Index b, Tensor<T>& k, Tensor<T>& v) {
  for (Index h = 0; h < x.keys.heads; ++h)
    for (Index j = 0; j < x.length(b); ++j) {
      const Index size = x.keys.length;
      const Index page = x.block_table.given() ? x.block_table[b * x.max_blocks + j / size] : b;
      const Index at = x.block_table.given() ? j % size : j;
      float key_scale = 1, value_scale = 1;
      if (x.key_scales.data) key_scale = x.key_scales(page, h, at, 0), value_scale = x.value_scales(page, h, at, 0);
      for (Index c = 0; c < k.view().dim; ++c)
        k(0, h, j, c) =
            static_cast<T>(static_cast<double>(x.keys(page, h, at, c)) * static_cast<double>(key_scale) *
                           static_cast<double>(x.channel_scales ? x.channel_scales[h * k.view().dim + c] : 1.0f));
      for (Index c = 0; c < v.view().dim; ++c)
        v(0, h, j, c) =
            static_cast<T>(static_cast<double>(x.values(page, h, at, c)) * static_cast<double>(value_scale));
    }
}

/// Tokens [first, first + count) of item b.
template <class T>
ab::TensorView<T> part(ab::TensorView<T> x, Index b, Index first, Index count) {
  x.data = &x(b, 0, first, 0);
  x.batch = 1, x.length = count;
  return x;
}

}  // namespace support
