"""Learned image prompts as networks: onnxruntime, torch.export."""
