"""Device memory and buffers that several GPU sessions share."""
