#include "packed_matrix.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "attention_balancer/core/storage.hpp"

namespace example {
namespace ab = attention_balancer;

static_assert(std::endian::native == std::endian::little, "the blocks of a GGUF file are little-endian");

namespace {

constexpr Eigen::Index block_values = 32;
constexpr std::size_t q4_1_bytes = 20, q8_0_bytes = 34;

float half(const std::byte* at) noexcept {
  ab::f16 x;
  std::memcpy(&x.bits, at, sizeof x.bits);
  return static_cast<float>(x);
}

// Bytes might be part of the values, for all the compiler knows, and the loops would go one by one: hence restrict.
void unpack_q4_1(const std::byte* block, float* __restrict values) noexcept {
  const float d = half(block), m = half(block + 2);
  // Eight nibbles of a register at a time.
  std::array<std::uint64_t, 4> levels;
  std::memcpy(levels.data(), block + 4, 16);
  for (std::size_t i = 0; i < 2; ++i) {
    levels[2 + i] = levels[i] >> 4 & 0x0f0f0f0f0f0f0f0f;
    levels[i] &= 0x0f0f0f0f0f0f0f0f;
  }
  const auto* __restrict q = reinterpret_cast<const std::uint8_t*>(levels.data());
  for (int i = 0; i < 32; ++i) values[i] = d * static_cast<float>(q[i]) + m;
}

void unpack_q8_0(const std::byte* block, float* __restrict values) noexcept {
  const float d = half(block);
  const auto* __restrict q = reinterpret_cast<const std::int8_t*>(block + 2);
  for (int i = 0; i < 32; ++i) values[i] = d * static_cast<float>(q[i]);
}

// The products of 4 rows of weights with N of x, kept in registers: a general matrix product would rearrange the
// weights first, which for a few rows of x takes longer than multiplying. `y` is the first of N rows, `stride` apart.
template <std::size_t N>
void multiply_tile(const float* weights, const float* x, std::size_t columns, float* y,
                   std::size_t stride) noexcept {
  using Lanes = Eigen::Array<float, 8, 1>;
  std::array<Lanes, 4 * N> sums;
  for (auto& sum : sums) sum.setZero();
  std::size_t c = 0;
  for (; c + 8 <= columns; c += 8) {
    std::array<Lanes, N> values;
    for (std::size_t j = 0; j < N; ++j) values[j] = Eigen::Map<const Lanes>(x + j * columns + c);
    for (std::size_t i = 0; i < 4; ++i) {
      const Lanes weight = Eigen::Map<const Lanes>(weights + i * columns + c);
      for (std::size_t j = 0; j < N; ++j) sums[i * N + j] += weight * values[j];
    }
  }
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < N; ++j) {
      float sum = sums[i * N + j].sum();
      for (std::size_t rest = c; rest < columns; ++rest) sum += weights[i * columns + rest] * x[j * columns + rest];
      y[j * stride + i] = sum;
    }
}

}  // namespace

BlockSize block_size(BlockType type) noexcept {
  switch (type) {
    case BlockType::f32: return {1, sizeof(float)};
    case BlockType::q4_1: return {block_values, q4_1_bytes};
    case BlockType::q8_0: return {block_values, q8_0_bytes};
  }
  return {};
}

std::string to_string(BlockType type) {
  switch (type) {
    case BlockType::f32: return "F32";
    case BlockType::q4_1: return "Q4_1";
    case BlockType::q8_0: return "Q8_0";
  }
  return "type " + std::to_string(static_cast<std::uint32_t>(type));
}

void unpack(BlockType type, const std::byte* blocks, std::span<float> values) noexcept {
  switch (type) {
    case BlockType::f32: std::memcpy(values.data(), blocks, values.size_bytes()); break;
    case BlockType::q4_1:
      for (std::size_t i = 0; i < values.size(); i += block_values, blocks += q4_1_bytes)
        unpack_q4_1(blocks, values.data() + i);
      break;
    case BlockType::q8_0:
      for (std::size_t i = 0; i < values.size(); i += block_values, blocks += q8_0_bytes)
        unpack_q8_0(blocks, values.data() + i);
      break;
  }
}

std::size_t PackedMatrix::row_bytes() const noexcept {
  const auto block = block_size(type);
  return static_cast<std::size_t>(columns / block.values) * block.bytes;
}

void PackedMatrix::row(Eigen::Index r, std::span<float> values) const noexcept {
  unpack(type, blocks.data() + static_cast<std::size_t>(r) * row_bytes(), values);
}

void PackedMatrix::multiply(const Matrix& x, Matrix& y, const Executor& executor) const {
  y.resize(x.rows(), rows);
  if (x.rows() == 0) return;
  // As many rows as stay in the second-level cache between being unpacked and being multiplied.
  const Eigen::Index some =
      std::clamp(32768 / std::max(columns, Eigen::Index(1)) / 4 * 4, Eigen::Index(8), Eigen::Index(64));
  executor.for_each((rows + some - 1) / some, [&](ab::Index piece) {
    thread_local Matrix weights;
    const Eigen::Index first = piece * some, count = std::min(some, rows - first), fours = count / 4 * 4;
    weights.resize(count, columns);
    unpack(type, blocks.data() + static_cast<std::size_t>(first) * row_bytes(),
           {weights.data(), static_cast<std::size_t>(weights.size())});
    for (Eigen::Index r = 0; r < fours; r += 4) {
      const float* four = weights.data() + r * columns;
      const auto width = static_cast<std::size_t>(columns), stride = static_cast<std::size_t>(rows);
      Eigen::Index i = 0;
      for (; i + 3 <= x.rows(); i += 3) multiply_tile<3>(four, x.row(i).data(), width, &y(i, first + r), stride);
      for (; i < x.rows(); ++i) multiply_tile<1>(four, x.row(i).data(), width, &y(i, first + r), stride);
    }
    for (Eigen::Index r = fours; r < count; ++r) y.col(first + r).noalias() = x * weights.row(r).transpose();
  });
}

}  // namespace example
