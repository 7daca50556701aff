# Downloads URL to FILE unless it is there already with this SHA256; fails when what came has another.
# cmake -DURL=... -DSHA256=... -DFILE=... -P cmake/download.cmake
file(DOWNLOAD "${URL}" "${FILE}" EXPECTED_HASH SHA256=${SHA256} TIMEOUT 120 STATUS status)
list(GET status 0 code)
if(NOT code EQUAL 0)
  file(REMOVE "${FILE}")
  message(FATAL_ERROR "${URL}: ${status}")
endif()
