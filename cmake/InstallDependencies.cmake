# Builds and installs Kokkos and Kokkos Kernels into a prefix, apart from Tributary:
#   cmake -DPREFIX=<folder> [-DDEVICES="SERIAL;OPENMP"] [-DARCH=HOPPER90] [-DJOBS=2] [-DTributary_DEPENDENCY_PROVIDER=auto|github|pypi]
#         -P cmake/InstallDependencies.cmake
# Then: cmake -B build -DKokkos_ROOT=<folder> -DKokkosKernels_ROOT=<folder>
cmake_minimum_required(VERSION 3.25)
if(NOT PREFIX)
  message(FATAL_ERROR "-DPREFIX=<folder> is needed")
endif()
foreach(default IN ITEMS DEVICES=SERIAL JOBS=2 BUILD_TYPE=Release Tributary_DEPENDENCY_PROVIDER=auto
                         "Tributary_DEPENDENCY_CACHE=${CMAKE_CURRENT_LIST_DIR}/../.deps")
  string(REGEX MATCH "^([^=]*)=(.*)$" _ "${default}")
  if(NOT DEFINED ${CMAKE_MATCH_1})
    set(${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
  endif()
endforeach()
get_filename_component(PREFIX "${PREFIX}" ABSOLUTE)
get_filename_component(Tributary_DEPENDENCY_CACHE "${Tributary_DEPENDENCY_CACHE}" ABSOLUTE)
include("${CMAKE_CURRENT_LIST_DIR}/DependencySources.cmake")
tributary_kokkos_source(kokkos)
tributary_kokkos_kernels_source(kernels)

set(common -G Ninja -DCMAKE_BUILD_TYPE=${BUILD_TYPE} -DCMAKE_INSTALL_PREFIX=${PREFIX} -DCMAKE_CXX_STANDARD=20
           -DCMAKE_CXX_EXTENSIONS=OFF -DCMAKE_POSITION_INDEPENDENT_CODE=ON)
set(kokkos_arguments -DKokkos_ENABLE_DEPRECATED_CODE_4=OFF)
foreach(device IN LISTS DEVICES)
  list(APPEND kokkos_arguments -DKokkos_ENABLE_${device}=ON)
endforeach()
if("CUDA" IN_LIST DEVICES)
  list(APPEND kokkos_arguments -DKokkos_ENABLE_IMPL_VIEW_LEGACY=ON -DKokkos_ENABLE_IMPL_MDSPAN=OFF) # see TributaryDependencies.cmake
endif()
if(ARCH)
  list(APPEND kokkos_arguments -DKokkos_ARCH_${ARCH}=ON)
endif()
set(kernels_arguments -DKokkos_ROOT=${PREFIX} -DKokkosKernels_ENABLE_ALL_COMPONENTS=OFF -DKokkosKernels_ENABLE_COMPONENT_BLAS=ON
                      -DKokkosKernels_ADD_DEFAULT_ETI=OFF -DKokkosKernels_ENABLE_TPL_CUSPARSE=OFF
                      -DKokkosKernels_ENABLE_TPL_CUSOLVER=OFF)

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()
foreach(library IN ITEMS kokkos kernels)
  set(build "${PREFIX}/.build/${library}")
  run("${CMAKE_COMMAND}" -S "${${library}}" -B "${build}" ${common} ${${library}_arguments})
  run("${CMAKE_COMMAND}" --build "${build}" --parallel ${JOBS})
  run("${CMAKE_COMMAND}" --install "${build}")
endforeach()
file(REMOVE_RECURSE "${PREFIX}/.build")
