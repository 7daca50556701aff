#pragma once
// Both matrix products of decoding in integers.

namespace attention_balancer {

/// A policy for `attention` to a cache of int8, of at most eight queries: multiplies in integers of 16 bits where the
/// machine has such products (simd::has_integer_products: AVX2, AVX-512), up to 1.4 times as fast. In a program for
/// several machines, avx512bf16 of attention_balancer_add_kernels has shorter ones than avx512.
///
/// Accuracy: the queries, scaled and times the scales of the channels, are rounded to multiples of f, the largest of
/// their row over 32767, at least 2^-126: a score is off by at most 0.504 f sum_d |k_d|, k without the scales of the
/// channels, beside the error that it has anyway; that k is stored in int8 may cost it 1 / 254 of the largest |k_d|
/// times sum_d |q_d|. lse, entropy and evidence are those of such scores. The weights times the scales of their values
/// are rounded for each block of 128 keys to multiples of g, the largest of them over 32767, at least 2^-126: an output
/// is off by 0.504 g times the sum of what is stored there as |v|: by no more than 0.002 of the largest |v|, half of
/// what int8 may cost, where the largest of each row is stored as 127, as CacheStorage does it, or all have one scale.
/// Sums are exact. A query that is not finite makes its row not a number, and so does the scale of a value that it
/// sees.
///
/// Where the machine has no such products, for more queries and for evidence::leave_one_out, nothing is rounded, which
/// keeps within the same bounds.
struct IntegerProducts {};

}  // namespace attention_balancer
