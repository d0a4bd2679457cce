"""The source of an export: a checkpoint's config, tensors and tokenizer, and its model without weights."""
