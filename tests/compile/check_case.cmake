# SOURCE names what must not compile in lines of the form
#
#   // case 1: <regular expression that the compiler's error must match>
#
# Compiled with CASE=0 it must be right; with each of the numbers it must fail with one error, which says that: a
# user is to read one sentence, and not the inside of the library after it. Only the line of the error counts, so
# that the source quoted beneath it cannot match by itself.
include("${CMAKE_CURRENT_LIST_DIR}/compiler.cmake")

compile(result output -fsyntax-only -DCASE=0 "${SOURCE}")
if(NOT result EQUAL 0)
  show("${output}")
  message(FATAL_ERROR "What must compile does not.")
endif()

file(STRINGS "${SOURCE}" cases REGEX "^// case [0-9]+: ")
if(NOT cases)
  message(FATAL_ERROR "${SOURCE} names no case that must not compile")
endif()

# An umbrella, which takes seconds to read, is read once for all cases.
file(STRINGS "${SOURCE}" header REGEX "^#include \"attention_balancer/[a-z_]+\\.hpp\"" LIMIT_COUNT 1)
set(precompiled "")
if(header)
  get_filename_component(name "${SOURCE}" NAME_WE)
  set(prefix "${WORK_DIR}/${name}.hpp")
  file(WRITE "${prefix}" "${header}\n")
  compile(result output -x c++-header "${prefix}" -o "${prefix}.gch")
  if(NOT result EQUAL 0)
    show("${output}")
    message(FATAL_ERROR "${header} does not compile.")
  endif()
  set(precompiled -include "${prefix}")
endif()

foreach(line IN LISTS cases)
  string(REGEX MATCH "^// case ([0-9]+): (.*)$" _ "${line}")
  set(number "${CMAKE_MATCH_1}")
  set(expected "${CMAKE_MATCH_2}")
  compile(result output ${precompiled} -fsyntax-only "-DCASE=${number}" "${SOURCE}")
  if(result EQUAL 0)
    message(SEND_ERROR "Case ${number} compiles, but must not.")
    continue()
  endif()
  string(REGEX MATCHALL "error: [^\n]*" errors "${output}")
  list(LENGTH errors count)
  if(NOT count EQUAL 1 OR NOT "${errors}" MATCHES "${expected}")
    list(JOIN errors "\n" lines)
    show("${lines}")
    message(SEND_ERROR "Case ${number} must say '${expected}', and that alone, but says the above.")
  endif()
endforeach()
