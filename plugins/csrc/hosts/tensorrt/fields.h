// A node's constants as TensorRT carries them: the op's attributes, and the list of the inputs that are present,
// which a host without absent inputs needs.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ops/attributes.h"
#include "ops/declaration.h"

namespace ew::trt {

// Bit mask of the op's declared inputs that the node lists. Where it is not given, the node lists all of them in order,
// as far as its inputs reach.
constexpr const char* kPresent = "present";
constexpr std::int32_t kAllInOrder = -1;

// The multiprocessors of the device that the workspace was planned for; an engine carries it, a graph does not.
constexpr const char* kMultiprocessors = "multiprocessors";

// The attributes of an op, from the fields of a graph's node or of an engine.
class Fields : public ops::AttributeReader {
 public:
  // Throws: a field is missing, unknown, there twice, or no int or float as it should be.
  Fields(const ops::Declaration& op, const nvinfer1::PluginFieldCollection* given);

  std::int64_t read(const char* name, const std::int64_t* fallback) const override;
  float read(const char* name, const float* fallback) const override;

  std::int32_t present() const { return present_; }
  // 0 where the engine is still being built.
  std::int32_t multiprocessors() const { return multiprocessors_; }
  void set_multiprocessors(std::int32_t count) { multiprocessors_ = count; }

  // Every field, pointing into this object: all that Fields needs to be made again.
  std::vector<nvinfer1::PluginField> all() const;

  // "layer=1 scale=0x1p-3 ...": the attributes and `present`, floats exactly.
  std::string text() const;

 private:
  struct Value {
    std::int32_t integer = 0;
    float number = 0.0f;
    bool given = false;
  };
  std::size_t index_of(const char* name) const;
  void take(const nvinfer1::PluginField& field);

  const ops::Declaration* op_;
  std::vector<Value> values_;  // one for each attribute
  std::int32_t present_ = kAllInOrder, multiprocessors_ = 0;
};

// The fields that a node may have, without data.
std::vector<nvinfer1::PluginField> field_names(const ops::Declaration& op);

}  // namespace ew::trt
