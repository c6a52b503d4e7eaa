# One step of the install test; see CMakeLists.txt beside it for the variables.
#   MODE=prefix           installs the build into WORK/prefix
#   MODE=as_library       builds and runs the project with find_package(Tributary) from that prefix
#   MODE=as_subdirectory  builds and runs it with add_subdirectory(<Tributary's sources>), on the Kokkos of that prefix, so that
#                         only Tributary itself is compiled again
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(prefix "${WORK}/prefix")
if(MODE STREQUAL "prefix")
  file(REMOVE_RECURSE "${prefix}")
  run("${CMAKE_COMMAND}" --install "${TRIBUTARY_BUILD}" --prefix "${prefix}")
  return()
endif()

set(build "${WORK}/${MODE}")
set(arguments -DTributary_HOW=${MODE} "-DCMAKE_PREFIX_PATH=${prefix}" "-DCMAKE_BUILD_TYPE=${BUILD_TYPE}"
              "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}" "-DCMAKE_CXX_FLAGS=${CXX_FLAGS}")
if(MODE STREQUAL "as_subdirectory")
  list(APPEND arguments "-DTributary_SOURCE=${TRIBUTARY_SOURCE}" -DTributary_DEPENDENCY_PROVIDER=none)
  if(KOKKOS_DIR)
    list(APPEND arguments "-DKokkos_DIR=${KOKKOS_DIR}")
  endif()
endif()
file(REMOVE_RECURSE "${build}")
run("${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/project" -B "${build}" -G "${GENERATOR}" ${arguments})
run("${CMAKE_COMMAND}" --build "${build}" --parallel 2)
run("${build}/downstream")
