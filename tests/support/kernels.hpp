#pragma once
// The kernels know nothing of policies: compiled once for all tests and examples, in kernels.cpp, instead of in each.

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

// A file that calls only these is spared the members of the classes, which a compiler would instantiate to inline them.
ATTENTION_BALANCER_TEST_INSTANTIATE template void run_call<float>(const Call<float>&, const KvView<float>&,
                                                                  Evidence<float>*, Workspace&,
                                                                  const executor::Sequential&, Index);
ATTENTION_BALANCER_TEST_INSTANTIATE template void run_call<double>(const Call<double>&, const KvView<double>&,
                                                                   Evidence<double>*, Workspace&,
                                                                   const executor::Sequential&, Index);
ATTENTION_BALANCER_TEST_INSTANTIATE template class Decoder<float, float>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class Decoder<double, double>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class DecodeMass<float, float>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class DecodeMass<double, double>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class SplitWork<float, float>;
ATTENTION_BALANCER_TEST_INSTANTIATE template class SplitWork<double, double>;

ATTENTION_BALANCER_END_ISA
}  // namespace attention_balancer::detail
