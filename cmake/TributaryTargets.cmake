# How Tributary's own sources are compiled: flags, and which of them once for every enabled Kokkos execution space.
include_guard(GLOBAL)

# Tributary_SPACES: the enabled execution spaces as lower-case words (serial openmp cuda ...).
# Tributary_SPACE_<word>: the C++ type, e.g. Kokkos::OpenMP.
macro(tributary_find_execution_spaces)
  set(Tributary_SPACES "")
  foreach(_tributary_space IN ITEMS Serial OpenMP Threads Cuda HIP)
    string(TOUPPER "${_tributary_space}" _tributary_device)
    string(TOLOWER "${_tributary_space}" _tributary_word)
    if(Kokkos_ENABLE_${_tributary_device})
      list(APPEND Tributary_SPACES ${_tributary_word})
      set(Tributary_SPACE_${_tributary_word} "Kokkos::${_tributary_space}")
    endif()
  endforeach()
  message(STATUS "Tributary: execution spaces ${Tributary_SPACES}")
endmacro()

# Compiles a target of ours against Kokkos, with our warnings and the private headers of src.
function(tributary_configure_target target)
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/src")
  # nvcc sees generated code, where -Wshadow and the like only make noise
  set(warnings -Wall -Wextra)
  if(NOT Kokkos_ENABLE_CUDA)
    list(APPEND warnings -Wshadow -Wpedantic -Wnon-virtual-dtor)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND warnings -Wno-restrict) # false alarms on std::string: GCC bug 105329
  endif()
  if(Tributary_WARNINGS_AS_ERRORS)
    list(APPEND warnings -Werror)
    if(Kokkos_ENABLE_CUDA AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND warnings -Werror=all-warnings) # nvcc's own, too
    endif()
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${warnings}>")
endfunction()

# Compiles a target for one execution space, which its sources know as TRIBUTARY_EXECUTION_SPACE.
function(tributary_set_execution_space target space)
  target_compile_definitions(${target} PRIVATE TRIBUTARY_EXECUTION_SPACE=${Tributary_SPACE_${space}})
endfunction()

# Objects of the library.
function(tributary_add_objects target)
  add_library(${target} OBJECT ${ARGN})
  tributary_configure_target(${target})
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}/include" "${PROJECT_BINARY_DIR}/include")
  target_link_libraries(${target} PRIVATE Kokkos::kokkos)
endfunction()

# What a user of the library gets with it.
function(tributary_set_interface target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(
    ${target} PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>" "$<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>"
                     "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
  target_link_libraries(${target} PUBLIC Kokkos::kokkos)
endfunction()

# The library from one list of sources; a file's name says how it is compiled:
#   *_portable.cpp   once for every enabled execution space (object libraries tributary_serial, tributary_openmp, ...)
#   *.cu             for sm_90a (TributarySM90.cmake), left out where Tributary_ENABLE_SM90 is off
#   the others       once
function(tributary_add_library)
  set(portable ${ARGN})
  list(FILTER portable INCLUDE REGEX "_portable\\.cpp$")
  set(sm90 ${ARGN})
  list(FILTER sm90 INCLUDE REGEX "\\.cu$")
  set(once ${ARGN})
  list(FILTER once EXCLUDE REGEX "(_portable\\.cpp|\\.cu)$")

  tributary_add_objects(tributary_once ${once})
  set(objects "$<TARGET_OBJECTS:tributary_once>")
  foreach(space IN LISTS Tributary_SPACES)
    tributary_add_objects(tributary_${space} ${portable})
    tributary_set_execution_space(tributary_${space} ${space})
    list(APPEND objects "$<TARGET_OBJECTS:tributary_${space}>")
  endforeach()
  add_library(tributary ${objects})
  add_library(Tributary::tributary ALIAS tributary)
  tributary_set_interface(tributary)
  set_target_properties(tributary PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
                                             LINKER_LANGUAGE CXX)

  # What a device runs, on OpenMP's threads: the kernels' other path, for tests on machines without a device.
  if(Tributary_ENABLE_TESTS AND "openmp" IN_LIST Tributary_SPACES AND NOT Kokkos_ENABLE_CUDA)
    tributary_add_objects(tributary_device_path_openmp ${portable})
    tributary_set_execution_space(tributary_device_path_openmp openmp)
    target_compile_definitions(tributary_device_path_openmp PRIVATE TRIBUTARY_TEST_DEVICE_PATH)
    # Where GCC vectorises a scalar sum in order, it fuses multiplication and addition in the loop's remainder only; a device's compiler
    # fuses all.  Unfused, a row's bits do not depend on where its loop begins, here either.
    target_compile_options(tributary_device_path_openmp PRIVATE -ffp-contract=off)
    list(REMOVE_ITEM objects "$<TARGET_OBJECTS:tributary_openmp>")
    add_library(tributary_device_path STATIC ${objects} $<TARGET_OBJECTS:tributary_device_path_openmp>)
    tributary_set_interface(tributary_device_path)
    set_target_properties(tributary_device_path PROPERTIES LINKER_LANGUAGE CXX)
  endif()

  if(Tributary_ENABLE_SM90 AND sm90)
    tributary_add_sm90_objects(${sm90})
  endif()
endfunction()
