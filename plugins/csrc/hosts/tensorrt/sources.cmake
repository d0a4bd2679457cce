# The sources that are compiled against TensorRT's headers, and again against our declaration of them for tests.
file(GLOB EW_TRT_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cpp ${CMAKE_CURRENT_LIST_DIR}/../../ops/*.cpp)
