"""Text to token ids and back: the tokenizer, chat templates, and text from tokens as they come."""
