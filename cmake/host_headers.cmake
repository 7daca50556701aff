# For cross builds, and to choose an xsimd: header-only packages in a folder of their own, made visible to the build.
# Their folders are linked into the build folder one by one, because /usr/include as a whole would bring along the
# C library headers of the wrong machine. Everything after this finds the targets defined and looks no further.

set(folder "${PROJECT_BINARY_DIR}/host_headers")
file(MAKE_DIRECTORY "${folder}")
foreach(package IN ITEMS xsimd catch2 eigen3)
  if(NOT IS_DIRECTORY "${ATTENTION_BALANCER_HOST_HEADERS}/${package}")
    message(FATAL_ERROR "attention_balancer: ${ATTENTION_BALANCER_HOST_HEADERS}/${package} is missing")
  endif()
  file(CREATE_LINK "${ATTENTION_BALANCER_HOST_HEADERS}/${package}" "${folder}/${package}" SYMBOLIC)
endforeach()

foreach(target IN ITEMS xsimd Catch2::Catch2 Eigen3::Eigen)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
endforeach()
target_include_directories(xsimd SYSTEM INTERFACE "${folder}")
target_include_directories(Catch2::Catch2 SYSTEM INTERFACE "${folder}")
target_include_directories(Eigen3::Eigen SYSTEM INTERFACE "${folder}/eigen3")
