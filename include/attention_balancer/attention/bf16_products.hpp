#pragma once
// Both matrix products of attention in bf16.

namespace attention_balancer {

/// A policy for `attention` to a cache of bf16, of more than eight queries: multiplies with the machine's products of
/// bf16 where it has them (simd::has_bf16_products: AVX512_BF16, up to twice as fast on AMD; with AMX, Intel from
/// Sapphire Rapids on, two to four times). Everything else stays float, and so do the products where AVX512_FP16 tells
/// the compiler of those Intel but the process may not use AMX: their AVX512_BF16 is slower. A program for several
/// machines compiles its kernels for avx512bf16 too, in attention_balancer_add_kernels; no flag names AMX.
///
/// AMX is taken on 64-bit Linux where the processor and the operating system have it. The first call asks the latter
/// for its registers, for the whole process and once, by arch_prctl: alternative signal stacks must then be as large as
/// getauxval(AT_MINSIGSTKSZ) says. They are released when the call returns; what a caller had left in them is lost, as
/// the ABI allows to any function. ATTENTION_BALANCER_AMX=0 in the environment does without: other bits within the same
/// bounds.
///
/// Accuracy: the scaled queries are rounded to bf16, so a score is off by at most 2^-8 scale sum_d |q_d k_d| beside the
/// error that it has anyway, and lse, entropy and evidence are those of such scores; the weights are rounded to bf16
/// before they meet the values, so an output is off by 2^-8 sum_j p_j |v_j| more. Subnormal numbers count as 0. Where
/// there are no such products, for fewer queries and for evidence::leave_one_out, nothing is rounded, which keeps
/// within the same bounds; nor are the weights of a block of queries that meets a value which is not finite, masked or
/// not.
struct Bf16Products {};

}  // namespace attention_balancer
