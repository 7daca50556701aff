# Compiling for a chosen instruction set, and one program for several machines. Installed with the package.

set(ATTENTION_BALANCER_CMAKE_FOLDER "${CMAKE_CURRENT_LIST_DIR}")

# The names that attention_balancer_target_isa knows, as in the namespaces isa_sse2, isa_avx2, ...
set(ATTENTION_BALANCER_ISAS scalar sse2 avx2 avx512 avx512bf16 neon64)

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
  elseif(isa STREQUAL "avx512bf16")
    set(flags -march=x86-64-v4 -mavx512bf16 -mavx512vnni)
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

# attention_balancer_add_kernels(<target> SOURCES <source>... [ISAS <isa>...] [LINK <target>...])
#
# A static library of the sources, compiled once per ISA (default: sse2 avx2 avx512, or neon64), and a list of them from
# which the program chooses when it runs: see attention_balancer/core/dispatch.hpp, which tells what stands in the
# sources. avx512bf16 differs from avx512 for kernels that use Bf16Products or IntegerProducts. LINK is for what they
# include beside attention_balancer.
#
# Two compilations of an inline function have one name, and the linker would keep either: an AVX-512 std::vector on a
# machine that has none. So the objects of an ISA are linked into one, in which only the table has a name for the outside;
# the names of types stay common, so that exceptions are caught. Sources that would run code before main are refused: it
# would run on every machine. Needs ELF and GNU ld.
function(attention_balancer_add_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;ISAS;LINK")
  if(NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "attention_balancer_add_kernels(<target> SOURCES <source>... [ISAS <isa>...] [LINK <target>...])")
  endif()
  if(NOT CMAKE_OBJCOPY OR NOT CMAKE_READELF OR APPLE OR WIN32)
    message(FATAL_ERROR "attention_balancer_add_kernels needs objcopy and readelf, and object files in ELF")
  endif()
  if(NOT arg_ISAS)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
      set(arg_ISAS sse2 avx2 avx512)
    elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
      set(arg_ISAS neon64)
    else()
      set(arg_ISAS scalar)
    endif()
  endif()

  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${target}_kernels")
  set(declarations "")
  set(entries "")
  set(objects "")
  set(compiled "")
  foreach(isa IN LISTS ATTENTION_BALANCER_ISAS)  # from the least demanding on, as they are searched
    if(NOT isa IN_LIST arg_ISAS)
      continue()
    endif()
    list(REMOVE_ITEM arg_ISAS ${isa})
    set(table attention_balancer_table_${target}_${isa})
    add_library(${target}_${isa} OBJECT ${arg_SOURCES})
    target_link_libraries(${target}_${isa} PRIVATE attention_balancer::attention_balancer ${arg_LINK})
    target_compile_definitions(${target}_${isa} PRIVATE ATTENTION_BALANCER_KERNELS_ISA=${isa})
    set_target_properties(${target}_${isa} PROPERTIES
      POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON
      INTERPROCEDURAL_OPTIMIZATION OFF)
    attention_balancer_target_isa(${target}_${isa} ${isa})
    # g++ marks static data of inline functions as unique in the process, which no objcopy undoes.
    target_compile_options(${target}_${isa} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)

    set(object "${folder}/${isa}${CMAKE_CXX_OUTPUT_EXTENSION}")
    add_custom_command(OUTPUT "${object}"
      COMMAND "${CMAKE_COMMAND}" "-DCOMPILER=${CMAKE_CXX_COMPILER}" "-DTARGET=${CMAKE_CXX_COMPILER_TARGET}"
        "-DOBJCOPY=${CMAKE_OBJCOPY}" "-DREADELF=${CMAKE_READELF}" "-DTABLE=${table}" "-DOUTPUT=${object}"
        -P "${ATTENTION_BALANCER_CMAKE_FOLDER}/combine_kernels.cmake" -- "$<TARGET_OBJECTS:${target}_${isa}>"
      DEPENDS "$<TARGET_OBJECTS:${target}_${isa}>" "${ATTENTION_BALANCER_CMAKE_FOLDER}/combine_kernels.cmake"
      COMMENT "Combining the kernels of ${target} for ${isa}" COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND objects "${object}")
    list(APPEND compiled ${target}_${isa})
    string(APPEND declarations "extern \"C\" const char ${table};\n")
    string(APPEND entries "  {\"${isa}\", &${table}},\n")
  endforeach()
  if(arg_ISAS)
    message(FATAL_ERROR "attention_balancer_add_kernels: unknown ISA '${arg_ISAS}'; known are ${ATTENTION_BALANCER_ISAS}")
  endif()

  # Only the addresses of the tables are used here, not their type.
  file(CONFIGURE OUTPUT "${folder}/list.cpp" CONTENT "// Made by attention_balancer_add_kernels.
@declarations@
extern \"C\" {
struct AttentionBalancerBuiltKernels {
  const char* isa;
  const void* table;
};
extern const AttentionBalancerBuiltKernels attention_balancer_built_@target@[];
const AttentionBalancerBuiltKernels attention_balancer_built_@target@[] = {
@entries@  {nullptr, nullptr}};
}
" @ONLY)
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(${target} STATIC "${folder}/list.cpp" ${objects})
  add_dependencies(${target} ${compiled})  # of files that another target makes Makefiles know no rule
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${target} PUBLIC attention_balancer::attention_balancer INTERFACE ${arg_LINK})
endfunction()
