# What the tests, examples and benchmarks of this project are compiled with. Users of the library see none of it.

include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

check_cxx_compiler_flag(-march=native ATTENTION_BALANCER_HAS_MARCH_NATIVE)
if(ATTENTION_BALANCER_HAS_MARCH_NATIVE AND NOT CMAKE_CROSSCOMPILING)
  set(default_arch native)
else()
  set(default_arch none)
endif()
set(ATTENTION_BALANCER_ARCH "${default_arch}" CACHE STRING
    "ISA of the tests, examples and benchmarks: native, none, sse2, avx2, avx512, neon64, scalar, or flags")
option(ATTENTION_BALANCER_WERROR "Warnings are errors in the tests, examples and benchmarks" ${PROJECT_IS_TOP_LEVEL})
mark_as_advanced(ATTENTION_BALANCER_WERROR)

set(ATTENTION_BALANCER_WARNINGS -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
if(ATTENTION_BALANCER_WERROR)
  list(APPEND ATTENTION_BALANCER_WARNINGS -Werror)
endif()

attention_balancer_isa_flags(arch_flags "${ATTENTION_BALANCER_ARCH}")
set(ATTENTION_BALANCER_FLAGS ${ATTENTION_BALANCER_WARNINGS} ${arch_flags})
add_library(attention_balancer_development INTERFACE)
target_link_libraries(attention_balancer_development INTERFACE attention_balancer::attention_balancer)
target_compile_options(attention_balancer_development INTERFACE ${ATTENTION_BALANCER_FLAGS})

# executor::OpenMp runs sequentially without it.
find_package(OpenMP QUIET COMPONENTS CXX)
if(OpenMP_CXX_FOUND)
  target_link_libraries(attention_balancer_development INTERFACE OpenMP::OpenMP_CXX)
endif()

# executor/tbb.hpp is tested where TBB is. A cross build would find this machine's; the thread sanitizer does not
# understand it.
if(NOT CMAKE_CROSSCOMPILING)
  find_package(TBB CONFIG QUIET)
endif()
if(TARGET TBB::tbb)
  target_link_libraries(attention_balancer_development INTERFACE TBB::tbb)
  target_compile_definitions(attention_balancer_development INTERFACE ATTENTION_BALANCER_HAS_TBB)
endif()

# Stops with the name of the Debian package when a find_package, find_path or find_library found nothing.
function(attention_balancer_require found what package option)
  if(NOT found)
    message(FATAL_ERROR "attention_balancer: ${what} is missing. Debian's package is ${package}; "
                        "-D${option}=OFF does without it.")
  endif()
endfunction()

# A cache of objects serves the next clone, but none of what was compiled with a precompiled header. That saves much of a
# test's time where nothing is cached: .ci/run asks for it, through the environment.
option(ATTENTION_BALANCER_PRECOMPILED "Precompile headers of the tests" $ENV{ATTENTION_BALANCER_PRECOMPILED})
mark_as_advanced(ATTENTION_BALANCER_PRECOMPILED)
if(ATTENTION_BALANCER_PRECOMPILED AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # With one g++ 12 warns of its own AVX-512 headers.
  list(JOIN arch_flags " " CMAKE_REQUIRED_FLAGS)
  check_cxx_source_compiles("int avx512 = __AVX512F__; int main() {}" ATTENTION_BALANCER_HAS_AVX512)
  unset(CMAKE_REQUIRED_FLAGS)
endif()

# attention_balancer_precompile(<target> <argument of target_precompile_headers>...)
function(attention_balancer_precompile target)
  if(ATTENTION_BALANCER_PRECOMPILED)
    target_precompile_headers(${target} ${ARGN})
    if(ATTENTION_BALANCER_HAS_AVX512)
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
  endif()
endfunction()

if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(ATTENTION_BALANCER_CCACHE ccache)
  mark_as_advanced(ATTENTION_BALANCER_CCACHE)
  if(ATTENTION_BALANCER_CCACHE AND NOT ATTENTION_BALANCER_PRECOMPILED)
    # Paths relative to the project: what one clone has compiled serves the next.
    set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" CCACHE_NOHASHDIR=1
        "${ATTENTION_BALANCER_CCACHE}")
  endif()
endif()

# The kernels, which know nothing of policies, compiled once for the tests and examples whose sources are compiled with
# kernels.hpp or cache_kernels.hpp.
foreach(kernels IN ITEMS kernels cache_kernels)
  add_library(attention_balancer_${kernels} STATIC EXCLUDE_FROM_ALL
    "${PROJECT_SOURCE_DIR}/tests/support/${kernels}.cpp")
  target_include_directories(attention_balancer_${kernels} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(attention_balancer_${kernels} PUBLIC attention_balancer_development)
endforeach()
target_link_libraries(attention_balancer_cache_kernels PUBLIC attention_balancer_kernels)
