# The Hopper level: code for sm_90a in CUDA language, beside Kokkos' own -arch=sm_90.
include_guard(GLOBAL)

# Decides on Tributary_ENABLE_SM90 and turns CUDA language on.  A macro: enable_language works in the caller's folder.
macro(tributary_enable_sm90)
  set(_tributary_sm90 OFF)
  if(Kokkos_ENABLE_CUDA)
    find_package(CUDAToolkit QUIET)
    # wgmma, TMA and setmaxnreg with all that we use came with 12.3
    if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.3)
      set(_tributary_sm90 ON)
    endif()
  endif()
  option(Tributary_ENABLE_SM90 "Compile the Hopper (sm_90a) level" ${_tributary_sm90})
  if(Tributary_ENABLE_SM90 AND NOT Kokkos_ENABLE_CUDA)
    message(FATAL_ERROR "Tributary_ENABLE_SM90 needs a Kokkos with CUDA.")
  endif()
  if(Tributary_ENABLE_SM90)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    endif()
    if(NOT CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}")
    endif()
    enable_language(CUDA)
    message(STATUS "Tributary: Hopper level with CUDA ${CMAKE_CUDA_COMPILER_VERSION}")
  endif()
endmacro()

# Adds sources in CUDA language to the library.
function(tributary_add_sm90_objects)
  # Kokkos links the shared runtime; two runtimes in one process do not share contexts' state.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  add_library(tributary_sm90 OBJECT ${ARGN})
  set_target_properties(tributary_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real LINKER_LANGUAGE CXX)
  target_include_directories(tributary_sm90 PRIVATE "${PROJECT_SOURCE_DIR}/src" "${PROJECT_SOURCE_DIR}/include"
                                                    "${PROJECT_BINARY_DIR}/include")
  # Kokkos' headers and definitions, without its options: those carry -arch=sm_90.
  target_include_directories(tributary_sm90 SYSTEM PRIVATE "$<TARGET_PROPERTY:Kokkos::kokkos,INTERFACE_INCLUDE_DIRECTORIES>"
                                                           "$<TARGET_PROPERTY:Kokkos::kokkoscore,INTERFACE_INCLUDE_DIRECTORIES>")
  target_compile_definitions(tributary_sm90 PRIVATE "$<TARGET_PROPERTY:Kokkos::kokkoscore,INTERFACE_COMPILE_DEFINITIONS>")
  target_compile_options(tributary_sm90 PRIVATE --extended-lambda --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra)
  # CMake 3.25 does not know that nvcc has C++20 and would drop or refuse the standard.
  if(CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set_target_properties(tributary_sm90 PROPERTIES CUDA_STANDARD 20 CUDA_EXTENSIONS OFF)
  else()
    set_target_properties(tributary_sm90 PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED OFF)
    target_compile_options(tributary_sm90 PRIVATE -std=c++20)
  endif()
  if(Kokkos_ENABLE_OPENMP)
    target_compile_options(tributary_sm90 PRIVATE -Xcompiler=-fopenmp) # Kokkos' headers insist
  endif()
  if(Tributary_WARNINGS_AS_ERRORS)
    target_compile_options(tributary_sm90 PRIVATE -Werror=all-warnings -Xcompiler=-Werror)
  endif()

  # One relocatable object: the library, and whoever links it, then stays free of CUDA as a language.
  set(object "${CMAKE_CURRENT_BINARY_DIR}/tributary_sm90.o")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND "${CMAKE_CXX_COMPILER}" -r -nostdlib -o "${object}" "$<TARGET_OBJECTS:tributary_sm90>"
    DEPENDS "$<TARGET_OBJECTS:tributary_sm90>" tributary_sm90
    COMMENT "Joining the sm_90a objects"
    COMMAND_EXPAND_LISTS VERBATIM)
  target_sources(tributary PRIVATE "${object}")
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
endfunction()
