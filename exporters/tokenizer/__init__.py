"""The tokenizer of an engine: one complete tokenizer.json, and the settings that the runtime reads besides."""
