"""The tiny world: a grammar whose best possible loss is known, its tasks, GPTs pretrained on it.

It knows the GPT and the training loop, no method of fine-tuning. The lab and the course enter.
"""
