# What is compiled by nvcc, and again by a C++ compiler for the emulated device.
set(EW_CUDA_SOURCES configurations.cu library.cu probe.cu)
