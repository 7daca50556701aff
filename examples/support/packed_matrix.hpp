#pragma once
// Matrices whose weights stay in the blocks of a GGUF file, a few bits each, and become float a few rows at a time
// while they are multiplied.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "eigen.hpp"
#include "executor.hpp"

namespace example {

/// How weights are stored; the numbers are those of GGUF. A block of Q4_1 is f16 d, f16 m and 16 bytes: 32 weights
/// d q + m, the low nibbles first. One of Q8_0 is f16 d and 32 int8: d q.
enum class BlockType : std::uint32_t { f32 = 0, q4_1 = 3, q8_0 = 8 };

struct BlockSize {
  Eigen::Index values = 0;
  std::size_t bytes = 0;
};

/// Values and bytes of a block; zero for a type that is none of BlockType.
BlockSize block_size(BlockType type) noexcept;

/// "Q4_1"; "type 7" for others.
std::string to_string(BlockType type);

/// The weights of whole blocks as float. values.size() is a multiple of the block's.
void unpack(BlockType type, const std::byte* blocks, std::span<float> values) noexcept;

/// A matrix [rows, columns]; a row is whole blocks.
struct PackedMatrix {
  BlockType type = BlockType::f32;
  Eigen::Index rows = 0, columns = 0;
  std::vector<std::byte> blocks;

  std::size_t row_bytes() const noexcept;

  /// Row r as float, [columns].
  void row(Eigen::Index r, std::span<float> values) const noexcept;

  /// y = x W^T: x [n, columns], y [n, rows].
  void multiply(const Matrix& x, Matrix& y, const Executor& executor) const;
};

}  // namespace example
