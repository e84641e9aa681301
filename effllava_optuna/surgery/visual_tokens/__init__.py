"""Which image tokens the decoder reads."""
