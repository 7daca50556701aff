# Links objects into one in which only TABLE, and the names of types, are visible from outside. isa.cmake tells why.
# cmake -DCOMPILER=... -DTARGET=... -DOBJCOPY=... -DREADELF=... -DTABLE=... -DOUTPUT=... -P combine_kernels.cmake -- object...

set(objects "")
set(after_dashes FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(after_dashes)
    list(APPEND objects "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(after_dashes TRUE)
  endif()
endforeach()

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result ERROR_VARIABLE error)
  if(NOT result EQUAL 0)
    file(REMOVE "${OUTPUT}")
    message(FATAL_ERROR "attention_balancer_add_kernels: ${error}")
  endif()
endfunction()

if(TARGET)
  set(target "--target=${TARGET}")
endif()
# The group of an inline function tells the linker to keep one of them: without groups it keeps each, for its own ISA.
run("${COMPILER}" ${target} -r -nostdlib -Wl,--force-group-allocation -o "${OUTPUT}" ${objects})
run("${OBJCOPY}" --wildcard "--keep-global-symbol=${TABLE}" "--keep-global-symbol=_ZTI*" "--keep-global-symbol=_ZTS*"
  "${OUTPUT}")

# Functions that run before main. The first hundred priorities are the compiler's own: sanitizers use them.
execute_process(COMMAND "${READELF}" -S -s -W "${OUTPUT}" OUTPUT_VARIABLE contents RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  file(REMOVE "${OUTPUT}")
  message(FATAL_ERROR "attention_balancer_add_kernels: ${READELF} cannot read ${OUTPUT}")
endif()
string(REGEX MATCHALL " \\.(init_array|preinit_array|ctors)(\\.[0-9]+)? " starters "${contents}")
list(FILTER starters EXCLUDE REGEX "\\.init_array\\.0*([0-9]?[0-9]|100) ")
if(starters)
  file(REMOVE "${OUTPUT}")
  string(REGEX MATCHALL "_GLOBAL__sub_I_[A-Za-z0-9_.]+" names "${contents}")
  message(FATAL_ERROR "attention_balancer_add_kernels: the sources initialise something before main, which would run on "
                      "machines without the instruction set (<iostream> does, and so do global objects): ${names}")
endif()
