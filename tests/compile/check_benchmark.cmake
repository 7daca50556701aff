# SOURCE, a benchmark, compiles with every warning. OPENMP: the compiler's flag for it. What it takes from the build is some text here.
include("${CMAKE_CURRENT_LIST_DIR}/compiler.cmake")
compile(result output -fsyntax-only ${OPENMP} "-I${INCLUDE_DIR}/../bench" "-I${INCLUDE_DIR}/../examples"
  -DATTENTION_BALANCER_EXAMPLE_DATA=__FILE__ -DATTENTION_BALANCER_MODEL_DIR=__FILE__ "${SOURCE}")
if(NOT result EQUAL 0)
  show("${output}")
  message(FATAL_ERROR "${SOURCE} does not compile.")
endif()
