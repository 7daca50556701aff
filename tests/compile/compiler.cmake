# Shown as it is, where message(FATAL_ERROR) would break the lines; the first errors tell the rest.
function(show text)
  string(SUBSTRING "${text}" 0 4000 text)
  message("${text}")
endfunction()

# compile(<result> <output> <argument>...): runs COMPILER with the flags of FLAGS_FILE and these arguments. The
# language is English whatever the machine speaks, because messages are compared.
function(compile result output)
  file(STRINGS "${FLAGS_FILE}" flags)
  set(ENV{LC_ALL} C)
  execute_process(COMMAND "${COMPILER}" ${flags} ${ARGN}
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  set(${result} "${status}" PARENT_SCOPE)
  set(${output} "${text}" PARENT_SCOPE)
endfunction()
