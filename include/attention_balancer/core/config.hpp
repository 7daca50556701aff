#pragma once
// Compiler and ISA configuration. Every macro of the library starts with ATTENTION_BALANCER_.

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "attention_balancer needs NaN, infinity, -0 and the order of operations: compile without parts of -ffast-math"
#endif

#if !defined(__cpp_concepts) || __cplusplus < 202002L
#error "attention_balancer needs C++20: compile with -std=c++20 or newer"
#endif
#if !defined(__cpp_exceptions)
#error "attention_balancer reports what is wrong by exceptions: compile without -fno-exceptions"
#endif

// Everything whose machine code is made for an ISA lives in an inline namespace named after it, so that two translation
// units compiled for two machines share no kernel. What else they share, such as members of std::vector, only CMake's
// attention_balancer_add_kernels keeps apart.
#if defined(ATTENTION_BALANCER_NO_SIMD)
#define ATTENTION_BALANCER_ISA isa_scalar
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512CD__) && \
    defined(__AVX512BF16__) && defined(__AVX512VNNI__)
// A name of its own: what Bf16Products and IntegerProducts do are other functions there. Every machine that has the one
// has the other. AVX512_FP16 tells of Intel's cores from Golden Cove on (Sapphire Rapids). Of it nothing is used, but
// there scaling by powers of two is one operation, which takes Zen 4 several, and rows come without being asked for.
#if defined(__AVX512FP16__)
#define ATTENTION_BALANCER_ISA isa_avx512fp16
#define ATTENTION_BALANCER_GOLDEN_COVE
#else
#define ATTENTION_BALANCER_ISA isa_avx512bf16
#endif
#define ATTENTION_BALANCER_BF16_PRODUCTS
#define ATTENTION_BALANCER_INTEGER_PRODUCTS
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512CD__)
#define ATTENTION_BALANCER_ISA isa_avx512
#define ATTENTION_BALANCER_INTEGER_PRODUCTS
#elif defined(__AVX512F__)
#define ATTENTION_BALANCER_ISA isa_avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define ATTENTION_BALANCER_ISA isa_avx2
#define ATTENTION_BALANCER_INTEGER_PRODUCTS
#elif defined(__AVX__) && defined(__FMA__)
#define ATTENTION_BALANCER_ISA isa_avx_fma
#elif defined(__AVX__)
#define ATTENTION_BALANCER_ISA isa_avx
#elif defined(__SSE4_1__)
#define ATTENTION_BALANCER_ISA isa_sse4
#elif defined(__SSE2__)
#define ATTENTION_BALANCER_ISA isa_sse2
#elif defined(__aarch64__)
#define ATTENTION_BALANCER_ISA isa_neon64
#else
#define ATTENTION_BALANCER_ISA isa_scalar
#endif

// AMX needs no flag of the compiler, since its functions name it themselves, and so no namespace of its own. Whether it
// is used is decided when the program runs.
#if defined(ATTENTION_BALANCER_BF16_PRODUCTS) && defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define ATTENTION_BALANCER_AMX
#endif

#define ATTENTION_BALANCER_BEGIN_ISA inline namespace ATTENTION_BALANCER_ISA {
#define ATTENTION_BALANCER_END_ISA }

#define ATTENTION_BALANCER_JOIN_DETAIL(x, y) x##y
#define ATTENTION_BALANCER_JOIN(x, y) ATTENTION_BALANCER_JOIN_DETAIL(x, y)
#define ATTENTION_BALANCER_STRINGIZE_DETAIL(x) #x
#define ATTENTION_BALANCER_STRINGIZE(x) ATTENTION_BALANCER_STRINGIZE_DETAIL(x)

#if defined(__GNUC__) || defined(__clang__)
#define ATTENTION_BALANCER_INLINE [[gnu::always_inline]] inline
#define ATTENTION_BALANCER_NOINLINE [[gnu::noinline]]
#else
#define ATTENTION_BALANCER_INLINE inline
#define ATTENTION_BALANCER_NOINLINE
#endif

// g++ understands `#pragma GCC unroll`, clang `#pragma unroll`; both need the loop bound to be a constant.
#if defined(__clang__)
#define ATTENTION_BALANCER_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define ATTENTION_BALANCER_UNROLL _Pragma("GCC unroll 32")
#else
#define ATTENTION_BALANCER_UNROLL
#endif

// clang makes eight copies of a loop of register tiles, and runs out of registers over them; g++ makes none unasked.
#if defined(__clang__)
#define ATTENTION_BALANCER_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define ATTENTION_BALANCER_NO_UNROLL
#endif
