"""The text part of multimodal checkpoints, such as Gemma 3 or Qwen2.5-VL, as a checkpoint of a text model of its own."""
