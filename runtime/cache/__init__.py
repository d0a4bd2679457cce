"""The key-value cache's bookkeeping: sizes, free tiles, tile tables, shared prefixes."""
