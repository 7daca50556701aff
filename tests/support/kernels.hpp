#pragma once
// The kernels know nothing of policies: compiled once for all tests, in kernels.cpp, instead of in each.

#include "attention_balancer/attention/backward.hpp"
#include "attention_balancer/attention/forward.hpp"

namespace attention_balancer::detail {
ATTENTION_BALANCER_BEGIN_ISA

#if !defined(ATTENTION_BALANCER_TEST_INSTANTIATE)
#define ATTENTION_BALANCER_TEST_INSTANTIATE extern
#endif

ATTENTION_BALANCER_TEST_INSTANTIATE template void attend_queries<float>(const Call<float>&, Index, Index, Index,
                                                                        Index, const Scratch<float>&,
                                                                        const EvidenceRows<float>&) noexcept;
ATTENTION_BALANCER_TEST_INSTANTIATE template void attend_queries<double>(const Call<double>&, Index, Index, Index,
                                                                         Index, const Scratch<double>&,
                                                                         const EvidenceRows<double>&) noexcept;

ATTENTION_BALANCER_TEST_INSTANTIATE template void attend_queries_backward<float>(
    const BackwardCall<float>&, Index, Index, Index, Index, bool, const BackwardScratch<float>&,
    const BackwardSums<float>&) noexcept;
ATTENTION_BALANCER_TEST_INSTANTIATE template void attend_queries_backward<double>(
    const BackwardCall<double>&, Index, Index, Index, Index, bool, const BackwardScratch<double>&,
    const BackwardSums<double>&) noexcept;

ATTENTION_BALANCER_TEST_INSTANTIATE template class Decoder<float, float>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class Decoder<double, double>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class SplitWork<float, float>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class SplitWork<double, double>;

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
