"""Write models as GGUF, and run them in llama.cpp."""
