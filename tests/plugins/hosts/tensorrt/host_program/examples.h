// One node of each op and of each set of optional inputs, for tests that all ops share.
#pragma once

#include <string>
#include <vector>

#include "host.h"

struct Example {
  std::string name, op;
  std::vector<host::Field> fields;
  std::vector<host::Tensor> inputs, outputs;
  std::vector<int> aliases;  // of each output: the node's input that it updates in place, or -1
  std::string serialized;    // fields of the engine
};

// Activations of `type`, kHALF or kBF16.
std::vector<Example> examples(host::DataType type);
Example example(const std::string& name);  // of halves

std::vector<host::Field> without(std::vector<host::Field> fields, const std::string& name);
std::vector<host::Field> with(std::vector<host::Field> fields, host::Field field);
