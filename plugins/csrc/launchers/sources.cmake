# The launchers and their kernels, compiled by nvcc, and again by a C++ compiler for the emulated device.
set(csrc ${CMAKE_CURRENT_LIST_DIR}/..)
file(GLOB EW_CUDA_SOURCES CONFIGURE_DEPENDS ${csrc}/launchers/*.cu)
# The adapters that hand them to ONNX Runtime; of hosts/ort_cpu the part that its two providers share.
file(GLOB EW_CUDA_ADAPTERS CONFIGURE_DEPENDS ${csrc}/ops/*.cpp ${csrc}/hosts/ort_cuda/*.cpp)
foreach(shared declaration host register)
  list(APPEND EW_CUDA_ADAPTERS ${csrc}/hosts/ort_cpu/${shared}.cpp)
endforeach()
