# What the library needs, prepared the same way in the build and in the installed package, which includes this file
# too. Nothing is searched for by version: the version files of xsimd and Eigen accept one major version only, so
# that asking for at least 8.1 would refuse 13.

set(ATTENTION_BALANCER_XSIMD_VERSION_MIN 8.1)
set(ATTENTION_BALANCER_EIGEN_VERSION_MIN 3.3)

# Sets <problem> in the caller to what is wrong with the packages that were found, or to nothing.
function(attention_balancer_prepare_dependencies problem)
  set(text "")
  if(xsimd_VERSION AND xsimd_VERSION VERSION_LESS ATTENTION_BALANCER_XSIMD_VERSION_MIN)
    string(APPEND text "xsimd is ${xsimd_VERSION}, but must be ${ATTENTION_BALANCER_XSIMD_VERSION_MIN} or newer. ")
  endif()
  if(Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS ATTENTION_BALANCER_EIGEN_VERSION_MIN)
    string(APPEND text "Eigen is ${Eigen3_VERSION}, but must be ${ATTENTION_BALANCER_EIGEN_VERSION_MIN} or newer. ")
  endif()

  # Debian's package of xsimd links xtl without depending on it: the linker would look for a library of that name.
  get_target_property(links xsimd INTERFACE_LINK_LIBRARIES)
  if("xtl" IN_LIST links AND NOT TARGET xtl)
    list(REMOVE_ITEM links xtl)
    set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "${links}")
  endif()
  set(${problem} "${text}" PARENT_SCOPE)
endfunction()
