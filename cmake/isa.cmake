# Compiling for a chosen instruction set. Installed with the package: a program that carries its kernels for several
# machines compiles one small library per ISA,
#
#   add_library(kernels_avx2 OBJECT kernels.cpp)
#   attention_balancer_target_isa(kernels_avx2 avx2)
#
# and picks one of them at run time. The kernels of each live in a namespace of their own and never meet. Functions of
# the standard library have no such namespace, and the linker keeps the first copy that it meets: link the least
# demanding library first.

# The names that attention_balancer_target_isa knows, as in the namespaces isa_sse2, isa_avx2, ...
set(ATTENTION_BALANCER_ISAS scalar sse2 avx2 avx512 neon64)

# Sets <out> to the compiler flags of <isa>: one of the names above, `native`, `none`, or flags as they are.
function(attention_balancer_isa_flags out isa)
  if(isa STREQUAL "scalar")
    set(flags -DATTENTION_BALANCER_NO_SIMD)
  elseif(isa STREQUAL "sse2")
    set(flags -march=x86-64)
  elseif(isa STREQUAL "avx2")
    set(flags -march=x86-64-v3)
  elseif(isa STREQUAL "avx512")
    set(flags -march=x86-64-v4)
  elseif(isa STREQUAL "native")
    set(flags -march=native)
  elseif(isa STREQUAL "neon64" OR isa STREQUAL "none")
    set(flags "")  # every aarch64 has it
  elseif(isa MATCHES "^-")
    separate_arguments(flags NATIVE_COMMAND "${isa}")
  else()
    message(FATAL_ERROR "attention_balancer: unknown ISA '${isa}'; known are native, none, "
                        "${ATTENTION_BALANCER_ISAS}, and compiler flags")
  endif()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

# Compiles the sources of <target> for <isa>, and nothing that links to it.
function(attention_balancer_target_isa target isa)
  attention_balancer_isa_flags(flags "${isa}")
  target_compile_options(${target} PRIVATE ${flags})
endfunction()
