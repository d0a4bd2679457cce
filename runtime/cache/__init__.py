"""The bookkeeping of the key-value cache: sizes, free tiles, tile tables, shared prefixes."""
