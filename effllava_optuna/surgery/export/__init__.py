"""Export a pruned model as a checkpoint or ONNX file, and verify it."""
