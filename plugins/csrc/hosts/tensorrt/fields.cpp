#include "hosts/tensorrt/fields.h"

#include <cstdio>
#include <cstring>
#include <limits>
#include <locale>
#include <sstream>

#include "ops/tensor.h"

namespace ew::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using ops::AttributeDeclaration;
using ops::fail;

bool is_int(const AttributeDeclaration& attribute) { return std::strcmp(attribute.type, "int") == 0; }
bool is_required(const AttributeDeclaration& attribute) { return std::strcmp(attribute.fallback, "null") == 0; }
std::string with_article(const AttributeDeclaration& attribute) { return is_int(attribute) ? "an int" : "a float"; }

std::string type_of(const PluginField& field) {
  if (field.data == nullptr) return "no data";
  const std::string count = field.length == 1 ? "" : std::to_string(field.length) + " numbers of ";
  switch (field.type) {
    case PluginFieldType::kINT32:
    case PluginFieldType::kINT64:
      return count.empty() ? "an int" : count + "type int";
    case PluginFieldType::kFLOAT32:
      return count.empty() ? "a float" : count + "type float";
    default:
      return count + "field type " + std::to_string(static_cast<int>(field.type));
  }
}

std::int32_t integer_of(const PluginField& field) {
  if (field.data == nullptr || field.length != 1) fail(field.name, type_of(field), "an int");
  if (field.type == PluginFieldType::kINT32) {
    std::int32_t value = 0;
    std::memcpy(&value, field.data, sizeof value);
    return value;
  }
  if (field.type != PluginFieldType::kINT64) fail(field.name, type_of(field), "an int");
  std::int64_t value = 0;
  std::memcpy(&value, field.data, sizeof value);
  if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max())
    fail(field.name, std::to_string(value), "an int of 32 bits");
  return static_cast<std::int32_t>(value);
}

float number_of(const PluginField& field) {
  if (field.data == nullptr || field.length != 1 || field.type != PluginFieldType::kFLOAT32)
    fail(field.name, type_of(field), "a float");
  float value = 0;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

// A default as the declaration has it.
template <class Number>
Number parsed(const char* json) {
  std::istringstream text(json);
  text.imbue(std::locale::classic());  // whatever the process writes its decimal points with
  Number number{};
  text >> number;
  return number;
}

// Attributes by which ONNX's parser finds the creator.
bool is_of_parser(const char* name) {
  return std::strcmp(name, "plugin_version") == 0 || std::strcmp(name, "plugin_namespace") == 0;
}

std::string known_names(const ops::Declaration& op) {
  std::string names;
  for (std::size_t i = 0; i < op.attribute_count; ++i) names += std::string(op.attributes[i].name) + ", ";
  return names + kPresent;
}

}  // namespace

Fields::Fields(const ops::Declaration& op, const nvinfer1::PluginFieldCollection* given)
    : op_(&op), values_(op.attribute_count) {
  for (std::size_t i = 0; i < op.attribute_count; ++i) {
    const AttributeDeclaration& attribute = op.attributes[i];
    if (is_required(attribute)) continue;
    values_[i].integer = is_int(attribute) ? parsed<std::int32_t>(attribute.fallback) : 0;
    values_[i].number = is_int(attribute) ? 0.0f : parsed<float>(attribute.fallback);
  }
  if (given == nullptr || (given->nbFields > 0 && given->fields == nullptr))
    fail("fields", "a null pointer", "the node's attributes");
  for (std::int32_t i = 0; i < given->nbFields; ++i) take(given->fields[i]);
  for (std::size_t i = 0; i < op.attribute_count; ++i)
    if (is_required(op.attributes[i]) && !values_[i].given)
      fail(op.attributes[i].name, "no attribute", with_article(op.attributes[i]));
}

std::size_t Fields::index_of(const char* name) const {
  std::size_t i = 0;
  while (i < op_->attribute_count && std::strcmp(op_->attributes[i].name, name) != 0) ++i;
  return i;
}

void Fields::take(const PluginField& field) {
  if (field.name == nullptr) fail("fields", "one without a name", "one of " + known_names(*op_));
  if (is_of_parser(field.name)) return;
  if (std::strcmp(field.name, kPresent) == 0) {
    present_ = integer_of(field);
    return;
  }
  if (std::strcmp(field.name, kMultiprocessors) == 0) {
    multiprocessors_ = integer_of(field);
    return;
  }
  const std::size_t i = index_of(field.name);
  if (i == op_->attribute_count) fail(field.name, "an unknown attribute", "one of " + known_names(*op_));
  if (values_[i].given) fail(field.name, "two attributes of this name", "one");
  values_[i].given = true;
  if (is_int(op_->attributes[i]))
    values_[i].integer = integer_of(field);
  else
    values_[i].number = number_of(field);
}

// Every attribute has a value: the fallbacks of the reader's caller are those of the declaration.
std::int64_t Fields::read(const char* name, const std::int64_t*) const { return values_.at(index_of(name)).integer; }
float Fields::read(const char* name, const float*) const { return values_.at(index_of(name)).number; }

std::vector<PluginField> Fields::all() const {
  std::vector<PluginField> fields;
  for (std::size_t i = 0; i < op_->attribute_count; ++i) {
    const AttributeDeclaration& attribute = op_->attributes[i];
    if (is_int(attribute))
      fields.emplace_back(attribute.name, &values_[i].integer, PluginFieldType::kINT32, 1);
    else
      fields.emplace_back(attribute.name, &values_[i].number, PluginFieldType::kFLOAT32, 1);
  }
  fields.emplace_back(kPresent, &present_, PluginFieldType::kINT32, 1);
  fields.emplace_back(kMultiprocessors, &multiprocessors_, PluginFieldType::kINT32, 1);
  return fields;
}

std::string Fields::text() const {
  std::string text;
  for (std::size_t i = 0; i < op_->attribute_count; ++i) {
    const AttributeDeclaration& attribute = op_->attributes[i];
    char number[32];
    std::snprintf(number, sizeof number, "%a", static_cast<double>(values_[i].number));
    text += std::string(attribute.name) + "=" + (is_int(attribute) ? std::to_string(values_[i].integer) : number) + " ";
  }
  return text + kPresent + "=" + std::to_string(present_);
}

std::vector<PluginField> field_names(const ops::Declaration& op) {
  std::vector<PluginField> fields;
  for (std::size_t i = 0; i < op.attribute_count; ++i)
    fields.emplace_back(op.attributes[i].name, nullptr,
                        is_int(op.attributes[i]) ? PluginFieldType::kINT32 : PluginFieldType::kFLOAT32, 1);
  fields.emplace_back(kPresent, nullptr, PluginFieldType::kINT32, 1);
  return fields;
}

}  // namespace ew::trt
